"""Transactions, and the border where SQLite's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlite_utils import Database

from ..driver import sqlite3
from ..errors import DatabaseUnavailable, ExtensionUnavailable, TransactionOpen


def database(conn: sqlite3.Connection) -> Database:
    """The connection as sqlite-utils sees it, with nothing switched on that the caller did not ask for."""
    return Database(conn, recursive_triggers=False, execute_plugins=False)


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[None]:
    """Write in one transaction, or in a savepoint of the one that is open; all or nothing.

    The write lock is taken at once, so that waiting for it obeys busy_timeout and never fails half-way.
    """
    is_nested = conn.in_transaction
    if is_nested:
        with database(conn).atomic():
            yield
        return
    try:
        conn.execute("begin immediate")  # here, so that an interruption on the way leaves nothing open
        yield
        conn.execute("commit")
    except BaseException:
        if conn.in_transaction:
            conn.execute("rollback")
        raise


def refuse_open_transaction(conn: sqlite3.Connection) -> None:
    """Raise TransactionOpen where the work that follows calls a model between its own short transactions."""
    if conn.in_transaction:
        raise TransactionOpen("the connection has an open transaction: commit it or roll it back, then try again")


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn what SQLite raises about the file or a missing module into our errors; other errors stay as they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        mapped = _mapped(error)
        if mapped is None:
            raise
        raise mapped from error


# SQLite's result codes (sqlite.org/rescode.html): words of a message would not do, it may quote any name or value.
_REMEDIES = {
    5: "the database is locked by another program: wait until that has finished writing, then try again",
    6: "a table is locked by another statement of this connection: finish that one, then try again",
    8: "the database is read-only: make the file and its directory writable, or work on a copy",
    10: "the disk refused to read or write: check it and its free space, then try again",
    11: "the database file is damaged: restore a backup, or try sqlite3's .recover",
    13: "the disk is full: free some space, then try again",
    14: "the database cannot be opened: check the path and its permissions",
    26: "the file is not a SQLite database: check the path",
}


def _mapped(error: sqlite3.DatabaseError) -> Exception | None:
    remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    if remedy:
        return DatabaseUnavailable(remedy)
    text = str(error)
    if text.startswith(("no such module: vec0", "no such function: vec_")):
        return ExtensionUnavailable(
            "this connection has no sqlite-vec: open it with datasette_vec_gemini.connect(); "
            "`datasette vec doctor` tells what this machine can do"
        )
    if text.startswith("no such module: fts5"):
        return ExtensionUnavailable(
            "this SQLite was built without FTS5: pip install pysqlite3, which brings one with it"
        )
    return None


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """Read everything in one state of the database, whatever others write meanwhile."""
    is_nested = conn.in_transaction
    if is_nested:
        yield
        return
    conn.execute("begin")
    try:
        yield
    finally:
        if conn.in_transaction:
            conn.execute("rollback")
