"""Who may spend: the owner at this machine, strangers, web pages that use the owner's browser, and actors."""

import asyncio
import contextlib
import contextvars
import http.client
import json
import logging
import socket
import subprocess
import sys
import time
from urllib.parse import urlencode

import pytest
from datasette import Response, hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

from datasette_vec_gemini.plugin import permissions, visitors

ONE = hasattr(Datasette, "allowed")
HOME = ("127.0.0.1", 50_000)
STRANGER = ("203.0.113.7", 50_000)
LOCAL = {"host": "127.0.0.1:8001"}
BROWSER = LOCAL | {"user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"}
OWN_PAGE = BROWSER | {"sec-fetch-site": "same-origin"}
CROSS_SITE = BROWSER | {"sec-fetch-site": "cross-site"}
SQL = ("/data/-/query.json" if ONE else "/data.json", urlencode({"sql": "select may()", "_shape": "arrayfirst"}))
PAGE = ("/-/may", "")


class Doors:
    """A SQL function and a page that say whether the visitor may spend, and pages that ask on behalf of a visitor."""

    __name__ = "visitors-doors"

    def __init__(self):
        self.meanwhile = None

    @hookimpl
    def prepare_connection(self, conn, datasette):
        conn.create_function("may", 0, lambda: visitors.may_embed(datasette))

    @hookimpl
    def register_routes(self):
        async def page(datasette, request):
            return Response.json([await visitors.may_embed_async(datasette, request)])

        async def inner(datasette):
            """As a plugin that reads through Datasette's own client does."""
            answer = await datasette.client.get("?".join(SQL), **({"skip_permission_checks": True} if ONE else {}))
            return Response.json(answer.json())

        async def inner_page(datasette):
            return Response.json((await datasette.client.get(PAGE[0])).json())

        async def slow():
            await self.meanwhile()
            return Response.json([None])

        return [("/-/may$", page), ("/-/inner$", inner), ("/-/inner-page$", inner_page), ("/-/slow$", slow)]


@pytest.fixture(autouse=True)
def doors():
    doors = Doors()
    pm.register(doors)
    yield doors
    pm.unregister(doors)


@pytest.fixture
def data(tmp_path, conn):
    conn.close()
    return (tmp_path / "test.db").rename(tmp_path / "data.db")


@pytest.fixture
def home(data):
    """A site with these options; the block `permissions` stands where the installed version reads it."""
    opened = []

    def make(permissions=None, **options):
        block = {"permissions": permissions} if permissions else {}
        opened.append(Datasette([str(data)], **options, **({"config": block} if ONE else {"metadata": block})))
        return opened[-1]

    yield make
    for datasette in opened:
        if ONE:
            datasette.close()
        else:
            if datasette.executor:
                datasette.executor.shutdown()
            for database in datasette.databases.values():
                database.close()


async def ask(datasette, door, *, client=HOME, headers=LOCAL, actor=None, http_version="1.1"):
    """One request as a server hands it over; the answer's JSON."""
    path, query = door
    if actor:
        headers = headers | {"cookie": f"ds_actor={datasette.sign({'a': actor}, 'actor')}"}
    scope = {
        "type": "http",
        "http_version": http_version,
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": client,
        "server": ("127.0.0.1", 8001),
    }
    body = b""

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        nonlocal body
        body += message.get("body", b"")

    # A task of its own, as servers make it.
    await asyncio.create_task(datasette.app()(scope, receive, send))
    return json.loads(body)


async def may(datasette, **request):
    """What the SQL function and the page say; they never disagree, but where it is told."""
    by_sql, by_page = [bool((await ask(datasette, door, **request))[0]) for door in (SQL, PAGE)]
    assert by_sql == by_page
    return by_sql


def at_home(datasette):
    return not visitors.of(datasette).elsewhere


