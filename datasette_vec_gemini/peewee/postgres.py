"""Vectors on PostgreSQL with pgvector under Peewee: the type, the distances, the HNSW index, the search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import Expression, ModelSelect, Node, Value, fn

from ..schema import quote_identifier
from ..vector_index.hnsw import CREATE_EXTENSION, OPERATORS, Hnsw, from_text, to_text
from ..vectors import checked
from .nearest import Pieces

if TYPE_CHECKING:
    from peewee import CTE, Database, Select

    from ..vector_index import DerivedIndex
    from ..vectors import Vector
    from .dialects import ForMany
    from .fields import VectorField
    from .nearest import Nearest


class PostgresDialect:
    """The `Dialect` of PostgreSQL; needs pgvector 0.8."""

    def prepare(self, database: Database) -> None:
        """Before a table with vectors is created: pgvector, which may need a superuser the first time."""
        database.execute_sql(CREATE_EXTENSION)

    def column_type(self, dimensions: int) -> str:
        """The type of pgvector."""
        return f"vector({dimensions})"

    def to_column(self, vector: Vector) -> str:
        """The text form of pgvector, which needs no adapter on the connection."""
        return to_text(vector)

    def for_many(self, dimensions: int, *, nonzero: bool, copy: bool) -> ForMany:
        """The same."""
        del copy
        return lambda value: None if value is None else to_text(checked(value, dimensions, nonzero=nonzero)), None

    def from_column(self, value: Any) -> Any:
        """A list of floats; what is no text, such as a distance, as it is."""
        return from_text(value) if isinstance(value, str) else value

    def distance(self, field: VectorField, other: Vector | Node, metric: str) -> Expression:
        """One of pgvector's operators."""
        return Expression(field, OPERATORS[metric], other if isinstance(other, Node) else parameter(other))

    def missing_last(self, distance: Node) -> Node:
        """PostgreSQL sorts NULL, and the NaN of a vector without direction, last."""
        return distance

    def create_index(self, database: Database, index: DerivedIndex, *, safe: bool) -> None:
        """HNSW. Raises InvalidSetting when the vectors are too long for it."""
        database.execute_sql(Hnsw(index=index).create_statement(quote_identifier(index.table), safe=safe))

    def drop_index(self, database: Database, index: DerivedIndex) -> None:
        """The index alone; it goes with its table anyway."""
        database.execute_sql(f"drop index if exists {quote_identifier(index.name)}")

    def among(self, key: Node, keys: Select | Pieces) -> Expression:
        """As an array the keys are a constant of the statement, which postgres_fdw can send to other nodes."""
        return Expression(key, "=", fn.ANY(fn.ARRAY(keys)))

    def nearest(self, query: Nearest) -> list[CTE]:
        """What the index finds, or all rows where there is none, in the order of the exact distance."""
        matching = query.matching()
        if query.index is None:
            return [query.ranked(*([] if matching is None else [query.key.in_(matching)]))]
        rows = ModelSelect(query.model, (query.key.alias("id"), query.field.alias("embedding")))
        rows = rows.where(query.field.is_null(False))
        if query.is_joined:
            rows = rows.where(query.key.in_(matching))
        elif matching is not None:
            rows = rows.where(query.condition)
        hnsw = Hnsw(index=query.index.of(query.model))
        vector = parameter(query.distance.vector)
        pieces = hnsw.candidates(vector, Value(query.depth), rows)
        return [query.ranked(self.among(query.key, Pieces(pieces)))]


def parameter(vector: Vector) -> Node:
    """A vector as a parameter of a statement."""
    return Value(to_text(vector), converter=False).cast(f"vector({len(vector)})")
