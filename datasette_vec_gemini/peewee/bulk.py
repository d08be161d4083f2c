"""Many rows at once by one prepared statement, where Peewee writes SQL for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import peewee

from ..errors import ColumnNotFound, InvalidVector, UsageError, shown
from .dialects import bound_database
from .fields import VectorField

_ROW = ":a value of a row:"
_TOGETHER = 100
"""The numbers of so many rows are looked at together: one by one NumPy's calls cost more than to insert a row."""


def bulk_insert(model: type[peewee.Model], rows: Iterable[Mapping[str | peewee.Field, Any]]) -> int:
    """Insert rows in one transaction, all or none of them; the number of rows.

    For long loads: the rows may come from an iterator and are not held in memory, and on PostgreSQL no SQL is written
    for each of them. Each has the fields of the first, by name, column name or field. What they leave out gets its
    default, and defaults that are functions are called once a row. Raises ColumnNotFound, InvalidVector, UsageError
    where rows differ in their fields, and what Peewee raises.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return 0
    into = _Columns(bound_database(model), model, first, copy=True)

    def values() -> Iterator[list[Any]]:
        keys = into.given.keys()
        for number, row in enumerate(chain([first], rows), 1):
            if row.keys() != keys:
                raise UsageError(
                    f"row {number} has other fields than the first: {_names(row)} instead of {_names(into.given)}; "
                    "give every row the same ones"
                )
            yield [row[key] for key in keys]

    with into.db.atomic(), peewee.__exception_wrapper__:
        return into.insert(values())


def at_once(db: peewee.Database, query: peewee.ModelInsert) -> tuple[str, list[Any]] | peewee.ModelInsert:
    """The SQL and the parameters that Peewee makes of an `insert_many` or `bulk_create`, if its rows are alike.

    Peewee makes objects of every value and SQL of them, which takes longer than to insert a row. Any other query comes
    back as it is, or, since its rows may have come from an iterator, as one that has them.
    """
    if type(query) is not peewee.ModelInsert or query._query_type != query.MULTI or query._cte_list:
        return query
    taken = [row.copy() if type(row) in {dict, list} else row for row in query._insert]  # an iterator may use one again
    alike = _alike(taken, query)
    if alike is None:
        one = query.clone()
        one._insert = taken
        return one
    into = _Columns(db, query.model, alike[0], copy=False)
    shapes, parameters = list[str](), list[Any]()
    for shape, own in into.prepared(alike[1]):
        shapes.append(shape)
        parameters += own
    before, after, others = into.around(query)
    return before + ", ".join(shapes) + after, [*parameters, *others]


def _alike(rows: Sequence[Any], query: peewee.ModelInsert) -> tuple[list[str], Sequence[Sequence[Any]]] | None:
    """The names of fields and each row's values, if all rows have the same fields."""
    are_named = bool(rows) and all(type(row) is dict and row.keys() == rows[0].keys() for row in rows)
    keys = [*rows[0]] if are_named and not query._columns else [*(query._columns or query.get_default_columns())]
    fields = query.model._meta.fields
    names = [key.name if isinstance(key, peewee.Field) and fields.get(key.name) is key else key for key in keys]
    if not all(isinstance(name, str) and name in fields for name in names) or len({*names}) < len(names):
        return None  # Peewee knows more names, and says what is wrong with others
    if are_named and rows[0].keys() == {*keys}:
        rows = [[row[key] for key in keys] for row in rows]
    is_even = bool(rows) and all(isinstance(row, list | tuple) and len(row) == len(keys) for row in rows)
    return (names, rows) if is_even else None


