"""VectorIndex: an index of a column of vectors, as SQLAlchemy declares, creates and drops indexes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, Index, MetaData, Table, event, inspect
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDL, CreateIndex
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.sql.ddl import SchemaDropper

from .. import vector_index
from ..errors import InvalidKey, InvalidName, InvalidSetting, shown
from ..schema import affinity
from ..vector_index import DerivedIndex, Metric, Quantize
from .engine import on_driver
from .types import Vector

if TYPE_CHECKING:
    from sqlalchemy.orm import InstrumentedAttribute, Session

_KEY_TYPES = {"INTEGER": "integer", "TEXT": "text"}
_SETTINGS = "sqlite_vector"
"""The option of an Index that holds the settings of a VectorIndex: what copies a table, copies options."""

Index.argument_for("sqlite", _SETTINGS.removeprefix("sqlite_"), None)


class VectorIndex(Index):
    """An index of a Vector column: in `__table_args__`, or made of a column that is there.

    On SQLite it is a vec0 table derived from the column, made by `create_all` (also for a table that exists, with its
    rows) and gone with `drop_all`; on PostgreSQL it is pgvector's HNSW. Codes are `float32`, `int8` or `bit`; answers
    come by exact distance whichever it is. `oversample` and `exact_rows` are those of `DerivedIndex`, `options`
    SQLAlchemy's. Raises InvalidName, InvalidSetting, InvalidKey.
    """

    def __init__(
        self,
        name: str,
        column: str | Column[Any] | InstrumentedAttribute[Any],
        *,
        metric: Metric = "cosine",
        quantize: Quantize = "float32",
        oversample: int | None = None,
        exact_rows: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(name, str):
            raise InvalidName(f"{shown(name)} cannot be the name of a vector index: give it one")
        tuning = {"oversample": oversample, "exact_rows": exact_rows}
        settings = {"metric": metric, "quantize": quantize} | {
            option: value for option, value in tuning.items() if value is not None
        }
        super().__init__(name, column, **(options | {_SETTINGS: settings}))

    def _set_parent(self, parent: Any, **options: Any) -> None:
        super()._set_parent(parent, **options)
        column = self.column
        if not isinstance(column.type, Vector):
            raise InvalidSetting(f"{parent.name}.{column.name} is no Vector, which a VectorIndex is made of")
        self._follow(parent)

    def _follow(self, parent: Table) -> None:
        """Come and go with a table that it has been attached to."""
        column: Any = self.column
        column.type = column.type.of_metric(self.metric)
        self.ddl_if(dialect="postgresql")
        event.listen(self, "after_create", _create)
        event.listen(self, "before_drop", _drop)
        event.listen(parent, "after_drop", self._table_dropped)
        event.listen(parent.metadata, "after_create", self._metadata_created)

    @property
    def metric(self) -> Metric:
        """By which it compares."""
        metric: Metric = self.dialect_kwargs[_SETTINGS]["metric"]
        return metric

    @property
    def quantize(self) -> Quantize:
        """What its codes are."""
        quantize: Quantize = self.dialect_kwargs[_SETTINGS]["quantize"]
        return quantize

    @property
    def tuning(self) -> dict[str, int]:
        """`oversample` and `exact_rows`, as far as they were given."""
        settings = self.dialect_kwargs[_SETTINGS]
        return {option: settings[option] for option in ("oversample", "exact_rows") if option in settings}

    @property
    def column(self) -> Column[Any]:
        """The column of vectors."""
        column: Column[Any] = self.columns[0]
        return column

    @property
    def dimensions(self) -> int:
        """Of the column."""
        kind: Any = self.column.type
        return int(kind.dimensions)

    @property
    def derived(self) -> DerivedIndex:
        """What the index is, apart from SQLAlchemy. Raises InvalidName, InvalidSetting, InvalidKey."""
        table: Any = self.table
        key = self.key
        kind = affinity(key.type.compile(dialect=sqlite.dialect()))
        if kind not in _KEY_TYPES:
            raise InvalidKey(
                f"{table.name}.{key.name} is {key.type!r}, and a vector index needs a key of integers or of text"
            )
        return DerivedIndex(
            name=str(self.name),
            table=table.name,
            key=key.name,
            key_type=_KEY_TYPES[kind],  # type: ignore[arg-type]  # one of the two
            column=self.column.name,
            dimensions=self.dimensions,
            metric=self.metric,
            quantize=self.quantize,
            **self.tuning,
        )

    @property
    def key(self) -> Column[Any]:
        """The key of the table. Raises InvalidKey where it is not one column."""
        table: Any = self.table
        keys = list(table.primary_key)
        if len(keys) != 1:
            raise InvalidKey(
                f"the key of {table.name} has {len(keys)} columns, and a vector index refers to rows by one"
            )
        key: Column[Any] = keys[0]
        return key

    def create(self, bind: Any, checkfirst: Any = True) -> None:  # noqa: FBT002  # SQLAlchemy's
        """Create the index of a table that exists, with the rows that it has, if it does not exist."""
        super().create(bind, checkfirst=checkfirst and bind.dialect.name != "sqlite")

    def drop(self, bind: Any, checkfirst: Any = True) -> None:  # noqa: FBT002  # SQLAlchemy's
        """Drop the index, on SQLite with all that belongs to it, if it exists."""
        super().drop(bind, checkfirst=checkfirst and bind.dialect.name != "sqlite")

    def sync(self, bind: Connection | Session) -> int:
        """Bring the index up to its table, repairing what a migration dropped; tells how many rows that took.

        Commits through a registered engine are followed by it. PostgreSQL's index follows its table by itself.
        """
        connection = bind if isinstance(bind, Connection) else bind.connection()
        return on_driver(connection, self.derived.sync) if connection.dialect.name == "sqlite" else 0

    def _table_dropped(self, table: Table, connection: Connection | MockConnection, **options: Any) -> None:
        del table
        if is_for_good(options):
            _drop(self, connection)

    def _metadata_created(self, metadata: MetaData, connection: Connection | MockConnection, **options: Any) -> None:
        """A table that was there already gets its index too, as far as the call was about it."""
        del metadata
        table: Any = self.table
        runner = options.get("_ddl_runner")
        wanted = getattr(runner, "tables", None)
        if table in options.get("tables", ()) or (wanted and table not in wanted):
            return
        if isinstance(connection, Connection) and inspect(connection).has_table(table.name, schema=table.schema):
            self.create(connection)


def sync_indexes(bind: Connection | Session) -> int:
    """`VectorIndex.sync` for every vector index of the database; tells how many rows that took."""
    connection = bind if isinstance(bind, Connection) else bind.connection()
    return on_driver(connection, vector_index.sync) if connection.dialect.name == "sqlite" else 0


def is_for_good(options: Mapping[str, Any]) -> bool:
    """Whether a table that is dropped, with these options of the event, is not replaced by a copy of it.

    Alembic's batch operations do that, and its other operations know no table of the models.
    """
    return isinstance(options.get("_ddl_runner"), SchemaDropper)


def vector_indexes(column: Column[Any]) -> list[VectorIndex]:
    """The vector indexes of a column of a table."""
    table: Any = column.table
    return [index for index in table.indexes if isinstance(index, VectorIndex) and index.column is column]


@event.listens_for(Index, "after_parent_attach")
def _copied(index: Index, table: Table) -> None:
    """Table.to_metadata and Alembic's batches make a plain copy of an index, and Alembic goes on to use it."""
    is_copy = not isinstance(index, VectorIndex) and index.dialect_kwargs.get(_SETTINGS) is not None
    if is_copy and isinstance(index.columns[0].type, Vector):
        same: Any = index
        same.__class__ = VectorIndex
        same._follow(table)  # noqa: SLF001


