"""The pages on which a table is indexed: choose it, choose columns and a model, see what that costs, and start.

Everything up to the start is a GET with its choices in the address, writes nothing and asks no service.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

from datasette import NotFound, Request, Response
from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import tilde_decode, tilde_encode
from datasette.views.base import DatasetteError

from .. import embedders
from ..budget import PRICES
from ..connection import connect
from ..domain import QUANTIZERS
from ..driver import sqlite3
from ..errors import InvalidSetting, UsageError, VecError
from ..estimating import Preview, preview
from ..indexing import create_index, plan_index
from ..paid import PaidEmbedder
from ..store import registry
from ..store.transactions import mapped_errors
from . import forms, page, permissions, site
from .choices import Choices, Column, describe, suggest
from .declared import obstacle
from .limits import limited

INDEX_ROUTE = r"/(?P<database>[^/.]+)/-/vec-index(/(?P<table>[^/.]+))?(\.(?P<format>json))?$"
_NOT_FOUND = "There is no such table, or you may not index it"
_SHOWN = 600


def url(datasette: Datasette, database: str, table: str | None = None) -> str:
    """The address of the page for a table, or of the one to choose it."""
    path = f"{datasette.urls.database(database)}/-/vec-index"
    return f"{path}/{tilde_encode(table)}" if table is not None else path


async def links(datasette: Datasette, actor: Any, database: str, table: str | None) -> list[dict[str, str]]:
    """The menu entry that leads here; none for those who may not index."""
    if not await permissions.may_index(datasette, actor, database, table):
        return []
    what = "Index this table by meaning" if table is not None else "Index a table by meaning"
    return [
        {
            "href": url(datasette, database, table),
            "label": what,
            "description": "Choose columns and a model, and see what it costs before it starts",
        }
    ]


async def index_page(datasette: Datasette, request: Request) -> Response:
    """Answer `/<database>/-/vec-index` and `/<database>/-/vec-index/<table>`; a POST makes the index.

    Who may not index is answered as if the table did not exist.
    """
    name = request.url_vars["table"]
    table = None if name is None else tilde_decode(name)
    try:
        db = datasette.get_database(route=tilde_decode(request.url_vars["database"]))
    except KeyError:
        raise NotFound(_NOT_FOUND) from None
    if not await permissions.may_index(datasette, request.actor, db.name, table):
        raise NotFound(_NOT_FOUND)
    if table is None:
        return await _choose_table(datasette, request, db)
    return await _index_table(datasette, request, db, table)


async def _choose_table(datasette: Datasette, request: Request, db: Database) -> Response:
    """The tables and views that the actor may index, but for hidden ones."""
    hidden = set(await db.hidden_table_names())
    names = [name for name in [*await db.table_names(), *await db.view_names()] if name not in hidden]
    allowed = [name for name in names if await permissions.may_index(datasette, request.actor, db.name, name)]
    found = await db.execute_fn(registry.indexes)
    tables = [
        {
            "table": name,
            "url": url(datasette, db.name, name),
            "indexes": [
                {"index": index.name, "url": page.index_url(datasette, db.name, index)}
                for index in found
                if index.table == name
            ],
        }
        for name in allowed
    ]
    context = {"database": db.name, "tables": tables, "obstacle": obstacle(db)}
    if request.url_vars["format"]:
        return Response.json({"ok": True} | context)
    return Response.html(await datasette.render_template("vec_tables.html", context, request=request))


async def _index_table(datasette: Datasette, request: Request, db: Database, table: str) -> Response:
    own = site.of(datasette)
    posted = await forms.read(request) if request.method == "POST" else None
    pairs = parse_qsl(request.query_string, keep_blank_values=True) if posted is None else posted
    found: Preview | None = None
    error, status, max_usd = "", 200, None
    try:
        described, columns = await limited(datasette, db, partial(describe, name=table))
    except VecError as raised:
        raise DatasetteError(str(raised), status=forms.status_of(raised)) from None
    except sqlite3.OperationalError as raised:  # a view may be broken in any way
        raise DatasetteError(f"{table!r} cannot be read: {raised}", status=400) from None
    choices = Choices.read(pairs, described, columns)
    try:
        if posted is not None or choices.is_made:
            if reason := obstacle(db):
                raise UsageError(reason)
            choices.check()
            if posted is not None:
                max_usd = forms.budget(pairs)
                made = await asyncio.to_thread(_make, own, db, choices, max_usd)
                return Response.redirect(page.index_url(datasette, db.name, made, suffix="/status"), status=303)
            found = await asyncio.to_thread(_preview, own, db, choices)
    except VecError as raised:
        error, status = str(raised), forms.status_of(raised)
        if posted is not None and choices.is_made:
            found = await _previewed(own, db, choices)
    return await _respond(datasette, request, db, choices, columns, found=found, error=error, status=status)


async def _previewed(own: site.Site, db: Database, choices: Choices) -> Preview | None:
    """The estimate beside what was wrong with a form; none where that is what is wrong."""
    try:
        return await asyncio.to_thread(_preview, own, db, choices)
    except VecError:
        return None


def _preview(own: site.Site, db: Database, choices: Choices) -> Preview:
    """What the choices would cost. Raises VecError where the index cannot be made."""
    model = embedders.load(choices.embedder, own.access)
    with closing(connect(db.path, read_only=True, require_vec=False)) as conn, mapped_errors():
        index = plan_index(conn, embedder=model, **choices.arguments())
        if registry.generations(conn, index.name):
            raise UsageError(f"the database has an index {index.name!r} already: choose another name")
        return preview(conn, index, model)


def _make(own: site.Site, db: Database, choices: Choices, max_usd: float | None) -> Any:
    """Make the index and start its first sync. Raises VecError, and nothing is made then."""
    model = embedders.load(choices.embedder, own.access)
    if isinstance(model, PaidEmbedder):
        model.require_key()
        if max_usd is None:
            raise InvalidSetting(f"{model.name} costs money: say how many dollars this may cost at most")
    with closing(connect(db.path)) as conn:
        index = create_index(conn, embedder=model, **choices.arguments())
    own.jobs.start(db.path, index.name, "sync", own.access, max_usd=max_usd)
    return index


async def _respond(
    datasette: Datasette,
    request: Request,
    db: Database,
    choices: Choices,
    columns: list[Column],
    *,
    found: Preview | None,
    error: str,
    status: int,
) -> Response:
    own = site.of(datasette)
    cost = found and found.estimate.to_dict() | {
        "is_exact": found.is_exact,
        "table_rows": found.table_rows,
        "read": found.read,
        "first": found.first[:_SHOWN],
    }
    if request.url_vars["format"]:
        if error:
            return Response.json({"ok": False, "error": error, "status": status}, status=status)
        body = {"ok": True, "database": db.name, **choices.to_dict(), "estimate": cost}
        return Response.json(body | {"available": [asdict(column) for column in columns]})
    context = {
        "database": db.name,
        "table": choices.table,
        "choices": choices,
        "columns": columns,
        "estimate": cost,
        "is_paid": own.is_paid(choices.embedder),
        "has_key": bool(own.access.api_key or own.access.project),
        "models": list(PRICES),
        "others": sorted(set(embedders.factories()) - {"local", "hashing", "gemini", "google-generativeai"}),
        "quantizers": QUANTIZERS,
        "obstacle": obstacle(db),
        "error": error,
        "max_usd": forms.field(choices.pairs, "max_usd") or (cost and suggest(cost["usd"])),
        "url": url(datasette, db.name, choices.table),
        "json_url": f"{url(datasette, db.name, choices.table)}.json?{urlencode(choices.kept())}",
    }
    return Response.html(await datasette.render_template("vec_index.html", context, request=request), status=status)
