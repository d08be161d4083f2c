"""A vec0 index derived from a column of vectors: what both ORM doors share, with no ORM in it.

The entity's own column (packed float32) is the truth. For an index `idx` on the table `t` the database holds

idx          a vec0 table: the key of a row and the code of its vector; unit vectors where the metric is cosine
idx_dirty    the keys of rows that changed since; triggers on `t` note them, in SQL that needs no extension
_vec_derived one row for each such index: what it was made of, how many rows it holds, its scale if it is int8

`candidates` is the SQL of a search: filters act inside it, rows that are not folded in yet stand beside vec0's answer,
and whatever makes vec0 unfit (triggers that vanished, another definition, too many changes, too few rows) turns the
same statement into an exact scan. So an answer never depends on `sync`; only its speed does.

Two things pass the triggers by. A row that `or replace` deletes for another unique column leaves its code behind, which
no answer shows and `sync` clears away. Keys of another type than the index's, such as a BLOB among texts, get no code:
among texts they stay noted, so that searches find them; among integers they are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from .. import connection
from ..driver import sqlite3
from ..errors import InvalidKey, InvalidName, InvalidSetting, InvalidVector, shown
from ..schema import quote_identifier
from ..vectors import Vector, quantise_int8
from . import candidates, folding, functions, installing
from .candidates import DISTANCES, MATCHING, MAX_CODES, QUERY, REGISTRY, WANTED, literal

__all__ = [
    "DISTANCES",
    "MAX_CODES",
    "REGISTRY",
    "DerivedIndex",
    "catch_up",
    "checked",
    "prepare",
    "stored",
    "sync",
]

Metric = Literal["cosine", "l2", "inner_product"]
Quantize = Literal["float32", "int8", "bit"]

MAX_DIMENSIONS = 8_192
"""The most dimensions that vec0 takes."""

_OVERSAMPLE = {"float32": 2, "int8": 4, "bit": 1}
_Node = TypeVar("_Node")


def checked(value: Any, dimensions: int, *, nonzero: bool = False) -> Vector:
    """A list, array or packed BLOB as a float32 array of shape (dimensions,).

    Raises InvalidVector, a ValueError, for text, another shape, NaN or infinity, and for zeros if `nonzero`.
    """
    vector = _floats(value, dimensions)
    if len(vector) != dimensions:
        raise InvalidVector(f"expected {dimensions} dimensions, not {len(vector)}")
    if not np.isfinite(vector).all():
        raise InvalidVector("a vector holds NaN or infinity, or a number beyond float32")
    if nonzero and not vector[0] and not vector.any():
        raise InvalidVector("a vector is all zeros and has no direction, which the cosine distance compares")
    return vector


def _floats(value: Any, dimensions: int) -> Vector:
    if isinstance(value, list | tuple):
        with suppress(struct.error, OverflowError):  # what is no list of numbers is told more about below
            return np.frombuffer(struct.pack(f"{len(value)}f", *value), dtype=np.float32)
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) % 4:
            raise InvalidVector(f"expected a vector of {dimensions} float32, {4 * dimensions} bytes, not {len(value)}")
        return np.frombuffer(value, dtype="<f4").astype(np.float32, copy=False)
    try:
        numbers = np.asarray(value)
    except ValueError as error:
        raise InvalidVector(f"expected a vector of {dimensions} numbers, got lists of unequal length") from error
    if numbers.dtype.kind not in "fiu":
        raise InvalidVector(f"expected a vector of {dimensions} numbers, got {shown(value)}")
    if numbers.ndim != 1:
        raise InvalidVector(f"expected a vector of {dimensions} numbers, got an array of shape {numbers.shape}")
    if numbers.dtype == np.float32:
        return numbers
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DerivedIndex:
    """An index of one column of vectors. Raises InvalidName, InvalidKey, InvalidSetting.

    `key` is the table's primary key, one column, of integers or of text. `oversample` is how many candidates are
    compared exactly for each row that is wanted; None is what suits the quantisation. Up to `exact_rows` rows that the
    filters leave are all compared exactly, which is as fast.
    """

    name: str
    table: str
    key: str
    column: str
    dimensions: int
    metric: str = "cosine"
    quantize: str = "float32"
    oversample: int | None = None
    key_type: Literal["integer", "text"] = "integer"
    exact_rows: int = 5_000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.name):
            raise InvalidName(
                f"{shown(self.name)} cannot be the name of a vector index: use ASCII letters, digits and _"
            )
        if self.metric not in DISTANCES:
            raise InvalidSetting(f"metric={shown(self.metric)} is unknown: use one of {', '.join(DISTANCES)}")
        if self.quantize not in get_args(Quantize):
            raise InvalidSetting(
                f"quantize={shown(self.quantize)} is unknown: use one of {', '.join(get_args(Quantize))}"
            )
        if self.quantize == "bit" and self.metric != "cosine":
            raise InvalidSetting(
                f"quantize='bit' keeps directions only, so it needs metric='cosine', not {self.metric!r}"
            )
        if self.quantize == "bit" and self.dimensions % 8:
            raise InvalidSetting(f"quantize='bit' needs a multiple of 8 dimensions, not {self.dimensions}")
        if self.key_type not in {"integer", "text"}:
            raise InvalidKey(f"a vector index needs a key of integers or of text, not of {shown(self.key_type)}")
        if not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise InvalidSetting(f"dimensions={self.dimensions}: vec0 takes 1 to {MAX_DIMENSIONS}")
        if self.oversample is None:
            object.__setattr__(self, "oversample", _OVERSAMPLE[self.quantize])
        elif self.oversample < 1:
            raise InvalidSetting(f"oversample={self.oversample}: a candidate for each row is the least")

    @property
    def dirty(self) -> str:
        """The name of the table of changed keys."""
        return f"{self.name}_dirty"

    @property
    def triggers(self) -> tuple[str, str, str]:
        """The names of the triggers on the table."""
        return (f"{self.name}_insert", f"{self.name}_update", f"{self.name}_delete")

    @property
    def nonzero(self) -> bool:
        """Whether its vectors need a direction."""
        return self.metric == "cosine"

    @property
    def definition(self) -> str:
        """What the vec0 table was made of, as text; another definition needs another vec0 table."""
        return f"{self.metric} {self.quantize}[{self.dimensions}] of {self.column} by {self.key_type} {self.key}"

    def create_statements(self) -> list[str]:
        """DDL that can be run again: it creates what is missing.

        Where the triggers are missing, all keys are noted as changed; `sync` folds them in. Raises InvalidSetting for a
        metric that vec0 has not.
        """
        if self.metric == "inner_product":
            raise InvalidSetting(
                "SQLite's vec0 has no inner product: use metric='cosine', which ranks unit vectors alike, or order by "
                "max_inner_product() without an index"
            )
        table, key, column, index, dirty = map(
            quote_identifier, (self.table, self.key, self.column, self.name, self.dirty)
        )
        code = {"float32": "float", "int8": "int8", "bit": "bit"}[self.quantize]
        insert, update, delete = map(quote_identifier, self.triggers)
        fit, old, new = (installing.fits(self, f"{row}.{key}") for row in ("t", "old", "new"))
        missing = f"(select {candidates.triggers_installed(self)} < 3 as some) as missing"
        return [
            f"""create table if not exists {REGISTRY} (
    name text primary key,
    "table" text not null,
    key text not null,
    key_type text not null,
    "column" text not null,
    dimensions integer not null,
    metric text not null,
    quantize text not null,
    definition text not null,
    rows integer not null default 0,
    scale real,
    sampled integer not null default 0
)""",
            f"""create virtual table if not exists {index}
