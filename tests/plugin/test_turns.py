"""What costs much takes turns, every page answers in time, and other pages stay as quick as they were."""

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import pytest
from datasette import Response, hookimpl
from datasette.app import Datasette
from datasette.plugins import pm
from datasette.utils.asgi import Request

from datasette_vec_gemini import connect, sqlite3
from datasette_vec_gemini.errors import DatabaseUnavailable
from datasette_vec_gemini.plugin import site as sites
from datasette_vec_gemini.plugin.deadlines import briefly, guard, within
from datasette_vec_gemini.plugin.turns import RETRY_SECONDS, WAITING, Busy, Turns
from datasette_vec_gemini.plugin.views import search_page

SQL = "/library/-/query" if hasattr(Datasette, "allowed") else "/library"
SEARCHES = {"q": "parse dates"}
PAGES = [
    ("/library/-/vec/docs", SEARCHES),
    ("/library/-/vec/docs.json", SEARCHES),
    ("/library/-/vec/docs.csv", SEARCHES),
    ("/library/-/vec/docs/similar", {"key": "1"}),
    ("/library/-/vec/docs/similar.json", {"key": "1"}),
    ("/library/-/vec/docs/similar.csv", {"key": "1"}),
    ("/library/-/vec/docs/map", {}),
    ("/library/-/vec/docs/map.json", {}),
    ("/library/-/vec/docs/status", {}),
    ("/library/-/vec/docs/status.json", {}),
]


class Plugin:
    __name__ = "of_this_test"  # Datasette asks for it


@contextmanager
def plugged(plugin):
    pm.register(plugin, name="of this test")
    try:
        yield
    finally:
        pm.unregister(name="of this test")


