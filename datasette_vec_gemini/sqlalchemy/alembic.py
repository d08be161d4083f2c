"""Alembic (1.18 or newer): autogenerate sees the models' tables and vector indexes, and nothing that is kept beside.

In `env.py`::

    from datasette_vec_gemini.sqlalchemy import alembic as vec, register_vector

    connectable = register_vector(engine_from_config(...))
    ...
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=vec.include_name,
        include_object=vec.include_object,
        render_item=vec.render_item,
        render_as_batch=True,  # for SQLite, which alters little
    )

Migrations then have `op.create_vector_index` and `op.drop_vector_index`, on SQLite and PostgreSQL. A batch operation
copies its table, and SQLite drops the triggers with the old one without a word. Nothing is lost by that: `nearest`
compares every row until the triggers are there again, which they are when the migration's connection goes back to its
pool, and a semantic index is mended by its next sync or search.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from alembic import context
from alembic.autogenerate import comparators, renderers
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import ExecuteSQLOp
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Column, Connection, Index, MetaData, Table, text
from sqlalchemy.schema import SchemaItem

from .. import vector_index
from ..driver import sqlite3
from ..errors import UsageError
from ..vector_index.candidates import REGISTRY
from .engine import on_driver
from .index import VectorIndex
from .types import Vector

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps

_SHADOW = re.compile(
    r"_(?:chunks|rowids|info|auxiliary|(?:vector_chunks|metadatachunks|metadatatext)\d\d"  # vec0
    r"|data|idx|content|docsize|config)$"  # FTS5
)
_OURS = re.compile(r"_vec_|_sqlite_migrations$|sqlite_")


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Whether autogenerate looks at a name that the database has: not at virtual tables, their tables, or ours."""
    del parent_names
    if type_ == "table" and name is not None:
        connection = context.get_bind()
        return connection.dialect.name != "sqlite" or name not in _kept(connection)
    return True


def include_object(
    item: SchemaItem,
    name: str | None,
    type_: str,
    reflected: bool,  # noqa: FBT001 - Alembic passes it by position
    compare_to: SchemaItem | None,
) -> bool:
    """Whether autogenerate compares an object by its own means: not a vector index, which has operations of ours."""
    del name, compare_to
    if type_ == "index" and isinstance(item, Index):
        is_hnsw = reflected and item.dialect_kwargs.get("postgresql_using") == "hnsw"
        return not (is_hnsw or isinstance(item, VectorIndex))
    return True


def render_item(type_: str, item: object, autogen_context: AutogenContext) -> str | Literal[False]:
    """A `Vector` as a migration writes it, with its import."""
    if type_ == "type" and isinstance(item, Vector):
        autogen_context.imports.add("from datasette_vec_gemini.sqlalchemy import Vector")
        return f"Vector({item.dimensions})"
    return False


@Operations.register_operation("create_vector_index")
class CreateVectorIndex(MigrateOperation):
    """Make a vector index of a table that exists."""

    def __init__(self, name: str, table: str, column: str, dimensions: int, **options: Any) -> None:
        self.name = name
        self.table = table
        self.column = column
        self.dimensions = dimensions
        self.options = options

    @classmethod
    def create_vector_index(
        cls, operations: Operations, name: str, table: str, column: str, *, dimensions: int, **options: Any
    ) -> None:
        """`options` are those of `VectorIndex`: metric, quantize, oversample, exact_rows."""
        operations.invoke(cls(name, table, column, dimensions, **options))

    @classmethod
    def of(cls, index: VectorIndex) -> CreateVectorIndex:
        """The operation that makes an index as the models have it."""
        derived, options = index.derived, {"metric": index.metric, "quantize": index.quantize, **index.tuning}
        return cls(derived.name, derived.table, derived.column, derived.dimensions, **options)

    def reverse(self) -> DropVectorIndex:
        """The operation that undoes it."""
        return DropVectorIndex(self.name, self.table, was=self)

    def to_diff_tuple(self) -> tuple[str, str, str, str]:
        """What `alembic check` and `compare_metadata` say."""
        return ("add_vector_index", self.name, self.table, self.column)


@Operations.register_operation("drop_vector_index")
class DropVectorIndex(MigrateOperation):
    """Drop a vector index, while its table is there."""

    def __init__(self, name: str, table: str, was: MigrateOperation | None = None) -> None:
        self.name = name
        self.table = table
        self.was = was

    @classmethod
    def drop_vector_index(cls, operations: Operations, name: str, table: str) -> None:
        """Drop the index if it exists."""
        operations.invoke(cls(name, table))

    def reverse(self) -> MigrateOperation:
        """The operation that makes it again. Raises ValueError where it is not known what it was."""
        if self.was is None:
            raise ValueError(f"the operation does not know what the vector index {self.name!r} was made of")
        return self.was

    def to_diff_tuple(self) -> tuple[str, str, str]:
        """What `alembic check` and `compare_metadata` say."""
        return ("remove_vector_index", self.name, self.table)


