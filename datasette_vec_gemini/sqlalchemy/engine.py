"""Engines whose connections have sqlite-vec, on this process's one SQLite library; indexes follow their commits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.exc import DBAPIError

from .. import vector_index
from ..driver import sqlite3
from ..errors import ExtensionUnavailable, InvalidSetting, UsageError
from ..store.transactions import mapped_errors
from ..vector_index.candidates import DISTANCES

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

_E = TypeVar("_E", bound="Engine | AsyncEngine")
_R = TypeVar("_R")

_EXTRAS = {"aiosqlite": "aiosqlite", "asyncpg": "postgres", "psycopg": "postgres"}
"""The extra that brings each driver."""

_UNREGISTERED = (
    "the connections of this engine have no sqlite-vec: call register_vector(engine) where it is made, or make it with "
    "datasette_vec_gemini.sqlalchemy.create_engine"
)
_CAUGHT_UP = "datasette_vec_gemini_changes"
"""In the pool's entry of a connection: how many changes it had made when the indexes were last looked at."""


def create_engine(url: str | URL, **options: Any) -> Engine:
    """SQLAlchemy's `create_engine`, registered."""
    with _telling_of_missing_driver():
        engine = sqlalchemy.create_engine(url, **options)
    return register_vector(engine)


def create_async_engine(url: str | URL, **options: Any) -> AsyncEngine:
    """SQLAlchemy's `create_async_engine`, registered."""
    from sqlalchemy.ext import asyncio

    with _telling_of_missing_driver():
        engine = asyncio.create_async_engine(url, **options)
    return register_vector(engine)


def register_vector(engine: _E) -> _E:
    """Make an engine ready for vectors, sync or async, and return it. Call it before the engine connects.

    SQLite: the engine takes the SQLite library that this process has settled on, every connection gets sqlite-vec
    (loading of extensions is off again afterwards), and when a connection comes back to the pool with changes they are
    folded into the derived indexes. PostgreSQL: see `postgres`. Raises InvalidSetting for other databases, UsageError
    when too late; ExtensionUnavailable comes from connections where sqlite-vec cannot be loaded.
    """
    sync_engine: Any = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        kind = type(engine).__name__  # what it is may be a URL with a password
        raise UsageError(f"{kind} is no engine: register_vector(sqlalchemy.create_engine(url))")
    if sync_engine.dialect.name == "postgresql":
        from .postgres import register

        register(sync_engine)
    elif sync_engine.dialect.name != "sqlite":
        raise InvalidSetting(f"vectors live in SQLite or PostgreSQL, not in {sync_engine.dialect.name!r}")
    elif not event.contains(sync_engine, "connect", _prepare):
        _take_driver(sync_engine)
        event.listen(sync_engine, "connect", _prepare)
        event.listen(sync_engine, "checkin", _catch_up)
        event.listen(sync_engine, "handle_error", _tell_of_missing_index)
    return engine


@contextmanager
def _telling_of_missing_driver() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise ImportError(
            f"an engine of this URL needs {error.name}: pip install 'datasette-vec-gemini[{_EXTRAS[error.name]}]'"
        ) from error


def on_driver(connection: Connection, work: Callable[[Any], _R]) -> _R:
    """Do something with the driver's own connection; that of aiosqlite lives in a thread, and the work goes there.

    SQLite's errors about the file come out as ours. Raises ExtensionUnavailable where nobody registered the engine.
    """
    dbapi: Any = connection.dialect.loaded_dbapi
    try:
        with mapped_errors():
            return _run(connection.connection.dbapi_connection, work)
    except (ExtensionUnavailable, dbapi.Error) as error:
        # An engine that is not registered may be of another SQLite library, and so are its errors.
        cause = error.__cause__ if isinstance(error, ExtensionUnavailable) else error
        if not str(cause).startswith(("no such module: vec0", "no such function: vec_")):
            raise
        raise ExtensionUnavailable(_UNREGISTERED) from cause


