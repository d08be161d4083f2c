"""Laws of changing the model: what is owned is never bought again, and searches are answered all the while."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
from fake_gemini import KEY, FakeGemini

from datasette_vec_gemini import (
    Query,
    connect,
    create_index,
    estimate,
    find_index,
    load_embedder,
    rebuild,
    search,
    status,
    sync,
    verify,
)
from datasette_vec_gemini.embedders.batching import WITNESS
from datasette_vec_gemini.errors import BudgetReached
from datasette_vec_gemini.migrating import migrations
from datasette_vec_gemini.store import registry
from datasette_vec_gemini.store.transactions import database
from datasette_vec_gemini.vectors import unpack

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_certificate")]

TWO, SHORT, ONE = "gemini", "gemini:gemini-embedding-2@256", "gemini:gemini-embedding-001"
PREFIX = "title: none | text: "
ROWS = 250


@pytest.fixture
def fake(monkeypatch):
    with FakeGemini() as served:
        monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", served.url)
        monkeypatch.setenv("DATASETTE_VEC_PATIENCE_SECONDS", "2")
        yield served


def table(conn, rows=ROWS):
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany("insert into docs (body) values (?)", [(f"alpha{n} beta{n} gamma{n}",) for n in range(rows)])
    conn.commit()


@pytest.fixture
def index(conn, fake):
    """250 rows, indexed by gemini-embedding-2; the service's records are empty again."""
    table(conn)
    made = create_index(conn, "docs", table="docs", columns=["body"], embedder=TWO)
    sync(conn, made)
    fake.requests.clear()
    fake.embedded.clear()
    return made


def answers(conn, text="alpha7"):
    """Who answers by meaning, and with what."""
    index = find_index(conn, "docs")
    hits = search(conn, index, Query(text, mode="semantic", k=1))
    return index.embedder, [hit.key for hit in hits]


def paid(fake):
    """Text -> how often it was paid for, but for witnesses and questions."""
    return {
        text: count
        for text, count in fake.embedded.items()
        if WITNESS not in text and not text.startswith("task:") and text != "alpha7"
    }


def right(conn, fake, *, model="gemini-embedding-2", dimensions=768):
    """Whether every vector of the active generation is the one that the service has for its text."""
    rows = conn.execute("select text, embedding from _vec_docs").fetchall()
    two = model == "gemini-embedding-2"
    return all(
        unpack(blob) @ (v := fake.vector(
            PREFIX + text if two else text, model=model, dimensions=dimensions,
            task_type=None if two else "RETRIEVAL_DOCUMENT",
        )) / (v @ v) ** 0.5 > 0.999
        for text, blob in rows
    )  # fmt: skip


def generations(conn):
    return [(g.generation, g.embedder, g.state) for g in registry.generations(conn, "docs")]


def tables(conn):
    return {
        name
        for (name,) in conn.execute("select name from sqlite_master where name like '\\_vec\\_docs\\_%' escape '\\'")
    }


@pytest.mark.parametrize("quantize", ["bit", "int8", "float32"])
def test_fewer_dimensions_of_the_same_model_are_cut_without_a_call(conn, fake, index, quantize):
    assert estimate(conn, index, embedder=load_embedder(SHORT)).chunks == 0
    approvals = []
    made, report = rebuild(conn, index, embedder=SHORT, quantize=quantize, approve=approvals.append, max_usd=0.0)
    assert (fake.requests, approvals) == ([], [])
    assert (report.embedded, report.reused, report.failed, report.usd) == (0, ROWS, 0, 0.0)
    assert (made.embedder, made.dimensions, made.generation) == (SHORT, 256, 2)
    assert right(conn, fake, dimensions=256)
    assert answers(conn) == (SHORT, [(8,)])
    assert verify(conn, made) == []
    assert generations(conn) == [(2, SHORT, "active")]


def test_more_dimensions_are_bought(conn, fake, index):
    made, report = rebuild(conn, index, embedder="gemini@1536")
    assert (report.embedded, made.dimensions) == (ROWS, 1536)
    assert right(conn, fake, dimensions=1536)


def test_a_quantizer_alone_costs_nothing(conn, fake, index):
    made, report = rebuild(conn, index, quantize="float32")
    assert (made.quantize, report.embedded, fake.requests) == ("float32", 0, [])


def test_another_model_is_built_beside_and_the_old_one_answers_until_it_is_whole(conn, path, fake, index):
    seen = []

    def look(progress):
        if progress.stage == "vectors" and progress.done:
            with closing(connect(path)) as other:
                seen.append((*answers(other), generations(other)))

    made, report = rebuild(conn, index, embedder=ONE, on_progress=look)
    assert report.embedded == ROWS
    assert len(seen) == 3
    assert all(each == (TWO, [(8,)], [(2, ONE, "building"), (1, TWO, "active")]) for each in seen)
    assert answers(conn) == (ONE, [(8,)])
    assert generations(conn) == [(2, ONE, "active")]
    assert {name for name in tables(conn) if "_docs_1_" in name} == set()
    assert right(conn, fake, model="gemini-embedding-001")
    assert verify(conn, made) == []
    assert set(paid(fake).values()) == {1}


