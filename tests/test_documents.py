"""Laws of documents that come one by one: what is written, what is refused, and that each stands for itself."""

import hashlib
import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from datasette_vec_gemini import (
    NewDocument,
    Query,
    add_documents,
    connect,
    create_index,
    create_memory,
    delete_documents,
    describe_index,
    find_key,
    get_document,
    indexes,
    key_to_path,
    search,
    sync,
)
from datasette_vec_gemini.errors import DatabaseUnavailable, DocumentNotFound, InvalidQuery, TableNotFound, UsageError


@pytest.fixture
def memory(conn):
    return create_memory(conn, embedder="hashing@64")


def statuses(written):
    return [(each.key, each.status) for each in written]


def rows(conn, sql):
    return conn.execute(sql).fetchall()


def test_a_memory_can_be_added_to_and_searched_at_once(conn, memory):
    added = add_documents(
        conn,
        memory,
        [
            NewDocument(
                text="parse a date", title="Dates", category="time", url="https://e.org", metadata={"b": 1, "a": []}
            )
        ],
        added_by="tester",
    )
    key = hashlib.sha256(b"Dates\0parse a date").hexdigest()[:16]
    assert statuses(added) == [((key,), "created")]
    report = sync(conn, memory)
    assert report.embedded == 1
    (hit,) = search(conn, memory, Query("date", filters={"added_by": "tester", "category": "time"}))
    assert (hit.key, hit.title) == ((key,), "Dates")
    row = get_document(conn, memory, [key]).row
    assert (row["url"], json.loads(row["metadata"])) == ("https://e.org", {"a": [], "b": 1})
    assert row["added_at"].endswith("Z")


def test_a_memory_is_made_once_and_is_complete_after_any_interruption(conn, path):
    conn.execute("create table documents (id text primary key not null, title text, text text not null)")
    conn.commit()
    with pytest.raises(UsageError, match="category"):
        create_memory(conn, embedder="hashing@64")
    conn.execute("drop table documents")
    made = create_memory(conn, embedder="hashing@64")
    other = connect(path)
    assert create_memory(other, embedder="hashing@64") == made
    other.close()
    assert [each.name for each in indexes(conn)] == ["documents"]


def test_the_same_document_twice_is_one_and_its_correction_is_a_correction(conn, memory):
    first = NewDocument(text="a red fish", category="fish", title="Red")
    (((key,), _),) = statuses(add_documents(conn, memory, [first], added_by="one"))
    sync(conn, memory)
    again = add_documents(conn, memory, [first], added_by="two")
    assert statuses(again) == [((key,), "unchanged")]
    assert sync(conn, memory).documents == 0
    moved = add_documents(conn, memory, [NewDocument(text="a red fish", category="pets", title="Red")], added_by="two")
    assert statuses(moved) == [((key,), "updated")]
    assert sync(conn, memory).embedded == 0
    corrected = add_documents(conn, memory, [NewDocument(id=key, text="a blue fish")], added_by="three")
    assert statuses(corrected) == [((key,), "updated")]
    assert sync(conn, memory).embedded == 1
    row = get_document(conn, memory, [key]).row
    assert (row["title"], row["category"], row["text"], row["added_by"]) == ("Red", "pets", "a blue fish", "three")


@pytest.mark.parametrize(
    ("on_conflict", "status", "text"),
    [("replace", "updated", "new"), ("skip", "unchanged", "old"), ("error", "error", "old")],
)
def test_what_happens_where_the_key_is_taken(conn, memory, on_conflict, status, text):
    add_documents(conn, memory, [NewDocument(id="a", text="old")])
    (written,) = add_documents(conn, memory, [NewDocument(id="a", text="new")], on_conflict=on_conflict)
    assert written.status == status
    assert ("'a'" in written.error) == (status == "error")
    assert rows(conn, "select text from documents") == [(text,)]


def test_another_word_for_on_conflict_is_refused(conn, memory):
    with pytest.raises(InvalidQuery, match="replace, skip, error"):
        add_documents(conn, memory, [], on_conflict="ignore")


def test_one_that_fails_harms_no_other(conn, memory):
    written = add_documents(
        conn,
        memory,
        [
            NewDocument(id="a", text="fine"),
            NewDocument(id="b", text=" \n"),
            NewDocument(id="c", text="x" * 200_001),
            NewDocument(id="d", text="nul \0"),
            NewDocument(id="e", text="lone \ud800"),
            NewDocument(id="f", text="ok", fields={"metadata": "{not json"}),
            NewDocument(id="g", text="ok", fields={"nosuch": 1}),
            NewDocument(id="h", text="ok", fields={"text": "twice"}),
            NewDocument(id="i", text="ok", fields={"url": 2**63}),
            NewDocument(id="j", text="ok", fields={"url": float("nan")}),
            NewDocument(id=" ", text="ok"),
            NewDocument(id="z", text="x" * 200_000),
        ],
    )
    assert [each.status for each in written] == ["created", *["error"] * 10, "created"]
    reasons = [each.error for each in written[1:-1]]
    expected = ["blank", "200,001", "U+0000", "U+D800", "CHECK", "'nosuch'", "twice|once", "64 bits", "nan", "id is"]
    for reason, words in zip(reasons, expected, strict=True):
        assert any(word in reason for word in words.split("|")), reason
    assert rows(conn, "select id from documents order by id") == [("a",), ("z",)]