def _run(connection: DBAPIConnection | None, work: Callable[[Any], _R]) -> _R:
    adapted: Any = connection
    if not hasattr(adapted, "run_async"):
        return work(adapted)
    # aiosqlite has no public way to do in a connection's thread what it has no method for.
    result: _R = adapted.run_async(lambda driver: driver._execute(lambda: work(driver._conn)))  # noqa: SLF001
    return result


def _take_driver(engine: Engine) -> None:
    dialect: Any = engine.dialect
    if dialect.server_version_info is not None:
        raise UsageError("this engine has connected already: call register_vector() right where it is made")
    if dialect.driver == "pysqlite":
        dialect.dbapi = sqlite3
    elif dialect.driver == "aiosqlite":
        dialect.dbapi = type(dialect.dbapi)(_aiosqlite(), sqlite3)
    else:
        raise InvalidSetting(
            f"sqlite+{dialect.driver} brings a SQLite of its own, and two in one process lose each other's file locks: "
            "use sqlite:// or sqlite+aiosqlite://"
        )


def _aiosqlite() -> SimpleNamespace:
    """What SQLAlchemy's dialect uses of aiosqlite, over this process's SQLite library."""
    import aiosqlite

    def connect(database: str, **options: Any) -> aiosqlite.Connection:
        rows = options.pop("iter_chunk_size", 64)
        return aiosqlite.Connection(lambda: sqlite3.connect(database, **options), rows)

    taken = {name: getattr(sqlite3, name) for name in dir(aiosqlite) if name.endswith("Error") or "sqlite_" in name}
    return SimpleNamespace(connect=connect, Connection=aiosqlite.Connection, **taken)


def _prepare(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    try:
        entry.info[_CAUGHT_UP] = _run(connection, _prepared)
    except BaseException:
        connection.close()
        raise


def _prepared(conn: sqlite3.Connection) -> int:
    if not isinstance(conn, sqlite3.Connection):
        raise ExtensionUnavailable(
            f"the engine's creator makes connections of {type(conn).__module__}; make them of this process's SQLite "
            "library, datasette_vec_gemini.sqlite3: two of them lose each other's file locks"
        )
    vector_index.prepare(conn)
    return conn.total_changes


def _catch_up(connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
    """The transaction has ended, and the user has no hand on the connection any more."""
    driver: Any = getattr(connection, "driver_connection", connection)
    with suppress(sqlite3.ProgrammingError, ValueError):  # the user has closed it
        if driver is not None and driver.total_changes != entry.info.get(_CAUGHT_UP):
            _run(connection, vector_index.catch_up)
            entry.info[_CAUGHT_UP] = driver.total_changes


def _tell_of_missing_index(context: ExceptionContext) -> Exception | None:
    """A statement of `nearest` is known by what it names."""
    missing = re.fullmatch("no such table: (.+)_dirty", str(context.original_exception))
    if not missing or "_vec_plan" not in (context.statement or ""):
        return None
    return _reworded(
        context,
        f"the vector index {missing[1]!r} is declared, but not in this file: metadata.create_all(engine) makes it, "
        "also where the table is there already",
    )


@event.listens_for(SQLiteDialect, "handle_error")
def _tell_of_missing_extension(context: ExceptionContext) -> Exception | None:
    """Of engines that nobody has registered, whose statements need sqlite-vec."""
    functions = "|".join(DISTANCES.values())
    missing = re.fullmatch(f"no such (module: vec0|function: ({functions}))", str(context.original_exception))
    return _reworded(context, _UNREGISTERED) if missing else None


def _reworded(context: ExceptionContext, message: str) -> Exception | None:
    """The same error, in words that help."""
    wrapped = context.sqlalchemy_exception
    if not isinstance(wrapped, DBAPIError):
        return None
    original = type(context.original_exception)(message)
    return type(wrapped)(context.statement, wrapped.params, original, hide_parameters=wrapped.hide_parameters)
