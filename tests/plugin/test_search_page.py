"""The search page and its JSON twin, driven through Datasette's own client, on 0.65 and on 1.0."""

import csv
import hashlib
import html
import io
import json
import os
import re
import sqlite3 as standard_sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from datasette.utils import StartupError
from pages import address, cookies, hrefs, plain, rules, titles

from datasette_vec_gemini import Query, connect, create_index, drop, find_index, search, sqlite3
from datasette_vec_gemini.plugin import prepare_connection

BODY = "create table docs (id integer primary key, body text);"


def expected(file: Path, query: Query) -> list[dict]:
    conn = connect(file, read_only=True)
    try:
        return [hit.to_dict() for hit in search(conn, find_index(conn, "docs"), query)]
    finally:
        conn.close()


def sql_url(datasette, sql: str) -> str:
    path = "/library/-/query.json" if hasattr(datasette, "allowed") else "/library.json"
    return f"{path}?{urlencode({'sql': sql, '_shape': 'arrays'})}"


@pytest.mark.asyncio
async def test_the_plugin_is_listed_with_its_templates_and_static_files(site) -> None:
    plugins = (await site().client.get("/-/plugins.json")).json()
    plugins = plugins if isinstance(plugins, list) else plugins["plugins"]
    (plugin,) = [plugin for plugin in plugins if plugin["name"] == "datasette-vec-gemini"]
    assert plugin["templates"]
    assert plugin["static"]
    assert {"prepare_connection", "register_routes", "table_actions"} <= set(plugin["hooks"])


@pytest.mark.asyncio
async def test_anonymous_visitors_get_a_form_that_works_without_scripts(site, library) -> None:
    datasette = site(library)
    for path in ("/library/-/vec/docs", "/library/-/vec/docs?q=+", "/library/-/vec/DOCS"):
        response = await datasette.client.get(path)
        assert response.status_code == 200
        page = response.text
        assert '<form class="core vec-form" action="/library/-/vec/docs" method="get" role="search">' in page
        assert '<label for="vec-q">' in page
        assert re.findall(r'type="radio" name="mode" value="(\w+)"( checked)?>', page) == [
            ("hybrid", " checked"),
            ("keyword", ""),
            ("semantic", ""),
        ]
        assert 'role="status"' in page
        assert titles(page) == []
        stylesheet = re.search(r'href="(/-/static-plugins/[^"]*vec\.css)"', page)
        assert stylesheet
        assert (await datasette.client.get(stylesheet[1])).status_code == 200


@pytest.mark.asyncio
async def test_nothing_asked_is_nothing_found_in_json(site, library) -> None:
    response = await site(library).client.get("/library/-/vec/docs.json")
    assert response.status_code == 200
    assert response.json() == {
        "ok": True,
        "query": "",
        "index": "docs",
        "mode": "hybrid",
        "took_ms": 0.0,
        "pending": 0,
        "hits": [],
        "nearest": [],
        "facets": {},
        "next": None,
        "notices": [],
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["hybrid", "semantic", "keyword"])
async def test_page_and_json_show_what_the_library_finds(site, library, mode) -> None:
    datasette = site(library)
    hits = expected(library, Query("parse dates", k=4, mode=mode))
    parameters = urlencode({"q": "parse dates", "mode": mode, "_size": 4})
    body = (await datasette.client.get(f"/library/-/vec/docs.json?{parameters}")).json()
    assert body.pop("took_ms") > 0
    assert plain(body.pop("hits")) == hits
    assert body == {
        "ok": True,
        "query": "parse dates",
        "index": "docs",
        "mode": mode,
        "pending": 0,
        "nearest": [],
        "facets": {},
        "next": "4",
        "notices": [],
    }
    page = (await datasette.client.get(f"/library/-/vec/docs?{parameters}")).text
    assert sorted(titles(page)) == sorted(hit["title"] for hit in hits)
    assert ("<mark>dates</mark>" in page) == (mode != "semantic")
    assert f'value="{mode}" checked' in page
    assert "model hashing@64" in page


