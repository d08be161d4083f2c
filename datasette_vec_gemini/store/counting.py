"""How much of an index there is: rows, documents and chunks by what is known of them. Read only."""

from __future__ import annotations

from dataclasses import dataclass

from ..domain import Index
from ..driver import sqlite3
from ..keys import Key
from ..schema import in_main, key_names, quote_identifier
from . import source

PENDING = "embedding is null and error is null"
FAILED = "embedding is null and error is not null"
"""What holds for chunks that wait for their vector, and for those that the model refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Rows of the source by what the index knows of them: rows = indexed + pending + failed + empty."""

    rows: int
    indexed: int
    pending: int
    failed: int
    empty: int
    chunks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Documents by what searches find of them: those that have text, indexed, pending and failed."""

    documents: int = 0
    indexed: int = 0
    pending: int = 0
    failed: int = 0


def count_chunks(conn: sqlite3.Connection, index: Index, *, only: str = "1") -> int:
    """How many chunks fulfil the condition `only`."""
    total: int = conn.execute(
        f"select count(*) from {quote_identifier(index.object('chunks'))} where {only}"
    ).fetchone()[0]
    return total


def count_queue(conn: sqlite3.Connection, index: Index) -> int:
    """How many keys wait for the text stage."""
    total: int = conn.execute(f"select count(*) from {quote_identifier(index.object('queue'))}").fetchone()[0]
    return total


def has_queue(conn: sqlite3.Connection, index: Index) -> bool:
    """Whether any key waits for the text stage."""
    sql = f"select exists (select 1 from {quote_identifier(index.object('queue'))})"
    return bool(conn.execute(sql).fetchone()[0])


def has_unclaimed(conn: sqlite3.Connection, index: Index, *, now: float) -> bool:
    """Whether any chunk waits for its vector that nobody is embedding."""
    sql = f"""
        select exists (
            select 1 from {quote_identifier(index.object("chunks"))}
            where {PENDING} and (claim is null or claimed_until < ?)
        )
        """
    return bool(conn.execute(sql, [now]).fetchone()[0])


def count_pending(conn: sqlite3.Connection, index: Index) -> int:
    """How many documents are not searchable with their current text yet; costs nothing when none are."""
    keys = ", ".join(key_names(index))
    total: int = conn.execute(
        f"""
        select count(*) from (
            select {keys} from {quote_identifier(index.object("queue"))}
            union
            select {keys} from (
                -- The limit keeps SQLite from reading every chunk in the order of the keys.
                select {keys} from {quote_identifier(index.object("chunks"))}
                where {PENDING} limit -1
            )
        )
        """
    ).fetchone()[0]
    return total


def coverage(conn: sqlite3.Connection, index: Index) -> Coverage:
    """What `counts` says, but for rows without text, from indexes alone: quick enough for every page."""
    chunks, queue = quote_identifier(index.object("chunks")), quote_identifier(index.object("queue"))
    keys = ", ".join(key_names(index))
    matches = " and ".join(f"c.{name} = q.{name}" for name in key_names(index))
    known, new, failed = conn.execute(
        f"""
        select
            (select count(*) from {chunks} where position = 0),
            (select count(*) from {queue} as q where not exists (
                select 1 from {chunks} as c where {matches} and c.position = 0)),
            (select count(*) from (
                select {keys} from (select {keys} from {chunks} where {FAILED} limit -1)
                except
                select {keys} from (select {keys} from {chunks} where {PENDING} limit -1)
                except
                select {keys} from {queue}))
        """
    ).fetchone()
    pending = count_pending(conn, index)
    return Coverage(documents=known + new, indexed=known + new - pending - failed, pending=pending, failed=failed)


def counts(conn: sqlite3.Connection, index: Index) -> Counts:
    """Every row of the source in exactly one class, from one snapshot."""
    table = in_main(index.table)
    chunks, queue = quote_identifier(index.object("chunks")), quote_identifier(index.object("queue"))
    keys = ", ".join(key_names(index))
    rows, pending, failed, empty = conn.execute(
        f"""
        with
        waiting as materialized (
            select {keys} from {queue} union select {keys} from {chunks} where {PENDING}
        ),
        refused as materialized (
            select {keys} from {chunks} where {FAILED} except select {keys} from waiting
        )
        select
            (select count(*) from {table} as t where {source.has_key(index, of="t")}),
            (select count(*) from waiting as w where exists (
                select 1 from {table} as t where {source.matching(index, left="t", right="w")})),
            (select count(*) from refused as r where exists (
                select 1 from {table} as t where {source.matching(index, left="t", right="r")})),
            (select count(*) from {table} as t where {source.has_key(index, of="t")}
                and not exists (select 1 from {chunks} as c where {source.matching(index, left="t", right="c")})
                and not exists (select 1 from waiting as w where {source.matching(index, left="t", right="w")}))
        """
    ).fetchone()
    return Counts(
        rows=rows,
        indexed=rows - pending - failed - empty,
        pending=pending,
        failed=failed,
        empty=empty,
        chunks=count_chunks(conn, index),
    )


def failures(conn: sqlite3.Connection, index: Index, *, limit: int = 20) -> list[tuple[Key, str]]:
    """Keys and reasons of chunks that the model refused."""
    keys = ", ".join(key_names(index))
    cursor = conn.execute(
        f"""
        select {keys}, error from {quote_identifier(index.object("chunks"))}
        where {FAILED} order by id limit ?
        """,
        [limit],
    )
    return [(tuple(key), error) for *key, error in cursor]