class _Columns:
    """The fields that rows fill: those whose keys are given, in their order, and those that have defaults."""

    def __init__(
        self, db: peewee.Database, model: type[peewee.Model], keys: Iterable[str | peewee.Field], *, copy: bool
    ) -> None:
        self.db = db
        self.model = model
        self.given = {key: _field(model, key) for key in keys}
        fields = dict.fromkeys(self.given.values())  # by hash: a field that is compared makes an SQL expression
        if len(fields) < len(self.given):
            raise UsageError(f"a row names a field twice: {_names(self.given)}")
        self._defaults = [value for field, value in model._meta.defaults.items() if field not in fields]
        self._fields = [*(fields | model._meta.defaults)]
        if not self._fields:
            raise UsageError("the rows have no fields: name one at least")
        self._placeholders = f"({', '.join([db.param] * len(self._fields))})"
        of_vectors = {n: f.for_many(db, copy=copy) for n, f in enumerate(self._fields) if isinstance(f, VectorField)}
        self._converters = [of_vectors[n][0] if n in of_vectors else f.db_value for n, f in enumerate(self._fields)]
        self._looks = {n: first_refused for n, (_, first_refused) in of_vectors.items() if first_refused}
        self._plain = set[type]()

    def prepared(self, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Each row in SQL, mostly of placeholders, and its parameters.

        Raises InvalidVector; for NaN, infinity and zeros up to a hundred rows later than they came.
        """
        # Bulk inserts wait for this: a name of a function is found sooner than one of a module.
        placeholders, converters, defaults, plain = self._placeholders, self._converters, self._defaults, self._plain
        held = {position: list[Any]() for position in self._looks}
        number = 0
        for number, row in enumerate(rows, 1):
            values = row
            if defaults:
                values = [*row, *(value() if callable(value) else value for value in defaults)]
            is_plain = plain.issuperset(map(type, values)) or self._are_plain(values)
            try:
                made = [
                    convert(value) if is_plain or not _is_sql(value) else value
                    for convert, value in zip(converters, values, strict=True)
                ]
            except InvalidVector:
                self._look(held, number)
                self._convert_one_by_one(values, number)
                raise
            is_plain = plain.issuperset(map(type, made)) or self._are_plain(made)  # a JSONField makes SQL, too
            for position, vectors in held.items():
                vectors.append(made[position] if is_plain or not _is_sql(made[position]) else None)
            if number % _TOGETHER == 0:
                self._look(held, number + 1)
            yield (placeholders, made) if is_plain else self._spelled(made)
        self._look(held, number + 1)

    def _are_plain(self, values: Sequence[Any]) -> bool:
        """Whether no value is an expression; types that are none are known from then on."""
        kinds = {type(value) for value in values if not _is_sql(value)}
        self._plain |= kinds
        return kinds.issuperset(map(type, values))

    def _look(self, held: dict[int, list[Any]], following: int) -> None:
        """Raise InvalidVector for the first row with numbers that are refused, of those before the row of that number.

        `held` has the parameters of these rows that are vectors, by the positions of their fields; it is empty then.
        """
        looked = ((position, self._looks[position](vectors), len(vectors)) for position, vectors in held.items())
        refused = [(following - count + found[0], position, found[1]) for position, found, count in looked if found]
        if refused:
            number, position, error = min(refused, key=itemgetter(0))
            raise InvalidVector(f"row {number}, {self._fields[position].name}: {error}")
        for vectors in held.values():
            vectors.clear()

    def _convert_one_by_one(self, values: Sequence[Any], number: int) -> None:
        """Raise InvalidVector again, and name the row and the field."""
        for field, convert, value in zip(self._fields, self._converters, values, strict=True):
            try:
                if not _is_sql(value):
                    convert(value)
            except InvalidVector as error:
                raise InvalidVector(f"row {number}, {field.name}: {error}") from None

    def _spelled(self, made: Sequence[Any]) -> tuple[str, list[Any]]:
        """A row of expressions as SQL, and its parameters."""
        spelled = [_spelled(self.db, each) for each in made]
        return f"({', '.join(sql for sql, _ in spelled)})", [each for _, own in spelled for each in own]

    def around(self, query: peewee.ModelInsert) -> tuple[str, str, list[Any]]:
        """The SQL of a query before and after its rows, and the parameters of what comes after them."""
        one = query.clone()
        one._insert, one._columns = [[peewee.SQL(_ROW)] * len(self._fields)], self._fields
        sql, others = self.db.get_sql_context().parse(one)
        before, after = sql.split(f"({', '.join([_ROW] * len(self._fields))})")
        return before, after, [*others]

    def insert(self, rows: Iterable[Sequence[Any]]) -> int:
        """Insert rows by one prepared statement for each shape that they have; how many they are."""
        inserted, cursor = 0, self.db.cursor()
        before, after, _ = self.around(self.model.insert_many([]).returning())  # nothing with parameters follows
        for shape, group in groupby(self.prepared(rows), key=itemgetter(0)):
            cursor.executemany(before + shape + after, map(itemgetter(1), group))
            inserted += cursor.rowcount
        return inserted


def _is_sql(value: Any) -> bool:
    return isinstance(value, peewee.Node) and not isinstance(value, peewee.Model)


def _spelled(db: peewee.Database, value: Any) -> tuple[str, Sequence[Any]]:
    """A value as SQL and its parameters: one placeholder, unless it is an expression."""
    if not isinstance(value, peewee.Node):
        return db.param, [value]
    context = db.get_sql_context()
    with context.scope_values(subquery=True):
        sql, parameters = context.sql(value).query()
    return sql, parameters


def _field(model: type[peewee.Model], key: str | peewee.Field) -> peewee.Field:
    field = key if isinstance(key, peewee.Field) else model._meta.combined.get(key)
    if field is None or field.model is not model:
        raise ColumnNotFound(f"{model.__name__} has no field {shown(key)}; it has {', '.join(model._meta.fields)}")
    return field


def _names(row: Mapping[str | peewee.Field, Any]) -> str:
    return ", ".join(shown(key.name if isinstance(key, peewee.Field) else key) for key in row) or "none"
