"""Laws of sync: whatever happens to the table, the index ends as if it had been built anew, and buys nothing twice."""

import threading

import pytest

from datasette_vec_gemini import (
    Query,
    SyncReport,
    connect,
    create_index,
    find_index,
    load_embedder,
    search,
    status,
    sync,
    verify,
)
from datasette_vec_gemini.errors import EmbedderError, FingerprintMismatch, TableNotFound, TransactionOpen
from datasette_vec_gemini.printing import print_report
from datasette_vec_gemini.store import counting
from datasette_vec_gemini.syncing import told


def keys(conn, index, text, **options):
    return [hit.key for hit in search(conn, index, Query(text, **options))]


def texts(conn, index):
    """What the index holds, by key."""
    found = {}
    for key, text in conn.execute(f"select key, text from {index.view} order by key, position").fetchall():
        found.setdefault(key, []).append(text)
    return found


def test_every_row_is_found_by_its_text(conn, docs):
    report = sync(conn, docs)
    assert (report.documents, report.embedded, report.failed) == (5, 4, 0)
    assert keys(conn, docs, "comma separated", k=1) == [(3,)]
    assert verify(conn, docs) == []


def test_a_second_sync_does_nothing(conn, docs, recorder, contents):
    sync(conn, docs, embedder=recorder)
    before, recorder.texts = contents(), []
    report = sync(conn, docs, embedder=recorder)
    assert (report.documents, report.embedded, recorder.texts) == (0, 0, [])
    assert contents() == before


def test_status_counts_every_row_once(conn, docs, recorder):
    def sums():
        now = status(conn, docs)
        assert now.rows == now.indexed + now.pending + now.failed + now.empty
        return now.indexed, now.pending, now.failed, now.empty

    assert sums() == (0, 5, 0, 0)
    recorder.refused = {"Zones\n\nconvert a time zone"}
    assert sync(conn, docs, embedder=recorder).failed == 1
    assert sums() == (3, 0, 1, 1)
    assert status(conn, docs).failures == (("2", "the model refuses this text"),)
    conn.execute("update docs set body = 'new' where id = 1")
    conn.execute("delete from docs where id = 3")
    conn.execute("insert into docs (id, body) values (9, null)")
    conn.commit()
    assert sums() == (1, 2, 1, 1)


def test_a_refused_text_is_isolated_and_retried_until_it_is_given_up(conn, docs, recorder):
    recorder.refused = {"Zones\n\nconvert a time zone"}
    for _ in range(3):
        report = sync(conn, docs, embedder=recorder)
        assert report.failed == 1
    assert sorted(recorder.texts) == [
        "Dates\n\nparse a date from text",
        "Empty",
        "Tables\n\nread comma separated values",
    ]
    recorder.refused = set()
    assert sync(conn, docs, embedder=recorder).failed == 1
    assert sync(conn, docs, embedder=recorder, full=True).failed == 0
    assert keys(conn, docs, "convert", k=1) == [(2,)]


def test_an_edited_row_is_hidden_at_once_and_found_by_its_new_text_after_sync(conn, docs, recorder):
    sync(conn, docs, embedder=recorder)
    conn.execute("update docs set body = 'zebra crossing' where id = 1")
    conn.commit()
    assert (1,) not in keys(conn, docs, "parse date zebra")
    recorder.texts = []
    sync(conn, docs, embedder=recorder)
    assert recorder.texts == ["Dates\n\nzebra crossing"]
    assert keys(conn, docs, "zebra", k=1) == [(1,)]
    assert verify(conn, docs) == []


def test_a_deleted_row_is_gone_at_once(conn, docs):
    sync(conn, docs)
    conn.execute("delete from docs where id = 3")
    conn.commit()
    assert (3,) not in keys(conn, docs, "comma separated values")
    sync(conn, docs)
    assert "[3]" not in texts(conn, docs)
    assert verify(conn, docs) == []


def test_hidden_candidates_do_not_make_an_answer_shorter(conn, docs):
    sync(conn, docs)
    conn.execute("delete from docs where id in (1, 2)")
    conn.commit()
    assert len(keys(conn, docs, "parse a date", k=2)) == 2


