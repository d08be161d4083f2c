"""Vec0Table: vectors in a vec0 table and nowhere else, beside the ORM's own table, joined by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    CTE,
    Boolean,
    Column,
    Connection,
    FetchedValue,
    Float,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    bindparam,
    cast,
    event,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql import visitors
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.sql.elements import ClauseElement, ColumnElement

from ..errors import InvalidQuery, InvalidSetting, shown
from ..vector_index import whole
from ..vector_index.candidates import MAX_CODES
from ..vector_index.vec0 import check_name
from ..vectors import checked
from .conditions import as_conditions, has_text
from .types import Vector

if TYPE_CHECKING:
    from .conditions import Conditions

_METRICS = ("cosine", "l2", "l1")
_TYPES: dict[type[Any], str] = {Boolean: "boolean", Integer: "integer", Float: "float", String: "text"}


class Vec0Table(Table):
    """A vec0 table in SQLAlchemy's metadata: a key, a Vector, and perhaps columns to filter by.

    ::

        vec_items = Vec0Table(
            "vec_items", Base.metadata, Column("item_id", Integer, primary_key=True), Column("embedding", Vector(768))
        )
        near = vec_items.nearest(vector, k=5, among=select(Document.id).where(Document.category == "fiction"))
        select(Document, near.c.distance).join(near, near.c.item_id == Document.id).order_by(near.c.distance)

    `create_all` and `drop_all` know it, and a class can be mapped to it. It is SQLite's alone and has vec0's limits: no
    NULL, no UPSERT, no foreign key, and a row that is deleted leaves its vector behind unless that is deleted too. A
    Vector column with a VectorIndex has none of these. Raises InvalidName, InvalidSetting.
    """

    inherit_cache = True

    def __init__(
        self,
        name: str,
        metadata: MetaData,
        *columns: Column[Any],
        metric: str = "cosine",
        _no_init: bool = True,
        **options: Any,
    ) -> None:
        if _no_init:  # SQLAlchemy calls it a second time, so
            return
        if metric not in _METRICS:
            raise InvalidSetting(f"metric={shown(metric)} is unknown to vec0: use one of {', '.join(_METRICS)}")
        self.metric = metric
        for own in (name, *(column.name for column in columns)):
            check_name(own, of=name)
        for column in columns:
            if isinstance(column.type, Vector):
                column.type = column.type.of_metric(metric)
        super().__init__(
            name,
            metadata,
            *columns,
            # What vec0 asks and answers in hidden columns: no DDL, never written.
            Column("distance", Float, system=True, server_default=FetchedValue()),
            Column("k", Integer, system=True, server_default=FetchedValue()),
            implicit_returning=False,  # vec0 answers NULL
            _no_init=False,
            **options,
        )
        self.ddl  # noqa: B018 - refuses what vec0 cannot hold
        event.listen(self, "before_create", _refuse_elsewhere, propagate=True)

    def to_metadata(self, *args: Any, **options: Any) -> Vec0Table:
        """SQLAlchemy's, which makes a Table."""
        copy: Any = super().to_metadata(*args, **options)
        if not isinstance(copy, Vec0Table):
            copy.__class__ = Vec0Table
            copy.metric = self.metric
            copy.implicit_returning = False
        same: Vec0Table = copy
        return same

    @property
    def ddl(self) -> str:
        """The columns in vec0's own grammar."""
        columns = [column for column in self.columns if not column.system]
        if len(self.primary_key) != 1 or sum(isinstance(column.type, Vector) for column in columns) != 1:
            raise InvalidSetting(f"{self.name}: vec0 needs a key of one column and a Vector")
        return ", ".join(f"{column.name} {self._type(column)}" for column in columns)

    @property
    def vectors(self) -> Column[Any]:
        """The column of vectors."""
        return next(column for column in self.columns if isinstance(column.type, Vector))

    def nearest(
        self,
        vector: Any,
        k: int = 10,
        *,
        among: Select[Any] | None = None,
        where: Conditions = (),
    ) -> CTE:
        """The k nearest as a table of key and distance to join with; it has no order.

        `among` is a select of the keys to search in, `where` a condition on columns of this table, or several: both act
        inside the search, which conditions on what is joined do not. Raises InvalidQuery, InvalidVector.
        """
        wanted = whole(k)
        if wanted > MAX_CODES:
            raise InvalidQuery(f"k is {shown(k)}: vec0's limit is {MAX_CODES:,}")
        (key,) = self.primary_key
        column = self.vectors
        kind: Any = column.type
        asked = bindparam(None, checked(vector, kind.dimensions, nonzero=kind.nonzero), type_=kind, unique=True)
        # Of conditions on the key vec0 takes only a list of keys into the search.
        given = as_conditions(where)
        of_key = [condition for condition in given if _names(condition, key)]
        others = [condition for condition in given if not _names(condition, key)]
        statement = select(key, cast(self.c.distance, Float).label("distance")).where(
            column.op("MATCH", is_comparison=True)(asked), self.c.k == wanted, *others
        )
        if of_key:
            statement = statement.where(key.in_(select(key).where(*of_key).correlate(None)))
        if among is not None:
            statement = statement.where(key.in_(among))
        # Materialised, so that no LIMIT around it gets in: vec0 takes that or k.
        return statement.cte().prefix_with("MATERIALIZED")

    def _type(self, column: Column[Any]) -> str:
        if isinstance(column.type, Vector):
            return f"float[{column.type.dimensions}] distance_metric={self.metric}"
        kind = next((name for base, name in _TYPES.items() if isinstance(column.type, base)), None)
        if kind is None or (column.primary_key and kind not in {"integer", "text"}):
            raise InvalidSetting(
                f"{self.name}.{column.name}: vec0 has no {column.type!r} for that; keep it in another table"
            )
        return f"{kind} primary key" if column.primary_key else kind


def _names(condition: ClauseElement, key: Column[Any]) -> bool:
    """Whether a condition refers to the key, or may."""
    return has_text(condition) or any(
        isinstance(each, ColumnElement) and each.shares_lineage(key) for each in visitors.iterate(condition)
    )


def _refuse_elsewhere(table: Vec0Table, connection: Connection, **_: Any) -> None:
    if connection.dialect.name != "sqlite":
        raise InvalidSetting(
            f"{table.name} is a vec0 table, which SQLite alone has: for {connection.dialect.name} too, give the other "
            "table a Vector column with a VectorIndex"
        )


@compiles(CreateTable, "sqlite")
def _create_on_sqlite(create: CreateTable, compiler: DDLCompiler, **options: Any) -> str:
    table = create.element
    if not isinstance(table, Vec0Table):
        text: str = compiler.visit_create_table(create, **options)  # type: ignore[no-untyped-call]
        return text
    exists = "IF NOT EXISTS " if create.if_not_exists else ""
    return f"CREATE VIRTUAL TABLE {exists}{compiler.preparer.format_table(table)} USING vec0({table.ddl})"
