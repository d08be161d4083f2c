"""What must not happen when others drop, rebuild, reload or reshape things at the wrong moment."""

import threading

import pytest

from datasette_vec_gemini import (
    Query,
    connect,
    create_index,
    drop,
    find_index,
    rebuild,
    search,
    similar,
    status,
    sync,
    verify,
)
from datasette_vec_gemini.errors import IndexNotFound, UsageError, VecError


def keys(conn, index, text, **options):
    return [hit.key for hit in search(conn, index, Query(text, **options))]


@pytest.fixture
def other(conn, path):
    connection = connect(path)
    yield connection
    connection.close()


def test_verify_leaves_the_callers_transaction_open(conn, docs):
    sync(conn, docs)
    conn.execute("insert into docs (id, body) values (99, 'mine')")
    verify(conn, docs)
    assert conn.in_transaction
    conn.commit()
    assert conn.execute("select body from docs where id = 99").fetchone() == ("mine",)


def test_a_sync_under_way_writes_nothing_into_an_index_that_replaced_its_own(conn, docs, other, recorder):
    def meanwhile():
        recorder.meanwhile = None
        drop(other, find_index(other, "docs"))
        create_index(other, "docs", table="docs", columns=["slug"], embedder=recorder)

    recorder.meanwhile = meanwhile
    with pytest.raises(IndexNotFound, match="dropped or rebuilt meanwhile"):
        sync(conn, docs, embedder=recorder)
    replaced = find_index(conn, "docs")
    sync(conn, replaced, embedder=recorder)
    assert verify(conn, replaced) == []
    vectors = conn.execute("select text, embedding from _vec_docs").fetchall()
    assert len(vectors) == 4
    assert all(recorder.embed_query(text).tobytes() == blob for text, blob in vectors)


def test_a_rebuild_that_refuses_more_than_before_leaves_the_old_generation_in_use(conn, docs, recorder):
    sync(conn, docs)
    recorder = type(recorder)(name="hashing@128")
    recorder.refused = {"Zones\n\nconvert a time zone"}
    kept, report = rebuild(conn, docs, embedder=recorder)
    assert (kept.generation, report.failed) == (1, 1)
    assert keys(conn, kept, "convert zone", k=1) == [(2,)]
    recorder.refused = set()
    rebuilt, report = rebuild(conn, kept, embedder=recorder)
    assert (rebuilt.generation, report.failed, report.embedded) == (2, 0, 1)


def test_a_rebuild_whose_successor_was_taken_away_leaves_the_index_alone(conn, docs, other, recorder):
    sync(conn, docs)
    recorder = type(recorder)(name="hashing@128")

    def meanwhile():
        recorder.meanwhile = None
        rebuild(other, docs, embedder="hashing@64")

    recorder.meanwhile = meanwhile
    with pytest.raises(IndexNotFound, match="dropped or rebuilt meanwhile"):
        rebuild(conn, docs, embedder=recorder)
    index = find_index(conn, "docs")
    assert (index.generation, index.embedder) == (1, "hashing@64")
    assert verify(conn, index) == []