@pytest.mark.asyncio
async def test_rows_that_wait_for_the_index_are_counted(site, library) -> None:
    conn = connect(library)
    conn.execute("insert into docs (title, body) values ('new', 'a new row')")
    conn.commit()
    conn.close()
    datasette = site(library)
    assert (await datasette.client.get("/library/-/vec/docs.json?q=dates")).json()["pending"] == 1
    assert "25 of 26 rows indexed, 1 pending" in (await datasette.client.get("/library/-/vec/docs?q=dates")).text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("parameters", "filters"),
    [
        ({"category": "data"}, {"category": "data"}),
        ({"year__gte": "2020", "category__not": "data"}, {"year__gte": 2020, "category__not": "data"}),
        ({"id__in": "3,4,5"}, {"id__in": [3, 4, 5]}),
        ({"title__isnull": "1"}, {"title__isnull": "1"}),
        ({"TITLE": "dates 3"}, {"title": "dates 3"}),
    ],
)
async def test_other_parameters_are_filters_in_the_grammar_of_every_door(site, library, parameters, filters) -> None:
    datasette = site(library)
    asked = urlencode({"q": "read number", "_size": 20, "_unknown": "x"} | parameters)
    body = (await datasette.client.get(f"/library/-/vec/docs.json?{asked}")).json()
    assert plain(body["hits"]) == expected(library, Query("read number", k=20, filters=filters))


@pytest.mark.asyncio
async def test_a_filter_stays_with_the_next_question_until_it_is_removed(site, library) -> None:
    datasette = site(library)
    page = (await datasette.client.get("/library/-/vec/docs?q=number&category=data&_size=2&_next=2")).text
    assert re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', page) == [
        ("category", "data"),
        ("_size", "2"),
    ]
    assert address(page, "Remove") == "/library/-/vec/docs?q=number&_size=2"


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["hybrid", "semantic", "keyword"])
async def test_pages_show_every_hit_once_and_in_order(site, library, mode) -> None:
    datasette = site(library)
    everything = [hit["key"] for hit in expected(library, Query("parse a number", k=1000, mode=mode))]
    assert len(everything) == 25
    first = {"q": "parse a number", "mode": mode, "_size": "4"}

    keys, following = [], ""
    while following is not None:
        body = (
            await datasette.client.get(f"/library/-/vec/docs.json?{urlencode(first | {'_next': following})}")
        ).json()
        keys += [hit["key"] for hit in body["hits"]]
        following = body["next"]
    assert keys == everything

    links, path = [], f"/library/-/vec/docs?{urlencode(first)}"
    while path:
        page = (await datasette.client.get(path)).text
        assert f'<ol class="vec-hits" start="{len(links) + 1}">' in page
        links += hrefs(page)
        path = address(page, "Next page")
    assert links == [f"/library/docs/{key}" for (key,) in everything]


@pytest.mark.asyncio
async def test_paging_ends_where_the_ranking_does_and_the_page_says_so(site, tmp_path, build) -> None:
    values = ", ".join(f"({n}, 'word {n}')" for n in range(1_101))
    file = build(tmp_path / "many.db", f"{BODY} insert into docs values {values};", columns=["body"])
    datasette = site(file)
    for parameters, following in [
        ("_size=400", "400"),
        ("_size=400&_next=400", None),  # a third page would reach deeper
        ("_size=500&_next=500", None),
        ("_size=1000", None),
    ]:
        body = (await datasette.client.get(f"/many/-/vec/docs.json?q=word&mode=keyword&{parameters}")).json()
        assert (body["ok"], body["next"]) == (True, following)
        page = (await datasette.client.get(f"/many/-/vec/docs?q=word&mode=keyword&{parameters}")).text
        assert ("not ranked any deeper" in page) == (following is None)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "metadata",
    [
        {"databases": {"library": {"tables": {"docs": {"allow": {"id": "root"}}}}}},
        {"databases": {"library": {"allow": {"id": "root"}}}},
        {"allow": {"id": "root"}},
    ],
    ids=["table", "database", "instance"],
)
async def test_a_private_table_is_answered_like_an_index_or_database_that_does_not_exist(
    site, library, metadata
) -> None:
    datasette = site(library, metadata=metadata)
    for ending in ("?q=dates", ".json", ".json?q=dates&_size=x"):
        answers = [
            await datasette.client.get(f"{path}{ending}")
            for path in ("/library/-/vec/docs", "/library/-/vec/absent", "/absent/-/vec/docs")
        ]
        assert [answer.status_code for answer in answers] == [404] * 3
        assert len({(answer.headers["content-type"], answer.text) for answer in answers}) == 1
        if ending.startswith(".json"):
            assert {"ok": False, "status": 404}.items() <= answers[0].json().items()
    seen = await datasette.client.get("/library/-/vec/docs.json?q=dates", cookies=cookies(datasette))
    assert len(seen.json()["hits"]) == 10


@pytest.mark.asyncio
async def test_an_index_whose_table_is_gone_does_not_exist(site, library) -> None:
    conn = connect(library)
    conn.execute("drop table docs")
    conn.execute("create table secret (x)")
    conn.commit()
    conn.close()
    response = await site(library).client.get("/library/-/vec/docs.json?q=dates&category=time")
    assert response.status_code == 404
    assert "secret" not in response.text


