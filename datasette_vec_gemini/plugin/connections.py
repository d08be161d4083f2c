"""What Datasette's connections get."""

from __future__ import annotations

import logging
from threading import Lock

from .. import connection
from ..driver import sqlite3

_log = logging.getLogger("datasette_vec_gemini")
_unwarned = Lock()
"""Taken with the first warning and kept, for the life of the process."""


def prepare(conn: sqlite3.Connection, database: str) -> None:
    """Load sqlite-vec and register our functions; where extensions cannot be loaded, warn once and go without."""
    if database == "_internal":  # Datasette 0.65's own catalogue: nobody searches it
        return
    if not connection.prepare(conn, require_vec=False) and _unwarned.acquire(blocking=False):
        _log.warning(
            "sqlite-vec cannot be loaded: searches compare every vector, which is slow on large tables, and SQL has no "
            "vec_ functions. Run `datasette vec doctor` to see why and what helps."
        )
