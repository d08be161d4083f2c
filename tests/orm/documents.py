"""Documents with vectors in SQLAlchemy, and the databases that they are kept in, so that each law is stated once.

A law speaks to a `Session`. With an async engine it does so in `run_sync`, over the async driver and its connections.
"""

import asyncio
import random
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import oracle
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from datasette_vec_gemini.sqlalchemy import Vector, VectorIndex, create_async_engine, create_engine, nearest

DIMENSIONS = 16
ROWS = 240
# sqlite-vec adds up in float32.
EXACTLY = {"rel": 2e-5, "abs": 2e-5}
# So few rows of so few dimensions would be scanned exactly, or found by luck; here the index has to find them.
THROUGH_THE_INDEX = {"exact_rows": 0, "oversample": 300}
INDEXES = {
    "float32": {"exact_rows": 0},
    "l2": {"metric": "l2", "exact_rows": 0},
    "int8": {"quantize": "int8", **THROUGH_THE_INDEX},
    "int8 l2": {"metric": "l2", "quantize": "int8", **THROUGH_THE_INDEX},
    "bit": {"quantize": "bit", **THROUGH_THE_INDEX},
    "by default": {},
}
# Every index on SQLite; elsewhere what differs by driver.
STORES = [
    *(("sqlite", index) for index in INDEXES),
    ("aiosqlite", "float32"),
    ("aiosqlite", "bit"),
    ("psycopg", "float32"),
    ("psycopg", "int8"),
    ("asyncpg", "l2"),
    ("asyncpg", "by default"),
]

_random = random.Random(7)


def vector():
    return [_random.gauss(0, 1) for _ in range(DIMENSIONS)]


@pytest.fixture(autouse=True)
def begin_anew():
    """Each test draws the same vectors whatever ran before: none meets by chance two that float32 cannot tell apart."""
    _random.seed(11)


VECTORS = {key: vector() for key in range(1, ROWS + 1)}
QUERY = vector()
NEAR, FAR = [x * 1.01 + 0.001 for x in QUERY], [-x for x in QUERY]


def models(**index):
    """A new set of classes whose documents have this index; returns (Base, Author, Document)."""

    class Base(DeclarativeBase):
        pass

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(default="")
        lang: Mapped[str] = mapped_column(default="en", index=True)
        slug: Mapped[str | None] = mapped_column(unique=True)
        author_id: Mapped[int | None] = mapped_column(sa.ForeignKey("author.id"))
        author: Mapped[Author | None] = relationship()
        embedding: Mapped[list[float] | None] = mapped_column(Vector(DIMENSIONS))
        __table_args__ = (VectorIndex("document_embedding_idx", "embedding", **index),)

    return Base, Author, Document


