"""Whatever is written, by whatever way, nearest() answers from what the table holds now, folded in or not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
import numpy as np
from peewee import IntegrityError, JSONField, Model, TextField, chunked, fn
from peewee_documents import (
    FAR,
    INDEXES,
    NEAR,
    QUERY,
    ROWS,
    STORES,
    Author,
    Document,
    db,
    expect,
    found,
    opened,
    search,
    store,
)

from datasette_vec_gemini.errors import ColumnNotFound, InvalidQuery, InvalidVector, UsageError
from datasette_vec_gemini.peewee import VectorField, bulk_insert, nearest, sync_indexes

__all__ = ["db", "expect", "opened", "store"]


def turned(number):
    """A vector not far from QUERY, and further with each number."""
    return [*QUERY[:-1], QUERY[-1] + number / 10]


def create():
    Document.create(slug="new", embedding=NEAR)


def save_new():
    Document(slug="new", embedding=np.array(NEAR)).save()


def insert_many():
    Document.insert_many([{"slug": f"new{n}", "embedding": turned(n)} for n in range(1, 4)]).execute()


def insert_tuples():
    rows = [(f"new{n}", turned(n)) for n in range(1, 4)]
    for batch in chunked(rows, 2):
        Document.insert_many(batch, fields=[Document.slug, Document.embedding]).execute()


def insert_from():
    fields = [Document.title, Document.lang, Document.embedding]
    Document.insert_from(Document.select(*fields).where(Document.id < 9), fields).execute()


def insert_in_bulk():
    rows = [{"slug": f"new{n}", Document.embedding: turned(n)} for n in range(1, 4)]
    assert bulk_insert(Document, iter(rows)) == 3


def bulk_create():
    Document.bulk_create([Document(slug=f"new{n}", embedding=NEAR if n else None) for n in range(4)], batch_size=3)


def get_or_create():
    Document.get_or_create(slug="new", defaults={"embedding": NEAR})


def returning():
    (row,) = Document.insert(slug="new", embedding=NEAR).returning(Document).execute()
    assert len(row.embedding) == len(NEAR)


def save():
    document = Document.get_by_id(11)
    document.embedding = NEAR
    document.save(only=[Document.embedding])


def update():
    Document.update(embedding=NEAR).where(Document.id == 12).execute()


def update_to_another():
    near = Document.select(Document.embedding).where(Document.id == 13)
    Document.update({Document.embedding: near}).where(Document.id.in_([14, 15])).execute()


def bulk_update():
    rows = list(Document.select().where(Document.id.in_([20, 21, 22])))
    for row, vector in zip(rows, [NEAR, FAR, None], strict=True):
        row.embedding = vector
    Document.bulk_update(rows, [Document.embedding])


def set_by_id():
    Document[23] = {"embedding": NEAR}


def update_of_something_else():
    Document.update(title="other").where(Document.id < 50).execute()


def set_null():
    Document.update(embedding=None).where(Document.lang == "en").execute()


def change_key():
    Document.update(id=5000).where(Document.id == 1).execute()


def delete():
    Document.delete().where(Document.title == "title 0").execute()


def delete_instance():
    Document.get_by_id(30).delete_instance()


def truncate():
    Document.truncate_table(cascade=True)


def upsert_new():
    Document.insert(slug="new", embedding=NEAR).on_conflict(
        conflict_target=[Document.slug], preserve=[Document.embedding]
    ).execute()


def upsert_old():
    Document.insert(slug="s40", embedding=NEAR).on_conflict(
        conflict_target=[Document.slug], update={Document.embedding: NEAR}
    ).execute()


def upsert_preserving():
    Document.insert_many([{"slug": f"s{n}", "embedding": NEAR if n % 2 else FAR} for n in (41, 42, 43)]).on_conflict(
        conflict_target=[Document.slug], preserve=[Document.embedding]
    ).execute()


def insert_or_ignore():
    Document.insert(slug="s44", embedding=NEAR).on_conflict_ignore().execute()


def replace_by_key():
    Document.replace(id=45, slug="s45", embedding=NEAR).execute()


def replace_by_another_column():
    """SQLite removes row 46 and fires no trigger for that."""
    Document.replace(slug="s46", embedding=FAR).execute()


def replace_many():
    Document.replace_many([{"id": n, "slug": f"s{n}", "embedding": NEAR} for n in (47, 48)]).execute()


def reuse_a_key():
    """SQLite gives the greatest key again once its row is gone."""
    last = Document.create(slug="new", embedding=NEAR)
    sync_indexes(Document._meta.database)
    last.delete_instance()
    assert Document.create(slug="newer", embedding=FAR).id == last.id


def raw_sql():
    Document.raw(
        "update document set embedding = (select embedding from document where id = 60) where id > 100"
    ).execute()


def rolled_back():
    database = Document._meta.database
    with database.atomic() as transaction:
        create()
        delete()
        assert search(k=1).get().slug == "new"
        transaction.rollback()


def rolled_back_to_a_savepoint():
    database = Document._meta.database
    with database.atomic():
        create()
        with database.atomic() as savepoint:
            Document.update(embedding=None).execute()
            assert found(search()) == []
            savepoint.rollback()
        update()


def failed():
    database = Document._meta.database

    def create_twice():
        with database.atomic():
            create()
            create()

    with pytest.raises(IntegrityError):
        create_twice()


WRITES = [
    create, save_new, insert_many, insert_tuples, insert_from, insert_in_bulk, bulk_create, get_or_create, returning,
    save, update, update_to_another, bulk_update, set_by_id, update_of_something_else, set_null, change_key, delete,
    delete_instance, truncate, upsert_new, upsert_old, upsert_preserving, insert_or_ignore, raw_sql, rolled_back,
    rolled_back_to_a_savepoint, failed,
]  # fmt: skip
ON_SQLITE_ONLY = [replace_by_key, replace_by_another_column, replace_many, reuse_a_key]


@pytest.mark.parametrize(
    ("store", "write"),
    [
        pytest.param((kind, INDEXES[index]), write, id=f"{kind} {index} {write.__name__}")
        for kind, index in STORES
        for write in (*WRITES, *(ON_SQLITE_ONLY if kind == "sqlite" else ()))
    ],
)
def test_after_every_write_the_answer_is_that_of_the_table(db, answers_are_right, write):
    write()
    answers_are_right()
    sync_indexes(db)
    answers_are_right()


@pytest.fixture
def answers_are_right(expect):
    def check():
        for query in (QUERY, FAR):
            assert found(search(query=query)) == expect(5, query=query)
            assert found(search(query=query).where(Document.lang == "en")) == expect(
                5, query=query, only=lambda row: row.lang == "en"
            )
        of_bo = search().join(Author).where(Author.name == "bo")
        assert found(of_bo) == expect(5, only=lambda row: row.author_id == 2)
        assert found(search(k=ROWS + 50)) == expect(ROWS + 50)

    return check


def test_rows_in_bulk_are_what_insert_many_would_make_of_them(db):
    author = Author.get_by_id(2)
    rows = [{"title": f"row {n}", "author": author, "embedding": [NEAR, None][n % 2]} for n in range(4)]
    assert bulk_insert(Document, rows) == 4
    Document.insert_many(rows).execute()
    columns = Document.title, Document.lang, Document.slug, Document.author, Document.embedding
    in_bulk, *others = [
        [row[1:] for row in half]
        for half in chunked(Document.select(Document.id, *columns).where(Document.id > ROWS + 1).tuples(), 4)
    ]
    assert others == [in_bulk]
    assert [row[1] for row in in_bulk] == ["en"] * 4
    assert bulk_insert(Document, []) == 0


def test_rows_in_bulk_may_hold_expressions_and_fields_that_make_them(db):
    class Note(Model):
        title = TextField()
        made_of = JSONField(default=dict, null=True)
        embedding = VectorField(dimensions=2, null=True)

        class Meta:
            database = db

    db.create_tables([Note])
    titles = ["plain", fn.upper("loud"), fn.lower(fn.substr("QUIETLY", 1, 5)), "plain"]
    rows = [
        {"title": title, "made_of": {"n": n} if n else None, "embedding": [n, 1] if n % 2 else None}
        for n, title in enumerate(titles)
    ]
    assert bulk_insert(Note, rows) == 4
    assert bulk_insert(Note, [{"title": "default", "embedding": [1, 2]}]) == 1
    found = Note.select(Note.title, Note.made_of, Note.embedding).order_by(Note.id).tuples()
    assert list(found) == [
        ("plain", None, None),
        ("LOUD", {"n": 1}, [1, 1]),
        ("quiet", {"n": 2}, None),
        ("plain", {"n": 3}, [3, 1]),
        ("default", {}, [1, 2]),
    ]


@pytest.mark.parametrize(
    ("error", "match", "rows"),
    [
        (IntegrityError, "slug", [{"slug": "a"}, {"slug": "s1"}]),
        (
            UsageError,
            "row 2 has other fields than the first: 'title' instead of 'slug'",
            [{"slug": "a"}, {"title": "b"}],
        ),
        (InvalidVector, "row 2, embedding: expected 16 dimensions, not 2", [{"embedding": v} for v in (NEAR, [1, 2])]),
        (UsageError, "names a field twice: 'title', 'title'", [{"title": "a", Document.title: "b"}]),
        (ColumnNotFound, "Document has no field 'colour'; it has id, title, lang", [{"colour": 1}]),
    ],
)
def test_one_bad_row_takes_all_rows_of_a_bulk_with_it(db, error, match, rows):
    before = Document.select().count()
    with pytest.raises(error, match=match):
        bulk_insert(Document, rows)
    assert Document.select().count() == before


def test_one_statement_serves_every_k_and_filter(db, expect):
    """sqlite3 keeps statements by their text: what differs has to be a parameter."""
    texts = set()
    for k in (1, 7, 7, 3):
        for low in (0, 50, 100):
            query = search(k=k).where(Document.id > low)
            texts.add(query.sql()[0])
            assert found(query) == expect(k, only=lambda row, low=low: row.id > low)
    assert len(texts) == 1


def test_two_sessions_see_what_the_other_has_committed(db, opened, expect):
    other = opened()
    theirs = search(k=3).bind(other)
    before = expect(3)
    with db.atomic():
        create()
        assert search(k=1).get().slug == "new"
        assert found(theirs.clone()) == before
    assert found(theirs.clone()) == expect(3)
    with other.atomic():
        assert found(theirs.clone()) == expect(3)
        Document.delete().where(Document.slug == "new").execute(other)
        assert search(k=1).get().slug == "new"
        assert found(theirs.clone()) == before
    assert found(search(k=3)) == before


def test_writers_in_threads_leave_nothing_out(db, store, expect):
    barrier = threading.Barrier(4)
    how = ["immediate"] if store[0] == "sqlite" else []

    def write(worker):
        barrier.wait()
        with db.connection_context():
            for number in range(20):
                with db.atomic(*how):
                    Document.create(slug=f"{worker} {number}", embedding=turned(20 * worker + number))
            return search(k=1).get().slug == "0 0"

    with ThreadPoolExecutor(4) as pool:
        assert any(pool.map(write, range(4)))
    for _ in range(2):
        assert found(search(k=100)) == expect(100)
        sync_indexes(db)


NO_VECTORS = {
    "too short": [1.0, 2.0],
    "too long": [1.0] * 17,
    "text": "[1, 2, 3]",
    "words": ["a"] * 16,
    "NaN": [float("nan")] * 16,
    "infinity": [float("inf")] + [0.0] * 15,
    "beyond float32": [1e39] * 16,
    "a matrix": [[1.0] * 16],
    "ragged": [[1.0], [1.0, 2.0]],
    "half a number": b"abc",
    "a number": 5,
}


@pytest.mark.parametrize("value", NO_VECTORS.values(), ids=NO_VECTORS)
def test_what_is_no_vector_is_refused_before_anything_is_written(db, value):
    before = list(Document.select().tuples())
    for attempt in (
        lambda: Document.create(embedding=value),
        lambda: Document.insert_many([{"embedding": NEAR}, {"embedding": value}]).execute(),
        lambda: bulk_insert(Document, [{"embedding": NEAR}, {"embedding": value}]),
        lambda: Document.update(embedding=value).execute(),
        lambda: nearest(Document.embedding, value),
        lambda: Document.embedding.l2_distance(value),
    ):
        with pytest.raises(InvalidVector) as caught:
            attempt()
        assert isinstance(caught.value, ValueError)
    assert list(Document.select().tuples()) == before


def test_zero_has_no_direction(db, store):
    zero = [0.0] * 16
    if store[1] and store[1]["metric"] == "cosine":
        with pytest.raises(InvalidVector, match="no direction"):
            Document.create(embedding=zero)
    else:
        Document.create(slug="zero", embedding=zero)
        nearest_to_zero = nearest(Document.embedding, zero, k=1, metric="l2").get()
        assert (nearest_to_zero.slug, nearest_to_zero.distance) == ("zero", 0.0)
    with pytest.raises(InvalidVector, match="no direction"):
        nearest(Document.embedding, zero, metric="cosine")


@pytest.mark.parametrize("store", [("sqlite", INDEXES[index]) for index in ("float32", "bit", "no index")])
def test_vectors_that_other_programs_spoil_are_not_found(db, write, expect):
    good = expect(5)
    db.close()
    nan = "0000c07f" * 16
    write(
        f"""
        insert into document (title, lang, slug, embedding) values
            ('', '', 'short', x'0000803f'), ('', '', 'text', 'abc'), ('', '', 'number', 5), ('', '', 'nan', x'{nan}'),
            ('', '', 'zero', zeroblob(64));
        """
    )
    for _ in range(2):
        assert found(search()) == good
        assert {row.slug for row in search(k=2 * ROWS)} & {"short", "text", "number", "nan", "zero"} == set()
        sync_indexes(db)
    distance = Document.embedding.cosine_distance(QUERY)
    ordered = Document.select(Document.slug, distance.alias("distance")).order_by(distance, Document.id)
    assert [(row.slug, row.distance) for row in ordered][ROWS:] == [
        (slug, None) for slug in (None, "short", "text", "number", "nan", "zero")
    ]


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, np.float64(3), np.array(2.5), None])
def test_k_is_a_whole_number_from_one(value):
    with pytest.raises(InvalidQuery, match="whole number from 1"):
        nearest(Document.embedding, QUERY, k=value)


@pytest.mark.parametrize("value", [np.int64(ROWS + 1), 300_000_000, 2**31, 2**62, 2**64])
def test_k_may_be_any_whole_number(expect, value):
    assert found(search(k=value)) == expect(ROWS)