@pytest.fixture
def own(conn):
    """A user's own table with an integer key and constraints."""
    conn.executescript(
        """
        create table kinds (name text primary key);
        insert into kinds values ('note');
        create table notes (
            id integer primary key, headline text not null, body text, kind text default 'note' references kinds,
            stars integer check (stars between 1 and 5), slug text unique,
            shout text generated always as (upper(headline)) virtual
        );
        insert into notes (headline, body, slug) values ('First', 'the very first', 'one');
        pragma foreign_keys = on;
        """
    )
    return create_index(conn, "notes", table="notes", columns=["headline", "body"], embedder="hashing@64")


def test_parts_go_to_columns_by_name_and_integer_keys_are_assigned(conn, own):
    written = add_documents(
        conn,
        own,
        [
            NewDocument(text="a second one", title="Second", fields={"STARS": 3}),
            NewDocument(id="7", text="the seventh", title="Seventh"),
            NewDocument(id=1, text="corrected"),
        ],
    )
    assert statuses(written) == [((2,), "created"), ((7,), "created"), ((1,), "updated")]
    assert rows(conn, "select id, headline, body, stars from notes order by id") == [
        (1, "First", "corrected", None),
        (2, "Second", "a second one", 3),
        (7, "Seventh", "the seventh", None),
    ]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (NewDocument(text="t"), "NOT NULL constraint failed: notes.headline"),
        (NewDocument(text="t", title="h", fields={"slug": "one"}), "UNIQUE constraint failed: notes.slug"),
        (NewDocument(text="t", title="h", fields={"stars": 9}), "CHECK constraint failed"),
        (NewDocument(text="t", title="h", fields={"kind": "none"}), "FOREIGN KEY constraint failed"),
        (NewDocument(text="t", title="h", category="c"), "no column for category"),
        (NewDocument(text="t", title="h", metadata={}), "no column for metadata"),
        (NewDocument(text="t", title="h", fields={"shout": "X"}), "computed"),
        (NewDocument(text="t", title="h", id="seven"), "whole numbers"),
        (NewDocument(text="t", title="h", id=2**64), "64 bits"),
    ],
)
def test_what_the_table_refuses_is_refused_with_its_columns(conn, own, item, reason):
    before = rows(conn, "select * from notes")
    (written,) = add_documents(conn, own, [item])
    assert written.status == "error"
    assert reason in written.error
    if "constraint" in reason or "no column" in reason:
        assert "id integer key, headline text required, body text" in written.error.lower()
    assert rows(conn, "select * from notes") == before


def test_a_foreign_key_that_is_looked_at_last_refuses_only_its_document(conn):
    conn.executescript(
        """
        create table kinds (name text primary key);
        create table t (id integer primary key, body text, kind text references kinds deferrable initially deferred);
        pragma foreign_keys = on;
        """
    )
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    items = [NewDocument(text="a"), NewDocument(text="b", fields={"kind": "none"}), NewDocument(text="c")]
    assert [each.status for each in add_documents(conn, index, items)] == ["created", "error", "created"]
    assert rows(conn, "select body from t") == [("a",), ("c",)]


