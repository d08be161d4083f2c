"""The search page of an index and its twins in JSON and CSV: read the request, find, answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast
from urllib.parse import parse_qsl

from datasette import NotFound, Request, Response
from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import add_cors_headers, tilde_decode
from datasette.views.base import DatasetteError

from .. import config
from ..domain import Index, Mode, Query
from ..driver import sqlite3
from ..errors import (
    DocumentNotFound,
    IndexNotFound,
    InvalidFilter,
    InvalidQuery,
    InvalidSetting,
    UnknownEmbedder,
    UsageError,
    VecError,
)
from ..store import registry
from ..store.transactions import mapped_errors
from . import compat, ownership, page, permissions, site
from .answers import Answer
from .export import csv_response
from .finding import NOT_FOUND, coverage, find
from .sentences import NONE, Spans
from .statement import statement

ROUTE = r"/(?P<database>[^/.]+)/-/vec/(?P<index>[^/.]+)(\.(?P<format>json|csv))?$"
MAX_FILTERS = 50

_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (InvalidSetting, 500),  # it and UnknownEmbedder are the site's mistakes, not the visitor's
    (UnknownEmbedder, 503),
    (DocumentNotFound, 404),
    (UsageError, 400),
    (VecError, 503),
)
"""The first class that an error belongs to gives its HTTP status."""


async def search_page(datasette: Datasette, request: Request) -> Response:
    """Answer `?q=…&mode=…&_size=…&_next=…&_facet=…`; other parameters are filters, if they have no leading underscore.

    An index whose table the actor may not view is answered exactly as one that does not exist.
    """
    db, index = await visible_index(datasette, request)
    pairs = parse_qsl(request.query_string, keep_blank_values=True)
    settings = read_settings(datasette, db.name, index.table)
    error, status, sql_url, nearest = "", 200, None, NONE
    answer = Answer(index=index, mode=settings.mode)
    try:
        answer = replace(answer, coverage=await coverage(datasette, db, index))
        if query := read_query(request, pairs, settings):
            answer = await find(datasette, request, db, index, query, facets=request.args.getlist("_facet"))
            nearest = await nearest_sentences(datasette, request, answer, is_busy=site.of(datasette).is_busy)
            if await compat.may_run_sql(datasette, request.actor, db.name):
                sql_url = compat.sql_url(datasette, db.name, statement(index, answer.query or query))
    except VecError as raised:
        error, status = str(raised), status_of(raised)
    context = page.common(datasette, db.name, answer, pairs, columns=settings.columns_shown, nearest=nearest) | {
        "text": next((value for name, value in pairs if name == "q"), ""),
        "mode": request.args.get("mode") or settings.mode,
        "sql_url": sql_url,
        "map_url": page.index_url(
            datasette,
            db.name,
            index,
            [pair for pair in pairs if pair[0] in page.RESERVED or page.is_filter(pair[0])],
            suffix="/map",
        ),
    }
    return await respond(datasette, request, "vec_search.html", context, error=error, status=status)


async def nearest_sentences(datasette: Datasette, request: Request, answer: Answer, *, is_busy: bool) -> Spans:
    """Where the sentences that are nearest in meaning stand; its twins in JSON and CSV have none."""
    own = site.of(datasette)
    if request.url_vars["format"] or answer.query is None:
        return NONE
    return await own.sentences.nearest(answer.index, answer.query, answer.found, own.access, is_busy=is_busy)


async def respond(
    datasette: Datasette, request: Request, template: str, context: Mapping[str, Any], *, error: str, status: int
) -> Response:
    """The page, or the twin that the address asks for; robots need not keep any of them."""
    answer: Answer = context["answer"]
    form = request.url_vars["format"]
    if error and form:
        response = failure(error, status, form)
    elif form == "json":
        response = Response.json(answer.to_dict() | {"facets": context["facets"]})
    elif form == "csv":
        response = csv_response(datasette, request, context["database"], answer)
    else:
        rendered = await datasette.render_template(template, {**context, "error": error}, request=request)
        response = Response.html(rendered, status=status)
    response.headers["x-robots-tag"] = "noindex"
    if form and datasette.cors:
        add_cors_headers(response.headers)
    return response


def failure(error: str, status: int, form: str) -> Response:
    """An error in place of JSON, or in plain words in place of CSV."""
    if form == "csv":
        return Response.text(error, status=status)
    return Response.json({"ok": False, "error": error, "status": status}, status=status)


def status_of(error: VecError) -> int:
    """The HTTP status of an error."""
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


async def visible_index(datasette: Datasette, request: Request) -> tuple[Database, Index]:
    """The database and the index that are asked for. Raises NotFound, in one wording for all cases."""

    def read(conn: sqlite3.Connection) -> Index:
        with mapped_errors():
            return registry.find(conn, tilde_decode(request.url_vars["index"]))

    try:
        db = datasette.get_database(route=tilde_decode(request.url_vars["database"]))
        index = await db.execute_fn(read)
    except (KeyError, IndexNotFound):
        raise NotFound(NOT_FOUND) from None
    except VecError as error:
        raise DatasetteError(str(error), status=503) from error
    if not await permissions.may_search(datasette, request.actor, db.name, index):
        raise NotFound(NOT_FOUND)
    return db, index


async def searchable(datasette: Datasette, actor: compat.Actor, database: str) -> list[Index]:
    """The indexes of a database that an actor may search; none where the registry cannot be read."""
    try:
        found = await datasette.get_database(database).execute_fn(registry.indexes)
        return [index for index in found if await permissions.may_search(datasette, actor, database, index)]
    except ownership.UNREADABLE:
        return []


def read_settings(datasette: Datasette, database: str, table: str) -> config.Settings:
    """The settings for one table, of the instance, its database and itself."""
    return site.of(datasette).settings_of(database, table)


def read_query(request: Request, pairs: page.Pairs, settings: config.Settings) -> Query | None:
    """What is asked; None where nothing is. Raises InvalidQuery, InvalidFilter."""
    text = request.args.get("q") or ""
    if not text.strip():
        return None
    return Query(
        text,
        k=read_integer(request, "_size", settings.page_size, least=1),
        mode=cast("Mode", request.args.get("mode") or settings.mode),
        filters=read_filters(pairs),
        offset=read_integer(request, "_next", 0),
    )


def read_filters(pairs: page.Pairs, reserved: frozenset[str] = page.RESERVED) -> dict[str, object]:
    """The parameters that filter. Raises InvalidFilter."""
    filters: dict[str, object] = {}
    for name, value in pairs:
        if name in filters:
            raise InvalidFilter(f"filter {name!r} is given twice: for any of several values write COLUMN__in=A,B")
        if page.is_filter(name, reserved):
            filters[name] = value
    if len(filters) > MAX_FILTERS:
        raise InvalidFilter(f"there are {len(filters):,} filters; {MAX_FILTERS} can be used at once")
    return filters


def read_integer(request: Request, name: str, default: int, *, least: int = 0) -> int:
    """A parameter that is a whole number. Raises InvalidQuery."""
    text = request.args.get(name)
    if text and not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise InvalidQuery(f"{name} is {text[:40]!r}; it must be a whole number of at most nine digits")
    if text and int(text) < least:
        raise InvalidQuery(f"{name} is {int(text)}; it can be {least} or more")
    return int(text) if text else default