def test_rows_that_change_while_it_is_built_are_right_in_the_new_one(conn, path, fake, index):
    changed = []

    def change(progress):
        if progress.stage == "vectors" and progress.done and not changed:
            changed.append(True)
            with closing(connect(path)) as other:
                other.execute("update docs set body = 'zebra crossing' where id = 250")
                other.execute("delete from docs where id = 1")
                other.commit()

    made, _ = rebuild(conn, index, embedder=ONE, on_progress=change)
    assert status(conn, made).pending == 1
    sync(conn, made)
    assert answers(conn, "zebra crossing") == (ONE, [(250,)])
    assert status(conn, made).indexed == ROWS - 1
    assert verify(conn, made) == []


class Stopped(Exception):
    pass


def stop_after(batches):
    seen = []

    def stop(progress):
        if progress.stage == "vectors" and progress.done:
            seen.append(progress)
            if len(seen) == batches:
                raise Stopped

    return stop


def test_an_interrupted_rebuild_is_told_of_and_goes_on_without_arguments_and_pays_for_no_text_twice(conn, fake, index):
    with pytest.raises(Stopped):
        rebuild(conn, index, embedder=ONE, on_progress=stop_after(1))
    assert answers(conn) == (TWO, [(8,)])
    assert any("generation 2" in warning and "rebuild" in warning for warning in status(conn, index).warnings)
    assert 0 < len(paid(fake)) < ROWS
    made, report = rebuild(conn, find_index(conn, "docs"))
    assert made.embedder == ONE
    assert report.embedded < ROWS
    assert len(paid(fake)) == ROWS
    assert set(paid(fake).values()) == {1}
    assert status(conn, made).warnings == ()
    assert right(conn, fake, model="gemini-embedding-001")


def test_a_cap_reached_in_a_rebuild_leaves_the_old_one_and_what_was_paid_for(conn, fake, index):
    with pytest.raises(BudgetReached):
        rebuild(conn, index, embedder=ONE, max_usd=0.0002)
    assert answers(conn)[0] == TWO
    made, _ = rebuild(conn, index)
    assert made.embedder == ONE
    assert set(paid(fake).values()) == {1}


def test_naming_the_active_model_gives_the_begun_one_up(conn, fake, index):
    with pytest.raises(Stopped):
        rebuild(conn, index, embedder=ONE, on_progress=stop_after(1))
    fake.requests.clear()
    made, _ = rebuild(conn, index, embedder=TWO)
    assert (made.generation, fake.requests) == (1, [])
    assert generations(conn) == [(1, TWO, "active")]
    assert {name for name in tables(conn) if "_docs_2_" in name} == set()


def test_a_kept_generation_makes_going_back_free(conn, fake, index):
    rebuild(conn, index, embedder=ONE, keep_old=True)
    assert generations(conn) == [(2, ONE, "active"), (1, TWO, "retired")]
    assert [w for w in status(conn, find_index(conn, "docs")).warnings if "kept" in w] == [
        "the vectors of generation 1 with gemini are kept: a `rebuild` drops them"
    ]
    assert verify(conn, find_index(conn, "docs")) == []
    fake.requests.clear()
    assert estimate(conn, find_index(conn, "docs"), embedder=load_embedder(TWO)).chunks == 0
    made, report = rebuild(conn, find_index(conn, "docs"), embedder=TWO, keep_old=True)
    assert (fake.requests, report.embedded, made.embedder) == ([], 0, TWO)
    assert right(conn, fake)
    assert answers(conn) == (TWO, [(8,)])
    # The vectors of each model are kept once, however often one goes back and forth.
    assert generations(conn) == [(3, TWO, "active"), (2, ONE, "retired")]
    assert {name for name in tables(conn) if "_docs_1_" in name} == set()
    fake.requests.clear()
    back, report = rebuild(conn, made, embedder=ONE)
    assert (fake.requests, report.embedded, back.embedder) == ([], 0, ONE)
    assert [state for _, _, state in generations(conn)] == ["active"]
    assert verify(conn, back) == []


def test_a_kept_generation_serves_a_shorter_one_too(conn, fake, index):
    made, _ = rebuild(conn, index, embedder=ONE, keep_old=True)
    fake.requests.clear()
    short, report = rebuild(conn, made, embedder=SHORT)
    assert (fake.requests, report.embedded, short.dimensions) == ([], 0, 256)
    assert right(conn, fake, dimensions=256)