@pytest.mark.asyncio
async def test_no_text_of_a_visitor_or_a_row_becomes_markup(site, tmp_path, build) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
    quoted = attack.replace("'", "''")
    file = build(
        tmp_path / "evil.db",
        f"""
        create table docs (id integer primary key, title text, body text, category text);
        insert into docs values (1, '{quoted}', '{quoted} {quoted}', '{quoted}');
        """,
        columns=["title", "body"],
    )
    datasette = site(file)
    for parameters in (
        {"q": attack, "category": attack},
        {"q": f"alert {attack}", "mode": attack},
        {"q": attack, attack: attack},
        {"q": attack, "_size": attack, "_next": attack},
        {"q": attack, "id__isnull": attack},
    ):
        page = (await datasette.client.get(f"/evil/-/vec/docs?{urlencode(parameters)}")).text
        assert "alert(1)" in html.unescape(re.sub(r"</?mark>", "", page))
        assert "<script>alert" not in page
        assert "<img" not in page
        assert "\"'>" not in page
    page = (await datasette.client.get(f"/evil/-/vec/docs?{urlencode({'q': 'alert'})}")).text
    assert titles(page) == [attack]
    assert "&lt;script&gt;<mark>alert</mark>(1)" in page


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("mode=best", "mode is 'best'"),
        ("_size=0", "_size is 0"),
        ("_size=1001", "k is 1001"),
        ("_size=ten", "_size is 'ten'"),
        ("_size=" + "9" * 5_000, "_size is '999"),
        ("_next=-1", "_next is -1"),
        ("_next=x", "_next is 'x'"),
        ("_next=1000", "ranked to a depth of 1,000"),
        ("colour=red", "has no column 'colour'"),
        ("year__like=2", "has no column 'year__like'"),
        ("year__isnull=maybe", "write 1 or 0"),
        ("year=1&year=2", "given twice"),
        ("q=%00", "U+0000"),
    ],
)
async def test_a_wrong_request_is_refused_with_the_reason(site, library, parameters, message) -> None:
    datasette = site(library)
    parameters = parameters if parameters.startswith("q=") else f"q=dates&{parameters}"
    response = await datasette.client.get(f"/library/-/vec/docs.json?{parameters}")
    assert response.status_code == 400
    error = response.json().pop("error")
    assert response.json() == {"ok": False, "error": error, "status": 400}
    assert message in error
    page = await datasette.client.get(f"/library/-/vec/docs?{parameters}")
    assert page.status_code == 400
    assert f'role="alert">{html.escape(error).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")}</p>' in page.text
    assert 'name="q"' in page.text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("schema", "rows"),
    [
        ("id integer primary key, body text", "(1, 'word'), (-7, 'word')"),
        (
            "id text primary key, body text",
            "('a/b', 'word'), ('a.json', 'word'), ('50% ~x', 'word'), ('a,b', 'word'), ('ü+\"?#&', 'word')",
        ),
        ("a text, b integer, body text, primary key (b, a)", "('x/y', 1, 'word'), ('', 2, 'word')"),
        ("id real primary key, body text", "(1.5, 'word')"),
        ("body text", "('word'), ('word again')"),
    ],
    ids=["integer", "text", "composite", "real", "rowid"],
)
async def test_a_hit_links_to_its_row(site, tmp_path, build, schema, rows) -> None:
    file = build(
        tmp_path / "keys.db", f'create table "a/b.c" ({schema}); insert into "a/b.c" values {rows};', table="a/b.c",
        columns=["body"],
    )  # fmt: skip
    datasette = site(file)
    response = await datasette.client.get("/keys/-/vec/docs?q=word&_size=100")
    links = hrefs(response.text)
    assert len(links) == rows.count("word")
    assert len(set(links)) == len(links)
    for link in links:
        row = await datasette.client.get(link)
        assert row.status_code == 200
        assert "word" in row.text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("create table t (id blob primary key, body text); insert into t values (x'ff00', 'word');", {"table": "t"}),
        ("create table t (id text primary key, body text); insert into t values ('', 'word');", {"table": "t"}),
        ("create table t (rowid text, body text); insert into t values ('7', 'word');", {"table": "t"}),
        ("create view v as select 1 as id, 'word' as body;", {"table": "v", "key": ["id"]}),
    ],
    ids=["blob", "empty", "hidden-rowid", "view"],
)
async def test_a_hit_without_a_page_of_its_row_is_shown_without_a_link(site, tmp_path, build, script, options) -> None:
    file = build(tmp_path / "keys.db", script, columns=["body"], **options)
    page = (await site(file).client.get("/keys/-/vec/docs?q=word")).text
    assert len(titles(page)) == 1
    assert hrefs(page) == []


