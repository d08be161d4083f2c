"""Bringing a derived vec0 index up to its column: creating it, folding changed rows in; its SQL functions.

A fold is a short write transaction: it takes some of the keys that the triggers noted, reads their vectors, replaces
their codes and forgets the keys. Rows that are gone, hold no vector, or hold what no index can use leave vec0. What has
a name of the index but is not in the registry is somebody else's, and never touched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..driver import sqlite3
from ..errors import ColumnNotFound, IndexExists, TableNotFound, shown
from ..schema import quote_identifier
from ..store.transactions import transaction
from ..vectors import Vector, int8_scale, quantise_int8
from .candidates import REGISTRY, literal, present, triggers_installed

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
_RADIUS_DEVIATIONS = 1.5
"""How far beyond the expected Hamming distance candidates are taken."""
_SHADOWS = ("_info", "_chunks", "_rowids", "_vector_chunks00")
"""What vec0 appends to its name for tables of its own."""


_log = logging.getLogger("datasette_vec_gemini")


def register(conn: sqlite3.Connection) -> None:
    """Register the SQL functions that the statements of the doors call."""
    conn.create_function("vec_negative_inner_product", 2, _negative_inner_product, deterministic=True)
    conn.create_function("vec_int8_code", 3, _int8_code, deterministic=True)
    conn.create_function("vec_hamming_radius", 2, _hamming_radius, deterministic=True)


def _negative_inner_product(left: bytes | None, right: bytes | None) -> float | None:
    """As pgvector's `<#>`: lower for nearer."""
    if left is None or right is None:
        return None
    return -float(np.frombuffer(left, "<f4").astype(np.float64) @ np.frombuffer(right, "<f4").astype(np.float64))


def _int8_code(vector: bytes, scale: float | None, unit: int) -> bytes:
    """The argument of `vec_int8()` for a packed vector, brought to unit length first where the index holds such."""
    array = np.frombuffer(vector, "<f4")
    return quantise_int8(array / np.linalg.norm(array) if unit else array, scale=scale or 1.0)


def _hamming_radius(distance: float | None, dimensions: int) -> int | None:
    """How many bits may differ between vectors at this cosine distance: angle / pi of them, and some more."""
    if distance is None:
        return None
    share = math.acos(max(-1.0, min(1.0, 1.0 - distance))) / math.pi
    return math.ceil(dimensions * share + _RADIUS_DEVIATIONS * math.sqrt(dimensions * share * (1 - share)))


def fits(index: DerivedIndex, key: str) -> str:
    """Whether a key, in SQL, is one that the table of changed keys takes: not NULL, and no text among integers."""
    return f"typeof({key}) = 'integer'" if index.key_type == "integer" else f"{key} is not null"


def create(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    """See `DerivedIndex.create`."""
    with transaction(conn):
        settle(conn, [index])
        known = _registered(conn, index.name)
        _refuse_missing(conn, index)
        if known is None:
            _refuse_taken(conn, index)
        elif not _is_of(known, index):
            raise IndexExists(
                f"the vector index {shown(index.name)} is on the table {shown(known.table)} already and cannot be on "
                f"{shown(index.table)} too: give one of them another name"
            )
        elif known.definition != index.definition:
            _drop(conn, index)
        for trigger in _strays(conn, index):
            conn.execute(f"drop trigger {quote_identifier(trigger)}")
        for statement in index.create_statements():
            conn.execute(statement)


def drop(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    """See `DerivedIndex.drop`."""
    with transaction(conn):
        known = _registered(conn, index.name)
        if known is not None and (_is_of(known, index) or not _has_table(conn, known.table)):
            _drop(conn, index)


def settle(conn: sqlite3.Connection, indexes: Iterable[DerivedIndex]) -> None:
    """Let indexes whose table is gone follow their triggers to its new name, or go with it."""
    for index in indexes:
        known = _registered(conn, index.name)
        if known is None or _has_table(conn, known.table):
            continue
        with transaction(conn):
            tables = set(_strays(conn, index, known.table).values())
            if len(tables) == 1:
                conn.execute(f'update {REGISTRY} set "table" = ? where name = ?', [*tables, index.name])
            else:
                _drop(conn, index)


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
                    if _missing(conn, index):
                        continue  # a migration is not through, or sync() tells what to do
                    if not _is_installed(conn, index):
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
    _refuse_missing(conn, index)
    if not _is_installed(conn, index):
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


def _is_installed(conn: sqlite3.Connection, index: DerivedIndex) -> bool:
    known = _registered(conn, index.name)
    if known is None or known.definition != index.definition or not _is_of(known, index):
        return False
    (triggers,) = conn.execute(f"select {triggers_installed(index)}").fetchone()
    return bool(triggers == len(index.triggers))


class _Registered(NamedTuple):
    table: str
    definition: str


def _registered(conn: sqlite3.Connection, name: str) -> _Registered | None:
    if not _has_table(conn, REGISTRY):
        return None
    row = conn.execute(f'select "table", definition from {REGISTRY} where name = ?', [name]).fetchone()
    return _Registered(*row) if row else None


def _is_of(known: _Registered, index: DerivedIndex) -> bool:
    return known.table.lower() == index.table.lower()


def _drop(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    for statement in index.drop_statements():
        conn.execute(statement)
    if not conn.execute(f"select 1 from {REGISTRY}").fetchone():
        conn.execute(f"drop table {REGISTRY}")


def _strays(conn: sqlite3.Connection, index: DerivedIndex, table: str | None = None) -> dict[str, str]:
    """The index's triggers that are on another table, as after a renaming, with that table."""
    names = ", ".join(map(literal, index.triggers))
    return dict(
        conn.execute(
            f"select name, tbl_name from sqlite_master where type = 'trigger' and name in ({names}) "
            "and tbl_name <> ? collate nocase",
            [table or index.table],
        )
    )


def _has_table(conn: sqlite3.Connection, name: str) -> bool:
    found = "select 1 from sqlite_master where type = 'table' and name = ? collate nocase"
    return bool(conn.execute(found, [name]).fetchone())


def _missing(conn: sqlite3.Connection, index: DerivedIndex) -> list[str]:
    # A trigger of a column that is not there could be made, and every later write of the table would fail.
    columns = {name.lower() for (name,) in conn.execute("select name from pragma_table_xinfo(?)", [index.table])}
    return [name for name in (index.key, index.column) if name.lower() not in columns]


def _refuse_missing(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    if not _has_table(conn, index.table):
        raise TableNotFound(f"there is no table {shown(index.table)} for the vector index {shown(index.name)}")
    if missing := _missing(conn, index):
        raise ColumnNotFound(
            f"the vector index {shown(index.name)} needs the column {shown(missing[0])}, which the table "
            f"{shown(index.table)} has not: drop the index, or create it by the column's new name"
        )


def _refuse_taken(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    names = [index.name, index.dirty, *index.triggers, *(f"{index.name}{shadow}" for shadow in _SHADOWS)]
    found = conn.execute(
        f"select type, name from sqlite_master where name collate nocase in ({', '.join(map(literal, names))})"
    ).fetchone()
    if found:
        raise IndexExists(
            f"the vector index {shown(index.name)} would need the name of a {found[0]} that is there already, "
            f"{shown(found[1])}: give the index another name"
        )


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
