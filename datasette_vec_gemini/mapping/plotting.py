"""A map as it is shown: the points of rows that exist now and fulfil filters, with their titles and colours."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..domain import Index
from ..driver import sqlite3
from ..errors import InvalidFilter, shown
from ..keys import Key
from ..schema import source_key
from ..store import picture, source
from ..store.filters import compile_filters
from ..titles import TITLES, title
from . import MAX_POINTS
from .palette import Category, Palette, shortened

_TITLE_CHARACTERS = 60


class Point(NamedTuple):
    """A document on the map; `category` counts the picture's categories from 0."""

    key: Key
    x: float
    y: float
    category: int
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Points of a map, of the `count` rows that fulfil the filters; without a colour all have the one category."""

    points: Sequence[Point] = ()
    count: int = 0
    color: str | None = None
    categories: Sequence[Category] = ()
    across: Sequence[Point] = ()


def columns(conn: sqlite3.Connection, index: Index) -> list[str]:
    """What points can be coloured by: the declared filter columns, then others that are neither key nor indexed."""
    table = source.find(conn, index.table)
    skipped = {*index.columns, *source_key(index)}
    return list(dict.fromkeys([*index.filter_columns, *(name for name in table.columns if name not in skipped)]))


def map_points(
    conn: sqlite3.Connection,
    index: Index,
    *,
    filters: Mapping[str, object] | None = None,
    color: str | None = None,
    limit: int = MAX_POINTS,
    seconds: float = math.inf,
    across: range = range(0),
) -> Picture:
    """Points of rows that exist now and fulfil the filters, in the order of samples: the first are a fair choice.

    Reading them ends at the limit, or after so many seconds with those that there are; counts are of all. `across` asks
    for those in a range of places from left to right besides. The index must have axes. Raises InvalidFilter.
    """
    until = time.monotonic() + seconds
    table = source.find(conn, index.table)
    if color is not None and color not in (offered := columns(conn, index)):
        raise InvalidFilter(f"{shown(color)} is no column to colour by; there are {', '.join(offered) or 'none'}")
    titles = [name for name in table.columns if name.casefold() in TITLES or name in index.columns[:1]]
    drawn = picture.Drawn(condition=compile_filters(conn, index, filters or {}), titles=titles, color=color)
    values = picture.categories(conn, index, drawn)
    palette = Palette(color, values)

    def points(*order: str, limit: int, offset: int = 0) -> list[Point]:
        rows = list[tuple[float, float, object, Key, list[object]]]()
        for batch in picture.points(conn, index, drawn, order=order, limit=limit, offset=offset):
            rows += batch
            if time.monotonic() > until:
                break
        return [
            Point(
                key,
                x,
                y,
                palette.category_of(value),
                shortened(title(index, key, dict(zip(titles, cells, strict=True))), _TITLE_CHARACTERS),
            )
            for x, y, value, key, cells in rows
        ]

    listed = points("x", "y", limit=len(across), offset=across.start) if across else []
    return Picture(
        points=points("sample", limit=limit),
        count=sum(count for _, count in values),
        color=color,
        categories=palette.categories,
        across=listed,
    )