@Operations.implementation_for(CreateVectorIndex)
def _create(operations: Operations, operation: CreateVectorIndex) -> None:
    if operations.get_context().as_sql:
        raise _needs_database("create_vector_index", operation.name, "the key of its table")
    bind = operations.get_bind()
    column: Column[Any] = Column(operation.column, Vector(operation.dimensions))
    table = Table(operation.table, MetaData(), column, autoload_with=bind)
    VectorIndex(operation.name, table.c[operation.column], **operation.options).create(bind)


@Operations.implementation_for(DropVectorIndex)
def _drop(operations: Operations, operation: DropVectorIndex) -> None:
    migration = operations.get_context()
    if migration.dialect.name != "sqlite":
        operations.drop_index(operation.name, table_name=operation.table, if_exists=True)
    elif migration.as_sql:
        raise _needs_database("drop_vector_index", operation.name, "what belongs to it")
    else:
        on_driver(operations.get_bind(), partial(_drop_derived, operation.name))


def _needs_database(operation: str, name: str, what: str) -> UsageError:
    return UsageError(
        f"{operation} of {name!r} asks the database for {what}, and with --sql there is none: run the migration without"
    )


def _drop_derived(name: str, conn: sqlite3.Connection) -> None:
    for index in vector_index.stored(conn):
        if index.name == name:
            index.drop(conn)


@renderers.dispatch_for(CreateVectorIndex)
def _render_create(autogen_context: AutogenContext, operation: CreateVectorIndex) -> str:
    options = "".join(f", {name}={value!r}" for name, value in operation.options.items())
    return (
        f"{autogen_context.opts['alembic_module_prefix']}create_vector_index("
        f"{operation.name!r}, {operation.table!r}, {operation.column!r}, dimensions={operation.dimensions}{options})"
    )


@renderers.dispatch_for(DropVectorIndex)
def _render_drop(autogen_context: AutogenContext, operation: DropVectorIndex) -> str:
    return f"{autogen_context.opts['alembic_module_prefix']}drop_vector_index({operation.name!r}, {operation.table!r})"


@comparators.dispatch_for("schema", priority=DispatchPriority.LAST)  # after the tables
def _compare(autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: object) -> PriorityDispatchResult:
    """Make what the models have and the database has not, or has otherwise; drop what only the database has."""
    del schemas
    connection, metadata = autogen_context.connection, autogen_context.metadata
    if connection is None or not isinstance(metadata, MetaData):
        return PriorityDispatchResult.CONTINUE
    wanted = {
        str(index.name): index
        for table in metadata.tables.values()
        for index in table.indexes
        if isinstance(index, VectorIndex)
    }
    existing = _derived(connection) if connection.dialect.name == "sqlite" else _hnsw(connection)
    for name, (drop, definition) in existing.items():
        if name not in wanted or definition not in {None, wanted[name].derived.definition}:
            upgrade_ops.ops.insert(0, drop)
    for name, index in wanted.items():
        if name not in existing or existing[name][1] not in {None, index.derived.definition}:
            upgrade_ops.ops.append(CreateVectorIndex.of(index))
    return PriorityDispatchResult.CONTINUE


def _derived(connection: Connection) -> dict[str, tuple[DropVectorIndex, str | None]]:
    """Name -> operation and definition of the vector indexes that a SQLite file has, by its own account."""
    return {
        index.name: (
            CreateVectorIndex(
                index.name, index.table, index.column, index.dimensions, metric=index.metric, quantize=index.quantize
            ).reverse(),
            index.definition,
        )
        for index in on_driver(connection, vector_index.stored)
    }


def _hnsw(connection: Connection) -> dict[str, tuple[DropVectorIndex, str | None]]:
    """Name -> operation of the HNSW indexes that a PostgreSQL database has; PostgreSQL's own words make them again."""
    rows = connection.execute(
        text(
            """
            select i.relname, t.relname, pg_get_indexdef(i.oid) from pg_class as i
            join pg_am on pg_am.oid = i.relam and pg_am.amname = 'hnsw'
            join pg_index on pg_index.indexrelid = i.oid
            join pg_class as t on t.oid = pg_index.indrelid
            where pg_table_is_visible(t.oid) and not i.relispartition
            """
        )
    )
    return {name: (DropVectorIndex(name, table, ExecuteSQLOp(sql)), None) for name, table, sql in rows}


def _kept(connection: Connection) -> set[str]:
    """The tables of a SQLite file that belong to an index or a virtual table, whether or not its module is there."""
    tables = connection.exec_driver_sql("select name, sql from sqlite_master where type = 'table'").all()
    virtual = {name for name, sql in tables if re.match(r"create\s+virtual\b", sql or "", re.IGNORECASE)}
    derived = set[str]()
    if any(name == REGISTRY for name, _ in tables):
        derived = {f"{name}_dirty" for (name,) in connection.exec_driver_sql(f"select name from {REGISTRY}")}
    return {
        name
        for name, _ in tables
        if name in virtual or name in derived or _SHADOW.sub("", name) in virtual or _OURS.match(name)
    }