@pytest.mark.asyncio
async def test_a_table_or_view_with_an_index_links_to_its_search_page(site, tmp_path, build) -> None:
    file = build(
        tmp_path / "my.db-1.db",
        f"{BODY} create table other (x); create view v as select 1 as id, 'word' as body;",
        columns=["body"],
    )
    conn = connect(file)
    create_index(conn, "of_view", table="v", columns=["body"], key=["id"], embedder="hashing@64")
    conn.close()
    datasette = site(file, settings={"base_url": "/under/"})
    for table, index in [("docs", "docs"), ("v", "of_view")]:
        page = (await datasette.client.get(f"/my~2Edb-1/{table}")).text
        assert re.search(rf'href="/under/my~2Edb-1/-/vec/{index}"[^>]*>\s*Semantic search', page)
    assert "/-/vec/" not in (await datasette.client.get("/my~2Edb-1/other")).text

    conn = connect(file)
    create_index(conn, "second", table="docs", columns=["body"], embedder="hashing@64")
    conn.close()
    page = (await datasette.client.get("/my~2Edb-1/docs")).text
    assert re.findall(r"Semantic search: (\w+)", page) == ["docs", "second"]


@pytest.mark.asyncio
async def test_every_link_of_the_page_keeps_the_base_url_and_the_encoded_database(site, tmp_path, build) -> None:
    values = ", ".join(f"({n}, 'word {n}')" for n in range(12))
    file = build(tmp_path / "my.db-1.db", f"{BODY} insert into docs values {values};", columns=["body"])
    datasette = site(file, settings={"base_url": "/under/"})
    response = await datasette.client.get("/my~2Edb-1/-/vec/docs?q=word&id__gte=0")
    assert response.status_code == 200
    page = response.text
    links = [re.search(r'action="([^"]*/-/vec/docs)"', page)[1], *hrefs(page)]
    links += [address(page, "Next page"), address(page, "Remove"), address(page, "json")]
    assert len(links) == 14
    for link in links:
        assert link.startswith("/under/my~2Edb-1/")
        assert (await datasette.client.get(link.removeprefix("/under"))).status_code == 200


@pytest.mark.asyncio
async def test_sql_has_sqlite_vec_and_semantic_search(site, library) -> None:
    datasette = site(library)
    response = await datasette.client.get(sql_url(datasette, "select vec_version()"))
    assert response.json()["rows"][0][0].startswith("v0.1.")
    sql = "select json_extract(value, '$.key[0]') from json_each(semantic_search('docs', 'parse dates', 4))"
    response = await datasette.client.get(sql_url(datasette, sql))
    assert response.json()["rows"] == [hit["key"] for hit in expected(library, Query("parse dates", k=4))]


@pytest.mark.asyncio
@pytest.mark.parametrize("is_immutable", [True, False])
async def test_opening_and_searching_leaves_a_file_as_it_is(site, library, is_immutable) -> None:
    library.chmod(0o444)
    before = hashlib.sha256(library.read_bytes()).hexdigest()
    datasette = site(immutables=[str(library)]) if is_immutable else site(library)
    response = await datasette.client.get("/library/-/vec/docs.json?q=parse+dates&category=time&_size=3")
    assert (await datasette.client.get(sql_url(datasette, "select semantic_search('docs', 'x')"))).status_code == 200
    assert hashlib.sha256(library.read_bytes()).hexdigest() == before
    if is_immutable:  # else SQLite itself puts the -wal and -shm of a file in WAL mode beside it
        assert [file.name for file in library.parent.iterdir()] == ["library.db"]
    assert plain(response.json()["hits"]) == expected(library, Query("parse dates", k=3, filters={"category": "time"}))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "reason"),
    [("fingerprint = 'hashing/other'", "holds vectors of hashing/other"), ("embedder = 'absent'", "no embedder")],
)
async def test_without_its_model_an_index_is_searched_by_words_and_says_why(site, library, change, reason) -> None:
    conn = connect(library)
    conn.execute(f"update _vec_indexes set {change}")
    conn.commit()
    conn.close()
    datasette = site(library)
    body = (await datasette.client.get("/library/-/vec/docs.json?q=parse+dates")).json()
    assert (body["ok"], body["mode"]) == (True, "keyword")
    assert plain(body["hits"]) == expected(library, Query("parse dates", mode="keyword"))
    assert [reason in notice for notice in body["notices"]] == [True]
    page = (await datasette.client.get("/library/-/vec/docs?q=parse+dates")).text
    assert reason in page
    assert 'value="hybrid" checked' in page

    refused = await datasette.client.get("/library/-/vec/docs.json?q=parse+dates&mode=semantic")
    assert refused.status_code == 503
    assert reason in refused.json()["error"]
    assert (await datasette.client.get("/library/-/vec/docs?q=parse+dates&mode=semantic")).status_code == 503