def test_int8_codes_of_two_first_syncs_share_one_scale(conn, path, recorder):
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [(f"word{n} " * (n % 5 + 1),) for n in range(40)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64", quantize="int8")
    second = type(recorder)()
    started = threading.Event()

    def sync_too():
        connection = connect(path)
        second.meanwhile = started.set
        sync(connection, index, embedder=second)
        connection.close()

    def meanwhile():
        recorder.meanwhile = None
        another.start()
        assert started.wait(20)

    another = threading.Thread(target=sync_too)
    recorder.meanwhile = meanwhile
    sync(conn, index, embedder=recorder)
    another.join(20)
    assert verify(conn, find_index(conn, "t")) == []
    codes = conn.execute("select vec_to_json(embedding) from _vec_t_1_codes order by id").fetchall()
    rebuild(conn, find_index(conn, "t"))
    assert conn.execute("select vec_to_json(embedding) from _vec_t_1_codes order by id").fetchall() == codes


def test_a_vacuum_during_the_text_stage_is_seen_by_the_next_sync(conn, other):
    conn.execute("create table t (body text)")
    conn.executemany("insert into t values (?)", [(f"word{n}",) for n in range(600)])
    conn.commit()
    conn.execute("delete from t where rowid % 3 = 0")
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    done = []

    def vacuum(progress):
        if not done:
            done.append(progress)
            other.execute("vacuum")

    sync(conn, index, on_progress=vacuum)
    sync(conn, index)
    assert verify(conn, index) == []


def test_a_key_whose_case_changes_stays_one_document_under_its_new_spelling(conn, recorder):
    recorder.chunk_capacity = 60
    conn.execute("create table t (id text collate nocase primary key, body text)")
    conn.execute("insert into t values ('a', ?)", [" ".join(f"word{n} apple." for n in range(12))])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder=recorder)
    sync(conn, index, embedder=recorder)
    asked = len(recorder.texts)
    conn.execute("update t set id = 'A', body = body || ' zebra'")
    conn.commit()
    sync(conn, index, embedder=recorder)
    assert [hit.key for hit in search(conn, index, Query("apple zebra"), embedder=recorder)] == [("A",)]
    assert len(recorder.texts) - asked <= 2
    assert verify(conn, index) == []


def test_a_change_of_type_alone_is_noticed(conn):
    conn.executescript("create table t (id integer primary key, v); insert into t values (1, 1)")
    index = create_index(conn, "t", table="t", columns=["v"], embedder="hashing@64")
    sync(conn, index)
    conn.execute("update t set v = 1.0")
    conn.commit()
    sync(conn, index)
    assert [hit.chunk.text for hit in search(conn, index, Query("1", k=1))] == ["1.0"]


def test_a_key_of_any_type_in_a_strict_table_keeps_its_type(conn):
    conn.executescript("create table t (id any primary key, body text) strict; insert into t values ('123', 'apple')")
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    assert keys(conn, index, "apple") == [("123",)]
    assert status(conn, index).indexed == 1


def test_a_reload_under_new_keys_that_is_interrupted_buys_nothing_again(conn, recorder):
    recorder.batch_size = 512
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t values (?, ?)", [(n, f"text number{n}") for n in range(1_000)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index, embedder=recorder)
    recorder.texts = []
    conn.executescript(
        "create temp table old as select * from t; delete from t; insert into t select id + 5000, body from old"
    )

    def stop(progress):
        if progress.done > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(conn, index, embedder=recorder, on_progress=stop)
    sync(conn, index, embedder=recorder)
    assert recorder.texts == []
    assert verify(conn, index) == []


