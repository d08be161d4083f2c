"""The demonstration: a database of the standard library's documentation, indexed, with questions to ask it."""

from __future__ import annotations

from itertools import islice

from ..domain import Index
from ..driver import sqlite3
from ..errors import IndexNotFound
from ..indexing import create_index
from ..store import registry
from ..store.transactions import database, mapped_errors
from .rows import standard_library

TABLE = "stdlib"
QUESTIONS = (
    "read a table of comma separated values",
    "wait until several threads have reached the same point",
    "how many days are there between two dates",
)


def build(conn: sqlite3.Connection, *, limit: int | None = None) -> Index:
    """Fill table `stdlib` (name, module, kind, signature, doc), declare an index on it, and leave the rest to `sync`.

    Rows that are there already and equal are left as they are, so that a second run goes on where the first stopped.
    """
    with mapped_errors():
        table = database(conn).table(TABLE)
        rows = islice(standard_library(), limit)
        while batch := list(islice(rows, 500)):
            table.upsert_all(batch, pk="name")
    try:
        return registry.find(conn, TABLE)
    except IndexNotFound:
        return create_index(
            conn, TABLE, table=TABLE, columns=["name", "doc"], filter_columns=["module", "kind"], embedder="local"
        )