@pytest.mark.asyncio
async def test_a_query_in_a_language_that_the_model_does_not_know_says_so(site, tmp_path, build) -> None:
    file = build(
        tmp_path / "local.db", f"{BODY} insert into docs values (1, 'разбор даты');", columns=["body"], embedder="local"
    )
    body = (await site(file).client.get(f"/local/-/vec/docs.json?{urlencode({'q': 'даты'})}")).json()
    assert [hit["key"] for hit in body["hits"]] == [[1]]
    assert ["language" in notice for notice in body["notices"]] == [True]


PROBE = """
import threading
from datasette_vec_gemini import hookimpl, load_embedder

threads = []

class Probe:
    paid, name = False, "probe"

    def __init__(self):
        self.inner = load_embedder("hashing@64")
        for name in ("fingerprint", "dimensions", "batch_size", "chunk_capacity", "tokenizer", "matryoshka"):
            setattr(self, name, getattr(self.inner, name))

    def embed_documents(self, texts):
        return self.inner.embed_documents(texts)

    def embed_query(self, text):
        threads.append(threading.current_thread().name)
        return self.inner.embed_query(text)

    def speaks(self, text):
        return True

@hookimpl
def register_embedders():
    return {"probe": lambda rest, access: Probe()}
"""
ASK = """
import asyncio, json, sys
from datasette.app import Datasette
from datasette_vec_gemini import connect, create_index, sync
import probe

file, embedder, mode = sys.argv[1:]
conn = connect(file, create=True)
conn.executescript("create table docs (id integer primary key, body text); insert into docs values (1, 'word');")
sync(conn, create_index(conn, "docs", table="docs", columns=["body"], embedder=embedder))
conn.close()
body = asyncio.run(Datasette([file]).client.get(f"/probe/-/vec/docs.json?q=word&mode={mode}")).json()
print(json.dumps([body, probe.threads]))
"""


@pytest.fixture
def ask(tmp_path):
    """Search one row with an embedder of a plugin of ours, in a new process; its answer and who embedded the query."""
    (tmp_path / "probe.py").write_text(PROBE)
    information = tmp_path / "probe-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[datasette_vec_gemini]\nprobe = probe\n")

    def run(embedder: str, mode: str) -> tuple[dict, list[str]]:
        command = [sys.executable, "-c", ASK, str(tmp_path / "probe.db"), embedder, mode]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return json.loads(output.stdout)

    return run


def test_a_query_is_embedded_once_and_never_on_a_thread_that_runs_sql(ask) -> None:
    body, threads = ask("probe", "hybrid")
    assert [hit["key"] for hit in body["hits"]] == [[1]]
    assert [name.startswith("asyncio_") for name in threads] == [True]


@pytest.mark.asyncio
async def test_a_search_past_the_time_limit_is_stopped_and_says_so(site, tmp_path, build) -> None:
    file = build(
        tmp_path / "slow.db",
        "create view v as select 1 as id, 'word' as body;",
        table="v",
        key=["id"],
        columns=["body"],
    )
    conn = connect(file)
    conn.executescript(
        """
        drop view v;
        create view v as with recursive n (i) as (select 1 union all select i + 1 from n where i < 1e9)
        select 1 as id, 'word' as body, (select count(*) from n) as number;
        """
    )
    conn.close()
    datasette = site(file, settings={"sql_time_limit_ms": 200})
    response = await datasette.client.get("/slow/-/vec/docs.json?q=word")
    assert response.status_code == 503
    assert "this took longer than" in response.json()["error"]
    page = await datasette.client.get("/slow/-/vec/docs?q=word")
    assert page.status_code == 503
    assert "this took longer than" in page.text


@pytest.mark.slow  # SQLite waits five seconds for a lock
@pytest.mark.asyncio
async def test_a_locked_file_is_unavailable_and_not_an_accident(site, library) -> None:
    conn = connect(library)
    conn.execute("pragma journal_mode = delete").fetchone()  # in WAL mode readers never wait
    datasette = site(library)
    assert (await datasette.client.get("/library/-/vec/docs.json?q=dates")).status_code == 200
    conn.execute("begin exclusive")
    response = await datasette.client.get("/library/-/vec/docs.json?q=dates")
    conn.close()
    assert response.status_code == 503
    assert "locked" in response.json()["error"]