async def soon(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        await asyncio.sleep(0.01)


@contextmanager
def taken(turns):
    """The only turn is somebody else's until the end, or until `set` is called."""
    over = asyncio.Event()
    task = asyncio.ensure_future(turns.take(over.wait))
    yield over.set
    over.set()
    task.cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize("at_once", [1, 3])
async def test_so_many_work_at_once_in_the_order_in_which_they_came(at_once) -> None:
    turns, begun, under_way, most = Turns(at_once), [], 0, 0

    async def work(number: int) -> int:
        nonlocal under_way, most
        begun.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return number

    answers = await asyncio.gather(*(turns.take(lambda number=number: work(number)) for number in range(20)))
    assert answers == begun == list(range(20))
    assert most == at_once


@pytest.mark.asyncio
async def test_who_finds_too_many_waiting_is_sent_away_at_once_and_who_waits_too_long_then() -> None:
    turns = Turns(1, waiting=2, seconds=0.2)
    with taken(turns):
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(turns.take(lambda: asyncio.sleep(0, "done"))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="ask again in 5 seconds"):
            await turns.take(lambda: asyncio.sleep(0))
        assert not any(task.done() for task in waiting)
        assert [type(found) for found in await asyncio.gather(*waiting, return_exceptions=True)] == [Busy, Busy]
    assert await turns.take(lambda: asyncio.sleep(0, "mine")) == "mine"


@pytest.mark.asyncio
async def test_a_turn_lasts_until_its_work_is_done_though_nobody_waits_for_it_any_more() -> None:
    turns, over, ended = Turns(1), asyncio.Event(), []

    async def work() -> None:
        await over.wait()
        ended.append("first")

    given_up = asyncio.ensure_future(turns.take(work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    given_up.cancel()
    second = asyncio.ensure_future(turns.take(lambda: asyncio.sleep(0, ended.append("second"))))
    await asyncio.sleep(0.05)
    assert given_up.cancelled()
    assert ended == []
    over.set()
    await second
    assert ended == ["first", "second"]


@pytest.mark.asyncio
async def test_an_error_ends_a_turn_and_reaches_who_asked() -> None:
    async def fail() -> None:
        raise DatabaseUnavailable("broken")

    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable, match="broken"):
            await turns.take(fail)


@pytest.mark.asyncio
@pytest.mark.parametrize(("path", "parameters"), [page for page in PAGES if "status" not in page[0]], ids=str)
async def test_a_page_that_costs_much_is_refused_when_too_many_wait_and_no_other_page_is(
    site, library, path, parameters
) -> None:
    datasette = site(library)
    assert (await datasette.client.get(path, params=parameters)).status_code == 200
    with taken(sites.of(datasette).searching) as end:
        waiting = [asyncio.ensure_future(datasette.client.get(path, params=parameters)) for _ in range(WAITING)]
        await soon(lambda: sites.of(datasette).searching.waiting == WAITING)
        refused = await datasette.client.get(path, params=parameters)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, str(RETRY_SECONDS))
        assert "too many ask at once: ask again in 5 seconds" in refused.text
        if path.endswith(".json"):
            assert refused.json() == {
                "ok": False,
                "error": "too many ask at once: ask again in 5 seconds",
                "status": 503,
            }
        for other in ("/", "/library/docs", "/library/docs/1", "/-/vec/status", "/library/-/vec/docs/status"):
            assert (await datasette.client.get(other)).status_code == 200, other
        end()
        assert {response.status_code for response in await asyncio.gather(*waiting)} <= {200, 503}


@pytest.mark.asyncio
async def test_sql_that_searches_waits_for_its_turn_and_other_sql_does_not(site, library) -> None:
    datasette = site(library)

    async def ask(sql: str, suffix: str = "") -> tuple[int, str]:
        response = await datasette.client.get(f"{SQL}{suffix}", params={"sql": sql, "_shape": "array"})
        return response.status_code, response.text

    search = "select json_array_length(SEMANTIC_search('docs', 'parse dates', 3)) as n"
    assert await ask(search, ".json") == (200, '[{"n": 3}]')
    with taken(sites.of(datasette).searching_sql) as end:
        waiting = [asyncio.ensure_future(ask(search, ".json")) for _ in range(WAITING)]
        await soon(lambda: sites.of(datasette).searching_sql.waiting == WAITING)
        assert await ask(search) == (503, "too many ask at once: ask again in 5 seconds")
        assert (await ask("select 1 as n", ".json")) == (200, '[{"n": 1}]')
        assert (await datasette.client.get("/library/-/vec/docs", params=SEARCHES)).status_code == 200
        end()
        assert {status for status, _ in await asyncio.gather(*waiting)} <= {200, 503}


@pytest.mark.asyncio
async def test_a_saved_query_that_searches_waits_for_its_turn_and_others_do_not(site, library) -> None:
    queries = {
        "asked": {"sql": "select json_array_length(Semantic_Search('docs', :q, 3)) as n"},
        "more~tables": {"sql": "select json_array_length(semantic_search('docs', 'dates', 3)) as n"},
        "plain": {"sql": "select 1 as n"},
    }
    block = {"databases": {"library": {"queries": queries}}}
    datasette = site(library, **({"config": block} if hasattr(Datasette, "allowed") else {"metadata": block}))
    await datasette.invoke_startup()

    async def ask(path: str) -> tuple[int, str]:
        response = await datasette.client.get(f"/library/{path}")
        return response.status_code, response.text

    searches = ["asked.json?_shape=array&q=dates", "more~7Etables.json?_shape=array"]
    assert [await ask(path) for path in searches] == [(200, '[{"n": 3}]')] * 2
    with taken(sites.of(datasette).searching_sql):
        waiting = [asyncio.ensure_future(ask(path)) for path in searches]
        await soon(lambda: sites.of(datasette).searching_sql.waiting == 2)
        assert await ask("plain.json?_shape=array") == (200, '[{"n": 1}]')
        assert (await ask("docs.json"))[0] == 200
        for request in waiting:
            request.cancel()


@pytest.mark.asyncio
async def test_what_a_request_with_its_turn_asks_of_datasettes_own_client_is_part_of_it(site, library) -> None:
    class Outer(Plugin):
        @hookimpl
        def register_routes(self):
            async def outer(datasette):
                inner = await datasette.client.get(
                    f"{SQL}.json", params={"sql": "select semantic_search('docs', 'dates') is not null as n"}
                )
                return Response.text(str(inner.status_code))

            return [("/outer$", outer)]

    with plugged(Outer()):
        response = await site(library).client.get("/outer?why=semantic_search")
    assert (response.status_code, response.text) == (200, "200")


@pytest.mark.asyncio
async def test_who_reads_slowly_or_asks_for_more_on_the_same_connection_keeps_nobody_from_a_turn(site, library) -> None:
    """Servers start a connection's next request in the context in which the last one sends its end."""
    datasette, stopped, answered = site(library), asyncio.Event(), []

    async def app(scope, receive, send):
        answered.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"rows"})

    guarded = guard(datasette, app)

    def request(path, send):
        return guarded(
            {"type": "http", "method": "GET", "path": path, "query_string": b"sql=semantic_search"}, None, send
        )

    async def slow(message):
        if message["type"] == "http.response.body":
            await request("/next", quick)
            await stopped.wait()

    async def quick(message):
        pass

    first = asyncio.ensure_future(request("/first", slow))
    await soon(lambda: "/next" in answered)
    await asyncio.wait_for(request("/other", quick), 4)
    stopped.set()
    await first
    assert answered == ["/first", "/next", "/other"]


