"""Bringing a derived vec0 index up to its column: folding changed rows in.

A fold is a short write transaction: it takes some of the keys that the triggers noted, reads their vectors, replaces
their codes and forgets the keys. Rows that are gone, hold no vector, or hold what no index can use leave vec0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..driver import sqlite3
from ..schema import quote_identifier
from ..store.transactions import transaction
from ..vectors import Vector, int8_scale
from .candidates import REGISTRY, present
from .installing import create, is_installed, missing, refuse_missing

if TYPE_CHECKING:
    from . import DerivedIndex

FOLD_ROWS = 2_048
"""Rows a transaction: two of vec0's chunks, a fraction of a second."""
SAMPLE_ROWS = 5_000
"""Vectors from which the scale of int8 codes is taken."""
_FITTING = 0.8, 1.25
"""A scale is kept while the one that the data would have now is within these of it."""
_CLIPPED = 0.005
"""A greater share of numbers beyond the scale calls for a look whether it still fits."""
_LOCKED = {5, 6}
"""SQLite's result codes for a file, or a table, that somebody else writes."""


_log = logging.getLogger("datasette_vec_gemini")


def sync(conn: sqlite3.Connection, index: DerivedIndex) -> int:
    """See `DerivedIndex.sync`."""
    folded = _bring_up(conn, index)
    _forget_ghosts(conn, index)
    return folded


def sync_each(conn: sqlite3.Connection, indexes: Iterable[DerivedIndex]) -> int:
    """`sync` for each of them, whatever becomes of the others; the first error is raised in the end."""
    folded, errors = 0, []
    for index in indexes:
        try:
            folded += sync(conn, index)
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
    if errors:
        raise errors[0]
    return folded


def catch_up(
    conn: sqlite3.Connection, stored: Callable[[sqlite3.Connection], Iterable[DerivedIndex]], *, waiting: int = 1
) -> None:
    """See `vector_index.catch_up`."""
    if conn.in_transaction:
        return
    with _logged():
        (patience,) = conn.execute("pragma busy_timeout").fetchone()
        conn.execute("pragma busy_timeout = 0")
        try:
            for index in stored(conn):
                with _logged():
                    if missing(conn, index):
                        continue  # a migration is not through, or sync() tells what to do
                    if not is_installed(conn, index):
                        create(conn, index)
                    elif _is_behind(conn, index, waiting):
                        _bring_up(conn, index)
        finally:
            conn.execute(f"pragma busy_timeout = {patience}")


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the commit has been made
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED:
            _log.info("somebody else is writing: changed rows are folded into their vector index after a later commit")
        else:
            _log.warning("changed rows could not be folded into their vector index; sync() tries again", exc_info=True)


def _is_behind(conn: sqlite3.Connection, index: DerivedIndex, waiting: int) -> bool:
    last = f"select 1 from {quote_identifier(index.dirty)} where typeof(id) = ? limit 1 offset ?"
    return bool(conn.execute(last, [index.key_type, waiting - 1]).fetchone())


def _bring_up(conn: sqlite3.Connection, index: DerivedIndex) -> int:
    refuse_missing(conn, index)
    if not is_installed(conn, index):
        create(conn, index)
    folded, before = 0, _codes(conn, index)
    while True:
        fold = _Fold(conn, index)
        with transaction(conn):
            count = fold.run()
        folded += count
        if count < FOLD_ROWS and not fold.has_started_over:
            break
    if (codes := _codes(conn, index)) > before and _size(codes) != _size(before):
        _forget_ghosts(conn, index)
    return folded


def _codes(conn: sqlite3.Connection, index: DerivedIndex) -> int:
    (rows,) = conn.execute(f"select rows from {REGISTRY} where name = ?", [index.name]).fetchone()
    return int(rows)


def _size(codes: int) -> int:
    """A number that changes with every sixteenth to eighth that an index grows by."""
    return codes >> max(codes.bit_length() - 4, 0) | codes.bit_length() << 4