@pytest.mark.asyncio
async def test_settings_of_the_table_stand_over_those_of_its_database_and_of_the_instance(site, library) -> None:
    def block(**settings: object) -> dict:
        return {"plugins": {"datasette-vec-gemini": settings}}

    metadata = block(page_size=3, mode="keyword") | {
        "databases": {"library": block(mode="semantic") | {"tables": {"docs": block(page_size=2)}}}
    }
    body = (await site(library, metadata=metadata).client.get("/library/-/vec/docs.json?q=dates")).json()
    assert (body["mode"], len(body["hits"])) == ("semantic", 2)

    for wrong, message in [
        ({"page_sise": 2}, "table docs: there is no setting 'page_sise'"),
        ({"columns_shown": "title"}, "table docs: columns_shown is 'title'; it must be a list of columns"),
    ]:
        metadata = {"databases": {"library": {"tables": {"docs": block(**wrong)}}}}
        with pytest.raises(StartupError, match=message):
            await site(library, metadata=metadata).client.get("/library/-/vec/docs.json")


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Datasette 0.65 leaves the file open
async def test_a_file_that_holds_a_setting_may_go_once_the_server_has_started(site, library, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    own = {"api_key": {"$file": str(secret)}, "sql_embedding": "cached", "page_size": 3}
    datasette = site(library, **rules({"plugins": {"datasette-vec-gemini": own}}))
    await datasette.invoke_startup()
    secret.unlink()
    found = await datasette.client.get("/library/-/vec/docs.json?q=dates")
    assert len(found.json()["hits"]) == 3
    for path in ("docs?q=dates", "docs/similar?key=3", "docs/map?q=dates", "docs/status"):
        response = await datasette.client.get(f"/library/-/vec/{path}")
        assert response.status_code == 200
        assert str(tmp_path) not in response.text
    assert (await datasette.client.get("/-/vec?q=dates")).status_code == 200


@pytest.mark.asyncio
async def test_json_may_be_read_from_other_sites_where_datasette_allows_it(site, library) -> None:
    for cors in (True, False):
        response = await site(library, cors=cors).client.get("/library/-/vec/docs.json?q=dates")
        assert ("access-control-allow-origin" in response.headers) is cors


def test_a_connection_that_datasette_never_closes_is_not_kept_alive(site, library) -> None:
    datasette = site(library)
    conn = sqlite3.connect(":memory:")
    references = sys.getrefcount(conn)
    prepare_connection(datasette=datasette, conn=conn, database="_memory")
    assert sys.getrefcount(conn) == references
    conn.close()


def test_connections_that_take_no_extension_are_warned_of_once() -> None:
    script = """
from datasette.app import Datasette
from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.plugin import prepare_connection

class WithoutExtensions(sqlite3.Connection):
    @property
    def enable_load_extension(self):
        raise AttributeError

datasette = Datasette()
for database in ("_internal", "a", "b"):
    conn = sqlite3.connect(":memory:", factory=WithoutExtensions)
    prepare_connection(datasette=datasette, conn=conn, database=database)
    print(*conn.execute("select count(*) from pragma_function_list where name = 'semantic_search'").fetchone())
    conn.close()
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.split() == ["0", "5", "5"]
    assert output.stderr.count("sqlite-vec cannot be loaded") == 1
    assert "datasette vec doctor" in output.stderr


@pytest.mark.skipif(
    hasattr(standard_sqlite3.Connection, "enable_load_extension"), reason="this Python's own sqlite3 loads extensions"
)
def test_a_python_that_cannot_load_extensions_searches_all_the_same(library) -> None:
    conn = connect(library)
    drop(conn, find_index(conn, "docs"), vec0_only=True)  # Datasette 1.0 does not start on a vec0 table without it
    conn.close()
    script = """
import asyncio, json, sys
sys.modules["pysqlite3"] = None  # as if it were not installed
from datasette.app import Datasette
datasette = Datasette([sys.argv[1]])
print(asyncio.run(datasette.client.get("/library/-/vec/docs.json?q=parse+dates&mode=semantic")).text)
"""
    command = [sys.executable, "-c", script, str(library)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = [hit["key"] for hit in json.loads(output.stdout)["hits"]]
    assert found == [hit["key"] for hit in expected(library, Query("parse dates", mode="semantic"))]
    assert output.stderr.count("sqlite-vec cannot be loaded") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("parameters", ["q=parse+dates", "q=parse+dates&mode=keyword&category=time&_size=3&_next=3"])
async def test_the_sql_that_is_shown_finds_the_same_hits(site, library, parameters) -> None:
    datasette = site(library)
    hits = (await datasette.client.get(f"/library/-/vec/docs.json?{parameters}")).json()["hits"]
    page = (await datasette.client.get(f"/library/-/vec/docs?{parameters}")).text
    (sql,) = parse_qs(urlsplit(address(page, "View and edit SQL")).query)["sql"]
    rows = (await datasette.client.get(sql_url(datasette, sql))).json()["rows"]
    assert [(row[0], row[1], row[2]) for row in rows] == [(hit["score"], hit["snippet"], hit["key"][0]) for hit in hits]
    shown = await datasette.client.get(address(page, "View and edit SQL"))
    assert shown.status_code == 200
    assert html.escape(hits[0]["snippet"]) in shown.text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("schema", "rows"),
    [
        ('"a""b" text, c integer, body text, primary key ("a""b", c)', "('it''s', 1, 'word')"),
        ("id blob primary key, body text", "(x'00ff', 'word')"),
        ("id any primary key, body text", "(1.5, 'word')"),
        ("body text", "('word')"),
    ],
)
async def test_the_sql_finds_rows_by_any_key(site, tmp_path, build, schema, rows) -> None:
    script = f"""create table "t'x" ({schema}); insert into "t'x" values {rows};"""
    datasette = site(build(tmp_path / "library.db", script, table="t'x", columns=["body"]))
    page = (await datasette.client.get("/library/-/vec/docs?q=word+it's")).text
    (sql,) = parse_qs(urlsplit(address(page, "View and edit SQL")).query)["sql"]
    rows_found = (await datasette.client.get(sql_url(datasette, sql))).json()["rows"]
    assert [row[1] for row in rows_found] == ["word"]


@pytest.mark.asyncio
async def test_who_may_not_run_sql_is_not_led_to_it(site, library) -> None:
    datasette = site(library, **rules({"databases": {"library": {"allow_sql": {"id": "root"}}}}))
    page = (await datasette.client.get("/library/-/vec/docs?q=dates")).text
    assert "View and edit SQL" not in page
    seen = (await datasette.client.get("/library/-/vec/docs?q=dates", cookies=cookies(datasette))).text
    assert "View and edit SQL" in seen


@pytest.mark.asyncio
async def test_csv_has_the_hits_of_the_page_by_datasettes_conventions(site, tmp_path, build) -> None:
    script = """
        create table docs (id integer primary key, title text, body text, picture blob);
        insert into docs values (1, '=1+1', 'a "word", a line
and another', x'00'), (2, null, 'word', null);
    """
    datasette = site(build(tmp_path / "library.db", script, columns=["title", "body"]))
    response = await datasette.client.get("/library/-/vec/docs.csv?q=word")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    header, *rows = csv.reader(io.StringIO(response.text))
    assert header == ["id", "_score", "_title", "_snippet", "title", "body", "picture"]
    hits = (await datasette.client.get("/library/-/vec/docs.json?q=word")).json()["hits"]
    assert [(row[0], float(row[1]), row[2], row[3]) for row in rows] == [
        (str(hit["key"][0]), hit["score"], hit["title"], hit["snippet"]) for hit in hits
    ]
    by_id = {row[0]: row[4:] for row in rows}
    *texts, picture = by_id["1"]
    assert texts == ["=1+1", 'a "word", a line\nand another']
    assert by_id["2"] == ["", "word", ""]
    assert (await datasette.client.get(urlsplit(picture)._replace(scheme="", netloc="").geturl())).content == b"\0"

    download = await datasette.client.get("/library/-/vec/docs.csv?q=word&_dl=1&_header=off")
    assert download.headers["content-type"] == "text/csv; charset=utf-8"
    assert download.headers["content-disposition"] == 'attachment; filename="docs.csv"'
    assert len(list(csv.reader(io.StringIO(download.text)))) == 2

    refused = await datasette.client.get("/library/-/vec/docs.csv?q=word&colour=red")
    assert (refused.status_code, "has no column 'colour'" in refused.text) == (400, True)
    assert refused.headers["content-type"].startswith("text/plain")


@pytest.mark.asyncio
async def test_words_that_nothing_has_bring_the_nearest_by_meaning_and_say_so(site, library) -> None:
    datasette = site(library)
    body = (await datasette.client.get("/library/-/vec/docs.json?q=parsing2&mode=keyword")).json()
    assert (body["hits"], len(body["nearest"]), body["mode"]) == ([], 10, "keyword")
    page = (await datasette.client.get("/library/-/vec/docs?q=parsing2&mode=keyword")).text
    assert "Nothing matches these words. The nearest by meaning:" in page
    assert re.search(r'role="status">\s*No hits', page)


@pytest.mark.asyncio
async def test_filters_that_no_row_passes_bring_the_nearest_without_them(site, library) -> None:
    datasette = site(library)
    for mode in ("hybrid", "keyword", "semantic"):
        parameters = f"q=parse+dates&mode={mode}&category=none"
        body = (await datasette.client.get(f"/library/-/vec/docs.json?{parameters}")).json()
        assert (body["hits"], bool(body["nearest"])) == ([], True)
        page = (await datasette.client.get(f"/library/-/vec/docs?{parameters}")).text
        assert "No row passes these filters. The nearest without them:" in page
        assert address(page, "Search without filters") == f"/library/-/vec/docs?q=parse+dates&mode={mode}"


@pytest.mark.asyncio
async def test_near_duplicates_are_folded_under_the_best_of_them_and_named_in_json(site, tmp_path, build) -> None:
    script = (
        f"{BODY} insert into docs values (1, 'a red fish'), (2, 'a red fish'), (3, 'blue bird'), (4, 'a red fish');"
    )
    datasette = site(build(tmp_path / "library.db", script, columns=["body"]))
    hits = (await datasette.client.get("/library/-/vec/docs.json?q=red+fish")).json()["hits"]
    assert [(hit["key"], hit["duplicate_of"]) for hit in hits] == [([1], None), ([2], [1]), ([4], [1]), ([3], None)]
    page = (await datasette.client.get("/library/-/vec/docs?q=red+fish")).text
    assert re.findall(r"<h2 dir=\"auto\"><a href=\"([^\"]*)\"", page) == ["/library/docs/1", "/library/docs/3"]
    assert "2 near-duplicates" in page
    assert hrefs(page) == [f"/library/docs/{key}" for key in (1, 2, 4, 3)]


@pytest.mark.asyncio
async def test_columns_under_a_hit_are_those_of_the_index_or_of_the_settings(site, tmp_path, build) -> None:
    script = "create table docs (id integer primary key, body text, kind text, year integer, empty text);"
    script += "insert into docs values (1, 'word', '<b>kind</b>', 1999, null);"
    file = build(tmp_path / "library.db", script, columns=["body"], filter_columns=["kind"])
    shown = r"<dt>([^<]*)</dt> <dd dir=\"auto\">([^<]*)</dd>"
    page = (await site(file).client.get("/library/-/vec/docs?q=word")).text
    assert re.findall(shown, page) == [("kind", "&lt;b&gt;kind&lt;/b&gt;")]
    metadata = {"plugins": {"datasette-vec-gemini": {"columns_shown": ["year", "empty", "absent"]}}}
    page = (await site(file, metadata=metadata).client.get("/library/-/vec/docs?q=word")).text
    assert re.findall(shown, page) == [("year", "1999")]


@pytest.mark.asyncio
async def test_a_hit_says_how_strong_it_is_and_why(site, tmp_path, build) -> None:
    script = f"{BODY} insert into docs values (1, 'parse a date'), (2, 'unrelated bird song');"
    datasette = site(build(tmp_path / "library.db", script, columns=["body"]))
    page = (await datasette.client.get("/library/-/vec/docs?q=parse+a+date")).text
    assert re.findall(r'<meter min="0" max="1" value="([\d.]+)"', page) == ["1.00", "0.00"]
    weak = (await datasette.client.get("/library/-/vec/docs?q=zzz&mode=semantic")).text
    assert re.findall(r'<meter min="0" max="1" value="([\d.]+)"', weak)[0] == "0.33"  # the best of weak ones is weak
    assert re.findall(r"<span>(\w+)[^<]*</span>\s*<details>", page) == ["Strong", "Weak"]
    assert "Words: no. 1, BM25" in page
    assert "Meaning: no. 1, cosine 1.000" in page
    assert "Model: hashing@64" in page
    assert "Best chunk: no. 1 of its row, characters 0 to 12" in page
    assert address(page, "More like this") == "/library/-/vec/docs/similar?key=1"


@pytest.mark.asyncio
async def test_pages_are_not_for_robots_need_no_script_and_are_light(site, library) -> None:
    datasette = site(library)
    for path in ("/library/-/vec/docs?q=dates&_facet=category&_facet=year", "/library/-/vec/docs/similar?key=1"):
        response = await datasette.client.get(path)
        assert '<meta name="robots" content="noindex">' in response.text
        assert response.headers["x-robots-tag"] == "noindex"
        own = response.text[response.text.index('<section class="content">') : response.text.index("<footer")]
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=|https?://", own)
        assert len(response.content) <= 60_000


@pytest.mark.asyncio
async def test_an_immutable_file_with_pending_rows_says_that_they_stay_so(site, library) -> None:
    conn = connect(library)
    conn.execute("insert into docs (title, body) values ('new', 'a new row')")
    conn.commit()
    conn.close()
    body = (await site(immutables=[str(library)]).client.get("/library/-/vec/docs.json?q=dates")).json()
    assert ["served as immutable, so 1 row is" in notice for notice in body["notices"]] == [True]
