"""The plugin of sqlite-utils: `sqlite-utils query mydb.db "select embed_gemini('hello')"`."""

from __future__ import annotations

from sqlite_utils import hookimpl

from .driver import sqlite3


@hookimpl
def prepare_connection(conn: sqlite3.Connection) -> None:
    """Give every connection sqlite-vec and `embed_gemini`."""
    from .connection import prepare_lightly

    prepare_lightly(conn)