@pytest.mark.asyncio
async def test_exact_words_never_wait_for_the_model_and_a_best_match_is_by_words_where_it_is_busy(
    site, library
) -> None:
    datasette = site(library)
    page = "/library/-/vec/docs.json"
    with taken(sites.of(datasette).embedding):
        words = await datasette.client.get(page, params=SEARCHES | {"mode": "keyword"})
        both = await datasette.client.get(page, params=SEARCHES)
    assert (words.status_code, both.status_code, both.json()["mode"]) == (200, 200, "keyword")
    assert both.json()["hits"] == words.json()["hits"]
    assert words.json()["notices"] == []
    assert "too many ask at once" in both.json()["notices"][0]


@pytest.mark.asyncio
@pytest.mark.parametrize(("form", "body"), [("json", None), ("csv", "text"), (None, "text")])
async def test_a_page_that_hangs_answers_in_time_in_the_form_that_was_asked_for(site, library, form, body) -> None:
    let_go = threading.Event()

    class Hanging(Plugin):
        @hookimpl
        def prepare_connection(self, database):
            if database == "library":
                let_go.wait(60)

    request = Request.fake("/library/-/vec/docs?q=dates", url_vars={"database": "library", "index": "docs"})
    request.scope["url_route"]["kwargs"]["format"] = form
    with plugged(Hanging()):
        datasette = site(library)
        try:
            began = time.monotonic()
            response = await within(search_page, 0.5)(datasette, request)
            assert time.monotonic() - began < 10
        finally:
            let_go.set()
    said = "there was no answer within 0.5 seconds: try again later"
    assert response.status == 503
    if body is None:
        assert response.content_type.startswith("application/json")
        assert said in response.body
    else:
        assert response.body == said


@pytest.mark.asyncio
async def test_what_a_form_has_started_is_waited_for() -> None:
    async def slow(_datasette: object, _request: object) -> Response:
        await asyncio.sleep(0.2)
        return Response.text("done")

    assert (await within(slow, 0.05)(None, Request.fake("/", method="POST"))).body == "done"


@pytest.mark.asyncio
async def test_what_a_page_can_do_without_is_left_out_where_it_takes_long() -> None:
    assert await briefly(asyncio.sleep(0, "there"), "otherwise") == "there"
    assert await briefly(asyncio.sleep(60, "there"), "otherwise", 0.01) == "otherwise"


class Impatient(Plugin):
    """Datasette's connections wait five seconds for a lock, which these tests need not."""

    @hookimpl
    def prepare_connection(self, conn):
        conn.execute("pragma busy_timeout = 50")


@pytest.mark.asyncio
async def test_every_page_of_a_locked_database_says_so_in_every_form(site, library) -> None:
    with plugged(Impatient()), closing(sqlite3.connect(library, isolation_level=None)) as other:
        assert other.execute("pragma journal_mode = delete").fetchone() == ("delete",)
        datasette = site(library)
        for path, parameters in PAGES:
            assert (await datasette.client.get(path, params=parameters)).status_code == 200, path
        other.execute("begin exclusive")
        for path, parameters in PAGES:
            response = await datasette.client.get(path, params=parameters)
            assert (response.status_code, response.headers["retry-after"]) == (503, "5"), path
            assert "the database is locked by another program" in response.text, path
            if path.endswith(".json"):
                assert response.json()["ok"] is False
        for path in ("/-/vec?q=dates", "/-/vec.json?q=dates", "/-/vec/status", "/library/-/vec-index"):
            response = await datasette.client.get(path)
            assert response.status_code in {200, 404, 503}, path
        other.execute("rollback")
        for path, parameters in PAGES:
            assert (await datasette.client.get(path, params=parameters)).status_code == 200, path


WARM = """
import asyncio, sys
from datasette.app import Datasette
from datasette_vec_gemini.plugin import site
from datasette_vec_gemini.plugin.warming import warm

async def main():
    datasette = Datasette(sys.argv[1:])
    await datasette.invoke_startup()
    assert "onnxruntime" not in sys.modules
    for db in datasette.databases.values():
        warm(site.of(datasette), db)
    print("onnxruntime" in sys.modules)

asyncio.run(main())
"""


@pytest.mark.parametrize(("embedder", "is_loaded"), [("local", "True"), ("hashing@64", "False"), (None, "False")])
def test_a_model_on_this_machine_is_loaded_where_an_index_needs_it(tmp_path, build, embedder, is_loaded) -> None:
    file, script = tmp_path / "data.db", "create table docs (id integer primary key, body text)"
    if embedder:
        build(file, script, columns=["body"], embedder=embedder)
    else:
        with closing(connect(file, create=True)) as conn:
            conn.execute(script)
    run = subprocess.run([sys.executable, "-c", WARM, str(file)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, is_loaded), run.stderr
