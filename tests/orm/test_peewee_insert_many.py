"""`insert_many` of vectors goes in by one prepared statement; to its caller nothing is different from Peewee's own."""

import logging
from contextlib import nullcontext
from itertools import chain, count

import numpy as np
import pytest

pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
from peewee import (
    EXCLUDED,
    BlobField,
    Check,
    ForeignKeyField,
    IntegerField,
    IntegrityError,
    InterfaceError,
    JSONField,
    Model,
    TextField,
    Value,
    fn,
)

from datasette_vec_gemini.errors import InvalidVector
from datasette_vec_gemini.peewee import VectorField, VectorIndex, VectorSqliteDatabase, bulk_insert, database, nearest

VECTORS = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def counted(db):
    """What a default may do that asks the database, in a transaction of its own."""
    is_free = not db.connection().in_transaction and db.top_transaction() is None
    with db.atomic() if is_free else nullcontext():
        return db.execute_sql("select count(*) from doc").fetchone()[0]


def reused(titles):
    """Rows that are one and the same object."""
    row = {}
    for title in titles:
        row["title"] = title
        row["embedding"] = [1.0, len(title)]
        yield row


def of_one_array(titles):
    """Rows whose vectors are one and the same array."""
    array = np.ones(2, dtype=np.float32)
    for title in titles:
        array[:] += 1
        yield {"title": title, "embedding": array}


def twice(query):
    return [query.execute(), query.execute()]


def while_reading(doc):
    """Inserts of a loop over what a statement returns."""
    for gone in doc.delete().returning(doc).execute():
        doc.insert_many(rows(f"{gone.title} 1", f"{gone.title} 2")).execute()


def opened(path):
    db = VectorSqliteDatabase(path, pragmas={"foreign_keys": 1})
    numbers = count(100)

    class Author(Model):
        name = TextField()

        class Meta:
            database = db

    class Doc(Model):
        title = TextField(column_name="headline", unique=True)
        rank = IntegerField(default=lambda: next(numbers))
        lang = TextField(default="en", constraints=[Check("lang <> 'xx'")])
        author = ForeignKeyField(Author, null=True)
        extra = JSONField(null=True)
        parent = ForeignKeyField("self", null=True)
        before = IntegerField(default=lambda: counted(db))
        embedding = VectorField(dimensions=2, null=True)

        class Meta:
            database = db

    Doc.add_index(VectorIndex(Doc.embedding, name="doc_idx", quantize="int8"))
    db.create_tables([Author, Doc])
    Author.create(name="ann")
    Doc.create(title="first", embedding=[1, 0], rank=1)
    return db, Author, Doc


def rows(*titles, **more):
    return [{"title": title, "embedding": VECTORS[n % 3]} | more for n, title in enumerate(titles)]


