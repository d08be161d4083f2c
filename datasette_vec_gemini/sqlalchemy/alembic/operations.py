"""The operations of a migration that make and drop vector indexes, and how a migration writes them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column, MetaData, Table

from ... import vector_index
from ...driver import sqlite3
from ...errors import UsageError
from ...vector_index import DerivedIndex
from ..engine import on_driver
from ..index import VectorIndex
from ..types import Vector

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


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
