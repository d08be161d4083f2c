"""Documents with vectors in Peewee, for the laws of reading and of writing: models, fixtures and what is expected."""

import random
from contextlib import ExitStack

import oracle
import pytest
from peewee import CharField, ForeignKeyField, Model, PostgresqlDatabase, TextField

from datasette_vec_gemini.peewee import VectorField, VectorIndex, VectorSqliteDatabase, nearest, sync_indexes

DIMENSIONS = 16
ROWS = 120
# sqlite-vec adds up in float32.
TOLERANCE = 2e-5
_random = random.Random(7)
VECTORS = {key: [_random.gauss(0, 1) for _ in range(DIMENSIONS)] for key in range(1, ROWS + 1)}
QUERY = [_random.gauss(0, 1) for _ in range(DIMENSIONS)]
NEAR, FAR = [x * 1.01 for x in QUERY], [-x for x in QUERY]

# So few rows would be scanned exactly; here the index has to find them, by codes of so few dimensions that each could
# belong to any of them.
THROUGH_THE_INDEX = {"exact_rows": 0, "oversample": 300}
INDEXES = {
    "float32": {"metric": "cosine", "exact_rows": 0},
    "int8": {"metric": "l2", "quantize": "int8", **THROUGH_THE_INDEX},
    "bit": {"metric": "cosine", "quantize": "bit", **THROUGH_THE_INDEX},
    "no index": None,
}
STORES = [*(("sqlite", index) for index in INDEXES), ("postgres", "bit")]


class Author(Model):
    name = TextField()


class Document(Model):
    title = TextField(default="")
    lang = CharField(default="en", index=True)
    slug = TextField(null=True, unique=True)
    author = ForeignKeyField(Author, null=True, backref="documents")
    embedding = VectorField(dimensions=DIMENSIONS, null=True)


class Comment(Model):
    document = ForeignKeyField(Document)
    text = TextField()


MODELS = [Author, Document, Comment]


@pytest.fixture(params=STORES, ids=" ".join)
def store(request):
    """The kind of database, and what VectorIndex takes for its documents."""
    kind, index = request.param
    # HNSW is approximate, which test_postgres_peewee looks at; so few rows are compared one by one by default.
    return kind, INDEXES[index] if kind == "sqlite" else INDEXES[index] | {"exact_rows": 5_000}


@pytest.fixture
def opened(store, path, request):
    """Open the database of this test, as often as it is called."""
    databases = []
    with ExitStack() as stack:
        if store[0] == "postgres":
            server = request.getfixturevalue("postgres")
            name = stack.enter_context(server.database())
            options = {"host": str(server.directory), "user": "postgres", "prefer_psycopg3": True}

        def open_database():
            if store[0] == "postgres":
                database = PostgresqlDatabase(name, **options)
            else:
                database = VectorSqliteDatabase(
                    str(path), timeout=30, pragmas={"journal_mode": "wal", "synchronous": 0}
                )
            databases.append(database)
            return database

        yield open_database
        for database in databases:
            database.close()


@pytest.fixture
def db(opened, store):
    """The documents, in a database that is bound to their models."""
    if store[1] is not None:
        Document.add_index(VectorIndex(Document.embedding, **store[1]))
    database = opened()
    with database.bind_ctx(MODELS):
        database.create_tables(MODELS)
        with database.atomic():
            fill()
        sync_indexes(database)
        yield database
    Document._meta.indexes.clear()


def fill():
    authors = [Author.create(name=name) for name in ("ada", "bo", "cy")]
    rows = [
        {"title": f"title {key % 7}", "lang": "de" if key % 10 else "en", "slug": f"s{key}", "author": authors[key % 3]}
        for key in VECTORS
    ]
    Document.insert_many([row | {"embedding": VECTORS[key]} for key, row in enumerate(rows, 1)]).execute()
    Document.create(title="no vector")
    Comment.insert_many([(key, f"comment {n}") for key in VECTORS if key % 20 == 0 for n in range(3)]).execute()


@pytest.fixture
def expect(db, store):
    """What the database has to answer: read from it row by row, compared and sorted in Python."""

    own = (store[1] or {"metric": "cosine"})["metric"]

    def expected(k, *, offset=0, query=QUERY, only=lambda row: True, metric=None):
        rows = {row.id: row.embedding for row in Document.select() if only(row)}
        found = oracle.nearest(rows, query, k=k, offset=offset, metric=metric or own)
        return [(key, pytest.approx(distance, abs=TOLERANCE)) for key, distance in found]

    return expected


def found(query):
    return [(row.id, row.distance) for row in query]


def search(k=5, query=QUERY):
    return nearest(Document.embedding, query, k=k)