CASES = {
    "dicts": lambda author, doc: doc.insert_many(rows("a", "b", "c")).execute(),
    "one": lambda author, doc: doc.insert_many(rows("a")).execute(),
    "none": lambda author, doc: doc.insert_many([]).execute(),
    "an iterator": lambda author, doc: doc.insert_many(row for row in rows("a", "b", "c")).execute(),
    "an iterator of unlike rows": lambda author, doc: doc.insert_many(iter(rows("a") + rows("b", lang="de"))).execute(),
    "unlike rows": lambda author, doc: doc.insert_many(rows("a", lang="de") + rows("b")).execute(),
    "a field is missing": lambda author, doc: doc.insert_many([*rows("a"), {"embedding": [1, 1]}]).execute(),
    "fields": lambda author, doc: doc.insert_many([{doc.title: t, doc.rank: n} for n, t in enumerate("ab")]).execute(),
    "names of columns": lambda author, doc: doc.insert_many([{"headline": t, "author_id": 1} for t in "ab"]).execute(),
    "a field twice": lambda author, doc: doc.insert_many([{"title": t, doc.title: t} for t in "ab"]).execute(),
    "a field of another": lambda author, doc: doc.insert_many([{"title": t, author.name: t} for t in "ab"]).execute(),
    "no such field": lambda author, doc: doc.insert_many([{"title": t, "colour": 1} for t in "ab"]).execute(),
    "tuples": lambda author, doc: doc.insert_many(
        [("a", [1, 1]), ("b", None)], fields=[doc.title, doc.embedding]
    ).execute(),
    "tuples by name": lambda author, doc: doc.insert_many(
        [("a", [1, 1]), ("b", None)], fields=["title", "embedding"]
    ).execute(),
    "whole tuples": lambda author, doc: doc.insert_many(
        [(t, 5, "de", 1, None, None, 7, [1, 1]) for t in "ab"]
    ).execute(),
    "short tuples": lambda author, doc: doc.insert_many(
        [("a", [1, 1]), ("b",)], fields=[doc.title, doc.embedding]
    ).execute(),
    "dicts for some fields": lambda author, doc: doc.insert_many(
        rows("a", "b", lang="de"), fields=[doc.title, doc.lang]
    ).execute(),
    "objects": lambda author, doc: doc.bulk_create(
        [doc(title=t, embedding=[1, 1], rank=5) for t in "abc"], batch_size=2
    ),
    "keys of others": lambda author, doc: doc.insert_many(rows("a", "b", author=author.get())).execute(),
    "no such other": lambda author, doc: doc.insert_many(rows("a", "b", author=77)).execute(),
    "expressions": lambda author, doc: doc.insert_many(
        [*rows("a"), {"title": fn.upper("b"), "embedding": [1, 1]}]
    ).execute(),
    "a query": lambda author, doc: doc.insert_many(
        rows("a", rank=1) + rows("b", rank=doc.select(fn.max(doc.rank) + 1))
    ).execute(),
    "JSON": lambda author, doc: doc.insert_many(
        rows("a", "b", extra={"n": [1, "?", None]}) + rows("c", extra=None)
    ).execute(),
    "given keys": lambda author, doc: doc.insert_many(
        [{"id": 50 - n, "title": t} for n, t in enumerate("abc")]
    ).execute(),
    "how many": lambda author, doc: doc.insert_many(rows("a", "b", "c")).as_rowcount().execute(),
    "how many, some ignored": lambda author, doc: (
        doc.insert_many(rows("a", "first", "c")).on_conflict_ignore().as_rowcount().execute()
    ),
    "ignored": lambda author, doc: doc.insert_many(rows("a", "b", "first")).on_conflict_ignore().execute(),
    "all ignored": lambda author, doc: doc.insert_many(rows("first", "first")).on_conflict_ignore().execute(),
    "replaced": lambda author, doc: doc.insert_many(rows("a", "first", "b")).on_conflict_replace().execute(),
    "upsert": lambda author, doc: (
        doc.insert_many(rows("a", "first", "a"))
        .on_conflict(
            conflict_target=[doc.title], preserve=[doc.embedding], update={doc.rank: doc.rank + 7, doc.lang: "fr"}
        )
        .execute()
    ),
    "upsert where": lambda author, doc: (
        doc.insert_many(rows("first", "first", rank=9))
        .on_conflict(conflict_target=[doc.title], update={doc.rank: EXCLUDED.rank}, where=(doc.rank < 5))
        .execute()
    ),
    "one object": lambda author, doc: doc.insert_many(reused("abc")).execute(),
    "one object, unlike": lambda author, doc: doc.insert_many(chain(reused("ab"), rows("c", rank=1))).execute(),
    "one array": lambda author, doc: doc.insert_many(of_one_array("abc")).execute(),
    "later rows": lambda author, doc: doc.insert_many([{"id": n, "title": n, "parent": 6} for n in (5, 6)]).execute(),
    "a select as default": lambda author, doc: doc.insert_many(
        [{"title": t, "before": doc.select(fn.count(doc.id))} for t in "ab"]
    ).execute(),
    "failed": lambda author, doc: doc.insert_many(rows("a", "b", "a", "c")).on_conflict("FAIL").execute(),
    "an iterator twice": lambda author, doc: twice(doc.insert_many(iter(rows("a", "b")))),
    "a list twice": lambda author, doc: twice(doc.insert_many(rows("a", "b")).on_conflict_ignore()),
    "while others are read": lambda author, doc: while_reading(doc),
    "how many rows the cursor has": lambda author, doc: (
        doc._meta.database.execute(doc.insert_many(rows("a", "b"))).rowcount
    ),
    "returning": lambda author, doc: [
        d.title for d in doc.insert_many(rows("a", "b")).returning(doc.id, doc.title).execute()
    ],
    "twice the same": lambda author, doc: doc.insert_many(rows("a", "b", "a")).execute(),
    "refused by a constraint": lambda author, doc: doc.insert_many(rows("a") + rows("b", lang="xx")).execute(),
    "refused, and all that was done with it": lambda author, doc: (
        doc.insert_many(rows("a", "first", "c")).on_conflict("ROLLBACK").execute()
    ),
    "no vector": lambda author, doc: doc.insert_many(
        [*rows("a", "b"), {"title": "c", "embedding": [1.0, float("nan")]}]
    ).execute(),
    "no vector at the end of many": lambda author, doc: doc.insert_many(
        [*rows(*map(str, range(50))), {"title": "c", "embedding": 5}]
    ).execute(),
}