def test_a_text_that_moves_or_is_swapped_is_not_embedded_again(conn, docs, recorder):
    sync(conn, docs, embedder=recorder)
    recorder.texts = []
    conn.execute("create temp table old as select * from docs")
    conn.execute(
        "update docs set (title, body) = (select title, body from old where old.id = 4 - docs.id) where id in (1, 3)"
    )
    conn.commit()
    report = sync(conn, docs, embedder=recorder)
    assert (recorder.texts, report.reused) == ([], 2)
    assert keys(conn, docs, "comma separated", k=1) == [(1,)]
    assert verify(conn, docs) == []


@pytest.mark.parametrize("shift", [1, -1])
def test_a_shift_of_every_row_over_many_batches_buys_nothing(conn, recorder, shift):
    recorder.batch_size = 512
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t values (?, ?)", [(n * 10, f"text number{n} word{n}") for n in range(1, 1_001)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index, embedder=recorder)
    recorder.texts = []
    conn.execute("create temp table moved as select id + ? as id, body from t", [shift * 10])
    conn.execute(
        "update t set body = (select body from moved where moved.id = t.id) where id in (select id from moved)"
    )
    conn.commit()
    sync(conn, index, embedder=recorder)
    assert recorder.texts == []
    assert verify(conn, index) == []


