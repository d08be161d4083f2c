"""pgvector's HNSW index, as both ORMs create and search it on PostgreSQL: what needs to know no ORM.

The vector in the entity's column is the truth here too. The index orders candidates, by the vectors themselves, by
their halves (`int8`: pgvector has no int8, and `halfvec` halves the index) or by their signs (`bit`); the answer is
ordered by the exact distance of the column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..errors import InvalidSetting
from ..schema import quote_identifier

if TYPE_CHECKING:
    from ..vectors import Vector
    from . import DerivedIndex, Metric, Quantize

OPERATORS = {"l2": "<->", "cosine": "<=>", "inner_product": "<#>"}
"""pgvector's operator of each metric, lower for nearer."""

_OPERATOR_CLASSES = {"l2": "l2_ops", "cosine": "cosine_ops", "inner_product": "ip_ops"}

OPTIONS: dict[str, tuple[Metric, Quantize]] = {
    "vector_l2_ops": ("l2", "float32"),
    "vector_cosine_ops": ("cosine", "float32"),
    "vector_ip_ops": ("inner_product", "float32"),
    "halfvec_l2_ops": ("l2", "int8"),
    "halfvec_cosine_ops": ("cosine", "int8"),
    "halfvec_ip_ops": ("inner_product", "int8"),
    "bit_hamming_ops": ("cosine", "bit"),
}
"""The metric and quantize that make an index of each operator class; float32 too long for HNSW is the same as int8."""

# Candidates for each row that is wanted, at least: of 20,000 real texts (MiniLM's 384 dimensions) so many find 0.995 of
# the 10 nearest or more. Whole vectors need some too: a filtered walk through the graph takes rows out of order.
_OVERSAMPLE = {"vector": 8, "halfvec": 8, "bit": 32}

QUERY, WANTED, ROWS = "\0query\0", "\0wanted\0", "\0rows\0"
"""Where the arguments of a search belong in its text; no SQL can hold such a thing."""

# Many times this many rows are still a bigint.
_MOST_WANTED = 2**31 - 1

_Node = TypeVar("_Node")

CREATE_EXTENSION = "create extension if not exists vector"

# For statements that are written with a distance and a LIMIT: without it, a filter that leaves few of the first forty
# rows of the index leaves few rows of the answer. `nearest` brings its own settings.
SESSION_SETTINGS = {"hnsw.iterative_scan": "strict_order"}

_MOST_DIMENSIONS = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000}


def to_text(vector: Vector) -> str:
    """A vector as pgvector reads it; nine digits tell every float32 from its neighbours."""
    return "[" + ",".join(["%.9g"] * len(vector)) % tuple(vector.tolist()) + "]"


def from_text(text: str) -> list[float]:
    """What pgvector writes, as the same floats that SQLite gives: float32's values, not their shortest digits."""
    floats: list[float] = np.array(text[1:-1].split(","), dtype=np.float32).tolist()
    return floats