def outcome(path, case, around):
    """What the caller sees and the file holds."""
    db, author, doc = opened(path)
    told = []
    try:
        if around == "atomic":
            with db.atomic():
                doc.create(title="before", rank=0)
                told.append(CASES[case](author, doc))
        elif around == "begun by hand":
            db.begin()
            doc.create(title="before", rank=0)
            try:
                told.append(CASES[case](author, doc))
            finally:
                told.append(db.connection().in_transaction)
                if told[-1]:
                    db.commit()
        elif around == "manual commit":
            with db.manual_commit():
                told.append(CASES[case](author, doc))
        else:
            told.append(CASES[case](author, doc))
    except Exception as error:  # noqa: BLE001 - whatever it is, both are to raise the same
        told.append(type(error))
    told.append(db.connection().in_transaction)
    columns = doc.id, doc.title, doc.rank, doc.lang, doc.author_id, doc.extra, doc.parent_id, doc.before, doc.embedding
    told.append(list(doc.select(*columns).order_by(doc.id).tuples()))
    told.append([(found.id, found.distance) for found in nearest(doc.embedding, [1, 0.5], k=100)])
    db.close()
    return told


@pytest.mark.parametrize("around", ["nothing", "atomic", "begun by hand", "manual commit"])
@pytest.mark.parametrize("case", CASES)
def test_what_happens_is_what_happens_peewees_own_way(case, around, tmp_path, monkeypatch):
    ours = outcome(tmp_path / "ours.db", case, around)
    monkeypatch.setattr(database, "at_once", lambda db, query: query)
    assert ours == outcome(tmp_path / "theirs.db", case, around)


@pytest.mark.parametrize(
    ("query", "is_at_once"),
    [
        (lambda doc: doc.insert_many(rows("a", "b")), True),
        (lambda doc: doc.insert_many(row for row in rows("a", "b")), True),
        (lambda doc: doc.insert_many([("a", [1, 1])], fields=[doc.title, doc.embedding]), True),
        (lambda doc: doc.insert_many(rows("a", "b")).on_conflict_replace(), True),
        (lambda doc: doc.insert_many(rows("a", "b")).returning(doc), True),
        (lambda doc: doc.insert_many([*rows("a"), *rows("b", rank=1)]), False),
        (lambda doc: doc.insert(title="a"), False),
    ],
)
def test_rows_that_are_alike_make_no_objects_of_their_values(tmp_path, query, is_at_once):
    db, _, doc = opened(tmp_path / "test.db")
    assert isinstance(database.at_once(db, query(doc)), tuple) == is_at_once
    db.close()


