"""The SQLite dialect: BLOBs of float32, sqlite-vec's functions, and an index derived from the column."""

from __future__ import annotations

from functools import partial, reduce
from operator import and_
from typing import TYPE_CHECKING, Any

from peewee import SQL, Case, Expression, Field, ImproperlyConfigured, ModelSelect, Node, OperationalError, Value, fn

from ..schema import quote_identifier
from ..vector_index.candidates import DISTANCES, MAX_CODES
from ..vectors import Vector, as_blob, first_refused, pack, packing, unpack
from .database import VectorSqliteMixin
from .dialects import ForMany, base, bound_database
from .nearest import FITS, NEAREST, Pieces
from .vec0 import Vec0Model

if TYPE_CHECKING:
    from peewee import CTE, Database, Select

    from ..vector_index import DerivedIndex
    from .fields import VectorField
    from .nearest import Nearest


class SqliteDialect:
    """The `Dialect` of SQLite with sqlite-vec."""

    def prepare(self, database: Database) -> None:
        """Raises ImproperlyConfigured for a database whose connections have no sqlite-vec."""
        if not isinstance(database, VectorSqliteMixin):
            raise ImproperlyConfigured(
                f"a {type(database).__name__} has no sqlite-vec: make it a VectorSqliteDatabase, or put "
                "VectorSqliteMixin before the bases of its class"
            )

    def column_type(self, dimensions: int) -> str:
        """A BLOB has its length itself."""
        del dimensions
        return "BLOB"

    def to_column(self, vector: Vector) -> bytes:
        """Little-endian float32, sqlite-vec's own format."""
        return as_blob(vector)

    def for_many(self, dimensions: int, *, nonzero: bool, copy: bool) -> ForMany:
        """The same; the numbers of many vectors are looked at together."""
        return packing(dimensions, copy=copy), partial(first_refused, dimensions=dimensions, nonzero=nonzero)

    def from_column(self, value: Any) -> Any:
        """A list of floats; what is no BLOB, such as a distance, as it is."""
        return unpack(bytes(value)).tolist() if isinstance(value, bytes | memoryview) else value

    def distance(self, field: VectorField, other: Vector | Node, metric: str) -> Node:
        """A function of sqlite-vec's or of ours, which both fail for what is no vector."""
        self.prepare(bound_database(field.model))
        sides: list[Node] = [field, other if isinstance(other, Node) else parameter(other)]
        distance: Node = getattr(fn, DISTANCES[metric])(*sides, coerce=False)
        doubtful = [side for side in sides if not isinstance(side, Value) and not _is_of_vec0(side)]
        if not doubtful:
            return distance
        conditions = [usable(side, field.dimensions) for side in doubtful]
        return Case(None, [(reduce(and_, conditions), distance)])

    def missing_last(self, distance: Node) -> Node:
        """SQLite sorts NULL first; infinity stands where PostgreSQL sorts it."""
        last: Node = fn.coalesce(distance, SQL("9e999"), coerce=False)
        return last

    def create_index(self, database: Database, index: DerivedIndex, *, safe: bool) -> None:
        """A vec0 table, triggers, and the rows that the table has."""
        self.prepare(database)
        if not safe and database.execute_sql("select 1 from sqlite_master where name = ?", (index.name,)).fetchone():
            raise OperationalError(f"index {index.name} already exists")
        index.create(database.connection())

    def drop_index(self, database: Database, index: DerivedIndex) -> None:
        """The vec0 table, the triggers and what they noted."""
        self.prepare(database)
        index.drop(database.connection())

    def among(self, key: Node, keys: Select) -> Expression:
        """Found by the key."""
        return key.in_(keys)

    def nearest(self, query: Nearest) -> list[CTE]:
        """What the index finds, or all rows where there is none, in the order of the exact distance."""
        self.prepare(bound_database(query.model))
        if isinstance(query.model, type) and issubclass(query.model, Vec0Model):
            return [_nearest_in_vec0(query)]
        tables: list[CTE] = []
        conditions: list[Node] = []
        matching = query.matching()
        if matching is not None and query.is_joined:
            # Asked twice below: a table of keys is quicker to ask than a join.
            tables = [matching.cte(FITS, materialized=True)]
            matching = tables[0].select(SQL("*"))
            conditions.append(query.key.in_(matching))
        elif matching is not None:
            conditions.append(query.condition)
        if query.index is not None:
            vector = parameter(query.distance.vector)
            pieces = query.index.of(query.model).candidates(vector, Value(query.depth), matching)
            conditions.append(query.key.in_(Pieces(pieces)))
        return [*tables, query.ranked(*conditions)]


def parameter(vector: Vector) -> Value:
    """A vector as a parameter of a statement."""
    return Value(pack(vector), converter=False)


def usable(side: Node, dimensions: int) -> Expression:
    """Whether what a column holds, which any program may have written, is a vector of so many dimensions."""
    return (fn.typeof(side) == "blob") & (fn.length(side) == 4 * dimensions)


def _is_of_vec0(side: Node) -> bool:
    """vec0 holds nothing but vectors, and is slow to be asked for each."""
    return isinstance(side, Field) and issubclass(base(side.model), Vec0Model)


def _nearest_in_vec0(query: Nearest) -> CTE:
    """vec0 filters by keys and its own columns, which Peewee's conditions may go beyond: it is given the keys."""
    matching = query.matching()
    conditions = [] if matching is None else [query.key.in_(matching)]
    metric = query.field.model._meta.metric
    if query.depth > MAX_CODES or query.distance.metric != metric:
        return query.ranked(*conditions)
    knn = SQL(
        f"{quote_identifier(query.field.column_name)} MATCH ? AND k = ?", [pack(query.distance.vector), query.depth]
    )
    return ModelSelect(query.model, (query.key,)).where(knn, *conditions).cte(NEAREST, materialized=True)