@compiles(CreateIndex, "sqlite")
def _create_on_sqlite(create: CreateIndex, compiler: DDLCompiler, **options: Any) -> str:
    index = create.element
    if isinstance(index, VectorIndex):  # from Alembic, for the copy of a table: the index waits for that
        return f"-- the vector index {index.name} follows its table"
    text: str = compiler.visit_create_index(create, **options)  # type: ignore[no-untyped-call]
    return text


def _create(index: VectorIndex, connection: Connection | MockConnection, **_: Any) -> None:
    if connection.dialect.name != "sqlite":
        return
    _refuse_schema(index)
    if not isinstance(connection, Connection):
        _tell(connection, index.derived.create_statements())
        return
    on_driver(connection, index.derived.create)


def _drop(index: VectorIndex, connection: Connection | MockConnection, **_: Any) -> None:
    if connection.dialect.name != "sqlite":
        return
    if isinstance(connection, Connection):
        on_driver(connection, index.derived.drop)
    else:
        _tell(connection, index.derived.drop_statements())


def _tell(mock: MockConnection, statements: list[str]) -> None:
    """A mock collects SQL instead of running it."""
    for statement in statements:
        mock.execute(DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]


def _refuse_schema(index: VectorIndex) -> None:
    table: Any = index.table
    if table.schema not in {None, "main"}:
        raise InvalidSetting(
            f"{table.name} is in schema {table.schema!r}; on SQLite a vector index serves tables of the main file only"
        )