@dataclass(frozen=True, kw_only=True)
class Hnsw:
    """The HNSW index that stands for a derived index on PostgreSQL. Raises InvalidSetting where pgvector has none."""

    index: DerivedIndex

    def __post_init__(self) -> None:
        most = _MOST_DIMENSIONS[self.stored]
        if self.index.dimensions > most:
            raise InvalidSetting(
                f"pgvector's HNSW takes {self.stored} of {most:,} dimensions at most, and {self.index.column} has "
                f"{self.index.dimensions:,}: use VectorIndex(..., quantize='bit'), or a model with fewer dimensions"
            )

    @property
    def stored(self) -> str:
        """The type of the index's entries: vector, halfvec or bit."""
        if self.index.quantize == "bit":
            return "bit"
        # Vectors too long for an index of their own are found by their halves.
        whole = self.index.quantize == "float32" and self.index.dimensions <= _MOST_DIMENSIONS["vector"]
        return "vector" if whole else "halfvec"

    @property
    def operator(self) -> str:
        """The distance that the index orders by: the metric's, or Hamming's between signs."""
        return "<~>" if self.stored == "bit" else OPERATORS[self.index.metric]

    @property
    def operator_class(self) -> str:
        """Of the index."""
        return "bit_hamming_ops" if self.stored == "bit" else f"{self.stored}_{_OPERATOR_CLASSES[self.index.metric]}"

    @property
    def definition(self) -> str:
        """What the index is made of, as text; another definition needs another index."""
        return f"{self.operator_class}[{self.index.dimensions}] of {self.index.column}"

    def candidates(self, query: _Node, wanted: _Node, rows: _Node) -> list[str | _Node]:
        """A select of the keys of the `wanted` nearest rows, in pieces: text, and the arguments where they belong.

        `query` is the vector asked, of type vector; `rows` a select of all rows that have a vector and fulfil the
        filters, each once, as `id` and `embedding`.
        """
        nodes = {QUERY: query, WANTED: wanted, ROWS: rows}
        pieces = re.split("(\0[a-z]+\0)", self._candidates())
        return [nodes.get(piece, piece) for piece in pieces]

    def _candidates(self) -> str:
        column, query = self._entry("embedding"), self._entry(QUERY)
        distance = f"embedding {OPERATORS[self.index.metric]} {QUERY}"
        wanted = f"cast({WANTED} as bigint)"
        depth = f"least({wanted}, {_MOST_WANTED}) * {max(_OVERSAMPLE[self.stored], self.index.oversample or 1)}"
        exact = self.index.exact_rows
        many = f"(select count(*) from (select 1 from ({ROWS}) as matching limit {exact + 1}) as few) > {exact}"
        settings = {
            "iterative_scan": ("off", "'relaxed_order'"),
            "max_scan_tuples": ("20000", f"'{2**31 - 1}'"),
            "ef_search": ("40", f"least(1000, greatest(200, {depth}))::text"),
        }
        # pgvector's own defaults stand in for what is not set, which is null until the session has loaded it.
        were = [
            f"coalesce(current_setting('hnsw.{name}', true), '{was}') as {name}" for name, (was, _) in settings.items()
        ]
        set_up = [f"set_config('hnsw.{name}', {value}, true)" for name, (_, value) in settings.items()]
        restored = [f"set_config('hnsw.{name}', (select {name} from _vec_settings), true)" for name in settings]
        # A condition without columns is evaluated once, before the index is opened: that is how the settings get to the
        # search on every connection. The answer is ordered anew, so the index may give candidates in a relaxed order,
        # in which it finds more of them; and it may look on until it has them all.
        # Adding 0 hides from the planner what it takes for sorted by the index, and is not, or must not be.
        # The names begin with `_vec_`, so that a filter may name any table.
        return f"""with _vec_settings as materialized (
    select {", ".join(were)}
),
_vec_candidates as materialized (
    select id, {distance} as distance from ({ROWS}) as matching
    where (select num_nonnulls({", ".join(set_up)}) from _vec_settings) > 0 and {many}
    order by {column} {self.operator} {query} limit {depth}
),
_vec_near as (
    select id, distance from _vec_candidates where distance <> 'NaN' order by distance + 0, id limit {wanted}
),
_vec_enough as materialized (select count(*) >= {wanted} as found, {", ".join(restored)} from _vec_near)
select id from _vec_near where (select found from _vec_enough)
union all
(select id from ({ROWS}) as matching where not (select found from _vec_enough) and {distance} <> 'NaN'
order by ({distance}) + 0, id limit {wanted})"""

    def _entry(self, vector: str) -> str:
        signs = f"binary_quantize({vector})" if self.stored == "bit" else vector
        return f"({signs})::{self.stored}({self.index.dimensions})" if self.stored != "vector" else vector

    def create_statement(self, table: str, *, safe: bool = False) -> str:
        """The index in SQL; `table` is quoted, `safe` lets it exist already."""
        entry = self._entry(_quoted(self.index.column))
        return (
            f"create index {'if not exists ' if safe else ''}{quote_identifier(self.index.name)} "
            f"on {table} using hnsw (({entry}) {self.operator_class})"
        )


def _quoted(name: str) -> str:
    """An identifier in which no driver takes a percent sign for a parameter: drivers disagree on how to escape one."""
    if "%" not in name:
        return quote_identifier(name)
    return "U&" + quote_identifier(name.replace("\\", "\\\\").replace("%", "\\0025"))
