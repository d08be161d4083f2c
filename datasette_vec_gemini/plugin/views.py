"""The search page of an index and its JSON twin: read the request, embed, search, answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import cast
from urllib.parse import parse_qsl

from datasette import NotFound, Request, Response
from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import add_cors_headers, sqlite_timelimit, tilde_decode
from datasette.views.base import DatasetteError

from .. import config, embedders
from ..domain import Embedder, Hit, Index, Mode, Query
from ..driver import sqlite3
from ..errors import (
    DatabaseUnavailable,
    EmbedderError,
    GateClosed,
    IndexNotFound,
    InvalidFilter,
    InvalidQuery,
    InvalidSetting,
    TableNotFound,
    UnknownEmbedder,
    UsageError,
    VecError,
)
from ..paid import PaidEmbedder
from ..searching import embed_or_words, search
from ..store import reading, registry
from ..store.transactions import mapped_errors
from ..vectors import Vector
from . import compat, page, site, visitors
from .answers import Answer
from .site import PLUGIN

ROUTE = r"/(?P<database>[^/.]+)/-/vec/(?P<index>[^/.]+)(\.(?P<format>json))?$"

_NOT_FOUND = "There is no such index, or you may not view its table"
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (InvalidSetting, 500),  # it and the next are the site's mistakes, not the visitor's
    (UnknownEmbedder, 503),
    (UsageError, 400),
    (VecError, 503),
)
"""The first class that an error belongs to gives its HTTP status."""
_INTERRUPTED = ("interrupted", "chunks iter error", "SQL logic error", "Could not extract")
"""What SQLite says when a time limit stops it, and sqlite-vec in its place."""


async def search_page(datasette: Datasette, request: Request) -> Response:
    """Answer `?q=…&mode=…&_size=…&_next=…`; every other parameter without a leading underscore is a filter.

    An index whose table the actor may not view is answered exactly as one that does not exist.
    """
    db, index, pending = await visible_index(datasette, request)
    pairs = parse_qsl(request.query_string, keep_blank_values=True)
    settings = config.Settings()
    answer = Answer(index=index, pending=pending, mode=settings.mode)
    error, status = "", 200
    try:
        settings = _settings(datasette, db.name, index.table)
        answer = replace(answer, mode=settings.mode)
        if query := _query(request, pairs, settings):
            answer = await _answer(datasette, request, answer, query, db)
    except VecError as raised:
        error = str(raised)
        status = next(status for kind, status in _STATUSES if isinstance(raised, kind))
    if request.url_vars["format"]:
        headers: dict[str, str] = {}
        if datasette.cors:
            add_cors_headers(headers)
        body = {"ok": False, "error": error, "status": status} if error else answer.to_dict()
        return Response.json(body, status=status, headers=headers)
    context = page.context(datasette, db.name, answer, pairs)
    context |= {"error": error, "mode": request.args.get("mode") or settings.mode}
    return Response.html(await datasette.render_template("vec_search.html", context, request=request), status=status)


async def links(datasette: Datasette, database: str, table: str) -> list[dict[str, str]]:
    """Menu entries of a table or view, one for each of its indexes; none where the registry cannot be read."""
    try:
        found = await datasette.get_database(database).execute_fn(registry.indexes)
    except (VecError, sqlite3.Error):
        return []
    own = [index for index in found if index.table == table]
    return [
        {
            "href": page.index_url(datasette, database, index),
            "label": "Semantic search" if len(own) == 1 else f"Semantic search: {index.name}",
            "description": f"Find rows by meaning and by words in {', '.join(index.columns)}",
        }
        for index in own
    ]


async def visible_index(datasette: Datasette, request: Request) -> tuple[Database, Index, int]:
    """The database, the index, and how many of its rows are pending. Raises NotFound, in one wording for all cases."""

    def read(conn: sqlite3.Connection) -> tuple[Index, int]:
        with mapped_errors():
            index = registry.find(conn, tilde_decode(request.url_vars["index"]))
            if not registry.has_table(conn, index.table):
                raise TableNotFound(index.table)
            return index, reading.count_pending(conn, index)

    try:
        db = datasette.get_database(route=tilde_decode(request.url_vars["database"]))
        index, pending = await db.execute_fn(read)
    except (KeyError, IndexNotFound, TableNotFound):
        raise NotFound(_NOT_FOUND) from None
    except VecError as error:
        raise DatasetteError(str(error), status=503) from error
    if not await compat.may_view(datasette, request.actor, db.name, index.table):
        raise NotFound(_NOT_FOUND)
    return db, index, pending


def _settings(datasette: Datasette, database: str, table: str) -> config.Settings:
    of_database = datasette.plugin_config(PLUGIN, database=database, fallback=False)
    of_table = datasette.plugin_config(PLUGIN, database=database, table=table, fallback=False)
    return config.settings(
        (f"plugins: {PLUGIN}", datasette.plugin_config(PLUGIN)),
        (f"plugins: {PLUGIN} of database {database}", of_database),
        (f"plugins: {PLUGIN} of table {table}", of_table),
    )


def _query(request: Request, pairs: page.Pairs, settings: config.Settings) -> Query | None:
    """What is asked; None where nothing is. Raises InvalidQuery, InvalidFilter."""
    text = request.args.get("q") or ""
    if not text.strip():
        return None
    filters: dict[str, object] = {}
    for name, value in pairs:
        if name in filters:
            raise InvalidFilter(f"filter {name!r} is given twice: for any of several values write COLUMN__in=A,B")
        if page.is_filter(name):
            filters[name] = value
    return Query(
        text,
        k=_integer(request, "_size", settings.page_size),
        mode=cast("Mode", request.args.get("mode") or settings.mode),
        filters=filters,
        offset=_integer(request, "_next", 0),
    )


def _integer(request: Request, name: str, default: int) -> int:
    text = request.args.get(name)
    try:
        return int(text) if text else default
    except ValueError:
        raise InvalidQuery(f"{name} is {text[:40]!r}; it must be a whole number") from None


async def _answer(datasette: Datasette, request: Request, answer: Answer, query: Query, db: Database) -> Answer:
    """Embed on another thread, so that no model holds one of Datasette's few SQL threads, then search on one."""
    started, limit_ms = time.perf_counter(), datasette.setting("sql_time_limit_ms")
    query, notices = await _embedded(datasette, request, db, answer.index, query)

    def read(conn: sqlite3.Connection) -> list[Hit]:
        try:
            with sqlite_timelimit(conn, limit_ms):
                return search(conn, answer.index, query)
        except sqlite3.OperationalError as error:
            if not any(sign in str(error) for sign in _INTERRUPTED):
                raise
            raise DatabaseUnavailable(
                f"the search took too long: Datasette's sql_time_limit_ms is {limit_ms:,}; ask in another mode or with "
                "filters, or let the site raise the limit"
            ) from error

    hits = await db.execute_fn(read)
    took_ms = round((time.perf_counter() - started) * 1000, 1)
    return replace(answer, query=query, mode=query.mode, hits=hits, notices=notices, took_ms=took_ms)