def test_peewees_log_tells_of_it(tmp_path, caplog):
    db, _, doc = opened(tmp_path / "test.db")
    with caplog.at_level(logging.DEBUG, logger="peewee"):
        doc.insert_many(rows("a", "b")).execute()
    assert [record.message for record in caplog.records if "INSERT" in record.message and "'b'" in record.message]
    db.close()


def test_a_default_may_be_a_select_and_a_field_make_sql(tmp_path):
    db, _, doc = opened(tmp_path / "test.db")
    doc._meta.defaults[doc.before] = lambda: doc.select(fn.count(doc.id))
    doc.insert_many(rows("a", "b")).execute()
    bulk_insert(doc, rows("c"))
    assert [row.before for row in doc.select().order_by(doc.id)] == [0, 1, 1, 3]
    db.close()


def test_a_database_that_shall_not_connect_by_itself_does_not(tmp_path):
    db, _, doc = opened(tmp_path / "test.db")
    db.close()
    db.autoconnect = False
    with pytest.raises(InterfaceError, match="not opened"):
        doc.insert_many(rows("a", "b", before=0)).execute()


def test_rows_go_into_the_database_that_executes_the_query(tmp_path):
    (db, _, doc), (other, *_) = opened(tmp_path / "test.db"), opened(tmp_path / "other.db")
    assert doc.insert_many(rows("a", "b")).execute(other) == 3
    assert doc.select().count() == 1
    assert [title for (title,) in other.execute_sql("select headline from doc order by id")] == ["first", "a", "b"]
    db.close()
    other.close()


def test_an_error_tells_which_row_is_wrong(tmp_path):
    db, _, doc = opened(tmp_path / "test.db")
    with pytest.raises(InvalidVector, match="row 3, embedding: expected 2 dimensions, not 1"):
        doc.insert_many([*rows("a", "b"), {"title": "c", "embedding": [1]}]).execute()
    with pytest.raises(IntegrityError, match="UNIQUE"):
        doc.insert_many(rows("a", "first", "b")).execute()
    assert doc.select().count() == 1
    db.close()


@pytest.mark.parametrize(
    "write", [bulk_insert, lambda doc, rows: doc.insert_many(rows).execute()], ids=["bulk", "many"]
)
@pytest.mark.parametrize(
    "wrong", [(float("nan"), "NaN"), (float("inf"), "infinity"), (0, "no direction")], ids=["NaN", "infinity", "zero"]
)
@pytest.mark.parametrize(
    "row",
    [(1, "a"), (100, "a"), (101, "a"), (101, fn.upper("a")), (230, "a")],
    ids=["first", "at an end", "after it", "of SQL", "last"],
)
def test_the_wrong_vector_among_many_is_found_and_nothing_is_written(tmp_path, write, wrong, row):
    db, _, doc = opened(tmp_path / "test.db")
    (value, message), (at, title) = wrong, row
    many = [
        {"title": str(n), "embedding": [None, np.array([1, n], dtype=np.float32), [n, 1.0]][n % 3]}
        for n in range(1, 231)
    ]
    many[at - 1] = {"title": title, "embedding": np.full(2, value, dtype=np.float32)}
    with pytest.raises(InvalidVector, match=f"row {at}, embedding: .*{message}"):
        write(doc, many)
    assert doc.select().count() == 1
    many[at - 1]["embedding"] = np.array([5, 5], dtype=np.float32)
    write(doc, many)
    stored = [embedding for (embedding,) in doc.select(doc.embedding).order_by(doc.id).offset(1).tuples()]
    assert stored == [None if row["embedding"] is None else [*row["embedding"]] for row in many]
    db.close()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_expression_that_is_a_value_hides_no_wrong_vector(tmp_path, at):
    db, _, doc = opened(tmp_path / "test.db")
    many = [{"title": Value(title) if n == at else title, "embedding": [1, 1]} for n, title in enumerate("abc")]
    many[(at + 1) % 3]["embedding"] = [1, float("nan")]
    with pytest.raises(InvalidVector, match=f"row {(at + 1) % 3 + 1}, embedding: .*NaN"):
        bulk_insert(doc, many)
    assert doc.select().count() == 1
    db.close()


