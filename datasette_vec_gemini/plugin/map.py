"""The map of an index: its documents as points, the question as a star among them, and a list of the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from datasette import Request, Response
from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import add_cors_headers

from .. import mapping
from ..domain import Index
from ..driver import sqlite3
from ..errors import InvalidQuery, VecError
from ..keys import Key, key_to_json, key_to_path
from ..mapping import plotting
from ..mapping.palette import Category
from ..mapping.plotting import Picture, Point
from ..store import picture as stored
from ..store.picture import Axes
from ..store.transactions import mapped_errors, snapshot
from . import page, site, views
from .answers import Answer
from .drawing import Spot, draw, shape
from .finding import coverage, current, find
from .limits import limited

MAP_ROUTE = r"/(?P<database>[^/.]+)/-/vec/(?P<index>[^/.]+)/map(\.(?P<format>json))?$"
DRAWN = 1_200
"""Points in the page itself; its script fetches the others."""
PATIENCE = 0.6
"""The share of Datasette's time limit for SQL in which points are read; on a busy machine the picture has fewer."""
LISTED = 50
MAX_LISTED = 1_000

_EXACT_INTEGERS = 2**53
"""Up to here a script reads a number of JSON as what it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What of the map is asked for, beyond a question, by the parameters `pairs`; it is read for so many `seconds`."""

    pairs: page.Pairs
    filters: Mapping[str, object]
    color: str | None
    size: int = LISTED
    offset: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """The map as it was read; `spots` are the places of hits. Without `axes` there is no map, and nothing on it.

    `is_taken` says that there can be none, because something else has the name of one of its tables.
    """

    columns: Sequence[str] = ()
    axes: Axes | None = None
    is_taken: bool = False
    picture: Picture
    spots: Mapping[Key, Spot]
    star: Spot | None = None


async def map_page(datasette: Datasette, request: Request) -> Response:
    """Answer `?q=…&mode=…&_color=…&_size=…&_next=…` and filters; who may see it is decided as on the search page."""
    db, index = await views.visible_index(datasette, request)
    pairs = parse_qsl(request.query_string, keep_blank_values=True)
    settings, turns = views.read_settings(datasette, db.name, index.table), site.of(datasette).searching
    error, status = "", 200
    answer, sheet, body = Answer(index=index, mode=settings.mode), Sheet(picture=Picture(), spots={}), ""
    wanted = Wanted(pairs=pairs, filters={}, color=None)
    try:
        wanted = replace(
            _wanted(request, pairs, index), seconds=PATIENCE * datasette.setting("sql_time_limit_ms") / 1000
        )
        if query := views.read_query(request, pairs, settings):
            answer = await find(datasette, request, db, index, query)
        else:
            answer = replace(answer, coverage=await coverage(datasette, db, index))
        if request.url_vars["format"]:
            # Written there too: 50,000 points would hold up everybody else's requests.
            body = await limited(datasette, db, partial(_body, datasette, db, answer, wanted), turns=turns)
        else:
            drawn = partial(_sheet, answer, wanted, limit=DRAWN, listing=True)
            sheet = await limited(datasette, db, drawn, turns=turns)
    except VecError as raised:
        error, status = str(raised), views.status_of(raised)
    if request.url_vars["format"]:
        failed = views.failure(error, status, "json")
        response = failed if error else Response(body, content_type="application/json; charset=utf-8")
        if datasette.cors:
            add_cors_headers(response.headers)
    else:
        context = page.common(datasette, db.name, answer, pairs, suffix="/map")
        url = partial(page.index_url, datasette, db.name, index, suffix="/map")
        context |= _context(answer, sheet, wanted, url, partial(page.row_url, datasette, db.name, index))
        context |= {
            "error": error,
            "mode": request.args.get("mode") or settings.mode,
            "map_notices": _notices(db, answer, sheet),
        }
        html = await datasette.render_template("vec_map.html", context, request=request)
        response = Response.html(html, status=status)
    response.headers["x-robots-tag"] = "noindex"
    return response


def _wanted(request: Request, pairs: page.Pairs, index: Index) -> Wanted:
    """Raises InvalidQuery, InvalidFilter."""
    chosen = request.args.get("_color")
    size, offset = views.read_integer(request, "_size", LISTED), views.read_integer(request, "_next", 0)
    if not 1 <= size <= MAX_LISTED or not 0 <= offset <= mapping.MAX_POINTS:
        raise InvalidQuery(
            f"_size can be 1 to {MAX_LISTED:,} and _next 0 to {mapping.MAX_POINTS:,}; these are {size:,} and {offset:,}"
        )
    return Wanted(
        pairs=pairs,
        filters=views.read_filters(pairs),
        color=next(iter(index.filter_columns), None) if chosen is None else chosen or None,
        size=size,
        offset=offset,
    )


def _sheet(answer: Answer, wanted: Wanted, conn: sqlite3.Connection, *, limit: int, listing: bool) -> Sheet:
    with mapped_errors(), snapshot(conn):
        index = current(conn, answer.index)
        columns, axes = plotting.columns(conn, index), stored.axes(conn, index)
        if axes is None:
            return Sheet(columns=columns, is_taken=stored.is_taken(conn, index), picture=Picture(), spots={})
        across = range(wanted.offset, wanted.offset + wanted.size) if listing and not answer.query else range(0)
        hits = answer.hits or answer.nearest.hits
        vector = answer.query.vector if answer.query and index.fingerprint == answer.index.fingerprint else None
        return Sheet(
            columns=columns,
            axes=axes,
            picture=plotting.map_points(
                conn,
                index,
                filters=wanted.filters,
                color=wanted.color,
                limit=limit,
                seconds=wanted.seconds,
                across=across,
            ),
            spots=mapping.positions(conn, index, axes, [hit.key for hit in hits]),
            star=None if vector is None else mapping.project(axes, vector),
        )


