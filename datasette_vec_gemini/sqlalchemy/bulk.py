"""Bulk inserts of mapped classes with vectors, by SQLAlchemy's shortest way that inserts the same rows."""

from __future__ import annotations

import re
from itertools import chain, repeat
from operator import is_
from typing import Any

import sqlalchemy
from sqlalchemy import Result, Table, event, insert
from sqlalchemy.engine.cursor import null_dml_result
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

from .types import Vector


def can_listen(version: str) -> bool:
    """Whether a listener changes nothing for others: before 2.0.50 sessions that have one may lose `yield_per`.

    https://github.com/sqlalchemy/sqlalchemy/issues/13301
    """
    return [*map(int, re.findall(r"\d+", version)[:3])] >= [2, 0, 50]


def take_the_short_way(state: ORMExecuteState) -> Result[Any] | None:
    """Let `session.execute(insert(Document), rows)` go to SQLAlchemy's Core as it is: its DML strategy "raw".

    The ORM copies each row twice on its way there, to translate the names of attributes, to leave NULL to defaults, and
    for inheritance, versions and statements with more in them. What needs none of that gets the same rows in four
    fifths of the time. Whatever may need it, or may choose another database or change rows on the way, is left to the
    ORM.
    """
    session, mapper, rows = state.session, state.bind_mapper, state.parameters
    statement: Any = state.statement
    if (
        state.is_orm_statement
        and state.is_insert
        and isinstance(rows, list)
        and "dml_strategy" not in state.execution_options
        and mapper is not None
        and _is_plain(mapper)
        and _are_plain(rows, mapper)
        and statement.compare(insert(mapper))
        and state.bind_arguments.keys() <= {"clause", "mapper"}
        and type(session).get_bind is Session.get_bind
        and session.connection_callable is None
        and len(session.dispatch.do_orm_execute) == 1
    ):
        state.parameters = [*map(dict, rows)]  # listeners to Core's events may write to them
        state.invoke_statement(execution_options={"dml_strategy": "raw"})
        return null_dml_result()  # what the ORM answers
    return None


def _is_plain(mapper: Mapper[Any]) -> bool:
    """Whether a class is one table with vectors."""
    table = mapper.local_table
    return (
        isinstance(table, Table)
        and any(isinstance(column.type, Vector) for column in table.columns)
        and len(mapper.tables) == 1
        and mapper.inherits is None
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


if can_listen(sqlalchemy.__version__):
    event.listen(Session, "do_orm_execute", take_the_short_way)
