"""VectorField: a column of float32 vectors, with the distances that pgvector-python's has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from peewee import SQL, ColumnBase, Field, Node

from ..errors import InvalidSetting, InvalidVector
from ..vectors import Vector, check_dimensions, checked
from .dialects import Dialect, ForMany, bound_database, dialect_of
from .index import VectorSchemaManager, indexes_of

if TYPE_CHECKING:
    from peewee import Context, Database, Model


class VectorField(Field):
    """Vectors of so many dimensions: a list, an array or packed bytes go in, a list of floats comes out.

    SQLite holds them as BLOBs of little-endian float32, PostgreSQL as pgvector's `vector`. What is no such vector is
    refused before anything is written. Raises InvalidVector, which is a ValueError; InvalidSetting for
    a declaration that cannot be.
    """

    field_type = "VECTOR"

    def __init__(self, dimensions: int, **options: Any) -> None:
        if options.get("index") or options.get("unique"):
            raise InvalidSetting("a vector has no order to index it by: add_index(VectorIndex(...)) to the model")
        check_dimensions(dimensions)
        self.dimensions = dimensions
        super().__init__(**options)

    def bind(self, model: type[Model], name: str, set_attribute: bool = True) -> None:
        """Peewee's; the model's tables are created and dropped with their vector indexes from now on."""
        super().bind(model, name, set_attribute)
        VectorSchemaManager.take_over(model)

    def ddl_datatype(self, ctx: Context) -> SQL:
        """The column's type in the database that the model is bound to."""
        del ctx
        return SQL(self._dialect().column_type(self.dimensions))

    def db_value(self, value: Any) -> Any:
        """Raises InvalidVector: wrong dimensions, NaN, infinity, text, or zero where an index compares directions."""
        if value is None:
            return None
        return self._dialect().to_column(checked(value, self.dimensions, nonzero=self._has_directions))

    def for_many(self, database: Database, *, copy: bool) -> ForMany:
        """`db_value` for many rows that are written to a database at once. See Dialect."""
        if type(self).db_value is not VectorField.db_value:  # a subclass has its own
            return self.db_value, None
        return dialect_of(database).for_many(self.dimensions, nonzero=self._has_directions(), copy=copy)

    def _has_directions(self) -> bool:
        """Whether an index, or the Vec0Model that this is a field of, compares by cosine."""
        own = getattr(self.model._meta, "metric", None)
        return own == "cosine" or any(index.metric == "cosine" for index in indexes_of(self))

    def case_value(self, value: Any) -> Any:
        """A branch of CASE, as in bulk_update: PostgreSQL takes its parameters for text unless they are cast."""
        return self.to_value(value).cast(self._dialect().column_type(self.dimensions))

    def python_value(self, value: Any) -> Any:
        """A list of floats; what a function made of the column, such as a distance, stays as it is."""
        return self._dialect().from_column(value)

    def _dialect(self) -> Dialect:
        return dialect_of(bound_database(self.model))

    def __eq__(self, other: object) -> Any:
        return super().__eq__(self._operand(other))

    def __ne__(self, other: object) -> Any:
        return super().__ne__(self._operand(other))

    __hash__ = Field.__hash__

    def _operand(self, other: Any) -> Any:
        """Peewee takes a list for several values; here it is one."""
        return other if other is None or isinstance(other, Node) else self.to_value(other)

    def l2_distance(self, other: Any) -> Distance:
        """Euclidean distance."""
        return Distance(self, other, "l2")

    def cosine_distance(self, other: Any) -> Distance:
        """1 - cosine similarity: 0 for the same direction, 2 for the opposite one."""
        return Distance(self, other, "cosine")

    def max_inner_product(self, other: Any) -> Distance:
        """The negative inner product, so that ascending order puts the greatest first."""
        return Distance(self, other, "inner_product")


class Distance(ColumnBase):
    """The distance of a column from a vector or another column, as the database of the statement spells it.

    A row without a vector has none: it sorts last, and has None in Python. Raises InvalidVector.
    """

    def __init__(self, field: VectorField, other: Any, metric: str) -> None:
        self.field = field
        self.metric = metric
        self.other = _other(field, other, nonzero=metric == "cosine")
        self._converter = _finite

    def __sql__(self, ctx: Context) -> Context:
        return ctx.sql(self._dialect.missing_last(self._plain))

    @property
    def _dialect(self) -> Dialect:
        return dialect_of(bound_database(self.field.model))

    @property
    def _plain(self) -> Node:
        """NULL where there is none."""
        return self._dialect.distance(self.field, self.other, self.metric)


def _other(field: VectorField, other: Any, *, nonzero: bool) -> Vector | Node:
    if not isinstance(other, Node):
        return checked(other, field.dimensions, nonzero=nonzero)
    if isinstance(other, VectorField) and other.dimensions != field.dimensions:
        raise InvalidVector(f"{other.name} has {other.dimensions} dimensions, and {field.name} {field.dimensions}")
    return other


def _finite(distance: float | None) -> float | None:
    """SQLite's infinity, and PostgreSQL's NaN of a vector without direction, are no distance."""
    return distance if distance is not None and math.isfinite(distance) else None
