"""What Datasette's connections get."""

from __future__ import annotations

import logging
from threading import Lock

from datasette.app import Datasette

from .. import connection
from ..driver import sqlite3
from . import site

_log = logging.getLogger("datasette_vec_gemini")
_unwarned = Lock()
"""Taken with the first warning and kept, for the life of the process."""


def prepare(datasette: Datasette, conn: sqlite3.Connection, database: str) -> None:
    """Load sqlite-vec and register our functions; where extensions cannot be loaded, warn once and go without.

    Left alone are two kinds that Datasette 0.65 has and nobody searches: its own catalogue, and a `_memory` that it
    makes for each request of `/-/versions` and never closes, which our functions would keep alive.
    """
    if database == "_internal" or (database == "_memory" and database not in datasette.databases):
        return
    functions = site.of(datasette).functions(datasette.databases.get(database))
    if not connection.prepare(conn, require_vec=False, functions=functions) and _unwarned.acquire(blocking=False):
        _log.warning(
            "sqlite-vec cannot be loaded: searches compare every vector, which is slow on large tables, and SQL has no "
            "vec_ functions. Run `datasette vec doctor` to see why and what helps."
        )