def test_a_vector_may_be_an_expression_among_vectors(tmp_path):
    db, _, doc = opened(tmp_path / "test.db")
    for title, value in (("a", Value(np.ones(2, dtype=np.float32).tobytes(), converter=False)), ("b", [2.0, 2.0])):
        many = [{"title": f"{title}{n}", "embedding": [1, 1] if n % 2 else value} for n in range(3)]
        assert bulk_insert(doc, many) == 3
    assert [row.embedding[0] for row in doc.select().order_by(doc.id).offset(1)] == [1, 1, 1, 2, 1, 2]
    rows = [("c", [1, 1]), ("d", [1, float("nan")]), ("e", Value("x"))]
    with pytest.raises(InvalidVector, match=r"row 2, embedding: .*NaN"):
        bulk_insert(doc, [{"title": title, "embedding": vector} for title, vector in rows])
    db.close()


def test_the_first_row_that_is_wrong_is_named(tmp_path):
    db, _, doc = opened(tmp_path / "test.db")
    for wrong in ([1], "text"):
        with pytest.raises(InvalidVector, match=r"row 1, embedding: .*NaN"):
            bulk_insert(doc, [{"title": "a", "embedding": [1, float("nan")]}, {"title": "b", "embedding": wrong}])
    db.close()


def test_rows_in_bulk_are_there_when_the_next_is_asked_for_and_hold_what_they_held_then(tmp_path):
    db, _, _ = opened(tmp_path / "test.db")

    class Node(Model):
        parent = ForeignKeyField("self", null=True)
        data = BlobField()
        number = IntegerField(default=lambda: Node.select().count())
        embedding = VectorField(dimensions=2)

        class Meta:
            database = db

    db.create_tables([Node])
    data, parent = bytearray(b"0"), None

    def rows():
        nonlocal parent
        for n in range(5):
            data[:] = str(n).encode()
            yield {"parent": parent, "data": data, "embedding": [1, n]}
            parent = Node.get(Node.data == str(n).encode())

    assert bulk_insert(Node, rows()) == 5
    stored = [(node.id, node.parent_id, node.data, node.number) for node in Node.select().order_by(Node.id)]
    assert stored == [(n + 1, n or None, str(n).encode(), n) for n in range(5)]
    db.close()


def test_rows_with_expressions_go_into_the_database_that_executes_the_query(tmp_path):
    db = VectorSqliteDatabase(tmp_path / "test.db")

    class Unbound(Model):
        title = TextField()
        embedding = VectorField(dimensions=2)

    with db.bind_ctx([Unbound]):
        db.create_tables([Unbound])
    Unbound.insert_many([{"title": fn.upper("a"), "embedding": [1, 1]}, {"title": "b", "embedding": [1, 2]}]).execute(
        db
    )
    assert db.execute_sql("select title from unbound order by id").fetchall() == [("A",), ("b",)]
    with pytest.raises(InvalidVector, match="row 2, embedding: expected 2 dimensions, not 1"):
        Unbound.insert_many([{"title": t, "embedding": [1] * (2 - n)} for n, t in enumerate("ab")]).execute(db)
    db.close()


@pytest.mark.parametrize("make", [lambda: np.zeros(2, dtype=np.float32), lambda: [0.0, 0.0]], ids=["array", "list"])
def test_rows_in_bulk_may_use_one_vector_again(tmp_path, make):
    db, _, doc = opened(tmp_path / "test.db")
    vector = make()

    def reusing():
        for n in range(250):
            vector[:] = [1, n]
            yield {"title": str(n), "embedding": vector}

    assert bulk_insert(doc, reusing()) == 250
    assert [row.embedding for row in doc.select().order_by(doc.id).offset(1)] == [[1, n] for n in range(250)]
    db.close()
