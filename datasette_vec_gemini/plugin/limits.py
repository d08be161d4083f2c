"""Read on one of Datasette's SQL threads within its time limit, and say in words what went wrong there."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from datasette import NotFound
from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import sqlite_timelimit

from ..driver import sqlite3
from ..errors import DatabaseUnavailable, VecError
from ..functions import let_go
from .turns import Turns

_T = TypeVar("_T")

_INTERRUPTED = ("interrupted", "chunks iter error", "SQL logic error", "Could not extract")
"""What SQLite says when a time limit stops it, and sqlite-vec in its place."""
_DAMAGED = re.compile(r"vectors? blob|BLOB length|Error (?:reading|opening)")
"""What sqlite-vec says of vectors that are not as it left them."""
_LOST = re.compile(r"no such table: (?:main\.)?_vec_(\w+)_\d+_\w+")


async def limited(
    datasette: Datasette,
    db: Database,
    read: Callable[[sqlite3.Connection], _T],
    *,
    turns: Turns | None = None,
    times: int = 1,
) -> _T:
    """Read on one of Datasette's SQL threads within its time limit, or so many times as long.

    What costs more than a glance waits for its turn first. Raises DatabaseUnavailable when the time is over or a table
    of an index is gone, and Busy.
    """
    limit_ms = times * datasette.setting("sql_time_limit_ms")

    def run(conn: sqlite3.Connection) -> _T:
        raised: Exception
        try:
            with sqlite_timelimit(conn, limit_ms):
                return read(conn)
        except (VecError, sqlite3.Error, NotFound) as error:
            raised = error
        # Its frames have cursors of this connection. The event loop would drop them, and wait for the connection to do
        # so: for as long as the next statement runs on it.
        let_go(raised)
        if isinstance(raised, sqlite3.OperationalError) and any(sign in str(raised) for sign in _INTERRUPTED):
            raise DatabaseUnavailable(
                f"this took longer than {limit_ms:,} ms: ask in another mode or with filters, or let the site raise "
                "Datasette's sql_time_limit_ms"
            )
        if isinstance(raised, sqlite3.OperationalError) and (lost := _LOST.match(str(raised))):
            raise DatabaseUnavailable(
                f"a table of index {lost[1]!r} is gone: run "
                f"`datasette vec verify {Path(db.path or 'DB').name} {lost[1]} --repair`"
            )
        if isinstance(raised, sqlite3.DatabaseError) and _DAMAGED.search(str(raised)):
            raise DatabaseUnavailable(
                f"an index is damaged: run `datasette vec verify {Path(db.path or 'DB').name} --repair`"
            )
        raise raised

    if turns is None:
        return cast("_T", await db.execute_fn(run))
    return cast("_T", await turns.take(partial(db.execute_fn, run)))
