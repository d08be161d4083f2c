"""Filters in Datasette's grammar, `column` or `column__op`, as a condition on the source table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..domain import Index
from ..driver import sqlite3
from ..errors import ColumnNotFound, InvalidFilter, shown
from ..schema import affinity, in_main, key_names, listed, quote_identifier, source_key
from . import source

OPERATORS = ("exact", "not", "gt", "gte", "lt", "lte", "in", "isnull")
_COMPARISONS = {"exact": "=", "not": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on the keys of our tables, to be put after `where`, and its bound values."""

    sql: str
    values: tuple[object, ...]


def compile_filters(conn: sqlite3.Connection, index: Index, filters: Mapping[str, object]) -> Condition | None:
    """The condition that all filters hold now, in the source table itself; None without filters.

    Raises InvalidFilter for an unknown column or operator and for a value that the operator cannot use.
    """
    if not filters:
        return None
    table = source.find(conn, index.table)
    parts: list[str] = []
    values: list[object] = []
    for name, value in filters.items():
        column, operator = _parse(table, name)
        sql, bound = _condition(quote_identifier(column), operator, value, _converter(table.columns[column]), name)
        parts.append(sql)
        values += bound
    selected = listed(source_key(index))
    return among(index, f"select {selected} from {in_main(table.name)} where {' and '.join(parts)}", values)


def among(index: Index, statement: str, values: Sequence[object]) -> Condition:
    """The condition that a key is one of those that a select of the source's key columns yields, with its values."""
    return Condition(f"({', '.join(key_names(index))}) in ({statement})", tuple(values))


def joined(*conditions: Condition | None) -> Condition | None:
    """The condition that all of these hold; None where there are none."""
    given = [condition for condition in conditions if condition]
    if not given:
        return None
    return Condition(
        " and ".join(condition.sql for condition in given),
        tuple(value for condition in given for value in condition.values),
    )


def unqueued(index: Index, condition: Condition | None) -> Condition:
    """The condition and that the row does not wait in the queue, so that what is indexed of it is current."""
    keys = ", ".join(key_names(index))
    sql = f"({keys}) not in (select {keys} from {quote_identifier(index.object('queue'))})"
    return Condition(f"{condition.sql} and {sql}", condition.values) if condition else Condition(sql, ())


def _parse(table: source.Source, name: str) -> tuple[str, str]:
    column, separator, operator = name.rpartition("__")
    if not separator or operator not in OPERATORS:
        column, operator = name, "exact"
    try:
        return table.column(column), operator
    except ColumnNotFound as error:
        hint = f"; operators are {', '.join(OPERATORS)}" if separator else ""
        raise InvalidFilter(f"filter {shown(name)}: {error}{hint}") from None


def _converter(declared_type: str) -> Callable[[object], object]:
    """Text that is a number as SQLite writes it is compared as one where the column has no type that would do so."""
    if affinity(declared_type) != "BLOB":
        return lambda value: value

    return plain


def plain(value: object) -> object:
    """What a filter's text means in a column without a type: the number, where it is one as SQLite writes it."""
    if isinstance(value, str) and re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.\d+)?", value):
        return float(value) if "." in value else int(value)
    return value


def _checked(name: str, value: object) -> object:
    """The value, if SQLite can take it."""
    if not isinstance(value, str | int | float | bytes):
        raise InvalidFilter(f"filter {shown(name)} has a value of type {type(value).__name__}; use text or a number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidFilter(f"filter {shown(name)} has the number {shown(value)}, which is beyond 64 bits")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise InvalidFilter(f"filter {shown(name)} has a lone surrogate, which is no character: remove it")
    return value


def _condition(
    column: str, operator: str, value: object, convert: Callable[[object], object], name: str
) -> tuple[str, list[object]]:
    if operator == "isnull":
        text = str(value).strip().lower()
        if text not in _TRUE + _FALSE:
            raise InvalidFilter(f"filter {shown(name)} has the value {shown(value)}; write 1 or 0")
        return (f"{column} is null" if text in _TRUE else f"{column} is not null"), []
    if operator == "in":
        items = _items(value, name)
        if not (isinstance(value, str) and value.startswith("[")):  # JSON itself tells text from numbers
            items = list(map(convert, items))
        return f"{column} in ({', '.join('?' * len(items))})", [_checked(name, item) for item in items]
    if value is None:
        if operator not in {"exact", "not"}:
            raise InvalidFilter(
                f"filter {shown(name)} has no value; for NULL write {name.rpartition('__')[0]}__isnull=1"
            )
        return (f"{column} is null" if operator == "exact" else f"{column} is not null"), []
    return f"{column} {_COMPARISONS[operator]} ?", [convert(_checked(name, value))]


def _items(value: object, name: str) -> list[object]:
    if isinstance(value, str):
        if not value.startswith("["):
            return [item.strip() for item in value.split(",")]
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidFilter(f"filter {shown(name)} is not a JSON array: {error}") from error
    items = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    if not 1 <= len(items) <= 1_000:
        raise InvalidFilter(
            f"filter {shown(name)} needs 1 to 1,000 texts or numbers, as a JSON array or joined by commas"
        )
    return items
