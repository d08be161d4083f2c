"""The status page of an index and its JSON twin; those who may spend also see what was spent and what failed."""

from __future__ import annotations

from typing import Any

from datasette import Request, Response
from datasette.app import Datasette
from datasette.database import Database

from .. import checking
from ..account import today
from ..budget import SEARCH_DAILY_USD
from ..driver import sqlite3
from ..errors import VecError
from ..store import usage
from . import page, site, views, visitors

STATUS_ROUTE = r"/(?P<database>[^/.]+)/-/vec/(?P<index>[^/.]+)/status(\.(?P<format>json))?$"


async def status_page(datasette: Datasette, request: Request) -> Response:
    """Answer `/<database>/-/vec/<index>/status`; like the search page, only who may view the table sees it."""
    db, index, _ = await views.visible_index(datasette, request)
    try:
        found = (await db.execute_fn(lambda conn: checking.status(conn, index))).to_dict()
    except VecError as error:
        return Response.json({"ok": False, "error": str(error), "status": 503}, status=503)
    found["spending"] = await _spending(datasette, db) if await visitors.may_embed_async(datasette, request) else None
    if request.url_vars["format"]:
        return Response.json({"ok": True} | found)
    context = {
        "database": db.name,
        "index": index,
        "status": found,
        "search_url": page.index_url(datasette, db.name, index),
    }
    return Response.html(await datasette.render_template("vec_status.html", context, request=request))


async def _spending(datasette: Datasette, db: Database) -> dict[str, Any]:
    """What this key and this database's ledger say of today, and the last errors that SQL could not show."""

    def read(conn: sqlite3.Connection) -> dict[str, usage.Usage]:
        return usage.of_day(conn, today())

    own = site.of(datasette)
    rows = await db.execute_fn(read)
    return {
        "day": today(),
        "key": own.access.key_source,
        "daily_usd": SEARCH_DAILY_USD if own.access.daily_usd is None else own.access.daily_usd,
        "sql_embedding": own.gate.mode,
        "elsewhere": visitors.of(datasette).elsewhere,
        "used": [
            {"model": model, "requests": u.requests, "texts": u.texts, "tokens": u.tokens, "usd": u.usd}
            for model, u in rows.items()
        ],
        "errors": [{"at": at, "error": error} for at, error in list(own.gate.errors)[::-1]],
    }
