"""The search page and its JSON on an index of a paid model: when it is down, who may spend, what is written down."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_gemini import KEY, FakeGemini
from test_embed_gemini import LOCAL, ONE, STRANGER, Server, index, served, settings, sql_page

from datasette_vec_gemini import connect, create_index, sqlite3, sync

pytestmark = pytest.mark.slow

PAGE = "/data/-/vec/docs"
QUESTION = {"q": "parse a date"}
NOTICE = "Searched by exact words only: "
MOST_SECONDS = 3.2


@pytest.fixture
def fake():
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def file(tmp_path, fake, monkeypatch) -> Path:
    """`data.db`: a table of five titles with an index made by Gemini."""
    return index(tmp_path / "data.db", fake, monkeypatch)


def used(file: Path) -> list[tuple]:
    with contextlib.closing(connect(file, read_only=True)) as conn:
        return conn.execute("select model, requests, texts from _vec_usage").fetchall()


def timed(server: Server, parameters: dict[str, object], **options) -> tuple[float, dict]:
    started = time.perf_counter()
    body = server.json(f"{PAGE}.json", parameters, **options)
    return time.perf_counter() - started, body


def test_a_question_is_answered_by_meaning_for_one_call_and_written_down(fake, file):
    before = used(file)
    with served(file, fake=fake) as server:
        for _ in range(2):
            body = server.json(f"{PAGE}.json", {"q": "when to parse it"})
            assert (body["mode"], body["notices"], body["hits"][0]["key"]) == ("hybrid", [], [1])
        assert server.json(f"{PAGE}.json", {"q": "when", "mode": "keyword"})["mode"] == "keyword"
        assert server.get(PAGE)[0] == 200
    assert len(fake.requests) == 1
    ((model, requests, texts),) = used(file)
    assert [(model, requests - 1, texts - 1)] == before


def mostly_slow(*values: object, quick: int) -> list:
    """Cases of which all but the first few are left to the slow suite."""
    return [pytest.param(value, marks=[pytest.mark.slow] if n >= quick else []) for n, value in enumerate(values)]


@pytest.mark.parametrize(
    "fault",
    mostly_slow("hang", "503", "drop", "drip", "refused", "malformed", "400-key", "429-daily", "redirect", quick=1),
)
def test_with_gemini_down_words_are_searched_within_three_seconds_and_a_notice_says_why(fake, file, fault):
    fake.always = None if fault == "refused" else fault
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{closed.getsockname()[1]}" if fault == "refused" else fake.url
        with served(file, fake=fake, GOOGLE_GEMINI_BASE_URL=base_url) as server:
            # At once, while the SDK is still being loaded, and when everything is warm.
            for text in ("parse a date", "parse the date"):
                seconds, body = timed(server, {"q": text})
                assert seconds <= MOST_SECONDS
                assert (body["mode"], body["hits"][0]["key"]) == ("keyword", [1])
                assert body["notices"][0].startswith(NOTICE)
                assert "resource" not in body["notices"][0]
                sys.stdout.write(f"{fault}: {seconds:.2f} s: {body['notices'][0]}\n")
            status, page = server.get(PAGE, QUESTION)
            assert status == 200
            assert NOTICE in page
            started = time.perf_counter()
            status, body = server.get(f"{PAGE}.json", {"q": "by meaning", "mode": "semantic"})
            assert status == 503
            assert time.perf_counter() - started <= MOST_SECONDS
            errors = server.json(f"{PAGE}/status.json")["spending"]["errors"]
            assert any(item["error"] in body for item in errors)
            assert KEY not in "".join([*server.log, body, page])


@pytest.mark.parametrize("fault", mostly_slow("hang", "503", quick=1))
def test_twenty_visitors_at_once_do_not_wait_for_each_other_while_gemini_is_down(fake, file, fault):
    fake.always = fault
    with served(file, fake=fake) as server:
        server.json(f"{PAGE}.json", {"q": "date", "mode": "keyword"})
        for texts in (["parse a date"] * 20, [f"parse a date {n}" for n in range(20)]):
            with ThreadPoolExecutor(20) as pool:
                answers = list(pool.map(lambda text: timed(server, {"q": text}), texts))
            assert {body["mode"] for _, body in answers} == {"keyword"}
            slowest = max(seconds for seconds, _ in answers)
            sys.stdout.write(f"{fault}: slowest of 20 at once {slowest:.2f} s\n")
            assert slowest <= 2 * MOST_SECONDS  # one after the other they would take forty


def test_twenty_identical_questions_at_once_cost_one_call(fake, file):
    with served(file, fake=fake) as server:
        fake.latency_seconds = 0.3
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: timed(server, QUESTION)[1], range(20)))
    assert {(body["mode"], tuple(body["notices"])) for body in answers} == {("hybrid", ())}
    assert len(fake.requests) == 1


@pytest.mark.parametrize("allowed", [True, False])
def test_on_a_site_the_actor_with_vec_embed_searches_by_meaning_and_others_by_words(fake, file, allowed):
    config = {"permissions": {"vec-embed": {"id": "alice"}}}
    actor = "alice" if allowed else "bob"
    with served(file, fake=fake, config=config, DATASETTE_SECRET="s") as server:
        cookie = signed({"a": {"id": actor}}, "s")
        server.get("/", headers=STRANGER)
        for headers, may in [(STRANGER, False), (LOCAL, False), (STRANGER | {"cookie": f"ds_actor={cookie}"}, allowed)]:
            body = server.json(f"{PAGE}.json", QUESTION, headers=headers)
            assert body["mode"] == ("hybrid" if may else "keyword")
            assert [n.partition(":")[0] for n in body["notices"]] == ([] if may else ["Searched by exact words only"])
            status = server.json(f"{PAGE}/status.json", headers=headers)
            assert (status["spending"] is not None) == may
        # What was paid for once is there for everybody.
        assert server.json(f"{PAGE}.json", QUESTION, headers=STRANGER)["mode"] == ("hybrid" if allowed else "keyword")
    assert len(fake.requests) == allowed


def signed(value: object, secret: str) -> str:
    from itsdangerous import URLSafeSerializer

    return URLSafeSerializer(secret, "actor").dumps(value)


def test_an_immutable_file_is_never_written_and_the_log_says_where_spending_is_counted(fake, file):
    with contextlib.closing(connect(file)) as conn:
        conn.execute("pragma wal_checkpoint(truncate)")
    before, names = file.read_bytes(), set(file.parent.iterdir())
    with served(fake=fake, options=["-i", str(file)]) as server:
        assert server.json(f"{PAGE}.json", QUESTION)["mode"] == "hybrid"
        assert server.sql("select length(embed_gemini('hello'))") == (200, [[3072]])
        spending = server.json(f"{PAGE}/status.json")["spending"]
        assert set(file.parent.iterdir()) == names
    assert len(fake.requests) == 2
    assert spending["used"]
    assert file.read_bytes() == before
    assert sum("counted in memory only" in line for line in server.log) == 1


@pytest.mark.parametrize("place", ["config", "environment"])
def test_after_the_daily_cap_pages_answer_by_words_and_sql_not_at_all(fake, file, state_dir, place):
    config = settings(daily_usd=0.000_003) if place == "config" else None
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("delete from _vec_usage")
        conn.commit()
    more = {"DATASETTE_VEC_DAILY_USD": "0.000003"} if place == "environment" else {}
    more["DATASETTE_VEC_STATE_DIR"] = str(state_dir / "another")  # to make the index has cost something
    with served(file, fake=fake, config=config, **more) as server:
        assert server.json(f"{PAGE}.json", QUESTION)["mode"] == "hybrid"
        body = server.json(f"{PAGE}.json", {"q": "convert a time zone"})
        assert body["mode"] == "keyword"
        assert "daily_usd" in body["notices"][0]
        assert body["hits"][0]["key"] == [2]
        assert server.sql("select embed_gemini('hello')")[0] == 400
        assert server.json(f"{PAGE}.json", QUESTION)["mode"] == "hybrid"
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("value", "mode", "works"),
    [
        ("auto", "auto", True),
        ("on", "on", True),
        (True, "on", True),
        ("cached", "cached", False),
        ("off", "off", False),
        (False, "off", False),
    ],
)
def test_sql_embedding_as_yaml_reads_it(fake, file, value, mode, works):
    with served(file, fake=fake, config=settings(sql_embedding=value)) as server:
        assert server.sql("select embed_gemini('hello') is null")[0] == (200 if works else 400)
        assert server.json(f"{PAGE}/status.json")["spending"]["sql_embedding"] == mode
        server.get("/", headers=STRANGER)
        assert server.sql("select embed_gemini('world') is null", headers=STRANGER)[0] == (200 if mode == "on" else 400)
        # Pages spend where SQL is off.
        asked = server.json(f"{PAGE}.json", QUESTION, headers=STRANGER)
        assert asked["mode"] == ("hybrid" if mode == "on" else "keyword")


@pytest.mark.parametrize(
    ("config", "variables", "reason"),
    [
        (settings(sql_embedding="perhaps"), {}, "plugins: datasette-vec-gemini: sql_embedding is 'perhaps'; it can be"),
        (settings(daily_usd="many"), {}, "plugins: datasette-vec-gemini: daily_usd is 'many'; it must be a number"),
        (
            settings(base_url="http://example.org"),
            {},
            "plugins: datasette-vec-gemini: base_url is 'http://example.org'",
        ),
        (None, {"GOOGLE_GEMINI_BASE_URL": "http://example.org"}, "the environment: base_url is 'http://example.org'"),
        (None, {"DATASETTE_VEC_DAILY_USD": "many"}, "the environment: daily_usd is 'many'"),
        (settings(api_key={"$file": "none.txt"}), {}, "plugins: datasette-vec-gemini: what $file or $env name there"),
        (settings(api_key={"$env": 1}), {}, "cannot be read: str expected, not int"),
        (None, {"DATASETTE_VEC_SQL_EMBEDDING": "perhaps"}, "the environment: sql_embedding is 'perhaps'"),
    ],
)
def test_a_wrong_setting_keeps_datasette_from_starting_and_is_named_with_its_place(
    fake, file, config, variables, reason
):
    with served(file, fake=fake, config=config, **variables) as server:
        server.process.wait(30)
    log = "".join(server.log)
    assert reason in log
    assert "Traceback" not in log
    assert fake.requests == []


KEYS = {"MY_KEY": KEY, "GOOGLE_API_KEY": "google", "GEMINI_API_KEY": "gemini"}


@pytest.mark.parametrize(
    ("setting", "present", "source"),
    [
        ({"$env": "MY_KEY"}, ["MY_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY"], "the setting api_key"),
        ({"$env": "NO_KEY"}, ["GOOGLE_API_KEY", "GEMINI_API_KEY"], "GOOGLE_API_KEY"),
        (None, ["GOOGLE_API_KEY", "GEMINI_API_KEY"], "GOOGLE_API_KEY"),
        (None, ["GEMINI_API_KEY"], "GEMINI_API_KEY"),
    ],
)
def test_the_key_is_the_setting_s_then_google_s_then_gemini_s_and_status_says_which(
    fake, file, setting, present, source
):
    config = settings(api_key=setting) if setting else None
    variables = {"GEMINI_API_KEY": ""} | {name: KEYS[name] for name in present}
    with served(file, fake=fake, config=config, **variables) as server:
        server.json(f"{PAGE}.json", QUESTION)
        assert server.json(f"{PAGE}/status.json")["spending"]["key"] == source
        assert source in server.get(f"{PAGE}/status")[1]
    name = {"the setting api_key": "MY_KEY"}.get(source, source)
    assert fake.requests[0].headers["x-goog-api-key"] == KEYS[name]


@pytest.mark.skipif(ONE, reason="Datasette 1.0 redacts keys")
@pytest.mark.parametrize("level", ["instance", "database", "table"])
def test_a_key_that_everybody_could_read_keeps_0_65_from_starting(fake, file, level):
    block = settings(api_key=KEY)
    block = {"instance": block, "database": {"databases": {"data": block}}}.get(
        level, {"databases": {"data": {"tables": {"docs": block}}}}
    )
    with served(file, fake=fake, config=block) as server:
        pass
    log = "".join(server.log)
    assert "api_key stands in the metadata" in log
    assert KEY not in log
    assert "Traceback" not in log


@pytest.mark.skipif(not ONE, reason="Datasette 0.65 does not start")
def test_a_literal_key_works_on_1_0_and_is_redacted(fake, file):
    with served(file, fake=fake, config=settings(api_key=KEY), GEMINI_API_KEY="") as server:
        assert server.json(f"{PAGE}.json", QUESTION)["mode"] == "hybrid"
        assert KEY not in server.get("/-/config.json")[1]


DEBUG = "import logging\nlogging.basicConfig(level=logging.DEBUG)\n"
EVERYWHERE = [
    "/",
    "/data",
    "/data/docs",
    "/data/docs/1",
    "/data/_vec_usage",
    "/-/plugins.json",
    "/-/metadata.json",
    "/-/config.json",
    "/-/settings.json",
    "/-/versions",
    "/-/versions.json",
    "/-/databases.json",
    "/-/threads.json",
    PAGE,
    f"{PAGE}?q=date",
    f"{PAGE}.json?q=a+date",
    f"{PAGE}.json?q=a+date&mode=semantic",
    f"{PAGE}/status",
    f"{PAGE}/status.json",
    f"{sql_page()}?sql=select+embed_gemini('x')",
    f"{sql_page()}.json?sql=select+embed_gemini('y')",
    f"{sql_page()}.json?sql=select+semantic_search('docs','z')",
]


@pytest.mark.parametrize(
    "fault",
    mostly_slow(
        None, "400-key", "403", "500", "503", "malformed", "redirect", "drop", "html", "429", "404", "nan", quick=2
    ),
)
def test_the_key_is_in_no_page_no_log_and_no_file(fake, file, fault):
    plugins = file.parent / "plugins"
    plugins.mkdir()
    (plugins / "debug.py").write_text(DEBUG)
    fake.always = fault
    secret_text = "text-of-a-visitor"
    with served(file, fake=fake, options=["--plugins-dir", str(plugins)]) as server:
        pages = "".join(server.get(path)[1] for path in EVERYWHERE)
        status, _ = server.sql(f"select embed_gemini('{secret_text}' || x) from (select 1 as x)")
        assert status == (200 if fault is None else 400)
        if sys.platform == "linux":
            assert KEY.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    log = "".join(server.log)
    assert "DEBUG" in log
    for piece in (KEY, KEY[8:]):
        assert piece not in pages
        assert piece not in log
        assert piece not in re.sub(r"[\s│╭╰─]+", "", log)
        for path in file.parent.glob("data.db*"):
            assert piece.encode() not in path.read_bytes()
    assert not fake.followed
    assert all("key=" not in request.path for request in fake.requests)


def test_without_a_key_everything_else_works_and_the_reason_is_told(file):
    with contextlib.closing(connect(file)) as conn:
        conn.execute("create table notes (id integer primary key, body text)")
        conn.execute("insert into notes (body) values ('parse dates')")
        conn.commit()
        sync(conn, create_index(conn, "notes", table="notes", columns=["body"], embedder="hashing@64"))
    with served(file, PYTHONFAULTHANDLER="1") as server:
        assert server.json("/data/-/vec/notes.json", {"q": "parse dates"})["mode"] == "hybrid"
        assert server.sql("select embed_gemini('x')")[0] == 400
        body = server.json(f"{PAGE}.json", QUESTION)
        assert body["mode"] == "keyword"
        assert "set GEMINI_API_KEY" in body["notices"][0]
        for _ in range(12):  # no gate counts what asks nothing
            assert server.sql("select embed_gemini('x')")[0] == 400
        errors = server.json(f"{PAGE}/status.json")["spending"]["errors"]
        assert {"set GEMINI_API_KEY" in item["error"] for item in errors} == {True}
        assert any("set GEMINI_API_KEY" in line for line in server.log)
        os.kill(server.pid, signal.SIGABRT)  # prints every thread's stack
        time.sleep(0.5)
    assert "google" not in "".join(line for line in server.log if line.startswith("  File"))


PAID = [  # each a new text; {n} makes it another one every time
    f"{PAGE}?q=question+{{n}}",
    f"{PAGE}?q=question+{{n}}&mode=semantic",
    f"{PAGE}?q=zzz{{n}}&mode=keyword",  # finds nothing, and is not asked by meaning instead
    f"{PAGE}?q=question+{{n}}&_facet=title&_size=100",
    f"{PAGE}?q=question+{{n}}&title=absent",
    f"{PAGE}.json?q=question+{{n}}",
    f"{PAGE}.json?q=question+{{n}}&mode=semantic&_next=1",
    f"{PAGE}.csv?q=question+{{n}}",
    f"{PAGE}/similar?key=1&x={{n}}",
    f"{PAGE}/similar?key=1",
    f"{PAGE}/similar.json?key=question+{{n}}",
    f"{PAGE}/similar.csv?key=2",
    f"{PAGE}/map?q=question+{{n}}",
    f"{PAGE}/map.json?q=question+{{n}}&mode=semantic",
    f"{PAGE}/status?q=question+{{n}}",
    "/-/vec?q=question+{n}",
    "/-/vec.json?q=question+{n}&mode=semantic",
    "/data/-/vec?q=question+{n}",
    "/-/vec/status?q=question+{n}",
    "/data/-/vec-index/docs?column=title&embedder=gemini&name=n{n}",
    "/data/docs?q=question+{n}",
    "/data/docs/1?q=question+{n}",
    f"{sql_page()}?sql=select+embed_gemini('question+{{n}}')",
    f"{sql_page()}.json?sql=select+embed_gemini(title||{{n}})+from+docs",
    f"{sql_page()}.csv?sql=select+embed_gemini(title||{{n}})+from+docs&_stream=1",
    f"{sql_page()}.json?sql=select+semantic_search('docs','question+{{n}}')",
    f"{sql_page()}.json?sql=select+1+from+docs+order+by+embed_gemini(title||{{n}})",
    "/data/docs.json?_where=embed_gemini(title||{n})+is+not+null",
    "/data/docs.json?_where=semantic_search('docs',title||{n})+is+not+null&_facet=title",
    "/data/docs.csv?_where=embed_gemini(title||{n})+is+not+null&_stream=1",
    "/data/asked.json?text=question+{n}",
    "/data/asked?text=question+{n}",
]


def test_a_stranger_pays_for_nothing_by_any_route(fake, file):
    query = {"asked": {"sql": "select embed_gemini(:text) as v, semantic_search('docs', :text) as hits"}}
    everybody = {"permissions": {"vec-index": True}, "databases": {"data": {"queries": query}}}
    with served(file, fake=fake, config=everybody) as server:
        server.get("/", headers=STRANGER)
        for n, path in enumerate(PAID):
            code, body = server.get(path.format(n=n), headers=STRANGER)
            assert code < 500 or code == 503, (path, code, body[-300:])
            assert [received.texts for received in fake.requests] == [], path
        for n, fields in enumerate(
            ([("action", "start"), ("kind", "sync")], [("action", "start"), ("kind", "rebuild")])
        ):
            code, _, _ = post(server, f"{PAGE}/status", [*fields, ("x", str(n))])
            assert code in {303, 400}
        code, _, _ = post(server, "/data/-/vec-index/docs", [("column", "body"), ("embedder", "gemini"), ("name", "n")])
        assert code == 400
        time.sleep(1)
        assert fake.requests == []


def post(server: Server, path: str, fields: list[tuple[str, str]]) -> tuple[int, str, str]:
    """Send a form as somebody far away who is not signed in."""
    from serving import Browser

    browser = Browser(server, None)
    browser.send("GET", f"{PAGE}/status", headers=STRANGER)
    token = [("csrftoken", browser.cookies.get("ds_csrftoken", ""))]
    return browser.send("POST", path, [*token, *fields], STRANGER)