def test_going_back_buys_only_what_changed_meanwhile(conn, fake, index):
    made, _ = rebuild(conn, index, embedder=ONE, keep_old=True)
    conn.execute("update docs set body = 'zebra crossing' where id = 7")
    conn.execute("delete from docs where id = 9")
    conn.execute("insert into docs values (9, 'alpha100 beta100 gamma100')")
    conn.commit()
    sync(conn, made)
    fake.embedded.clear()
    back, report = rebuild(conn, find_index(conn, "docs"), embedder=TWO)
    assert report.embedded == 1
    assert paid(fake) == {PREFIX + "zebra crossing": 1}
    assert right(conn, fake)
    assert verify(conn, back) == []


def test_a_rebuild_without_a_word_drops_what_was_kept(conn, fake, index):
    made, _ = rebuild(conn, index, embedder=ONE, keep_old=True)
    fake.requests.clear()
    again, _ = rebuild(conn, made)
    assert (again, fake.requests) == (made, [])
    assert generations(conn) == [(2, ONE, "active")]
    assert {name for name in tables(conn) if "_docs_1_" in name} == set()


def test_the_tables_of_a_kept_generation_are_no_ones_triggers_and_drop_takes_them_all(conn, fake, index):
    from datasette_vec_gemini import drop

    made, _ = rebuild(conn, index, embedder=ONE, keep_old=True)
    triggers = conn.execute("select name from sqlite_master where type = 'trigger'").fetchall()
    assert all(name.startswith("_vec_docs_2_") for (name,) in triggers)
    drop(conn, made)
    assert tables(conn) == set()
    assert generations(conn) == []


# A process that dies.

REBUILDER = """
import sys
from datasette_vec_gemini import connect, find_index, rebuild
conn = connect(sys.argv[1])
rebuild(conn, find_index(conn, "docs"), embedder="gemini:gemini-embedding-001")
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_loses_two_batches_at_most(conn, path, fake, index):
    fake.latency_seconds = 0.3
    process = subprocess.Popen([sys.executable, "-c", REBUILDER, str(path)], env=os.environ)
    until = time.monotonic() + 30
    while sum("batch" in received.path for received in fake.requests) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    fake.latency_seconds = 0.0
    assert answers(conn) == (TWO, [(8,)])
    made, _ = rebuild(conn, find_index(conn, "docs"))
    assert made.embedder == ONE
    assert sum(paid(fake).values()) - ROWS <= 2 * 99
    assert right(conn, fake, model="gemini-embedding-001")
    assert verify(conn, made) == []


# A database of before.


def before(conn):
    """A registry as the release before made it."""
    db = database(conn)
    migrations.apply(db, stop_before="m003_retired")
    assert "retired" not in db.table("_vec_indexes").schema


def test_a_database_made_before_generations_were_kept_can_keep_them(conn, fake):
    before(conn)
    table(conn, 5)
    index = _created_without_migrating(conn)
    assert "retired" not in conn.execute("select sql from sqlite_master where name = '_vec_indexes'").fetchone()[0]
    sync(conn, index)
    made, _ = rebuild(conn, index, embedder=ONE, keep_old=True)
    assert generations(conn) == [(2, ONE, "active"), (1, TWO, "retired")]
    assert verify(conn, made) == []
    rows = conn.execute("select name, generation, state from _vec_indexes order by generation").fetchall()
    assert rows == [("docs", 1, "retired"), ("docs", 2, "active")]


@pytest.mark.parametrize(
    "odd",
    [
        "create view broken as select * from no_such_table",
        "create view registered as select name from _vec_indexes",
        "create trigger broken after insert on docs begin select no_such_function(new.body); end",
        "pragma legacy_alter_table = on",
        "pragma foreign_keys = on",
    ],
)
def test_the_upgrade_bears_with_what_else_is_in_the_file(conn, fake, odd):
    before(conn)
    table(conn, 5)
    _created_without_migrating(conn)
    conn.execute(odd)
    conn.commit()
    registry.migrate(conn)
    sql = conn.execute("select sql from sqlite_master where name = '_vec_indexes'").fetchone()[0]
    assert "'retired'" in sql
    assert find_index(conn, "docs").embedder == TWO
    assert conn.execute("select name from sqlite_master where name like '%new'").fetchall() == []


def _created_without_migrating(conn):
    """As `create_index` makes it, on the registry that is there."""
    with closing(connect(":memory:")) as other:
        table(other, 1)
        index = create_index(other, "docs", table="docs", columns=["body"], embedder=TWO)
    from datasette_vec_gemini.store import generations
    from datasette_vec_gemini.store.transactions import transaction

    with transaction(conn):
        generations.create(conn, index)
    return index