using vec0(id {self.key_type} primary key, embedding {code}[{self.dimensions}])""",
            f"create table if not exists {dirty} (id {self.key_type} primary key)",
            # A cross join, so that no table is read through for a condition that is false.
            f"""insert into {dirty} (id)
select t.{key} from {missing} cross join {table} as t where missing.some and {fit}
union
select v.id from {missing} cross join {index} as v where missing.some
on conflict do nothing""",
            f"""create trigger if not exists {insert} after insert on {table} when {new} begin
    insert into {dirty} (id) values (new.{key}) on conflict do nothing;
end""",
            # Not `update of`, which neither rowid nor the sources of a generated column would fire.
            f"""create trigger if not exists {update} after update on {table}
when old.{key} is not new.{key} or old.{column} is not new.{column} begin
    insert into {dirty} (id) select old.{key} where {old} on conflict do nothing;
    insert into {dirty} (id) select new.{key} where {new} on conflict do nothing;
end""",
            f"""create trigger if not exists {delete} after delete on {table} when {old} begin
    insert into {dirty} (id) values (old.{key}) on conflict do nothing;
end""",
            f"""insert into {REGISTRY}
    (name, "table", key, key_type, "column", dimensions, metric, quantize, definition)
values ({", ".join(literal(value) for value in self._row)})
on conflict do nothing""",
        ]

    def drop_statements(self) -> list[str]:
        """SQL that leaves nothing of the index; the table may be gone already. The registry goes with its last row."""
        names = [*(f"drop trigger if exists {quote_identifier(name)}" for name in self.triggers)]
        return [
            *names,
            f"drop table if exists {quote_identifier(self.name)}",
            f"drop table if exists {quote_identifier(self.dirty)}",
            f"delete from {REGISTRY} where name = {literal(self.name)}",
        ]

    def present(self, column: str) -> str:
        """SQL that tells whether a column, written as in `column`, holds a vector of this index."""
        directed = f" and {column} <> zeroblob({4 * self.dimensions})" if self.nonzero else ""
        return f"({candidates.present(column, self.dimensions)}{directed})"

    def candidates(self, query: _Node, wanted: _Node, matching: _Node | None = None) -> list[str | _Node]:
        """A select of keys, in pieces: text of SQL, and the three arguments where they belong (some more than once).

        `query` stands for the packed vector asked, `wanted` for how many rows are needed (limit + offset; for all of
        them a number beyond 4,096), `matching` for a select of the keys of all rows that fulfil the filters. The keys
        contain those of the nearest rows; the statement around it, `where key in (…)`, applies the filters and
        `present` again, orders by the exact distance and the key, and limits.
        """
        nodes: dict[str, _Node | None] = {QUERY: query, WANTED: wanted, MATCHING: matching}
        pieces = re.split(f"({'|'.join(nodes)})", candidates.select(self, filtered=matching is not None))
        return [piece if (node := nodes.get(piece)) is None else node for piece in pieces if piece]

    def codes(self, vectors: Vector, *, scale: float | None = None) -> list[bytes]:
        """What vec0 holds for vectors of shape (n, dimensions); none of them is zero where they need a direction."""
        if self.quantize == "bit":
            return [row.tobytes() for row in np.packbits(vectors > 0, axis=1, bitorder="little")]
        vectors = self.coded(vectors)
        if self.quantize == "int8":
            packed = quantise_int8(vectors, scale=scale or 1.0)
            return [packed[start : start + self.dimensions] for start in range(0, len(packed), self.dimensions)]
        return [row.tobytes() for row in vectors.astype("<f4")]

    def coded(self, vectors: Vector) -> Vector:
        """Vectors of shape (n, dimensions) as the codes are made of them: unit vectors where only directions count."""
        if not self.nonzero:
            return vectors
        units: Vector = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True).astype(np.float32)
        return units

    def create(self, conn: sqlite3.Connection) -> None:
        """Create what is missing; what was made by another definition is made anew. Rows are folded in by `sync`.

        Raises IndexExists where something else has one of its names, TableNotFound, ColumnNotFound.
        """
        installing.create(conn, self)

    def drop(self, conn: sqlite3.Connection) -> None:
        """Leave nothing of the index in the database; what the registry does not list for its table is not its own."""
        installing.drop(conn, self)

    def sync(self, conn: sqlite3.Connection) -> int:
        """Fold the changed rows into vec0, in short transactions (in savepoints of one that is open); tells how many.

        What is missing is created, so it also repairs an index whose triggers were dropped by a migration. Raises as
        `create`.
        """
        return folding.sync(conn, self)

    @property
    def _row(self) -> tuple[str | int, ...]:
        return (
            self.name,
            self.table,
            self.key,
            self.key_type,
            self.column,
            self.dimensions,
            self.metric,
            self.quantize,
            self.definition,
        )


def prepare(conn: sqlite3.Connection) -> None:
    """Give a new connection sqlite-vec and the SQL functions that the doors' statements call. Writes nothing.

    Extension loading is off again afterwards, also when it failed. Raises ExtensionUnavailable.
    """
    conn.execute(f"pragma mmap_size = {connection.MMAP_BYTES}").fetchone()
    connection.load_vec(conn)
    if hasattr(conn, "enable_load_extension"):  # somebody else may have loaded sqlite-vec and left it on
        conn.enable_load_extension(False)
    functions.register(conn)


def stored(conn: sqlite3.Connection) -> Sequence[DerivedIndex]:
    """The derived indexes of a database, by its own account."""
    if not conn.execute("select 1 from sqlite_master where type = 'table' and name = ?", [REGISTRY]).fetchone():
        return []
    columns = ("name", "table", "key", "key_type", "column", "dimensions", "metric", "quantize")
    listed = ", ".join(map(quote_identifier, columns))
    rows = conn.execute(f"select {listed} from {REGISTRY} order by name").fetchall()
    return [DerivedIndex(**dict(zip(columns, row, strict=True))) for row in rows]


def sync(conn: sqlite3.Connection) -> int:
    """`DerivedIndex.sync` for every derived index of the database; tells how many rows were folded in.

    An index whose table is gone goes too, and one whose table was renamed goes with it. The first error is raised when
    all the others are synced.
    """
    installing.settle(conn, stored(conn))
    return folding.sync_each(conn, stored(conn))


def catch_up(conn: sqlite3.Connection, *, waiting: int = 1) -> None:
    """`sync` after somebody's commit: what cannot be folded in now is left to a later one, and only logged.

    An index that fewer than `waiting` rows wait for is left alone. Where triggers are missing they are made again, and
    the rows, all of which have to be folded in then, are left to a later commit or `sync`.
    Does nothing within a transaction, and does not wait for a writer that holds the lock: its own commit is followed by
    a catching up, which sees everything that was committed before.
    """
    folding.catch_up(conn, stored, waiting=waiting)
