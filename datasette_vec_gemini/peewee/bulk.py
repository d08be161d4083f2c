"""Many rows at once by one prepared statement, which Peewee has no way for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import peewee

from ..errors import ColumnNotFound, UsageError, shown
from .dialects import bound_database


def bulk_insert(model: type[peewee.Model], rows: Iterable[Mapping[str | peewee.Field, Any]]) -> int:
    """Insert rows in one transaction, all or none of them; the number of rows.

    For long loads: `insert_many` writes the SQL of every row anew, which takes longer than to insert it. The rows may
    come from an iterator and are not held in memory; each has the fields of the first, by name, column name or field.
    What they leave out gets its default, and defaults that are functions are called once a row. Raises ColumnNotFound,
    InvalidVector, UsageError where rows differ in their fields or a value is an SQL expression, and what Peewee raises.
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

    def values(number: int, row: Mapping[str | peewee.Field, Any]) -> list[Any]:
        if row.keys() != given.keys():
            raise UsageError(
                f"row {number} has other fields than the first: {_names(row)} instead of {_names(given)}; "
                "give every row the same ones"
            )
        plain = [row[key] for key in given] + [value() if callable(value) else value for value in defaults]
        converted = [field.db_value(value) for field, value in zip(fields, plain, strict=True)]
        for field, *forms in zip(fields, plain, converted, strict=True):
            if any(isinstance(form, peewee.Node) and not isinstance(form, peewee.Model) for form in forms):
                raise UsageError(f"row {number}: {field.name} is an SQL expression: use insert_many for such rows")
        return converted

    one = model.insert_many([[None] * len(fields)], fields=[*fields]).returning()
    sql, _ = db.get_sql_context().parse(one)
    with db.atomic(), peewee.__exception_wrapper__:
        cursor = db.cursor()
        cursor.executemany(sql, (values(number, row) for number, row in enumerate(chain([first], rows), 1)))
        inserted: int = cursor.rowcount
    return inserted


def _field(model: type[peewee.Model], key: str | peewee.Field) -> peewee.Field:
    field = key if isinstance(key, peewee.Field) else model._meta.combined.get(key)
    if field is None or field.model is not model:
        raise ColumnNotFound(f"{model.__name__} has no field {shown(key)}; it has {', '.join(model._meta.fields)}")
    return field


def _names(row: Mapping[str | peewee.Field, Any]) -> str:
    return ", ".join(shown(key.name if isinstance(key, peewee.Field) else key) for key in row) or "none"