@pytest.mark.parametrize("clause", ["abort", "fail", "ignore", "rollback", "replace"])
def test_whatever_a_constraint_does_on_conflict_no_other_document_is_harmed(conn, clause):
    conn.execute(f"create table t (id integer primary key, slug text unique on conflict {clause}, body text)")
    conn.execute("insert into t values (1, 'taken', 'was there')")
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    items = [NewDocument(text=slug, fields={"slug": slug}) for slug in ("before", "taken", "after")]
    written = add_documents(conn, index, items)
    assert [each.status for each in written] == ["created", "error", "created"]
    assert "UNIQUE constraint failed: t.slug" in written[1].error
    (corrected,) = add_documents(conn, index, [NewDocument(id=1, text="x", fields={"slug": "after"})])
    assert corrected.status == "error"
    assert rows(conn, "select slug, body from t order by slug") == [
        ("after", "after"), ("before", "before"), ("taken", "was there")
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["abort", "fail", "rollback"])
def test_a_trigger_that_raises_refuses_only_its_document(conn, how):
    conn.executescript(
        f"""
        create table t (id integer primary key, body text);
        insert into t values (1, 'one'), (2, 'two'), (3, 'three');
        create trigger no_bad before insert on t when new.body = 'bad' begin select raise({how}, 'no'); end;
        create trigger keep_two before delete on t when old.id = 2 begin select raise({how}, 'no'); end;
        """
    )
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    written = add_documents(conn, index, [NewDocument(text=text) for text in ("good", "bad", "better")])
    assert [each.status for each in written] == ["created", "error", "created"]
    assert statuses(delete_documents(conn, index, [[1], [2], [3]])) == [
        ((1,), "deleted"), ((2,), "error"), ((3,), "deleted")
    ]  # fmt: skip
    assert rows(conn, "select body from t") == [("two",), ("good",), ("better",)]


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ("create table t (k text primary key, body text)", ["a/b, c~d+é", "5", "%2F"]),
        ("create table t (k integer primary key, body text)", [-5, 2**62]),
        ("create table t (k real primary key, body text)", [1.5, 2.0, 1e300]),
        ("create table t (k blob primary key, body text)", [b"\0\xff", b"A", "text"]),
        ("create table t (k primary key, body text)", [5, 1.5, "seven", b"\xfe", "07"]),
        ("create table t (a text, b, body text, primary key (a, b))", [("x,y", 1), ("x", b"\1"), ("", "z")]),
        ("create table t (body text)", [1, 2]),
    ],
)
def test_a_key_is_found_again_by_how_it_is_spelled(conn, table, keys):
    conn.execute(table)
    keys = [key if isinstance(key, tuple) else (key,) for key in keys]
    columns = "rowid" if table == "create table t (body text)" else "a, b" if "(a text" in table else "k"
    for key in keys:
        conn.execute(f"insert into t ({columns}, body) values ({', '.join('?' * len(key))}, 'x')", key)
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    for key in keys:
        found = find_key(conn, index, key_to_path(key))
        assert (found, [*map(type, found)]) == (key, [*map(type, key)])
        (written,) = add_documents(conn, index, [NewDocument(key=found, text=f"corrected {key}")])
        assert (written.key, written.status) == (key, "updated")
        assert get_document(conn, index, found).text == f"corrected {key}"
    assert find_key(conn, index, "nowhere") is None
    assert find_key(conn, index, ",".join("123456")) is None
    assert len(rows(conn, "select * from t")) == len(keys)


def nested(depth):
    found = {}
    for _ in range(depth):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    "metadata",
    [{"n": float("nan")}, {"n": float("inf")}, {"n": "x" * 10_001}, {"n": "\ud800"}, {"n": {1}}, nested(9_000)],
)
def test_metadata_that_cannot_be_stored_refuses_only_its_document(conn, memory, metadata):
    items = [
        NewDocument(text="a"),
        NewDocument(text="b", metadata=metadata),
        NewDocument(text="c", metadata={"n": [1]}),
    ]
    written = add_documents(conn, memory, items)
    assert [each.status for each in written] == ["created", "error", "created"]
    assert "'metadata'" in written[1].error


def test_a_document_whose_table_is_gone_says_so(conn, own):
    conn.execute("drop table notes")
    for call in (lambda: get_document(conn, own, [1]), lambda: find_key(conn, own, "1")):
        with pytest.raises(TableNotFound, match="'notes' of index"):
            call()


@pytest.mark.parametrize(
    ("table", "item", "expected"),
    [
        ("create table t (body text)", NewDocument(text="x"), (1,)),
        ("create table t (body text)", NewDocument(text="x", id=5), (5,)),
        ("create table t (slug text primary key, body text)", NewDocument(text="x", id="a/b"), ("a/b",)),
        ("create table t (slug text primary key, body text)", NewDocument(text="x"), None),
        (
            "create table t (a text, b integer, body text, primary key (a, b))",
            NewDocument(text="x", id="k,2"),
            ("k", 2),
        ),
        ("create table t (a text, b integer, body text, primary key (a, b))", NewDocument(text="x", id="k"), None),
        ("create table t (k text primary key default 'made', body text)", NewDocument(text="x"), ("made",)),
    ],
)
def test_keys_of_every_kind_of_table(conn, table, item, expected):
    conn.execute(table)
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    (written,) = add_documents(conn, index, [item])
    assert written.key == expected
    if expected:
        sync(conn, index)
        assert get_document(conn, index, [str(part) for part in expected]).key == expected
        assert statuses(delete_documents(conn, index, [expected])) == [(expected, "deleted")]
        assert rows(conn, "select count(*) from t") == [(0,)]


