"""What a server does by itself: it follows what others write, makes declared indexes, and spends nothing unasked."""

import asyncio
import contextlib
import hashlib
import json
import re
import subprocess
import sys
import time

import pytest
from datasette.app import Datasette
from fake_gemini import FakeGemini
from serving import Browser, served, table, until
from test_embed_gemini import ONE, environment, settings

from datasette_vec_gemini import connect, create_index, drop, find_index, indexes, rebuild, sqlite3, status, sync
from datasette_vec_gemini.owners import lives_elsewhere
from datasette_vec_gemini.plugin import background, site
from datasette_vec_gemini.store import jobs
from datasette_vec_gemini.texting import is_behind

pytestmark = pytest.mark.slow

STATUS = "/data/-/vec/docs/status"
SEARCH = "/data/-/vec/docs.json"


@pytest.fixture
def fake():
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def file(tmp_path):
    return table(tmp_path / "data.db", 40)


def run(file, sql):
    """Another program's write, with a driver that has no extension."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.close()"
    subprocess.run([sys.executable, "-c", program, str(file), sql], check=True)


def indexed(file, *, embedder="local", **options):
    with contextlib.closing(connect(file)) as conn:
        index = create_index(conn, "docs", table="docs", columns=["body"], embedder=embedder, **options)
        sync(conn, index)


def every(seconds, **own):
    return settings(sync_interval_seconds=seconds, **own)


def with_declaration(declaration, database="data", name="docs", **own):
    block = {"plugins": {"datasette-vec-gemini": {"index": declaration}}}
    return settings(sync_interval_seconds=1, **own) | {"databases": {database: {"tables": {name: block}}}}


def test_a_row_that_another_program_writes_is_found_by_meaning_soon(file):
    indexed(file)
    with served(file, config=every(1)) as server:
        root = Browser(server)
        assert root.json(f"{STATUS}.json")["write_through"] == {"on": True, "reason": "", "interval_seconds": 1.0}
        run(file, "insert into docs (id, body) values (99, 'The cat sleeps on a warm sofa')")
        question = [("q", "a pet that naps on furniture"), ("mode", "semantic")]
        until(lambda: root.json(SEARCH, question)["hits"][0]["key"] == [99], 20)
        run(file, "delete from docs where id = 99; update docs set body = 'bread is baked in an oven' where id = 5")
        question = [("q", "making loaves"), ("mode", "semantic")]
        until(lambda: root.json(SEARCH, question)["hits"][0]["key"] == [5], 20)
        until(lambda: root.json(f"{STATUS}.json")["jobs"][0]["state"] == "finished", 20)


def test_triggers_that_were_lost_and_rows_that_came_while_nobody_looked_are_noticed(file):
    indexed(file, embedder="hashing@64")
    script = "select 'drop trigger ' || name || ';' from sqlite_master where type = 'trigger'"
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.executescript("".join(row[0] for row in conn.execute(script).fetchall()))
        conn.execute("insert into docs (id, body) values (100, 'while no server ran')")
        conn.commit()
    with served(file, config=every(1)) as server:
        root = Browser(server)
        until(lambda: root.json(f"{STATUS}.json")["indexed"] == 41, 20)
        assert root.json(f"{STATUS}.json")["warnings"] == []


def test_a_view_is_compared_once_after_a_write_and_not_for_ever(file):
    with contextlib.closing(connect(file)) as conn:
        conn.execute("create view seen as select id, body from docs where id < 1000")
        sync(conn, create_index(conn, "docs", table="seen", columns=["body"], key=["id"], embedder="hashing@64"))
        run(file, "insert into docs (id, body) values (41, 'one more')")
    with served(file, config=every(1)) as server:
        root = Browser(server)
        until(lambda: root.json(f"{STATUS}.json")["indexed"] == 41, 20)
        ended = until(lambda: root.json(f"{STATUS}.json")["jobs"][0]["ended"])
        time.sleep(4)
        assert root.json(f"{STATUS}.json")["jobs"][0]["ended"] == ended


def test_what_is_written_to_a_view_while_it_is_compared_is_found_and_then_there_is_rest(file, monkeypatch):
    monkeypatch.setattr(background, "LOOK_SECONDS", 0.0)
    with contextlib.closing(connect(file)) as conn:
        conn.execute("create view seen as select id, body from docs")
        index = create_index(conn, "docs", table="seen", columns=["body"], key=["id"], embedder="hashing@64")
        datasette = Datasette([str(file)])
        own, at_work = site.of(datasette), background.Background(datasette)
        own.sync_seconds = 1.0
        db = datasette.get_database("data")

        def look():
            at_work.look(db)
            until(lambda: not own.jobs.find(file, "docs"), 20)
            return status(conn, index).indexed, jobs.of_index(conn, "docs")[0].started

        assert look()[0] == 40
        run(file, "insert into docs (id, body) values (41, 'rhubarb')")  # before what the job wrote was looked at
        indexed, started = look()
        assert indexed == 41
        assert [look() for _ in range(3)] == [(41, started)] * 3
        run(file, "update docs set body = 'apples' where id = 41; update docs set body = 'pears' where id = 40")
        assert look()[1] > started


def test_an_index_that_is_made_anew_is_followed_though_the_last_job_of_the_one_before_has_failed(file):
    indexed(file, embedder="hashing@64")
    datasette = Datasette([str(file)])
    own, at_work = site.of(datasette), background.Background(datasette)
    own.sync_seconds = 1.0
    db = datasette.get_database("data")
    with contextlib.closing(connect(file)) as conn:
        conn.execute("alter table docs rename column body to words")
        own.jobs.start(file, "docs", "sync", own.access)
        until(lambda: not own.jobs.find(file, "docs"), 20)
        at_work.look(db)
        assert [job.state for job in jobs.of_index(conn, "docs")] == ["failed"]
        drop(conn, find_index(conn, "docs"))
        index = create_index(conn, "docs", table="docs", columns=["words"], embedder="hashing@64")
        at_work.look(db)
        until(lambda: status(conn, index).indexed == 40, 20)


def test_a_job_of_an_odd_owner_does_not_keep_the_others_from_going_on(file):
    with contextlib.closing(connect(file)) as conn:
        for name, owner in (("first", ""), ("second", "x:y:z"), ("third", "a:b")):
            create_index(conn, name, table="docs", columns=["body"], embedder="hashing@64")
            job = jobs.Job(index=name, kind="sync", state="running", started="2026-01-01T00:00:00+00:00", owner=owner)
            jobs.begin(conn, job, lives=lives_elsewhere)
        with served(file, config=every(0)):
            until(lambda: {job.state for job in jobs.jobs(conn)} == {"finished"}, 30)


def test_a_paid_index_gets_its_words_for_nothing_and_its_vectors_only_under_a_daily_cap(file, fake, monkeypatch):
    for name, value in environment(fake).items():
        monkeypatch.setenv(name, value)
    indexed(file, embedder="gemini")
    fake.requests.clear()
    with served(file, fake=fake, config=every(1)) as server:
        root = Browser(server)
        assert "no daily_usd is set" in root.json(f"{STATUS}.json")["write_through"]["reason"]
        run(file, "insert into docs (id, body) values (99, 'rhubarb crumble')")
        until(lambda: root.json(SEARCH, [("q", "rhubarb"), ("mode", "keyword")])["hits"], 20)
        until(lambda: root.json(f"{STATUS}.json")["jobs"][0]["state"] == "finished", 20)
        found = root.json(f"{STATUS}.json")
        assert (found["pending"], found["chunk_states"]["pending"]) == (1, 1)
        assert "1 chunk waits" in found["jobs"][0]["message"]
        time.sleep(2.5)
        assert fake.requests == []
    with served(file, fake=fake, config=every(1, daily_usd=0.5)) as server:
        root = Browser(server)
        until(lambda: root.json(f"{STATUS}.json")["pending"] == 0, 20)
    assert sum("rhubarb" in text for text in fake.embedded) == 1


def test_an_idle_server_writes_nothing_and_uses_no_time(file):
    indexed(file, embedder="hashing@64")
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("pragma wal_checkpoint(truncate)")

    def used(pid):
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - no file of this disk
            return sum(map(int, stat.read().rpartition(")")[2].split()[11:13])) / 100

    before = hashlib.sha256(file.read_bytes()).hexdigest()
    with served(file, config=every(1)) as server:
        server.get(f"{STATUS}.json")
        time.sleep(2)
        started = used(server.pid) if sys.platform == "linux" else 0
        time.sleep(6)
        if sys.platform == "linux":
            assert used(server.pid) - started < 0.3
        last = Browser(server).json(f"{STATUS}.json")["jobs"]
        assert [(job["state"], job["is_live"]) for job in last] == [("finished", False)]  # that of another program
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("pragma wal_checkpoint(truncate)")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_switched_off_nothing_is_synced_and_the_page_says_so(file):
    indexed(file, embedder="hashing@64")
    with served(file, config=every(0)) as server:
        root = Browser(server)
        run(file, "insert into docs (id, body) values (99, 'rhubarb crumble')")
        time.sleep(2.5)
        found = root.json(f"{STATUS}.json")
        assert (found["pending"], found["write_through"]["on"]) == (1, False)
        assert "sync_interval_seconds is 0" in found["write_through"]["reason"]


def test_datasette_get_starts_nothing_and_ends(file):
    indexed(file, embedder="hashing@64")
    run(file, "insert into docs (id, body) values (99, 'rhubarb crumble')")
    command = [sys.executable, "-m", "datasette", str(file), "--get", f"{STATUS}.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment(None))
    assert json.loads(done.stdout)["pending"] == 1


def test_a_declared_index_is_made_and_filled_and_the_next_start_leaves_it_alone(file):
    declaration = {"columns": ["title", "body"], "filter_columns": ["category"], "name": "stories"}
    config = with_declaration(declaration)
    with served(file, config=config) as server:
        root = Browser(server)
        path = "/data/-/vec/stories/status.json"
        until(lambda: root.send("GET", path)[0] == 200 and root.json(path)["indexed"] == 40)
    with contextlib.closing(connect(file)) as conn:
        index = find_index(conn, "stories")
        assert (index.columns, index.filter_columns, index.embedder) == (("title", "body"), ("category",), "local")
    with served(file, config=config) as server:
        root = Browser(server)
        time.sleep(2)
        assert root.json("/-/vec/status.json")["declarations"] == []
        assert root.json(path)["declaration"] == ""
    with contextlib.closing(connect(file)) as conn:
        assert indexes(conn) == [index]


def test_several_indexes_can_be_declared_and_what_is_wrong_with_one_is_no_matter_of_the_others(file):
    declarations = [
        {"columns": ["nothing"], "name": "broken"},
        {"columns": ["body"], "name": "bodies", "embedder": "hashing"},
    ]
    with served(file, config=with_declaration(declarations)) as server:
        root = Browser(server)
        path = "/data/-/vec/bodies/status.json"
        until(lambda: root.send("GET", path)[0] == 200 and root.json(path)["indexed"] == 40)
        (problem,) = root.json("/-/vec/status.json")["declarations"]
        assert (problem["database"], problem["index"]) == ("data", "broken")
        assert "has no column 'nothing'" in problem["problem"]
        assert "has no column &#39;nothing&#39;" in root.get("/-/vec/status")
        assert server.json("/-/vec/status.json")["declarations"] == []  # that is for those who may index


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ({"columns": ["title"]}, ("columns is body, declared is title", "datasette vec drop data.db docs")),
        ({"columns": ["body"], "embedder": "hashing@128"}, ("rebuild data.db docs --embedder hashing@128",)),
        ({"columns": ["body"], "quantize": "int8"}, ("--quantize int8",)),
        ({"template": "x {body}"}, ("template is not set, declared is x {body}",)),
    ],
)
def test_a_difference_is_reported_with_its_remedy_and_nothing_is_rebuilt(file, declaration, words):
    indexed(file, embedder="hashing@64")
    declaration = {"embedder": "hashing@64"} | declaration
    with contextlib.closing(connect(file)) as conn:
        before = indexes(conn)
    with served(file, config=with_declaration(declaration)) as server:
        root = Browser(server)
        told = until(lambda: root.json(f"{STATUS}.json")["declaration"], 20)
        for word in words:
            assert word in told
        assert "not as the configuration declares it" in root.get(STATUS)
        assert server.json(f"{STATUS}.json")["declaration"] == ""
        log = until(lambda: [line for line in server.log if "Declared index docs" in line])
        assert str(file.parent) not in "".join(log)
    with contextlib.closing(connect(file)) as conn:
        assert indexes(conn) == before


def test_a_difference_is_told_until_another_program_has_ended_it(file):
    indexed(file, embedder="hashing@64")
    declaration = {"columns": ["body"], "embedder": "hashing@128"}
    with served(file, config=with_declaration(declaration)) as server, contextlib.closing(connect(file)) as conn:
        root = Browser(server)
        until(lambda: root.json(f"{STATUS}.json")["declaration"], 20)
        rebuild(conn, find_index(conn, "docs"), embedder="hashing@128")
        until(lambda: root.json(f"{STATUS}.json")["declaration"] == "", 20)
        drop(conn, find_index(conn, "docs"))
        (told,) = until(lambda: root.json("/-/vec/status.json")["declarations"], 20)
        assert told["problem"] == "it is not there: the next start of the server makes it"
        assert indexes(conn) == []


def test_a_declaration_over_a_table_or_database_that_is_not_there_is_told(file):
    config = with_declaration({"columns": ["body"]}, name="nothing")
    config["databases"] |= with_declaration({"columns": ["body"]}, database="elsewhere")["databases"]
    with served(file, config=config) as server:
        root = Browser(server)
        (told,) = until(lambda: root.json("/-/vec/status.json")["declarations"], 20)
        assert (told["database"], told["index"]) == ("data", "nothing")
        assert "'nothing'" in told["problem"]
        assert server.json("/-/vec/status.json")["declarations"] == []
        assert any("declared in database elsewhere, which is not served" in line for line in server.log)


def test_a_paid_declaration_waits_for_a_daily_cap(file, fake):
    declaration = {"columns": ["body"], "embedder": "gemini"}
    with served(file, fake=fake, config=with_declaration(declaration)) as server:
        root = Browser(server)
        (problem,) = until(lambda: root.json("/-/vec/status.json")["declarations"], 20)
        assert "costs money" in problem["problem"]
        assert "daily_usd" in problem["problem"]
        assert any("costs money" in line for line in server.log)
    assert fake.requests == []
    with served(file, fake=fake, config=with_declaration(declaration, daily_usd=1)) as server:
        root = Browser(server)
        until(lambda: root.send("GET", STATUS)[0] == 200 and root.json(f"{STATUS}.json")["indexed"] == 40)
    assert fake.requests


WRONG = [
    (settings(sync_interval_seconds="often"), "plugins: datasette-vec-gemini: sync_interval_seconds is 'often'"),
    (settings(sync_interval_seconds=-1), "plugins: datasette-vec-gemini: sync_interval_seconds is -1"),
    (
        settings(index={"columns": ["body"]}),
        "plugins: datasette-vec-gemini: an index can only be declared in the block",
    ),
    (settings(page_sise=2), "plugins: datasette-vec-gemini: there is no setting 'page_sise'"),
    ({"databases": {"data": settings(page_sise=2)}}, "of database data: there is no setting 'page_sise'"),
    (
        {"databases": {"data": settings(daily_usd=2)}},
        "of database data: daily_usd can only be set for the whole instance",
    ),
    ({"databases": {"data": {"tables": {"docs": settings(mode="x")}}}}, "of table docs: mode is 'x'"),
    (with_declaration({"colums": ["body"]}), "of table docs: index: there is no setting 'colums'; there are columns, "),
    (with_declaration({}), "of table docs: index: name the columns whose text is searched"),
    (with_declaration({"columns": "body"}), "of table docs: index: columns is 'body'; it must be a list of columns"),
    (with_declaration([{"columns": ["a"]}, {"columns": ["b"]}]), "of table docs: 2 indexes have the name 'docs'"),
    (with_declaration([{"columns": ["a"], "name": "1"}]), "of table docs: index 1: '1' cannot be the name of an index"),
    (with_declaration({"columns": ["a"]}, name="my docs"), "index: 'my docs' cannot be the name of an index"),
    (
        {"databases": {"data": {"tables": {t: settings(index={"columns": ["a"], "name": "x"}) for t in ("t", "u")}}}},
        "of table u: table t declares an index 'x' too",
    ),
    *(({"databases": {"data": {"plugins": p}}}, "plugins of database data: expected the name") for p in (1, True, "x")),
    *(
        ({"databases": {"data": {"tables": {"docs": {"plugins": p}}}}}, "plugins of table docs of database data: exp")
        for p in (1, True)
    ),
]


SHAPES = (
    [
        ({"databases": {"data": {"tables": value}}}, "tables of database data: expected the name of each table")
        for value in ([1], "docs", 5, None)
    ]
    + [
        (
            {"databases": {"data": {"tables": {"docs": value}}}},
            "table docs of database data: expected its settings, found",
        )
        for value in ([1], "x", None)
    ]
    + [
        *(
            ({"databases": {"data": value}}, "database data: expected its settings, found")
            for value in ([1], "x", None)
        ),
        *(({"databases": value}, "databases: expected the name of each database") for value in ([1], "x")),
        *(({"plugins": value}, "plugins: expected the name of each plugin") for value in ([1], "x")),
    ]
)


@pytest.mark.parametrize(("config", "words"), SHAPES)
def test_a_configuration_without_the_shape_of_one_is_refused_before_datasette_stumbles_over_it(file, config, words):
    name = "config" if ONE else "metadata"

    async def start():
        datasette = Datasette([str(file)], **{name: config})
        await datasette.invoke_startup()

    with pytest.raises(site.Misconfigured, match=re.escape(words)):
        asyncio.run(start())


@pytest.mark.parametrize(("config", "words"), [*WRONG, SHAPES[0], SHAPES[6], SHAPES[9]])
def test_a_wrong_setting_keeps_datasette_from_starting_with_one_line_that_names_its_place(file, config, words):
    with served(file, config=config) as server:
        server.process.wait(30)
    log = "".join(server.log)
    assert words in log
    assert "Traceback" not in log
    assert server.process.returncode == 1


BROKEN = [[1], "x", 5]


@pytest.mark.skipif(ONE, reason="1.0 reads permissions itself")
@pytest.mark.parametrize("rules", BROKEN)
def test_permissions_that_cannot_be_understood_are_nobody_s(file, rules):
    indexed(file, embedder="hashing@64")
    blocks = [
        {"permissions": rules},
        {"databases": {"data": {"permissions": rules}}},
        {"databases": {"data": {"tables": {"docs": {"permissions": {"vec-search": rules}}}}}},
    ]
    for block in blocks[: 2 if rules == 5 else 3]:  # a number that the command line gives is true or false

        async def codes(block=block):
            datasette = Datasette([str(file)], metadata=block)
            await datasette.invoke_startup()
            return [(await datasette.client.get(path)).status_code for path in ("/data", "/-/vec", SEARCH)]

        assert asyncio.run(codes()) == [200, 200, 404]


@pytest.mark.skipif(not ONE, reason="0.65 has no datasette.yaml")
def test_metadata_yml_may_hold_the_plugin_s_settings_on_1_0_too(file):
    config = file.with_name("metadata.json")
    config.write_text(json.dumps(with_declaration({"columns": ["body"], "embedder": "hashing"})))
    with served(file, options=["-m", str(config)]) as server:
        root = Browser(server)
        until(lambda: root.send("GET", STATUS)[0] == 200 and root.json(f"{STATUS}.json")["indexed"] == 40)


def interrupt(progress):
    raise InterruptedError


def test_is_behind_sees_keys_chunks_and_lost_triggers_and_nothing_else(conn, docs):
    assert is_behind(conn, docs)
    sync(conn, docs)
    assert not is_behind(conn, docs)
    assert not is_behind(conn, docs, thorough=True)
    conn.execute("insert into docs (id, title) values (9, 'new')")
    conn.commit()
    assert is_behind(conn, docs)
    with contextlib.suppress(InterruptedError):
        sync(conn, docs, on_progress=interrupt)
    assert is_behind(conn, docs)
    assert not is_behind(conn, docs, text_only=True)
    sync(conn, docs)
    conn.execute("drop trigger _vec_docs_1_ins")
    assert is_behind(conn, docs)
    assert status(conn, docs).pending == 0