async def _embedded(
    datasette: Datasette, request: Request, db: Database, index: Index, query: Query
) -> tuple[Query, list[str]]:
    """The query with its vector; or for keywords only, where the model cannot help, with the notice why."""
    own = site.of(datasette)
    allowed = query.mode != "keyword" and await visitors.may_embed_async(datasette, request)

    def ask(model: Embedder, text: str) -> Vector:
        if not isinstance(model, PaidEmbedder):
            return model.embed_query(text)
        try:
            seconds = own.ready(model, own.access.query_seconds)
            return own.page_gate.vector(model, text, task="RETRIEVAL_QUERY", timeout_seconds=seconds, allowed=allowed)
        except GateClosed:
            raise  # the visitor is told, and it is nothing that went wrong
        except EmbedderError as error:
            own.gate.note(error)
            raise

    def is_paid() -> bool:
        try:
            return query.mode != "keyword" and isinstance(embedders.load(index.embedder, own.access), PaidEmbedder)
        except VecError:
            return False  # it is raised again below, where it becomes a notice

    threads = own.threads if await asyncio.to_thread(is_paid) else None
    work = partial(embed_or_words, index, query, access=own.access, ledger=site.ledger(db), ask=ask)
    return await asyncio.get_running_loop().run_in_executor(threads, work)
