"""What differs between databases: how a vector is held, compared, indexed and searched. One dialect for each kind.

A model learns its dialect from the database that it is bound to at that moment, so the same class works on SQLite and
on PostgreSQL, and in tests that bind it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from peewee import ImproperlyConfigured, ModelAlias, PostgresqlDatabase, Proxy, SqliteDatabase

from ..errors import InvalidVector

if TYPE_CHECKING:
    from peewee import CTE, Database, Expression, Model, Node, Select

    from ..vector_index import DerivedIndex
    from ..vectors import Vector
    from .fields import VectorField
    from .nearest import Nearest


ForMany = tuple[Callable[[Any], Any], Callable[[Sequence[Any]], tuple[int, InvalidVector] | None] | None]
"""What makes the parameter of a vector, raising InvalidVector; and, if that does not look at its numbers, what does so
for several parameters: which is the first that is refused, and why."""


class Dialect(Protocol):
    """How one kind of database deals with vectors. Stateless."""

    def prepare(self, database: Database) -> None:
        """Before a table with vectors is created: see that the database can search. Raises ImproperlyConfigured."""

    def column_type(self, dimensions: int) -> str:
        """The type of a column in DDL."""

    def to_column(self, vector: Vector) -> Any:
        """A checked float32 vector as the parameter of a statement."""

    def for_many(self, dimensions: int, *, nonzero: bool, copy: bool) -> ForMany:
        """What writes the vectors of many rows at once; without `copy` they stay as they are until that is done."""

    def from_column(self, value: Any) -> list[float]:
        """What the driver returned for a column, as Python's floats."""

    def distance(self, field: VectorField, other: Vector | Node, metric: str) -> Node:
        """The exact distance of a field from a vector, or from what SQL calls one: l2, cosine, or inner_product.

        The inner product is negative, as pgvector's. Where there is no vector to compare it is NULL.
        """

    def missing_last(self, distance: Node) -> Node:
        """A distance that sorts after all others where it is NULL."""

    def create_index(self, database: Database, index: DerivedIndex, *, safe: bool) -> None:
        """Create the index of a table that exists; what is in the table is indexed too. `safe`: it may exist."""

    def drop_index(self, database: Database, index: DerivedIndex) -> None:
        """Drop the index if it exists."""

    def among(self, key: Node, keys: Select) -> Expression:
        """Whether a key is one of the few that a select finds."""

    def nearest(self, query: Nearest) -> list[CTE]:
        """The common table expressions that search; the last one has one column: the keys that were found."""


def dialect_of(database: Database) -> Dialect:
    """The dialect of a database. Raises ImproperlyConfigured."""
    if isinstance(database, SqliteDatabase):
        return _sqlite()
    if isinstance(database, PostgresqlDatabase):
        return _postgres()
    raise ImproperlyConfigured(f"vectors live in SQLite or PostgreSQL, not in a {type(database).__name__}")


@cache
def _sqlite() -> Dialect:
    from .sqlite import SqliteDialect

    return SqliteDialect()


@cache
def _postgres() -> Dialect:
    from .postgres import PostgresDialect

    return PostgresDialect()


def base(model: type[Model] | ModelAlias) -> type[Model]:
    """The model, or the one that an alias stands for."""
    found: type[Model] = model.model if isinstance(model, ModelAlias) else model
    return found


def bound_database(model: type[Model] | ModelAlias) -> Database:
    """The database that a model is bound to now, behind its proxy if it has one. Raises ImproperlyConfigured."""
    bound = base(model)._meta.database
    database: Database | None = bound.obj if isinstance(bound, Proxy) else bound
    if database is None:
        raise ImproperlyConfigured(f"{base(model).__name__} is bound to no database yet")
    return database
