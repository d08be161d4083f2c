"""Conditions of a search, as programs give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnClause, TextClause
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql import coercions, roles, visitors
from sqlalchemy.sql.elements import ClauseElement

from ..errors import InvalidQuery, shown

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnExpressionArgument

    Conditions = Iterable[ColumnExpressionArgument[bool]] | ColumnExpressionArgument[bool] | None

_SELECTED_BY_EXISTS = {"1", "*"}


def as_conditions(where: Any) -> list[Any]:
    """Those given: several, one by itself, or None for none. Raises InvalidQuery for what is no condition."""
    if where is None:
        return []
    # Some of SQLAlchemy's own can be walked through as well: or_() has parts that need not hold together.
    is_one = isinstance(where, str | bytes | Mapping | ClauseElement) or hasattr(where, "__clause_element__")
    return [_condition(each) for each in (where if isinstance(where, Iterable) and not is_one else [where])]


def _condition(value: Any) -> Any:
    try:
        if value is not None:  # which SQLAlchemy takes for one that is never true
            return coercions.expect(roles.WhereHavingRole, value)
    except ArgumentError:
        pass
    raise InvalidQuery(f"{shown(value)} is no condition: give such as [Document.category == 'poem']")


def has_text(condition: ClauseElement) -> bool:
    """Whether a condition holds SQL as text, which may name any column of any table."""
    return any(
        isinstance(each, TextClause)
        or (isinstance(each, ColumnClause) and each.table is None and each.name not in _SELECTED_BY_EXISTS)
        for each in visitors.iterate(condition)
    )
