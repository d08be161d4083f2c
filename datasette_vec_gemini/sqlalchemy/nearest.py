"""nearest(column, vector, k=): a select of the rows nearest to a vector, to add to whatever SQLAlchemy has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Select,
    Table,
    bindparam,
    case,
    literal_column,
    select,
)
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement, ColumnElement, Label, _label_reference
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Alias, FromClause, Join
from sqlalchemy.sql.visitors import InternalTraversal

from ..errors import InvalidQuery, shown
from ..vector_index import ALL_ROWS, DerivedIndex, whole
from ..vectors import checked
from .conditions import as_conditions, has_text
from .index import VectorIndex, vector_indexes
from .types import CosineDistance, Distance, L2Distance, MaxInnerProduct, Vector, as_printed

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.orm import InstrumentedAttribute

    from .conditions import Conditions

_DISTANCES = {distance.metric: distance for distance in (CosineDistance, L2Distance, MaxInnerProduct)}
_KEEPS_ORDER = (operators.asc_op, operators.nulls_first_op, operators.nulls_last_op)


def nearest(
    column: InstrumentedAttribute[Any] | Column[Any],
    vector: Any,
    k: int = 10,
    *,
    where: Conditions = (),
    metric: str | None = None,
) -> Select[Any]:
    """Select the k rows whose vector is nearest, nearest first: `(Entity, distance)`; of a table its columns, distance.

    Filters act inside the search, whether given as `where`, one or several, or added with `.where(…)`, by joins too: k
    rows come whenever k rows match. `.limit()` and `.offset()` turn pages, as in any select. Rows without a vector are
    never found. `metric` is needed only where a column has several indexes. Raises InvalidQuery, InvalidVector.
    """
    limit = whole(k)
    entity, expression = _entity(column)
    index = _index(expression, metric)
    kind: Vector = expression.type
    asked = checked(vector, kind.dimensions, nonzero=index.metric == "cosine")
    wanted = bindparam(None, asked, type_=Vector(kind.dimensions), unique=True)
    distance = _DISTANCES[index.metric](expression, wanted).label("distance")
    key = expression.table.corresponding_column(index.key)
    if key is None:
        raise InvalidQuery(
            f"{expression.table} has no column of {index.key}, by which the rows are found: select it too"
        )
    return (
        select(*entity, distance)
        .where(Candidates(index.derived, key, expression, wanted), *as_conditions(where))
        .order_by(distance, key)
        .limit(limit)
    )


def _entity(column: Any) -> tuple[Sequence[Any], Any]:
    """What is selected, and the column in it."""
    if isinstance(column, QueryableAttribute):
        return [column.parent.entity], column.expression
    if not isinstance(column, ColumnElement) or not isinstance(getattr(column, "table", None), FromClause):
        raise InvalidQuery(f"{shown(column)} is no column: nearest(Document.embedding, vector)")
    return list(column.table.c), column


def _index(expression: Any, metric: str | None) -> VectorIndex:
    if not isinstance(expression.type, Vector):
        raise InvalidQuery(f"{expression} is no Vector: nearest(Document.embedding, vector)")
    # An alias, or the subquery that an alias of joined tables is, has columns of its own.
    columns = [column for column in expression.base_columns if isinstance(getattr(column, "table", None), Table)]
    indexes = [index for column in columns for index in vector_indexes(column)]
    found = [index for index in indexes if metric in {None, index.metric}]
    if len(found) == 1:
        return found[0]
    if found:
        metrics = " and ".join(index.metric for index in found)
        raise InvalidQuery(f"{expression} has {len(found)} vector indexes, by {metrics}: say metric=")
    raise InvalidQuery(
        f"{expression} has no vector index{f' by {metric}' if metric else ''}: give its table a VectorIndex, or order "
        f"by {expression}.cosine_distance(vector), which compares all rows"
    )


class Candidates(FunctionElement[bool]):
    """A condition, true for the rows among which those nearest to a vector are.

    On SQLite the keys that a derived index finds for the select that it is a condition of: the other conditions and the
    joins of that select are the filters of the search, its limit and offset say how many rows are wanted.
    """

    type = Boolean()
    inherit_cache = True
    name = "candidates"
    _is_implicitly_boolean = True  # without it SQLAlchemy adds `= 1`, and SQLite finds no key to look rows up by
    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's way to say what a cached statement depends on
        *FunctionElement._traverse_internals,
        ("index", InternalTraversal.dp_plain_obj),
    ]

    def __init__(self, index: DerivedIndex, key: Any, column: Any, vector: Any) -> None:
        self.index = index
        super().__init__(key, column, vector)

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """The key, the column and the vector asked."""
        key, column, vector = self.clauses
        return key, column, vector


@dataclass(frozen=True, kw_only=True)
class Search:
    """What the select around a `Candidates` asks of it."""

    wanted: ColumnElement[int] | None
    """Limit and offset together; None for all rows."""
    matching: Select[Any] | None
    """The keys of the rows that the filters leave; None where there is none."""

    @classmethod
    def around(cls, element: Candidates, compiler: SQLCompiler) -> Search:
        """Of the select that is being compiled. Raises CompileError where there is no select."""
        entry: Any = compiler.stack[-1] if compiler.stack else {}
        statement = entry.get("selectable")
        if not isinstance(statement, Select):
            raise CompileError("nearest() is a select; a condition of it cannot be taken into another statement")
        key, _, vector = element.parts
        conditions = [each for each in statement._where_criteria if not _contains(each, element)]
        if not entry["asfrom_froms"].issuperset(entry["compile_state"].froms):
            raise CompileError("nearest() cannot be correlated: SQLite searches once for all rows around it")
        froms = [_without_idle_joins(each, conditions) for each in entry["compile_state"].froms]
        is_filtered = bool(conditions) or froms != [key.table] or not _is_whole(key.table)
        return cls(
            wanted=_wanted(statement, element.index.metric, vector),
            matching=_select_keys(key, froms, conditions) if is_filtered else None,
        )


def _wanted(statement: Select[Any], metric: str, vector: Any) -> ColumnElement[int] | None:
    """How many of the nearest rows the select needs: all of them where it groups or sorts them otherwise first."""
    limit = statement._limit_clause
    order = statement._order_by_clauses
    if limit is None or not order or not _is_nearest_first(order[0], metric, vector):
        return None
    if statement._distinct or statement._group_by_clauses or statement._having_criteria:
        return None
    offset = statement._offset_clause
    if offset is None:
        return limit
    # The sum of what a user gives may be no integer of the database.
    most = literal_column(str(ALL_ROWS), BigInteger)
    return case((limit > most - offset, most), else_=limit + offset)


def _is_nearest_first(clause: Any, metric: str, vector: Any) -> bool:
    while isinstance(clause, _label_reference | Label) or getattr(clause, "modifier", None) in _KEEPS_ORDER:
        clause = clause.element
    return isinstance(clause, Distance) and clause.metric == metric and list(clause.clauses)[-1].key == vector.key


def _contains(clause: ClauseElement, element: ClauseElement) -> bool:
    return any(each is element for each in visitors.iterate(clause))


def _is_whole(source: FromClause) -> bool:
    """Whether a table or an alias has all rows of the table, as a subquery under an alias need not."""
    return isinstance(source.element if isinstance(source, Alias) else source, Table)


def _without_idle_joins(source: FromClause, conditions: Sequence[ClauseElement]) -> FromClause:
    """Without outer joins that no condition refers to, such as those that load relationships: they filter nothing."""
    if any(has_text(condition) for condition in conditions):
        return source
    used = {each.table for condition in conditions for each in visitors.iterate(condition) if hasattr(each, "table")}
    # What is joined may be a join itself: to a class of two tables, or through the table between many and many.
    while (
        isinstance(source, Join) and source.isouter and not source.full and used.isdisjoint(source.right._from_objects)
    ):
        source = source.left
    return source


def _select_keys(key: Any, froms: Sequence[FromClause], conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Without the ORM's part: what it adds to a statement has been added already."""
    statement: Select[Any] = Select._create_raw_select(_raw_columns=[key], _from_obj=tuple(froms))
    statement._where_criteria = tuple(conditions)
    return statement.correlate(None)


compiles(Candidates)(as_printed)


@compiles(Candidates, "sqlite")
def _candidates_on_sqlite(element: Candidates, compiler: SQLCompiler, **options: Any) -> str:
    search = Search.around(element, compiler)
    key, column, vector = (compiler.process(part, **options) for part in element.parts)
    if _is_elsewhere(element, compiler):
        return element.index.present(column)
    # Without LIMIT all rows are wanted.
    wanted = str(ALL_ROWS) if search.wanted is None else compiler.process(search.wanted, **options)
    matching = None if search.matching is None else compiler.process(search.matching, **options)
    keys = "".join(element.index.candidates(vector, wanted, matching))
    return f"{key} IN ({keys}) AND {element.index.present(column)}"


def _is_elsewhere(element: Candidates, compiler: SQLCompiler) -> bool:
    """Whether the table can be one of another file than main, which has the index: then all its rows are compared.

    A compiled statement serves other translations of schemas too, so that the names are what matters.
    """
    translated = compiler.schema_translate_map or ()
    schemas = {column.table.schema for column in element.parts[0].base_columns if isinstance(column.table, Table)}
    return bool(translated) and (None in translated or schemas != {None})