def test_two_indexers_pay_once_for_a_text_that_many_rows_share(conn, path, recorder):
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [(f"text{n % 4}",) for n in range(200)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    second = type(recorder)()
    started = threading.Event()

    def sync_too():
        connection = connect(path)
        sync(connection, index, embedder=second, on_progress=lambda progress: started.set())
        connection.close()

    def meanwhile():
        recorder.meanwhile = None
        another.start()
        started.wait(0.5)  # it has nothing to do, and so no progress, until this one has written its vectors

    another = threading.Thread(target=sync_too)
    recorder.meanwhile = meanwhile
    sync(conn, index, embedder=recorder)
    another.join(20)
    assert sorted(recorder.texts + second.texts) == ["text0", "text1", "text2", "text3"]


def test_semantic_search_can_stand_in_a_statement_that_writes(conn, docs):
    sync(conn, docs)
    conn.execute(
        "create table hits as select value ->> '$.key[0]' as id from json_each(semantic_search('docs', 'date'))"
    )
    conn.isolation_level = None
    conn.execute("insert into hits select value ->> '$.key[0]' from json_each(semantic_search('docs', 'date', 1))")
    assert conn.execute("select count(*) from hits").fetchone()[0] >= 2


def test_a_template_may_spell_columns_in_any_case(conn, docs):
    index = create_index(conn, "two", table="docs", template="{Title}: {BODY}", embedder="hashing@64")
    assert (index.template, index.columns) == ("{title}: {body}", ("title", "body"))
    sync(conn, index)
    assert keys(conn, index, "comma", mode="keyword") == [(3,)]


RESHAPED = {
    "indexed column renamed": "alter table docs rename column body to content",
    "key renamed": "alter table docs rename column id to number",
    "table gone": "drop table docs",
    "another key": "drop table docs; create table docs (id integer, title text, body text, slug text primary key)",
    "no key": "drop table docs; create table docs (id integer, title text, body text)",
    "a view instead": "drop table docs; create view docs as select 1 as id, 'a' as title, 'b' as body",
}


@pytest.mark.parametrize("change", RESHAPED)
def test_a_table_that_changed_its_shape_is_said_to_have_in_every_door(conn, docs, write, change):
    sync(conn, docs)
    write(RESHAPED[change])
    for ask in (
        lambda: search(conn, docs, Query("date")),
        lambda: similar(conn, docs, [1]),
        lambda: sync(conn, docs),
        lambda: status(conn, docs),
        lambda: verify(conn, docs),
    ):
        with pytest.raises(UsageError, match="drop index 'docs' and make it again"):
            ask()
    drop(conn, docs)


def test_a_virtual_or_internal_table_is_refused(conn):
    conn.execute("create virtual table f using fts5 (body)")
    conn.execute("create table t (id integer primary key autoincrement)")
    for table, column in (("f", "body"), ("sqlite_sequence", "name")):
        with pytest.raises(VecError, match="takes no triggers"):
            create_index(conn, "x", table=table, columns=[column], embedder="hashing@64")


@pytest.mark.parametrize("kind", ["fts", "queue", "codes"])
def test_a_derived_table_that_is_gone_is_made_anew_for_free(conn, docs, recorder, kind):
    sync(conn, docs, embedder=recorder)
    recorder.texts = []
    conn.execute(f"drop table _vec_docs_1_{kind}")
    problems = verify(conn, docs, repair=True, embedder=recorder)
    assert all(problem.mended for problem in problems)
    assert verify(conn, docs) == []
    assert recorder.texts == []
    assert keys(conn, docs, "comma", mode="keyword") == [(3,)]


def test_rows_deleted_in_bulk_do_not_fill_an_answer_before_the_next_sync(conn):
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [("same words",)] * 1_500 + [("same words once more",)] * 20)
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    conn.execute("delete from t where id <= 1500")
    conn.commit()
    for mode in ("hybrid", "semantic", "keyword"):
        assert len(keys(conn, index, "same words", mode=mode, k=15)) == 15
    assert len(keys(conn, index, "same words", k=10, filters={"id__gt": 1505})) == 10


def test_a_long_text_without_breaks_is_cut_in_reasonable_time(conn, recorder):
    conn.execute("create table t (id integer primary key, body text)")
    conn.execute("insert into t values (1, ?)", ["x1y2" * 500_000 + " zebra"])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    assert sync(conn, index).seconds < 30
    (hit,) = search(conn, index, Query("zebra", mode="keyword"))
    assert hit.row["body"][hit.chunk.start : hit.chunk.end] == hit.chunk.text
    assert verify(conn, index) == []


def test_a_temporary_table_of_the_same_name_hides_nothing(conn, docs, recorder):
    sync(conn, docs, embedder=recorder)
    recorder.texts = []
    conn.execute("create temp table docs as select 1 as id, 'x' as title, 'y' as body, 'z' as category")
    conn.execute("insert into main.docs (id, body) values (50, 'zebra')")
    conn.commit()
    report = sync(conn, docs, embedder=recorder)
    assert (recorder.texts, report.chunks_removed) == (["zebra"], 0)
    assert keys(conn, docs, "zebra", k=1, filters={"id__gt": 5}) == [(50,)]
    conn.execute("drop table temp.docs")
    assert verify(conn, docs) == []