@dataclass
class Store:
    """A database with its classes: `run` does something in a session and commits."""

    engine: object
    Base: type
    Author: type
    Document: type
    metric: str
    _runner: asyncio.Runner | None = None
    rows: dict = field(default_factory=dict)
    """What the table holds, by key: what the oracle answers from."""

    @property
    def is_sqlite(self):
        return self.engine.dialect.name == "sqlite"

    def run(self, work, *, commit=True):
        if self._runner is None:
            with Session(self.engine) as session:
                result = work(session)
                if commit:
                    session.commit()
                return result

        async def apart():
            async with AsyncSession(self.engine) as session:
                result = await session.run_sync(work)
                if commit:
                    await session.commit()
                return result

        return self._runner.run(apart())

    def create(self):
        self._schema(self.Base.metadata.create_all)

    def drop(self):
        self._schema(self.Base.metadata.drop_all)

    def _schema(self, work):
        if self._runner is None:
            work(self.engine)
            return

        async def apart():
            async with self.engine.begin() as conn:
                await conn.run_sync(work)

        self._runner.run(apart())

    def close(self):
        if self._runner is None:
            self.engine.dispose()
        else:
            self._runner.run(self.engine.dispose())
            self._runner.close()

    def gather(self, work, count):
        """Do something in so many sessions at once; `work(session, number)`."""

        async def apart(number):
            async with AsyncSession(self.engine) as session:
                await session.run_sync(work, number)
                await session.commit()

        async def all_of_them():
            await asyncio.gather(*(apart(number) for number in range(count)))

        self._runner.run(all_of_them())

    def nearest(self, query=QUERY, **options):
        return nearest(self.Document.embedding, query, **options)

    def found(self, session, statement):
        """Keys and distances that a statement answers."""
        return [(document.id, distance) for document, distance in session.execute(statement).unique()]

    def expected(self, query=QUERY, *, k=10, offset=0, only=lambda key: True):
        rows = {key: vector for key, vector in self.rows.items() if only(key)}
        found = oracle.nearest(rows, query, k=k, metric=self.metric, offset=offset)
        return [(key, pytest.approx(distance, **EXACTLY)) for key, distance in found]

    def fill(self):
        """Put the documents in."""
        self.rows = {key: embedding if key % 7 else None for key, embedding in VECTORS.items()}

        def add(session):
            authors = [self.Author(name=name) for name in ("Ada", "Bob")]
            session.add_all(authors)
            for key, embedding in self.rows.items():
                author = authors[key % 2] if key % 3 == 0 else None
                lang = "en" if key % 2 else "de"
                document = {"title": f"t{key}", "slug": f"s{key}", "lang": lang, "author": author}
                session.add(self.Document(id=key, embedding=embedding, **document))

        self.run(add)

    def check(self, session):
        """The session sees what the oracle does."""
        for k in (1, 7, 3 * ROWS):
            assert self.found(session, self.nearest(k=k)) == self.expected(k=k)

    def waiting(self):
        """How many rows wait to be folded into vec0."""
        return self.run(lambda s: s.scalar(sa.text("select count(*) from document_embedding_idx_dirty")))

    def coded(self):
        """The keys in vec0."""
        return self.run(lambda s: sorted(s.scalars(sa.text("select id from document_embedding_idx"))))


@contextmanager
def opened(request, directory, driver, index):
    """An empty database of this driver, whose documents have this index."""
    with ExitStack() as stack:
        yield _opened(request, stack, directory / "test.db", driver, INDEXES[index])


def _opened(request, stack, path, driver, index):
    module = "sqlalchemy" if driver == "sqlite" else driver
    pytest.importorskip(module, reason=f"needs {module}: pip install {module}")
    if driver.endswith("sqlite"):
        url = f"{'sqlite' if driver == 'sqlite' else 'sqlite+aiosqlite'}:///{path}"
    else:
        server = request.getfixturevalue("postgres")
        # HNSW is approximate, which test_postgres_sqlalchemy looks at; so few rows are compared one by one by default.
        index = {**index, "exact_rows": 5_000}
        url = server.url(stack.enter_context(server.database()), driver)
    is_async = driver in {"aiosqlite", "asyncpg"}
    made = Store(
        create_async_engine(url) if is_async else create_engine(url),
        *models(**index),
        metric=index.get("metric", "cosine"),
        _runner=asyncio.Runner() if is_async else None,
    )
    stack.callback(made.close)
    if driver.endswith("sqlite"):
        # Nothing here outlives a crash of the machine, so nothing waits for its disk.
        sa.event.listen(
            getattr(made.engine, "sync_engine", made.engine),
            "connect",
            lambda conn, _: conn.cursor().execute("pragma synchronous = off"),
        )
    made.create()
    return made


# What differs in writing: each code, each driver.
WRITTEN = [
    ("sqlite", "float32"),
    ("sqlite", "int8 l2"),
    ("sqlite", "bit"),
    ("aiosqlite", "float32"),
    ("psycopg", "float32"),
    ("asyncpg", "by default"),
]


@pytest.fixture(params=WRITTEN, ids=" ".join)
def store(request, tmp_path):
    """An empty database."""
    with opened(request, tmp_path, *request.param) as empty:
        yield empty


@pytest.fixture(scope="module", params=STORES, ids=" ".join)
def library(request, tmp_path_factory):
    """A database to read from: each third document of an author, each seventh without a vector, in two languages."""
    with opened(request, tmp_path_factory.mktemp("library"), *request.param) as made:
        made.fill()
        yield made
