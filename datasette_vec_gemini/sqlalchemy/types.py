"""Vector: a column of float32 vectors, with pgvector-python's comparators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from sqlalchemy import Dialect, Float, bindparam
from sqlalchemy.exc import UnsupportedCompilationError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler, StrSQLCompiler
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from ..errors import InvalidVector
from ..vector_index.candidates import DISTANCES, present
from ..vectors import Vector as Array
from ..vectors import as_blob, check_dimensions, checked, parameters, unpack


class StoredVector(UserDefinedType[Any]):
    """How a database holds the vectors of a column: `stored` makes a parameter of a checked one, `literal` SQL of that.

    `Vector` chooses one.
    """

    cache_ok = True
    stored: ClassVar[staticmethod[[Array], Any]]
    literal: ClassVar[staticmethod[[Any], str]]

    # SQLAlchemy copies types, and tells them apart in its cache of statements, by arguments that have a position.
    def __init__(self, dimensions: int, nonzero: bool = False) -> None:  # noqa: FBT001, FBT002
        self.dimensions = dimensions
        self.nonzero = nonzero

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """What raises InvalidVector for a value that is no such vector."""
        del dialect
        stored, dimensions, nonzero = self.stored, self.dimensions, self.nonzero
        return lambda value: None if value is None else stored(checked(value, dimensions, nonzero=nonzero))

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """The same, as SQL that is written out."""
        process = StoredVector.bind_processor(self, dialect)
        return lambda value: self.literal(process(value))


class PackedVector(StoredVector):
    """The BLOB that SQLite holds."""

    stored = staticmethod(as_blob)
    literal = staticmethod(lambda blob: f"x'{blob.hex()}'")

    def get_col_spec(self, **_: Any) -> str:
        """The type in DDL."""
        return "BLOB"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Without a copy where the statement has run before the caller goes on: an array may change after that."""
        if dialect.is_async:
            return super().bind_processor(dialect)
        return parameters(self.dimensions, nonzero=self.nonzero)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], list[float] | None]:
        """What raises InvalidVector for what another program wrote."""
        del dialect, coltype
        return _unpacked


def _unpacked(value: Any) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, bytes):
        raise InvalidVector(f"the column holds {type(value).__name__} where a vector should be")
    floats: list[float] = unpack(value).tolist()
    return floats


class DistanceType(TypeDecorator[float]):
    """A distance as a float; None for a row without a vector, which every database sorts last."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """SQLite's infinity, and PostgreSQL's NaN of a vector without direction, are no distance."""
        del dialect
        return None if value is None or not math.isfinite(value) else float(value)


class Distance(FunctionElement[float]):
    """The distance of two vectors; each dialect has its own spelling of `metric`."""

    type = DistanceType()
    inherit_cache = True
    metric: ClassVar[str]


class CosineDistance(Distance):
    """1 - the cosine of the angle: 0 for the same direction, 2 for the opposite one."""

    inherit_cache = True
    name = "cosine_distance"
    metric = "cosine"


class L2Distance(Distance):
    """Euclidean distance."""

    inherit_cache = True
    name = "l2_distance"
    metric = "l2"


class MaxInnerProduct(Distance):
    """The negative inner product, so that ascending order puts the greatest first."""

    inherit_cache = True
    name = "max_inner_product"
    metric = "inner_product"


class Vector(TypeDecorator[list[float]]):
    """Vectors of so many dimensions: a list, an array or packed bytes go in, a list of floats comes out.

    SQLite holds them as BLOBs of little-endian float32, PostgreSQL as pgvector's `vector`. What is no such vector is
    refused before anything is written: SQLAlchemy's StatementError, whose `orig` is our InvalidVector. With
    `nonzero`, which an index by cosine sets, so is a vector without direction.
    """

    impl = PackedVector
    cache_ok = True

    def __init__(self, dimensions: int, nonzero: bool = False) -> None:  # noqa: FBT001, FBT002
        check_dimensions(dimensions)
        super().__init__(dimensions, nonzero)
        self.dimensions = dimensions
        self.nonzero = nonzero

    def of_metric(self, metric: str) -> Vector:
        """The same type, for vectors that are compared by this metric."""
        other = self.copy()
        Vector.__init__(other, self.dimensions, self.nonzero or metric == "cosine")
        other.__dict__.pop("_static_cache_key", None)  # which SQLAlchemy remembers of the type that it was
        return other

    @property
    def python_type(self) -> type[list[float]]:
        """What comes out."""
        return list

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type of this column in one database."""
        if dialect.name == "postgresql":
            from .postgres import PostgresVector

            return dialect.type_descriptor(PostgresVector(self.dimensions, self.nonzero))
        return dialect.type_descriptor(PackedVector(self.dimensions, self.nonzero))

    class Comparator(TypeDecorator.Comparator[list[float]]):
        """The distances of pgvector-python; the other side is a vector or another column of vectors."""

        def l2_distance(self, other: Any) -> L2Distance:
            """Euclidean distance."""
            return L2Distance(self.expr, self._other(other, nonzero=False))

        def cosine_distance(self, other: Any) -> CosineDistance:
            """1 - the cosine of the angle; raises StatementError, when executed, for zeros, which have no direction."""
            return CosineDistance(self.expr, self._other(other, nonzero=True))

        def max_inner_product(self, other: Any) -> MaxInnerProduct:
            """The negative inner product."""
            return MaxInnerProduct(self.expr, self._other(other, nonzero=False))

        def _other(self, other: Any, *, nonzero: bool) -> ColumnElement[Any]:
            other = getattr(other, "__clause_element__", lambda: other)()
            if isinstance(other, ColumnElement):
                return other
            kind: Any = self.type
            return bindparam(None, other, type_=Vector(kind.dimensions, nonzero=nonzero), unique=True)

    comparator_factory = Comparator


@compiles(Distance)
def as_printed(element: FunctionElement[Any], compiler: SQLCompiler, **options: Any) -> str:
    """How `str()` shows what each database spells otherwise; other databases than ours are refused."""
    if not isinstance(compiler, StrSQLCompiler):
        raise UnsupportedCompilationError(compiler, type(element))
    return compiler.visit_function(element, **options)  # type: ignore[arg-type]  # any FunctionElement


@compiles(Distance, "sqlite")
def _distance_on_sqlite(element: Distance, compiler: SQLCompiler, **options: Any) -> str:
    sides = list(element.clauses)
    texts = [compiler.process(side, **options) for side in sides]
    usable = " and ".join(
        present(text, side.type.dimensions) if isinstance(side.type, Vector) else f"{text} is not null"
        for side, text in zip(sides, texts, strict=True)
        if not isinstance(side, BindParameter)
    )
    distance = f"{DISTANCES[element.metric]}({', '.join(texts)})"
    # SQLite sorts NULL first; infinity stands where PostgreSQL sorts it, and becomes None on its way to Python.
    return f"coalesce({f'case when {usable} then {distance} end' if usable else distance}, 9e999)"
