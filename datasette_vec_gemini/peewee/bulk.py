"""Many rows at once by one prepared statement, which Peewee has no way for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count, groupby
from operator import itemgetter
from typing import Any

import peewee

from ..errors import ColumnNotFound, InvalidVector, UsageError, shown
from .dialects import bound_database


def bulk_insert(model: type[peewee.Model], rows: Iterable[Mapping[str | peewee.Field, Any]]) -> int:
    """Insert rows in one transaction, all or none of them; the number of rows.

    For long loads: `insert_many` writes the SQL of every row anew, which takes longer than to insert it. The rows may
    come from an iterator and are not held in memory; each has the fields of the first, by name, column name or field.
    What they leave out gets its default, and defaults that are functions are called once a row. Raises ColumnNotFound,
    InvalidVector, UsageError where rows differ in their fields, and what Peewee raises.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return 0
    db = bound_database(model)
    given = {key: _field(model, key) for key in first}
    fields = dict.fromkeys(given.values())  # by hash: a field that is compared makes an SQL expression
    if len(fields) < len(given):
        raise UsageError(f"a row names a field twice: {_names(given)}")
    defaults = [value for field, value in model._meta.defaults.items() if field not in fields]
    fields |= model._meta.defaults
    if not fields:
        raise UsageError("the rows have no fields: name one at least")

    def prepared(number: int, row: Mapping[str | peewee.Field, Any]) -> tuple[tuple[str, ...], list[Any]]:
        """The SQL of each value, mostly a placeholder, and the parameters."""
        if row.keys() != given.keys():
            raise UsageError(
                f"row {number} has other fields than the first: {_names(row)} instead of {_names(given)}; "
                "give every row the same ones"
            )
        values = [row[key] for key in given] + [value() if callable(value) else value for value in defaults]
        shape, parameters = [], list[Any]()
        for field, value in zip(fields, values, strict=True):
            try:
                sql, own = _spelled(db, field, value)
            except InvalidVector as error:
                raise InvalidVector(f"row {number}, {field.name}: {error}") from None
            shape.append(sql)
            parameters += own
        return tuple(shape), parameters

    inserted = 0
    with db.atomic(), peewee.__exception_wrapper__:
        cursor = db.cursor()
        alike = groupby(map(prepared, count(1), chain([first], rows)), key=itemgetter(0))
        for shape, group in alike:
            one = model.insert_many([[peewee.SQL(sql) for sql in shape]], fields=[*fields]).returning()
            sql, _ = db.get_sql_context().parse(one)
            cursor.executemany(sql, (parameters for _, parameters in group))
            inserted += cursor.rowcount
    return inserted


def _spelled(db: peewee.Database, field: peewee.Field, value: Any) -> tuple[str, Sequence[Any]]:
    """A value as SQL and its parameters: one placeholder, unless it is an expression, as those of a JSONField are."""
    is_expression = isinstance(value, peewee.Node) and not isinstance(value, peewee.Model)
    converted = value if is_expression else field.db_value(value)
    if not isinstance(converted, peewee.Node):
        return db.param, [converted]
    sql, parameters = db.get_sql_context().parse(converted)
    return sql, parameters


def _field(model: type[peewee.Model], key: str | peewee.Field) -> peewee.Field:
    field = key if isinstance(key, peewee.Field) else model._meta.combined.get(key)
    if field is None or field.model is not model:
        raise ColumnNotFound(f"{model.__name__} has no field {shown(key)}; it has {', '.join(model._meta.fields)}")
    return field


def _names(row: Mapping[str | peewee.Field, Any]) -> str:
    return ", ".join(shown(key.name if isinstance(key, peewee.Field) else key) for key in row) or "none"
