"""Bulk inserts of mapped classes with vectors, by SQLAlchemy's shortest way that inserts the same rows."""

from __future__ import annotations

from itertools import chain, repeat
from operator import is_
from typing import Any, cast

from sqlalchemy import Table, event, insert
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

from .types import Vector


@event.listens_for(Session, "do_orm_execute")
def _take_the_short_way(state: ORMExecuteState) -> None:
    """Let `session.execute(insert(Document), rows)` go to SQLAlchemy's Core as it is: its DML strategy "raw".

    The ORM copies each row twice on its way there, to translate the names of attributes, to leave NULL to defaults, and
    for inheritance, versions and statements with more in them. What needs none of that gets the same rows in four
    fifths of the time; whatever may need it is left to the ORM.
    """
    statement: Any = state.statement
    mapper: Any = state.bind_mapper
    if (
        state.is_orm_statement
        and state.is_insert
        and state.is_executemany
        and "dml_strategy" not in {*state.execution_options, *state.local_execution_options}
        and _is_plain(mapper)
        and _are_plain(cast("list[dict[str, Any]]", state.parameters), mapper)
        and statement.compare(insert(mapper))
    ):
        state.update_execution_options(dml_strategy="raw")


def _is_plain(mapper: Mapper[Any]) -> bool:
    """Whether a class is one table with vectors."""
    table = mapper.local_table
    return (
        isinstance(table, Table)
        and any(isinstance(column.type, Vector) for column in table.columns)
        and len(mapper.tables) == 1
        and mapper.polymorphic_on is None
        and mapper.version_id_col is None
    )


def _are_plain(rows: list[dict[str, Any]], mapper: Mapper[Any]) -> bool:
    """Whether rows name columns as their table does, all rows the same ones, and none is NULL."""
    columns, attributes = mapper.local_table.columns, mapper.columns
    return (
        {*map(type, rows)} == {dict}
        and all(type(key) is str and attributes.get(key) is columns.get(key) is not None for key in rows[0])
        and all(row.keys() == rows[0].keys() for row in rows)
        and not any(map(is_, chain.from_iterable(map(dict.values, rows)), repeat(None)))
    )
