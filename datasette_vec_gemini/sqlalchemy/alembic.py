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
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

try:
    from alembic.util import DispatchPriority, PriorityDispatchResult
except ImportError as error:
    raise ImportError(
        "datasette_vec_gemini.sqlalchemy.alembic needs Alembic 1.18 or newer: pip install 'alembic>=1.18'"
    ) from error

from alembic import context
from alembic.autogenerate import comparators, renderers
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import DropTableOp, ExecuteSQLOp
from sqlalchemy import Column, Connection, Index, MetaData, Table, text
from sqlalchemy.schema import SchemaItem

from .. import vector_index
from ..driver import sqlite3
from ..errors import UsageError
from ..vector_index import DerivedIndex
from ..vector_index.candidates import REGISTRY
from ..vector_index.hnsw import OPTIONS, Hnsw
from .engine import on_driver
from .index import VectorIndex
from .types import Vector
from .vec0 import Vec0Table

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps

_SHADOWS = {
    "vec0": re.compile(r"_(?:chunks|rowids|info|auxiliary|(?:vector_chunks|metadatachunks|metadatatext)\d\d)$"),
    "fts5": re.compile(r"_(?:data|idx|content|docsize|config)$"),
    "fts4": re.compile(r"_(?:content|docsize|segments|segdir|stat)$"),
}
"""What each module adds to a virtual table's name for those that it keeps its data in."""

_VIRTUAL = re.compile(rf"create\s+virtual\b(?:.*?\busing\W+({'|'.join(_SHADOWS)})\b)?", re.IGNORECASE | re.DOTALL)
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
    """Whether autogenerate compares an object by its own means: neither vector indexes nor vec0 tables.

    Vector indexes have operations of ours; of a `Vec0Table` it would make an ordinary table.
    """
    del name, compare_to
    if type_ == "index" and isinstance(item, Index):
        is_hnsw = reflected and item.dialect_kwargs.get("postgresql_using") == "hnsw"
        return not (is_hnsw or isinstance(item, VectorIndex))
    return not isinstance(item, Vec0Table)


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
    def of(cls, index: DerivedIndex, **tuning: int) -> CreateVectorIndex:
        """The operation that makes this index."""
        options = {"metric": index.metric, "quantize": index.quantize, **tuning}
        return cls(index.name, index.table, index.column, index.dimensions, **options)

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


class _Existing(NamedTuple):
    """A vector index that the database has, and how to drop it; `is_ours` when it is as a VectorIndex writes it."""

    drop: DropVectorIndex
    definition: str | None
    is_ours: bool


@comparators.dispatch_for("schema", priority=DispatchPriority.LAST)  # after the tables
def _compare(autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: object) -> PriorityDispatchResult:
    """Make what the models have and the database has not, or has otherwise; drop what is ours and in no model.

    What is looked at for dropping are the tables that the models have, or have lost in this revision.
    """
    del schemas
    connection, metadata = autogen_context.connection, autogen_context.metadata
    if connection is None or not isinstance(metadata, MetaData):
        return PriorityDispatchResult.CONTINUE
    is_sqlite = connection.dialect.name == "sqlite"
    declared = {str(index.name): index for table in metadata.tables.values() for index in table.indexes}
    wanted = {name: index for name, index in declared.items() if isinstance(index, VectorIndex)}
    tables = {table.name for table in metadata.tables.values()}
    tables |= {operation.table_name for operation in upgrade_ops.ops if isinstance(operation, DropTableOp)}
    existing = _derived(connection) if is_sqlite else _hnsw(connection)
    for name, (drop, definition, is_ours) in existing.items():
        if name in wanted:
            derived = wanted[name].derived
            if definition == (derived if is_sqlite else Hnsw(index=derived)).definition:
                del wanted[name]
                continue
        elif name in declared or not is_ours or drop.table not in tables:
            continue
        upgrade_ops.ops.insert(0, drop)
    upgrade_ops.ops.extend(CreateVectorIndex.of(index.derived, **index.tuning) for index in wanted.values())
    return PriorityDispatchResult.CONTINUE


def _derived(connection: Connection) -> dict[str, _Existing]:
    """Those of a SQLite file by their names, by its own account."""
    return {
        index.name: _Existing(CreateVectorIndex.of(index).reverse(), index.definition, is_ours=True)
        for index in on_driver(connection, vector_index.stored)
    }


def _hnsw(connection: Connection) -> dict[str, _Existing]:
    """Those of a PostgreSQL database by their names: all HNSW indexes. Its own words make again what is not ours.

    The column is null where the index is not of one column of vectors, whole, halved or as signs, and of all its rows;
    the key where the table's is not one column.
    """
    rows = connection.execute(
        text(
            """
            select i.relname, t.relname, k.attname, c.attname, e.atttypmod, o.opcname, i.reloptions is null,
                pg_get_indexdef(i.oid)
            from pg_class as i
            join pg_am on pg_am.oid = i.relam and pg_am.amname = 'hnsw'
            join pg_index as x on x.indexrelid = i.oid
            join pg_class as t on t.oid = x.indrelid
            join pg_opclass as o on o.oid = x.indclass[0]
            join pg_attribute as e on e.attrelid = i.oid
            left join (pg_attribute as c join pg_type as v on v.oid = c.atttypid and v.typname = 'vector')
                on c.attrelid = t.oid and x.indpred is null and pg_get_indexdef(i.oid, 1, false) = format(
                    case split_part(o.opcname, '_', 1)
                        when 'vector' then '%1$I'
                        when 'halfvec' then '((%1$I)::halfvec(%2$s))'
                        when 'bit' then '((binary_quantize(%1$I))::bit(%2$s))'
                    end, c.attname, e.atttypmod
                )
            left join pg_index as p on p.indrelid = t.oid and p.indisprimary and p.indnatts = 1
            left join pg_attribute as k on k.attrelid = t.oid and k.attnum = p.indkey[0]
            where pg_table_is_visible(t.oid) and not i.relispartition
            """
        )
    )
    existing = {}
    for name, table, key, column, dimensions, operator_class, is_plain, sql in rows:
        drop, is_ours = DropVectorIndex(name, table, ExecuteSQLOp(sql)), False
        if key and column and is_plain and operator_class in OPTIONS:
            metric, quantize = OPTIONS[operator_class]
            with suppress(UsageError):  # a name or a length that no VectorIndex has
                index = DerivedIndex(
                    name=name,
                    table=table,
                    key=key,
                    column=column,
                    dimensions=dimensions,
                    metric=metric,
                    quantize=quantize,
                )
                drop, is_ours = CreateVectorIndex.of(index).reverse(), True
        definition = f"{operator_class}[{dimensions}] of {column}" if column else None
        existing[name] = _Existing(drop, definition, is_ours)
    return existing


def _kept(connection: Connection) -> set[str]:
    """The tables of a SQLite file that belong to an index or a virtual table, whether or not its module is there."""
    tables = connection.exec_driver_sql("select name, sql from sqlite_master where type = 'table'").all()
    virtual = {name: (match[1] or "").lower() for name, sql in tables if (match := _VIRTUAL.match(sql or ""))}
    shadows = {
        name for name, _ in tables for module, suffix in _SHADOWS.items() if virtual.get(suffix.sub("", name)) == module
    }
    derived = set[str]()
    if any(name == REGISTRY for name, _ in tables):
        derived = {f"{name}_dirty" for (name,) in connection.exec_driver_sql(f"select name from {REGISTRY}")}
    return {*virtual, *shadows, *derived, *(name for name, _ in tables if _OURS.match(name))}