def _forget_ghosts(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    """Delete the codes of rows that no trigger saw go: those that `or replace` deletes for another unique column."""
    table, key, vec0, rowids = map(quote_identifier, (index.table, index.key, index.name, f"{index.name}_rowids"))
    rows = f"select count(*) from {table} where {present(quote_identifier(index.column), index.dimensions)}"
    if _codes(conn, index) <= conn.execute(rows).fetchone()[0]:
        return
    coded = "rowid" if index.key_type == "integer" else "id"
    with transaction(conn):
        ghosts = conn.execute(
            f"select {coded} from {rowids} as v where not exists (select 1 from {table} as t where t.{key} = v.{coded})"
        ).fetchall()
        conn.executemany(f"delete from {vec0} where id = ?", ghosts)
        conn.execute(f"update {REGISTRY} set rows = rows - ? where name = ?", [len(ghosts), index.name])


class _Fold:
    """One transaction's work."""

    def __init__(self, conn: sqlite3.Connection, index: DerivedIndex) -> None:
        self.conn = conn
        self.index = index
        self.has_started_over = False
        self.table, self.key, self.column, self.vec0, self.dirty = map(
            quote_identifier, (index.table, index.key, index.column, index.name, index.dirty)
        )

    def run(self) -> int:
        """Fold the first of the changed rows in; tells how many."""
        known = "rowid" if self.index.key_type == "integer" else "id"
        rows = self.conn.execute(
            f"""
            select changed.id, coded.{known} is not null, t.{self.column}
            from (select id from {self.dirty} where typeof(id) = ? order by id limit ?) as changed
            left join {quote_identifier(f"{self.index.name}_rowids")} as coded on coded.{known} = changed.id
            left join {self.table} as t on t.{self.key} = changed.id
            """,
            [self.index.key_type, FOLD_ROWS],
        ).fetchall()
        if not rows:
            return 0
        keys, vectors = self._usable([(key, blob) for key, _, blob in rows])
        replaced = [(key,) for key, is_coded, _ in rows if is_coded]
        scale = self._scale(vectors) if self.index.quantize == "int8" else None
        if self.has_started_over:
            return 0
        self.conn.executemany(f"delete from {self.vec0} where id = ?", replaced)
        wrapped = {"float32": "?", "int8": "vec_int8(?)", "bit": "vec_bit(?)"}[self.index.quantize]
        self.conn.executemany(
            f"insert into {self.vec0} (id, embedding) values (?, {wrapped})",
            zip(keys, self.index.codes(vectors, scale=scale), strict=True),
        )
        self.conn.executemany(f"delete from {self.dirty} where id = ?", [row[:1] for row in rows])
        grown = len(keys) - len(replaced)
        self.conn.execute(f"update {REGISTRY} set rows = rows + ? where name = ?", [grown, self.index.name])
        return len(rows)

    def _usable(self, rows: list[tuple[object, object]]) -> tuple[list[object], Vector]:
        size = 4 * self.index.dimensions
        found = [(key, blob) for key, blob in rows if isinstance(blob, bytes) and len(blob) == size]
        matrix = np.frombuffer(b"".join(blob for _, blob in found), dtype="<f4").reshape(
            len(found), self.index.dimensions
        )
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", matrix, matrix)
        usable = np.isfinite(squares)
        if self.index.nonzero:
            usable &= squares > 0
        return [key for (key, _), kept in zip(found, usable, strict=True) if kept], matrix[usable]

    def _scale(self, vectors: Vector) -> float:
        """The scale of the codes; where the data have outgrown it, all codes are thrown away to be made anew."""
        scale, sampled, rows = self.conn.execute(
            f"select scale, sampled, rows from {REGISTRY} where name = ?", [self.index.name]
        ).fetchone()
        grown = sampled < SAMPLE_ROWS and rows + len(vectors) >= 2 * sampled
        beyond = np.count_nonzero(np.abs(self.index.coded(vectors)) * scale > 127.5) if scale else 0
        if scale and not grown and beyond <= _CLIPPED * vectors.size:
            return float(scale)
        sample = np.concatenate([self._sample(), vectors])
        fresh = int8_scale(self.index.coded(sample)) if sample.any() else 1.0
        if scale and _FITTING[0] <= fresh / scale <= _FITTING[1]:
            fresh = float(scale)
        elif scale:
            self.has_started_over = True
            self.conn.execute(
                f"insert into {self.dirty} (id) select id from {self.vec0} where 1 on conflict do nothing"
            )
            self.conn.execute(f"delete from {self.vec0}")
            self.conn.execute(f"update {REGISTRY} set rows = 0 where name = ?", [self.index.name])
        self.conn.execute(
            f"update {REGISTRY} set scale = ?, sampled = ? where name = ?", [fresh, len(sample), self.index.name]
        )
        return fresh

    def _sample(self) -> Vector:
        rows = self.conn.execute(
            f"select {self.key}, {self.column} from {self.table} where {self.index.present(self.column)} limit ?",
            [SAMPLE_ROWS],
        )
        return self._usable(rows.fetchall())[1]