def test_duplicate_texts_are_embedded_once(conn, recorder):
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [("the same text",)] * 50 + [("another",)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    report = sync(conn, index, embedder=recorder)
    assert recorder.texts == ["the same text", "another"]
    assert (report.embedded, report.reused) == (2, 49)
    assert len(keys(conn, index, "same text", k=50)) == 50


def test_a_row_that_gets_its_old_text_back_before_sync_costs_nothing(conn, docs, recorder):
    sync(conn, docs, embedder=recorder)
    recorder.texts = []
    conn.executescript(
        "update docs set body = 'x' where id = 1; update docs set body = 'parse a date from text' where id = 1"
    )
    report = sync(conn, docs, embedder=recorder)
    assert (recorder.texts, report.documents, report.chunks_added) == ([], 1, 0)


def test_null_text_null(conn, docs):
    for body in ("words come", None, "words return", ""):
        conn.execute("update docs set title = null, body = ? where id = 4", [body])
        conn.commit()
        sync(conn, docs)
        assert texts(conn, docs).get("[4]", [""]) == [body or ""]
        assert verify(conn, docs) == []


CHANGES = {
    "upsert": "insert into docs (id, body) values (1, 'zebra') on conflict (id) do update set title = null, body = excluded.body",
    "replace": "insert or replace into docs (id, body, slug) values (1, 'zebra', 'z')",
    "replace through another unique column": "insert or replace into docs (id, body, slug) values (70, 'zebra', 'dates')",
    "update or replace through another unique column": "update or replace docs set title = null, body = 'zebra', slug = 'dates' where id = 2",
    "insert or ignore": "insert or ignore into docs (id, body, slug) values (71, 'zebra', 'x'), (1, 'no', 'y')",
    "insert or fail": "insert or fail into docs (id, body, slug) values (72, 'zebra', 'q')",
    "key change": "update docs set id = 900, title = null, body = 'zebra' where id = 1",
    "key change alone": "update docs set title = 'zebra' where id = 2; update docs set id = 901 where id = 2",
    "rowid change": "update docs set rowid = 902, title = 'zebra' where id = 1",
    "reused rowid": "delete from docs where id = 3; insert into docs (id, body) values (3, 'zebra')",
    "swap of keys": "update docs set id = -1 where id = 1; update docs set id = 1, body = 'zebra' where id = 2; update docs set id = 2 where id = -1",
    "table emptied": "delete from docs; insert into docs (id, body) values (5, 'zebra')",
    "drop and recreate": "drop table docs; create table docs (id integer primary key, title, body, category, slug); insert into docs (id, body) values (2, 'zebra')",
    "rename and back": "alter table docs rename to d2; update d2 set body = 'zebra' where id = 1; alter table d2 rename to docs",
    "vacuum": "update docs set body = 'zebra' where id = 1; vacuum",
    "column added": "alter table docs add column more; update docs set body = 'zebra' where id = 1",
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_any_change_by_a_writer_without_the_extension_the_index_is_right(conn, docs, write, change):
    sync(conn, docs)
    write(CHANGES[change])
    sync(conn, docs)
    assert verify(conn, docs) == []
    assert keys(conn, docs, "zebra", k=1) == [
        conn.execute("select id from docs where title||coalesce(body,'') like '%zebra%' or body = 'zebra'").fetchone()
    ]
    assert status(conn, docs).pending == 0


def test_transform_by_sqlite_utils_loses_triggers_and_sync_finds_every_change(conn, docs):
    from sqlite_utils import Database

    sync(conn, docs)
    Database(conn).table("docs").transform(rename={"category": "kind"}, defaults={"kind": "none"})
    conn.execute("update docs set body = 'zebra' where id = 3")
    conn.commit()
    assert any("triggers" in warning for warning in status(conn, docs).warnings)
    report = sync(conn, docs)
    assert "triggers" in report.notes[0]
    assert keys(conn, docs, "zebra", k=1) == [(3,)]
    assert verify(conn, docs) == []


def test_a_renamed_table_is_followed(conn, docs, write):
    sync(conn, docs)
    write("alter table docs rename to papers; update papers set body = 'zebra' where id = 2")
    index = find_index(conn, "docs")
    assert index.table == "papers"
    sync(conn, index)
    assert keys(conn, index, "zebra", k=1) == [(2,)]
    assert verify(conn, index) == []


def test_a_table_that_is_gone_is_said_to_be(conn, docs, write):
    sync(conn, docs)
    write("drop table docs")
    with pytest.raises(TableNotFound, match="'docs' of index 'docs' is gone"):
        sync(conn, docs)


def test_vacuum_on_a_table_without_a_primary_key_does_not_mix_rows_up(conn, write):
    conn.execute("create table t (body text)")
    conn.executemany("insert into t values (?)", [(f"word{n}",) for n in range(20)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    write("delete from t where rowid % 2; vacuum")
    for hit in search(conn, index, Query("word4 word6", k=20)):
        assert hit.row["body"] == hit.chunk.text
    sync(conn, index)
    assert verify(conn, index) == []
    assert [hit.row["body"] for hit in search(conn, index, Query("word7", k=1))] == ["word7"]


TABLES = {
    "integer": ("create table t (id integer primary key, body text)", [1, 2, 2**40]),
    "text": ("create table t (id text primary key, body text)", ["a", "b/c,d", "é~"]),
    "text nocase": ("create table t (id text collate nocase primary key, body text)", ["a", "B", "Ç"]),
    "real": ("create table t (id real primary key, body text)", [0.1, 1e300, 3.0]),
    "blob": ("create table t (id blob primary key, body text)", [b"a", b"\x00\xff", b""]),
    "untyped": ("create table t (id primary key, body text)", ["1", 1, b"1"]),
    "without rowid": ("create table t (id text primary key, body text) without rowid", ["x", "y", "z"]),
    "strict": ("create table t (id any primary key, body text) strict", ["x", 7, 1.5]),
    "no key": ("create table t (id text, body text)", ["x", "y", "z"]),
    "named rowid": ("create table t (rowid text, id text, body text)", ["x", "y", "z"]),
    "composite": ("create table t (id text, n integer default 3, body text, primary key (n, id))", ["x", "y", "z"]),
    "awkward": (
        'create table t (id text, "or""der" text default \'q\', body text, primary key (id, "or""der"))',
        ["x", "y", "z"],
    ),
    "generated": ("create table t (id integer primary key, raw text, body text as (lower(raw)))", [1, 2, 3]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_any_kind_of_key_can_be_indexed_edited_and_deleted(conn, kind):
    ddl, ids = TABLES[kind]
    column = "raw" if kind == "generated" else "body"
    conn.execute(ddl)
    conn.executemany(
        f"insert into t (id, {column}) values (?, ?)", [(id_, f"word{n} shared") for n, id_ in enumerate(ids)]
    )
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    assert verify(conn, index) == []
    for n, id_ in enumerate(ids):
        (hit,) = search(conn, index, Query(f"word{n}", k=1))
        assert hit.row["id"] == id_
    conn.execute(f"update t set {column} = 'zebra shared' where id = ?", [ids[0]])
    conn.execute("delete from t where id = ?", [ids[1]])
    conn.commit()
    sync(conn, index)
    assert verify(conn, index) == []
    assert [hit.row["id"] for hit in search(conn, index, Query("zebra", k=1))] == [ids[0]]
    assert status(conn, index).indexed == 2


def test_rows_without_a_key_are_left_out(conn):
    conn.execute("create table t (id text primary key, body text)")
    conn.execute("insert into t values (null, 'lost'), ('a', 'kept')")
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    conn.execute("insert into t values (null, 'lost too')")
    conn.execute("update t set id = null where id = 'a'")
    conn.commit()
    sync(conn, index)
    assert texts(conn, index) == {}
    assert status(conn, index).rows == 0


def test_a_change_of_case_in_a_nocase_column_is_noticed(conn):
    conn.execute("create table t (id integer primary key, body text collate nocase)")
    conn.execute("insert into t values (1, 'POLISH')")
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    conn.execute("update t set body = 'Polish'")
    conn.commit()
    sync(conn, index)
    assert texts(conn, index) == {"[1]": ["Polish"]}


def test_a_view_is_indexed_by_the_key_it_is_given(conn, recorder):
    conn.executescript(
        """
        create table a (id integer primary key, title text); create table b (a_id integer, body text);
        insert into a values (1, 'one'), (2, 'two'); insert into b values (1, 'apple'), (2, 'pear');
        create view v as select a.id, a.title || ' ' || b.body as text from a join b on b.a_id = a.id;
        """
    )
    index = create_index(conn, "v", table="v", columns=["text"], key=["id"], embedder="hashing@64")
    sync(conn, index, embedder=recorder)
    recorder.texts = []
    conn.executescript("update b set body = 'zebra' where a_id = 1; delete from a where id = 2")
    sync(conn, index, embedder=recorder)
    assert recorder.texts == ["one zebra"]
    assert texts(conn, index) == {"[1]": ["one zebra"]}
    assert verify(conn, index) == []


def test_long_documents_are_found_by_any_part_and_shown_once(conn, recorder):
    recorder.chunk_capacity = 60
    conn.execute("create table t (id integer primary key, body text)")
    conn.execute("insert into t values (1, ?)", [" ".join(f"filler{n} sentence." for n in range(40)) + " zebra ends."])
    conn.execute("insert into t values (2, 'short')")
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder=recorder)
    sync(conn, index, embedder=recorder)
    hits = search(conn, index, Query("zebra"), embedder=recorder)
    assert [hit.key for hit in hits] == [(1,), (2,)]
    assert "zebra" in hits[0].chunk.text
    assert len(hits[0].chunk.text) <= 60
    assert hits[0].row["body"][hits[0].chunk.start : hits[0].chunk.end] == hits[0].chunk.text
    assert verify(conn, index, embedder=recorder) == []


@pytest.mark.parametrize(
    "change",
    [
        "update docs set body = 'zebra' where id = 1",
        "delete from docs where id = 1",
        "update docs set id = 77 where id = 1",
    ],
)
def test_a_row_that_changes_while_its_embedding_is_in_flight_never_gets_the_old_vector(
    conn, docs, recorder, write, change
):
    def meanwhile():
        recorder.meanwhile = None
        write(change)

    recorder.meanwhile = meanwhile
    sync(conn, docs, embedder=recorder)
    for hit in search(conn, docs, Query("parse a date", k=10)):
        assert hit.chunk.text in f"{hit.row['title'] or ''}\n\n{hit.row['body'] or ''}"
    sync(conn, docs, embedder=recorder)
    assert verify(conn, docs) == []
    assert status(conn, docs).pending == 0


def test_a_row_deleted_and_synced_by_another_indexer_meanwhile_leaves_no_orphan(conn, docs, recorder, path):
    text_is_done = threading.Event()

    def sync_too():
        other = connect(path)
        other.executescript("delete from docs where id = 1; update docs set body = 'zebra' where id = 2")
        sync(other, docs, on_progress=lambda progress: text_is_done.set())
        other.close()

    def meanwhile():
        recorder.meanwhile = None
        another.start()
        assert text_is_done.wait(20)

    another = threading.Thread(target=sync_too)
    recorder.meanwhile = meanwhile
    sync(conn, docs, embedder=recorder)
    another.join(20)
    assert "[1]" not in texts(conn, docs)
    assert verify(conn, docs) == []
    assert keys(conn, docs, "zebra", k=1) == [(2,)]


def test_sync_holds_no_transaction_while_the_model_works(conn, docs, recorder, write):
    recorder.meanwhile = lambda: write("insert into docs (body) values ('written meanwhile')")
    sync(conn, docs, embedder=recorder)
    recorder.meanwhile = None
    sync(conn, docs, embedder=recorder)
    assert status(conn, docs).pending == 0


def test_sync_hands_over_no_more_than_one_batch_at_a_time(conn, docs, recorder):
    sync(conn, docs, embedder=recorder)
    assert max(recorder.batches) <= recorder.batch_size


def test_a_model_that_fails_keeps_what_was_done_and_gives_its_claims_back(conn, recorder):
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [(f"word{n}",) for n in range(10)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")

    def fail_later():
        if len(recorder.texts) > 4:
            raise EmbedderError("the model went away")

    recorder.meanwhile = fail_later
    with pytest.raises(EmbedderError, match="went away"):
        sync(conn, index, embedder=recorder)
    assert counting.count_chunks(conn, index, only="embedding is not null") == 4
    assert counting.count_chunks(conn, index, only="claim is not null") == 0
    recorder.meanwhile, recorder.texts = None, []
    assert sync(conn, index, embedder=recorder).embedded == 6
    assert verify(conn, index) == []


def test_keyword_search_is_current_although_the_model_fails(conn, docs, recorder):
    def fail():
        raise EmbedderError("no quota")

    recorder.meanwhile = fail
    with pytest.raises(EmbedderError, match="no quota"):
        sync(conn, docs, embedder=recorder)
    assert keys(conn, docs, "comma", mode="keyword") == [(3,)]
    assert keys(conn, docs, "comma") == [(3,)]


def test_vectors_of_the_wrong_shape_are_an_error_never_a_vector(conn, docs, recorder):
    class Wrong(type(recorder)):
        def embed_documents(self, texts):
            return super().embed_documents(texts)[:, :32]

    with pytest.raises(EmbedderError, match=r"shape \(4, 32\) for 4 texts of 64 dimensions"):
        sync(conn, docs, embedder=Wrong())
    assert counting.count_chunks(conn, docs, only="embedding is not null") == 0


def test_nan_is_recorded_as_a_failure_of_its_own_text(conn, docs, recorder):
    class Poisoned(type(recorder)):
        def embed_documents(self, texts):
            vectors = super().embed_documents(texts)
            for vector, text in zip(vectors, texts, strict=True):
                if "zone" in text:
                    vector[0] = float("nan")
            return vectors

    assert sync(conn, docs, embedder=Poisoned()).failed == 1
    assert status(conn, docs).failures == (("2", "a vector holds NaN or infinity"),)


def test_another_model_is_refused_and_nothing_changes(conn, docs, contents):
    sync(conn, docs)
    before = contents()
    with pytest.raises(FingerprintMismatch, match="rebuild"):
        sync(conn, docs, embedder=load_embedder("hashing@128"))
    assert contents() == before


def test_an_open_transaction_is_refused(conn, docs):
    conn.execute("insert into docs (body) values ('uncommitted')")
    with pytest.raises(TransactionOpen, match="commit"):
        sync(conn, docs)


def test_the_journal_is_wal_after_indexing_and_nothing_is_written_by_opening(conn, docs, path):
    sync(conn, docs)
    assert conn.execute("pragma journal_mode").fetchone() == ("wal",)
    conn.execute("pragma wal_checkpoint(truncate)").fetchone()
    before = path.read_bytes()
    other = connect(path)
    assert keys(other, find_index(other, "docs"), "date")
    status(other, docs)
    other.close()
    assert path.read_bytes() == before


def test_what_a_sync_did_is_told_alike_on_a_page_and_on_the_command_line_which_adds_the_costs(docs, capsys):
    report = SyncReport(
        documents=1_200,
        chunks_removed=1,
        embedded=3,
        reused=2,
        failed=4,
        tokens=1_000,
        usd=0.25,
        notes=("every row was compared",),
        seconds=1.23,
    )
    did = "1,200 documents read, 3 chunks embedded, 2 reused, 1 chunk removed, 4 failed"
    assert told(report) == f"{did}, 1.2 s, every row was compared"
    print_report(docs, report)
    assert capsys.readouterr().out == (
        f"Synced docs: {did}, 1,000 tokens, $0.2500, 1.2 s\n  note: every row was compared\n"
    )
    assert told(SyncReport(documents=1)) == "1 document read, 0 chunks embedded, 0.0 s"