@pytest.mark.asyncio
@pytest.mark.parametrize("threads", [3, 1, 0])
async def test_at_home_everybody_may_and_the_first_request_from_elsewhere_ends_that_for_good(home, threads, caplog):
    datasette = home(settings={"num_sql_threads": threads})
    assert await may(datasette)
    assert at_home(datasette)
    with caplog.at_level(logging.WARNING, logger="datasette_vec_gemini"):
        for _ in range(2):
            assert not await may(datasette, client=STRANGER)
    assert not await may(datasette)
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("A request from elsewhere (its peer is another machine")


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
async def test_a_loopback_peer_is_this_machine(home, host):
    datasette = home()
    assert await may(datasette, client=(host, 1))
    assert at_home(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "client",
    [None, STRANGER, ("::ffff:203.0.113.7", 1), ("10.0.0.2", 1), ("fe80::1%eth0", 1), ("testclient", 1), ("", 0)],
)
async def test_every_other_peer_and_a_unix_socket_is_elsewhere(home, client):
    datasette = home()
    assert not await may(datasette, client=client)
    assert not at_home(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name",
    [
        "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "X-Forwarded-For", "x-real-ip",
        "cf-connecting-ip", "cf-ray", "true-client-ip", "fly-client-ip", "x-client-ip", "x-appengine-user-ip",
        "fastly-client-ip", "x-cluster-client-ip", "x-amzn-trace-id", "tailscale-user-login", "cdn-loop",
    ],
)  # fmt: skip
async def test_a_header_of_a_proxy_is_elsewhere_even_an_empty_one(home, name):
    datasette = home()
    assert not await may(datasette, headers=LOCAL | {name: ""})
    assert not await may(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["localhost", "LocalHost:8001", "127.0.0.1", "127.0.0.1:80", "[::1]:8001", "[::1]"])
async def test_a_local_host_is_at_home(home, host):
    datasette = home()
    assert await may(datasette, headers={"host": host})
    assert at_home(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": ""},
        {"host": "example.org"},
        {"host": "localhost.example.org"},
        {"host": "localhost@example.org"},
        {"host": "127.0.0.1.nip.io:8001"},
        {"host": "127.0.0.1, example.org"},
        {"host": "localhost", "Host": "example.org"},
        {"host": "0.0.0.0:8001"},
    ],
)
async def test_any_other_host_is_elsewhere_be_it_a_tunnel_or_dns_rebinding(home, headers):
    datasette = home()
    assert not await may(datasette, headers=headers)
    assert not await may(datasette)


