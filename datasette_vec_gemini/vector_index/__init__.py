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

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast, get_args

import numpy as np

from .. import connection
from ..driver import sqlite3
from ..errors import InvalidKey, InvalidName, InvalidQuery, InvalidSetting, shown
from ..schema import quote_identifier
from ..vectors import Vector, quantise_int8
from . import candidates, folding, functions, installing
from .candidates import DISTANCES, MATCHING, QUERY, REGISTRY, WANTED

__all__ = [
    "ALL_ROWS",
    "DISTANCES",
    "DerivedIndex",
    "Metric",
    "Quantize",
    "catch_up",
    "prepare",
    "stored",
    "sync",
    "whole",
]

Metric = Literal["cosine", "l2", "inner_product"]
Quantize = Literal["float32", "int8", "bit"]

MAX_DIMENSIONS = 8_192
"""The most dimensions that vec0 takes."""

ALL_ROWS = 1 << 40
"""As many as any table has: what more is asked for would be no integer of the database."""

_OVERSAMPLE = {"float32": 2, "int8": 4, "bit": 1}
_Node = TypeVar("_Node")


def whole(k: object) -> int:
    """How many rows are wanted: a whole number, NumPy's too, and at most as many as any table has.

    Raises InvalidQuery for what is none, for True and for less than 1.
    """
    try:
        number = 0 if isinstance(k, bool) else operator.index(cast("int", k))
    except TypeError:
        number = 0
    if number < 1:
        raise InvalidQuery(f"k is {shown(k)}: it has to be a whole number from 1")
    return min(number, ALL_ROWS)


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
    metric: Metric = "cosine"
    quantize: Quantize = "float32"
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
        return installing.create_statements(self)

    def drop_statements(self) -> list[str]:
        """SQL that leaves nothing of the index; the table may be gone already. The registry goes with its last row."""
        return installing.drop_statements(self)

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