def _numbers(answer: Answer) -> dict[Key, int]:
    """The number in the list of each hit; a near-duplicate has that of the hit that it is folded under."""
    found, numbers = answer.found if answer.hits else answer.nearest, dict[Key, int]()
    first = answer.query.offset + 1 if answer.query else 1
    for hit in found.hits:
        original = found.duplicate_of.get(hit.key)
        numbers[hit.key] = numbers[original] if original else first + len(set(numbers.values()))
    return numbers


def _body(datasette: Datasette, db: Database, answer: Answer, wanted: Wanted, conn: sqlite3.Connection) -> str:
    """The JSON twin."""
    index, sheet = answer.index, _sheet(answer, wanted, conn, limit=mapping.MAX_POINTS, listing=False)
    axes, numbers = sheet.axes, _numbers(answer)
    colored = {
        "column": sheet.picture.color,
        "values": [{"label": c.label, "count": c.count, "filters": c.filters} for c in sheet.picture.categories],
    }
    body = {
        "ok": True,
        "index": index.name,
        "variance": axes and [round(part, 4) for part in axes.variance],
        "documents": axes.documents if axes else 0,
        "count": sheet.picture.count,
        "shown": len(sheet.picture.points),
        "sampled": axes is not None and (axes.share < 1 or len(sheet.picture.points) < sheet.picture.count),
        "columns": sheet.columns,
        "color": colored if sheet.picture.color else None,
        "row_url": None if index.is_view else f"{datasette.urls.table(db.name, index.table)}/",
        "points": [_point(datasette, db.name, index, point) for point in sheet.picture.points],
        "query": sheet.star and _rounded(sheet.star),
        "hits": [
            hit.to_dict() | {"number": numbers[hit.key]} | _rounded(sheet.spots.get(hit.key, (None, None)))
            for hit in answer.hits or answer.nearest.hits
        ],
        "pending": answer.pending,
        "notices": [*answer.notices, *_notices(db, answer, sheet)],
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _rounded(spot: tuple[float | None, float | None]) -> dict[str, float | None]:
    return dict(zip("xy", (None if part is None else round(part, 4) for part in spot), strict=True))


def _point(datasette: Datasette, database: str, index: Index, point: Point) -> list[object]:
    """`[x, y, category, key, title]`, and the key's path where it is not what a script makes of the key itself."""
    parts: list[object] = [round(point.x, 4), round(point.y, 4), point.category, key_to_json(point.key), point.title]
    is_plain = all(
        bool(part) if isinstance(part, str) else type(part) is int and abs(part) < _EXACT_INTEGERS for part in point.key
    )
    if not is_plain or (index.has_rowid_key and index.key[0].name != "rowid"):
        parts.append(page.row_url(datasette, database, index, point.key) and key_to_path(point.key))
    return parts


def _notices(db: Database, answer: Answer, sheet: Sheet) -> list[str]:
    if sheet.axes is None:
        verb = "rebuild" if sheet.is_taken else "sync"
        command = shlex.join(["datasette", "vec", verb, Path(db.path or "DB").name, answer.index.name])
        if sheet.is_taken:
            return [
                f"There is no map: a name that it needs is taken in this database; a rebuild takes others: {command}"
            ]
        return [f"There is no map yet; a sync draws it: {command}"]
    if answer.query and sheet.star is None:
        return ["The question has no star: that is where its meaning lies, and it was searched by words"]
    return []


def _context(
    answer: Answer,
    sheet: Sheet,
    wanted: Wanted,
    url: Callable[[page.Pairs], str],
    row_url: Callable[[Key], str | None],
) -> dict[str, Any]:
    """The variables of `vec_map.html` that no other page has."""
    color, following = sheet.picture.color, wanted.offset + wanted.size
    kept = [pair for pair in wanted.pairs if pair[0] != "_next"]
    rings: dict[int, Spot] = {}
    for key, number in _numbers(answer).items():
        if key in sheet.spots:
            rings.setdefault(number, sheet.spots[key])
    variables: dict[str, Any] = {
        "map_url": url(()),
        "text": next((value for name, value in kept if name == "q"), ""),
        "chosen": [pair for pair in kept if pair[0] == "_color"],
        "asked": [pair for pair in kept if pair[0] != "_color"],
        "axes": sheet.axes,
        "columns": sheet.columns,
        "color": color,
        "picture": sheet.picture,
        "drawing": draw(sheet.picture.points, rings, sheet.star),
        "legend": [
            (category, shape(number), category.filters and url(_leaving(category, color or "", kept)))
            for number, category in enumerate(sheet.picture.categories)
        ],
        "following_url": None,
    }
    if not answer.query:
        more = following < sheet.picture.count
        variables |= {
            "first": wanted.offset + 1,
            "following_url": url([*kept, ("_next", str(following))]) if more else None,
            "listed": [
                (point, row_url(point.key), sheet.picture.categories[point.category]) for point in sheet.picture.across
            ],
        }
    return variables


def _leaving(category: Category, color: str, kept: page.Pairs) -> page.Pairs:
    """The parameters that leave the rows of one category, in place of other filters of its column."""

    def said(name: str) -> str:
        is_plain = page.is_filter(name) and not (name == color and "__" in name)
        return name if is_plain else f"{name}__exact"

    own = [(said(name), str(value)) for name, value in (category.filters or {}).items()]
    return [*(pair for pair in kept if pair[0] != color and not pair[0].startswith(f"{color}__")), *own]