@pytest.mark.asyncio
async def test_a_proxy_that_writes_its_own_host_gives_itself_away_by_http_1_0_or_by_the_browser_s_page(home):
    datasette = home()
    assert not await may(datasette, http_version="1.0")
    assert not at_home(datasette)
    datasette = home()
    assert not await may(datasette, headers=OWN_PAGE | {"referer": "https://example.org/data"})
    assert not at_home(datasette)
    # A page that keeps its address to itself sends this with its forms.
    datasette = home()
    assert await may(datasette, headers=OWN_PAGE | {"origin": "null"})
    assert at_home(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize("setting", [{"base_url": "/prefix/"}, {"force_https_urls": True}])
async def test_the_settings_of_a_site_behind_a_proxy_are_elsewhere_from_the_start(home, setting):
    datasette = home(settings=setting)
    assert not await may(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        (OWN_PAGE, True),
        (BROWSER | {"sec-fetch-site": "none"}, True),
        (OWN_PAGE | {"referer": "http://127.0.0.1:8001/data", "origin": "http://127.0.0.1:8001"}, True),
        (LOCAL | {"user-agent": "curl/8.5.0"}, True),
        (BROWSER | {"referer": "http://127.0.0.1:8001/data"}, True),
        (CROSS_SITE, False),
        (BROWSER | {"sec-fetch-site": "same-site"}, False),
        (CROSS_SITE | {"referer": "http://127.0.0.1:8001/"}, False),
        (OWN_PAGE | {"sec-fetch-dest": "iframe"}, False),
        (BROWSER | {"sec-fetch-site": "what-comes-next"}, False),
        # Browsers from before 2023 do not send Sec-Fetch-Site.
        (BROWSER, False),
        (BROWSER | {"referer": "https://example.org/"}, False),
        (BROWSER | {"referer": "http://127.0.0.1:3000/"}, False),
        (LOCAL | {"origin": "null"}, False),
        (LOCAL | {"origin": "https://example.org", "referer": "http://127.0.0.1:8001/"}, False),
    ],
)
async def test_a_request_that_another_web_page_caused_may_not_spend_and_others_still_may(home, headers, allowed):
    datasette = home({"vec-embed": True})
    assert await may(datasette, headers=headers, actor={"id": "root"}) == allowed
    assert at_home(datasette)
    visitors.of(datasette)._foreign_until = 0.0  # noqa: SLF001 - see the test of the aftermath
    assert await may(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_foreign_request_may_not_spend_whoever_s_cookie_comes_along(home, elsewhere):
    datasette = home({"vec-embed": {"id": "alice"}})
    if elsewhere:
        await may(datasette, client=STRANGER)
    assert not await may(datasette, headers=CROSS_SITE, actor={"id": "alice"})


@pytest.mark.asyncio
@pytest.mark.parametrize("door", [("/-/inner", ""), ("/-/inner-page", "")])
async def test_what_is_asked_through_datasette_s_own_client_is_asked_by_the_visitor(home, door):
    datasette = home()
    assert await ask(datasette, door) in ([True], [1])
    assert await ask(datasette, door, headers=CROSS_SITE) in ([False], [0])
    visitors.of(datasette)._foreign_until = 0.0  # noqa: SLF001
    assert await ask(datasette, door) in ([True], [1])
    assert at_home(datasette)
    assert await ask(datasette, door, client=STRANGER) in ([False], [0])


@pytest.mark.asyncio
async def test_datasette_s_own_client_is_at_home(home):
    datasette = home()
    assert (await datasette.client.get("?".join(SQL))).json() == [1]
    assert (await datasette.client.get(PAGE[0])).json() == [True]
    assert at_home(datasette)


@pytest.mark.asyncio
async def test_the_owner_may_while_a_foreign_request_is_answered_where_sql_knows_whom_it_serves(home, doors):
    datasette = home()
    answers = []

    async def owner_asks():
        answers.extend([await ask(datasette, SQL), await ask(datasette, PAGE), visitors.may_embed(datasette)])

    async def meanwhile():
        await asyncio.create_task(owner_asks(), context=contextvars.Context())

    doors.meanwhile = meanwhile
    await ask(datasette, ("/-/slow", ""), headers=CROSS_SITE)
    # The SQL of 0.65 knows of no request; nor does the last of the three, which is outside of all.
    assert answers == [[1 if ONE else 0], [True], False]
    assert not visitors.may_embed(datasette)


@pytest.mark.asyncio
async def test_sql_that_a_foreign_request_may_have_left_running_may_not_spend(home, monkeypatch):
    datasette = home()
    await datasette.invoke_startup()
    assert visitors.may_embed(datasette)
    await ask(datasette, PAGE, headers=CROSS_SITE)
    assert not visitors.may_embed(datasette)
    now = time.monotonic()
    monkeypatch.setattr(visitors.time, "monotonic", lambda: now + 10)
    assert visitors.may_embed(datasette)


@pytest.mark.asyncio
async def test_a_failed_request_ends_too(home, monkeypatch):
    datasette = home()

    async def broken(scope, receive, send):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        await visitors.watch(datasette, broken)(
            {"type": "http", "headers": [(b"sec-fetch-site", b"cross-site"), (b"host", b"localhost")], "client": HOME},
            None,
            None,
        )
    assert at_home(datasette)
    monkeypatch.setattr(visitors, "_AFTERMATH_S", 0)
    visitors.of(datasette)._foreign_until = 0.0  # noqa: SLF001
    assert visitors.may_embed(datasette)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("permissions", "actor", "allowed"),
    [
        ({"vec-embed": {"id": "alice"}}, {"id": "alice"}, True),
        ({"vec-embed": {"id": "alice"}}, {"id": "bob"}, False),
        ({"vec-embed": {"id": "alice"}}, None, False),
        ({"vec-embed": True}, None, True),
        (None, {"id": "alice"}, False),
        (None, {"id": "root"}, True),
    ],
)
async def test_from_elsewhere_actors_with_the_permission_may(home, permissions, actor, allowed):
    datasette = home(permissions)
    datasette.root_enabled = True
    request = {"client": STRANGER, "actor": actor}
    assert (await ask(datasette, PAGE, **request)) == [allowed]
    assert (await ask(datasette, SQL, **request)) == [1 if allowed and ONE else 0]


@pytest.mark.skipif(not ONE, reason="Datasette 0.65 has no switch for root's rights")
@pytest.mark.asyncio
async def test_an_actor_called_root_is_nobody_without_the_option(home):
    assert not await may(home(), client=STRANGER, actor={"id": "root"})


@pytest.mark.skipif(ONE, reason="Datasette 1.0 decides by SQL, not by this hook")
@pytest.mark.asyncio
@pytest.mark.parametrize("verdict", [True, False])
async def test_on_0_65_a_plugin_has_the_last_word(home, verdict):
    class Judge:
        __name__ = "judge"

        @hookimpl
        def permission_allowed(self, action):
            return verdict if action == "vec-embed" else None

    judge = Judge()
    pm.register(judge)
    try:
        datasette = home({"vec-embed": {"id": "bob" if verdict else "alice"}})
        assert await ask(datasette, PAGE, client=STRANGER, actor={"id": "alice"}) == [verdict]
    finally:
        pm.unregister(judge)