def test_which_column_the_text_is_for_must_be_plain(conn):
    conn.execute("create table t (id integer primary key, front text, back text)")
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["front", "back"], embedder="hashing@64")
    unclear, plain = add_documents(
        conn, index, [NewDocument(text="x"), NewDocument(text="x", fields={"front": "a question"})]
    )
    assert "front, back" in unclear.error
    assert get_document(conn, index, plain.key).text == "a question\n\nx"


def test_a_view_is_not_written_to(conn):
    conn.executescript("create table t (id integer primary key, body text); create view v as select * from t;")
    index = create_index(conn, "v", table="v", columns=["body"], key=["id"], embedder="hashing@64")
    for call in (
        lambda: add_documents(conn, index, [NewDocument(text="x")]),
        lambda: delete_documents(conn, index, []),
    ):
        with pytest.raises(UsageError, match="view 'v'"):
            call()
    assert describe_index(conn, index).writable == ""


def test_a_trigger_that_keeps_a_document_out_is_heard(conn, own):
    conn.execute("create trigger no before insert on notes begin select raise(ignore); end")
    conn.commit()
    (written,) = add_documents(conn, own, [NewDocument(text="x", title="h")])
    assert (written.status, "trigger" in written.error) == ("error", True)


def test_deleted_is_gone_and_absent_is_said(conn, memory):
    add_documents(conn, memory, [NewDocument(id="a", text="a fish"), NewDocument(id="b", text="a bird")])
    sync(conn, memory)
    written = delete_documents(conn, memory, [["a"], ["a"], ["c"], ["b", "x"]])
    assert [each.status for each in written] == ["deleted", "absent", "absent", "absent"]
    assert [hit.key for hit in search(conn, memory, Query("a fish"))] == [("b",)]
    with pytest.raises(DocumentNotFound, match="'a'"):
        get_document(conn, memory, ["a"])


def test_a_row_that_others_depend_on_is_not_deleted(conn):
    conn.executescript(
        """
        create table docs (id text primary key, body text);
        create table notes (doc text references docs);
        insert into docs values ('a', 'x');
        insert into notes values ('a');
        pragma foreign_keys = on;
        """
    )
    index = create_index(conn, "docs", table="docs", columns=["body"], embedder="hashing@64")
    (written,) = delete_documents(conn, index, [["a"]])
    assert (written.status, "FOREIGN KEY" in written.error) == ("error", True)


def test_a_description_says_what_can_be_filtered_and_written(conn, own, memory):
    sync(conn, own)
    described = describe_index(conn, own)
    assert (described.documents, described.pending, described.failed) == (1, 0, 0)
    assert described.filters == ("id", "headline", "body", "kind", "stars", "slug", "shout")
    assert described.writable.lower().startswith(
        "id integer key, headline text required, body text, kind text, stars integer"
    )
    assert describe_index(conn, memory).filters == ("category", "added_by", "added_at")


@pytest.mark.parametrize("name", ["added_by", "ADDED_AT"])
def test_where_a_document_comes_from_cannot_be_made_up(conn, memory, name):
    (written,) = add_documents(conn, memory, [NewDocument(text="x", fields={name: "somebody"})], added_by="me")
    assert (written.status, "cannot be given" in written.error) == ("error", True)


def test_a_file_that_is_read_only_says_so(path, conn, memory):
    conn.close()
    reader = connect(path, read_only=True)
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        add_documents(reader, memory, [NewDocument(text="x")])
    reader.close()


TEXT = st.text(max_size=20)
ITEMS = st.lists(
    st.builds(
        NewDocument,
        text=TEXT,
        id=st.none() | st.sampled_from(["a", "b", "c"]) | TEXT | st.integers(),
        title=st.none() | TEXT,
        url=st.none() | TEXT,
        metadata=st.none() | st.dictionaries(TEXT, st.integers() | TEXT | st.none(), max_size=2),
        fields=st.dictionaries(st.sampled_from(["category", "added_at", "no"]), TEXT | st.integers(), max_size=2),
    ),
    max_size=6,
)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(items=ITEMS, on_conflict=st.sampled_from(["replace", "skip", "error"]))
def test_what_is_said_to_be_there_is_there_and_nothing_else(memory, conn, items, on_conflict):
    conn.execute("delete from documents")
    conn.commit()
    written = add_documents(conn, memory, items, on_conflict=on_conflict)
    assert len(written) == len(items)
    there = {key for (key,) in rows(conn, "select id from documents")}
    assert there == {each.key[0] for each in written if each.status == "created"}
    assert all((each.key is None) == (each.status == "error") == bool(each.error) for each in written)
    sync(conn, memory)
    assert add_documents(conn, memory, items, on_conflict="skip") == [
        each if each.status == "error" and "already" not in each.error else again
        for each, again in zip(written, add_documents(conn, memory, items, on_conflict="skip"), strict=True)
    ]
    assert {key for (key,) in rows(conn, "select id from documents")} == there
