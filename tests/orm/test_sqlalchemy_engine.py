"""Laws of the engine: one SQLite library, sqlite-vec in every connection, loading of extensions off again."""

import asyncio
import sqlite3 as of_python
import subprocess
import sys
from types import SimpleNamespace

import pytest
from documents import QUERY, models

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
pytest.importorskip("aiosqlite", reason="needs aiosqlite: pip install 'datasette-vec-gemini[aiosqlite]'")
import sqlalchemy.ext.asyncio as sa_asyncio
from sqlalchemy import event, text
from sqlalchemy.pool import NullPool

import datasette_vec_gemini.sqlalchemy as door
from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.errors import DatabaseUnavailable, ExtensionUnavailable, InvalidSetting, UsageError
from datasette_vec_gemini.sqlalchemy import create_async_engine, create_engine, nearest, register_vector

MAKERS = {
    "ours": create_engine,
    "SQLAlchemy's": lambda url, **options: register_vector(sa.create_engine(url, **options)),
}
ASYNC_MAKERS = {
    "ours": create_async_engine,
    "SQLAlchemy's": lambda url, **options: register_vector(sa_asyncio.create_async_engine(url, **options)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("options", [{}, {"poolclass": NullPool}, {"isolation_level": "AUTOCOMMIT"}], ids=str)
def test_every_connection_has_sqlite_vec_of_the_one_library_and_can_load_nothing_more(path, make, options):
    engine = make(f"sqlite:///{path}", **options)
    with engine.connect() as first, engine.connect() as second:
        for conn in (first, second):
            assert conn.scalar(text("select vec_version()")).startswith("v0.1")
            assert conn.scalar(text("select sqlite_version()")) == sqlite3.sqlite_version
            assert isinstance(conn.connection.dbapi_connection, sqlite3.Connection)
            with pytest.raises(sa.exc.OperationalError, match="not authorized") as caught:
                conn.execute(text("select load_extension('/nowhere')"))
            assert isinstance(caught.value.orig, sqlite3.OperationalError)
    engine.dispose()


@pytest.mark.parametrize("make", ASYNC_MAKERS.values(), ids=ASYNC_MAKERS)
def test_aiosqlite_takes_that_library_too_and_its_errors_come_wrapped(path, make):
    async def work():
        engine = make(f"sqlite+aiosqlite:///{path}")
        async with engine.connect() as conn:
            assert await conn.scalar(text("select sqlite_version()")) == sqlite3.sqlite_version
            assert (await conn.scalar(text("select vec_version()"))).startswith("v0.1")
            driver = (await conn.get_raw_connection()).driver_connection
            assert isinstance(driver._conn, sqlite3.Connection)
            with pytest.raises(sa.exc.OperationalError, match="no such table") as caught:
                await conn.execute(text("select * from absent"))
            assert isinstance(caught.value.orig, sqlite3.OperationalError)
            await conn.execute(text("create table t (id integer primary key)"))
            with pytest.raises(sa.exc.IntegrityError) as caught:
                await conn.execute(text("insert into t values (1), (1)"))
            assert isinstance(caught.value.orig, sqlite3.IntegrityError)
            with pytest.raises(sa.exc.OperationalError, match="not authorized"):
                await conn.execute(text("select load_extension('/nowhere')"))
        await engine.dispose()

    asyncio.run(work())


def test_a_file_in_memory_is_searched_like_any_other():
    engine = create_engine("sqlite://")
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(sa.insert(document), [{"id": 1, "embedding": QUERY}])
    with engine.connect() as conn:
        assert conn.scalar(text("select count(*) from document_embedding_idx")) == 1
        assert conn.execute(nearest(document.embedding, QUERY)).one().distance == pytest.approx(0, abs=1e-6)
    engine.dispose()


def test_registering_twice_is_registering_once(path):
    engine = create_engine(f"sqlite:///{path}")
    loads = []
    event.listen(engine, "connect", lambda *_: loads.append(1))
    assert register_vector(register_vector(engine)) is engine
    with engine.connect():
        assert loads == [1]
    assert register_vector(engine) is engine
    engine.dispose()


def test_an_engine_that_has_connected_is_refused(path):
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect():
        pass
    with pytest.raises(UsageError, match="has connected already"):
        register_vector(engine)
    engine.dispose()


def test_connections_of_another_library_are_refused(path):
    engine = create_engine("sqlite://", creator=lambda: of_python.connect(path))
    if sqlite3 is of_python:
        with engine.connect() as conn:
            assert conn.scalar(text("select vec_version()"))
    else:
        with pytest.raises(ExtensionUnavailable, match="makes connections of sqlite3"):
            engine.connect()
    engine.dispose()


@pytest.mark.parametrize("other", ["postgresql://me:secret@host/db", None, sa.make_url("sqlite://")])
def test_what_is_no_engine_is_refused(other):
    with pytest.raises(UsageError, match=r"^\w+ is no engine: register_vector\(sqlalchemy.create_engine\(url\)\)$"):
        register_vector(other)


def test_other_databases_are_refused():
    engine = sa.create_engine("mysql+pymysql://user@host/db", module=SimpleNamespace(paramstyle="format"))
    with pytest.raises(InvalidSetting, match="vectors live in SQLite or PostgreSQL, not in 'mysql'"):
        register_vector(engine)


def test_where_extensions_cannot_be_loaded_the_error_says_what_to_install(path):
    """In another process, whose connections cannot."""
    program = """
import sys
from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.errors import ExtensionUnavailable
from datasette_vec_gemini.sqlalchemy import create_engine

class Incapable(sqlite3.Connection):
    enable_load_extension = property()

engine = create_engine(f"sqlite:///{sys.argv[1]}", connect_args={"factory": Incapable})
try:
    engine.connect()
except ExtensionUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
    assert "cannot load extensions" in done.stdout
    assert "pip install 'pysqlite3" in done.stdout


def test_what_the_file_refuses_while_an_index_is_made_is_our_error(path):
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as conn:
        conn.execute(text("create table document (id integer primary key, embedding blob)"))
    engine.dispose()
    engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    Base, _, document = models()
    with pytest.raises(DatabaseUnavailable, match="the database is read-only"):
        Base.metadata.create_all(engine, tables=[document.__table__])
    engine.dispose()


def test_an_engine_that_nobody_registered_makes_no_index_and_says_what_to_call(path):
    engine = sa.create_engine(f"sqlite:///{path}", module=sqlite3)
    Base, _, _ = models()
    with pytest.raises(ExtensionUnavailable, match=r"call register_vector\(engine\)"):
        Base.metadata.create_all(engine)
    engine.dispose()


UNREGISTERED = {
    "nearest": lambda document, _: nearest(document.embedding, QUERY),
    "a distance": lambda document, _: sa.select(document.embedding.max_inner_product(QUERY)),
    "order by": lambda document, _: sa.select(document).order_by(document.embedding.cosine_distance(QUERY)),
    "vec0": lambda _, items: items.insert().values(item_id=1, embedding=QUERY),
    "drop": lambda _, items: sa.schema.DropTable(items),
}


@pytest.mark.parametrize("statement", UNREGISTERED.values(), ids=UNREGISTERED)
@pytest.mark.parametrize("driver", ["pysqlite", "aiosqlite"])
def test_a_statement_through_an_engine_that_nobody_registered_says_what_to_call(path, statement, driver):
    Base, _, document = models(exact_rows=0)
    items = door.Vec0Table(
        "items",
        Base.metadata,
        sa.Column("item_id", sa.Integer, primary_key=True),
        sa.Column("embedding", door.Vector(len(QUERY))),
    )
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()

    async def apart():
        engine = sa_asyncio.create_async_engine(f"sqlite+aiosqlite:///{path}")
        try:
            async with engine.connect() as conn:
                await conn.execute(statement(document, items))
        finally:
            await engine.dispose()

    def work():
        if driver == "aiosqlite":
            asyncio.run(apart())
        else:
            with plain.connect() as conn:
                conn.execute(statement(document, items))

    plain = sa.create_engine(f"sqlite:///{path}", module=sqlite3)
    with pytest.raises(sa.exc.OperationalError, match=r"no sqlite-vec: call register_vector\(engine\)") as caught:
        work()
    assert type(caught.value.orig).__name__ == "OperationalError"
    plain.dispose()


def test_other_errors_of_such_an_engine_keep_their_words(path):
    engine = sa.create_engine(f"sqlite:///{path}")
    for sql, says in {
        "select vec_misspelt(1)": "no such function: vec_misspelt",
        "create virtual table t using vec1(a)": "no such module: vec1",
    }.items():
        with engine.connect() as conn, pytest.raises(sa.exc.OperationalError, match=says):
            conn.execute(text(sql))
    engine.dispose()


def test_the_public_names_are_these():
    assert all(hasattr(door, name) for name in door.__all__)
    assert door.__all__ == sorted(door.__all__)