@pytest.mark.skipif(not ONE, reason="the SQL of Datasette 0.65 knows of no request")
@pytest.mark.asyncio
async def test_internal_requests_that_skip_permissions_do_not_spend_for_strangers(home):
    datasette = home()
    assert await ask(datasette, ("/-/inner", ""), client=STRANGER) == [0]


@pytest.mark.asyncio
@pytest.mark.parametrize("threads", [1, 0])
async def test_without_a_thread_to_spare_an_actor_s_sql_may_not_and_nothing_hangs(home, threads):
    datasette = home({"vec-embed": {"id": "alice"}}, settings={"num_sql_threads": threads})
    started = time.monotonic()
    assert await ask(datasette, SQL, client=STRANGER, actor={"id": "alice"}) == [0]
    assert await ask(datasette, PAGE, client=STRANGER, actor={"id": "alice"}) == [True]
    assert time.monotonic() - started < 5


@pytest.mark.asyncio
async def test_concurrent_actors_are_not_mistaken_for_each_other(home):
    datasette = home({"vec-embed": {"id": "alice"}})
    await may(datasette, client=STRANGER)
    actors = [{"id": name} for name in ["alice", "bob"] * 8]
    page = await asyncio.gather(*(ask(datasette, PAGE, client=STRANGER, actor=actor) for actor in actors))
    assert page == [[actor["id"] == "alice"] for actor in actors]
    # A SQL thread that waits for the answer needs another one that gives it; the gate lets one wait at a time.
    sql = [await ask(datasette, SQL, client=STRANGER, actor=actor) for actor in actors]
    assert sql == [[1 if ONE and actor["id"] == "alice" else 0] for actor in actors]


@pytest.mark.asyncio
async def test_whatever_fails_the_answer_is_no(home, monkeypatch, caplog):
    async def broken(*args):
        raise RuntimeError("broken")

    datasette = home({"vec-embed": True})
    monkeypatch.setattr(permissions, "may_embed", broken)
    assert not await may(datasette, client=STRANGER)
    assert "cannot be told" in caplog.text
    monkeypatch.setattr(visitors.Visitors, "at_home", lambda *args: 1 / 0)
    assert not await may(datasette)


@pytest.mark.asyncio
async def test_a_view_that_the_wrapper_did_not_see_may_not_spend(home):
    assert not await visitors.may_embed_async(home(), None)


@pytest.mark.asyncio
async def test_instances_have_visitors_of_their_own(home):
    first, second = home(), home()
    assert not await may(first, client=STRANGER)
    assert await may(second)


PLUGIN = """
from datasette import hookimpl
from datasette_vec_gemini.plugin import visitors

@hookimpl
def prepare_connection(conn, datasette):
    conn.create_function("may", 0, lambda: visitors.may_embed(datasette))
"""


@contextlib.contextmanager
def served(data, *, unix=False):
    """`datasette data.db`, at a free port or a Unix socket; gives a function that asks it."""
    plugins = data.parent / "plugins"
    plugins.mkdir()
    (plugins / "hooks.py").write_text(PLUGIN)
    path = str(data.parent / "socket")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "datasette", str(data), "--plugins-dir", str(plugins)]
    command += ["--uds", path] if unix else ["-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:

        def get(headers=LOCAL):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                if unix:
                    connection.sock = socket.socket(socket.AF_UNIX)
                    connection.sock.connect(path)
                connection.request("GET", "?".join(SQL), headers=headers)
                return json.load(connection.getresponse())

        try:
            next(line for line in server.stderr if b"running on" in line)
            yield get
        finally:
            server.kill()


@pytest.mark.parametrize("stranger", [LOCAL | {"x-forwarded-for": "203.0.113.7"}, {"host": "example.org"}])
def test_a_real_server_at_this_machine(data, stranger):
    with served(data) as get:
        assert get() == [1]
        assert get({}) == [1]
        assert get(CROSS_SITE) == [0]
        # 0.65 waits for what the foreign request may have left running.
        assert get() == [1 if ONE else 0]
        assert get(stranger) == [0]
        assert get() == [0]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets")
def test_a_real_server_at_a_unix_socket_is_a_site(data):
    with served(data, unix=True) as get:
        assert get() == [0]
