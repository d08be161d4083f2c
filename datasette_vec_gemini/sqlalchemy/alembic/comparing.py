"""What autogenerate finds of vector indexes: those of the models beside those of the database."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from alembic.autogenerate import comparators
from alembic.operations.ops import DropTableOp, ExecuteSQLOp
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Connection, MetaData, text

from ... import vector_index
from ...errors import UsageError
from ...vector_index import DerivedIndex
from ...vector_index.hnsw import OPTIONS, Hnsw
from ..engine import on_driver
from ..index import VectorIndex
from .operations import CreateVectorIndex, DropVectorIndex

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps


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
