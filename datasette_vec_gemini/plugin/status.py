"""The status page of an index and its JSON twin; those who may index also steer its jobs there.

Those who may spend also see what was spent and what failed.
"""

from __future__ import annotations

import re
from typing import Any

from datasette import NotFound, Request, Response
from datasette.app import Datasette
from datasette.database import Database

from .. import checking
from ..account import today
from ..budget import SEARCH_DAILY_USD
from ..domain import Index
from ..driver import sqlite3
from ..errors import VecError
from ..store import counting, registry, usage
from ..store import jobs as table
from ..store.counting import FAILED, PENDING
from ..store.jobs import Job
from ..store.transactions import mapped_errors, snapshot
from . import everywhere, forms, page, permissions, site, steering, views, visitors
from .declared import obstacle
from .finding import NOT_FOUND, current
from .limits import limited
from .running import Run

STATUS_ROUTE = r"/(?P<database>[^/.]+)/-/vec/(?P<index>[^/.]+)/status(\.(?P<format>json))?$"

_DOLLARS = re.compile(r"\$\d[\d,.]*(?<=\d)")


async def status_page(datasette: Datasette, request: Request) -> Response:
    """Answer `/<database>/-/vec/<index>/status`; a POST with `action` does what `steering` says."""
    db, index = await views.visible_index(datasette, request)
    may_index = await permissions.may_index(datasette, request.actor, db.name, index.table)
    error, status = "", 200
    if request.method == "POST":
        if not may_index:
            raise NotFound(NOT_FOUND)
        try:
            gone = await steering.act(site.of(datasette), db, index, await forms.read(request))
            if gone:
                datasette.add_message(request, gone)
                return Response.redirect(everywhere.url(datasette, db.name), status=303)
            return Response.redirect(page.index_url(datasette, db.name, index, suffix="/status"), status=303)
        except VecError as raised:
            error, status = str(raised), forms.status_of(raised)
    found, failed = None, ""
    try:
        found = await _found(datasette, request, db, index, may_index=may_index)
    except VecError as raised:
        failed = str(raised)
    except sqlite3.OperationalError as raised:  # a view may be broken in any way
        failed = f"{index.table!r} cannot be read: {raised}"
    if request.url_vars["format"]:
        return views.failure(failed, 503, "json") if found is None else Response.json({"ok": True} | found)
    if failed and not error:
        error, status = failed, 503
    context = {
        "database": db.name,
        "index": index,
        "status": found,
        "may_index": may_index,
        "error": error,
        "search_url": page.index_url(datasette, db.name, index),
        "status_url": page.index_url(datasette, db.name, index, suffix="/status"),
    }
    return Response.html(await datasette.render_template("vec_status.html", context, request=request), status=status)


async def _found(
    datasette: Datasette, request: Request, db: Database, index: Index, *, may_index: bool
) -> dict[str, Any]:
    """What the page and its twin tell."""
    own = site.of(datasette)
    run = own.jobs.find(db.path, index.name) if db.path else None

    def read(conn: sqlite3.Connection) -> tuple[dict[str, Any], list[Job]]:
        with mapped_errors(), snapshot(conn):
            now, begun = current(conn, index), registry.building(conn, index.name)
            found = checking.status(conn, now).to_dict()
            found["chunk_states"] = _chunks(conn, now)
            found["building"] = begun and {
                "generation": begun.generation,
                "embedder": begun.embedder,
                **_chunks(conn, begun),
            }
            return found, table.of_index(conn, index.name)

    found: dict[str, Any]
    found, known = await limited(datasette, db, read, turns=own.lasting, times=10)
    may_embed = await visitors.may_embed_async(datasette, request)
    with_costs = may_index or may_embed
    jobs = [job_to_dict(run.job, run, with_costs=with_costs)] if run else []
    found |= {
        "jobs": jobs
        + [job_to_dict(job, None, with_costs=with_costs) for job in known if not run or job.kind != run.job.kind],
        "write_through": _write_through(own, db, index, known),
        "may_index": may_index,
        "paid": own.is_paid(index.embedder),
        "declaration": own.problems.get((db.name, index.name.lower()), "") if may_index else "",
        "spending": await _spending(datasette, db) if may_embed else None,
    }
    return found


def _chunks(conn: sqlite3.Connection, index: Index) -> dict[str, int]:
    """The chunks of a generation, each in one of three states."""
    chunks, pending, failed = (counting.count_chunks(conn, index, only=only) for only in ("1", PENDING, FAILED))
    return {"chunks": chunks, "embedded": chunks - pending - failed, "pending": pending, "failed": failed}


def job_to_dict(job: Job, run: Run | None, *, with_costs: bool) -> dict[str, Any]:
    """A job as pages tell it; with its rate and the seconds that are left if it is under way here.

    Without `with_costs` no dollars are told, be it in words.
    """
    rate = run.rate() if run else None
    costs = {"max_usd": job.max_usd, "spent_usd": job.spent_usd} if with_costs else {}
    return {
        "kind": job.kind,
        "state": job.state,
        "asked": run.asked if run else job.asked,
        "is_live": run is not None,
        "started": job.started,
        "ended": job.ended,
        "stage": job.stage,
        "done": job.done,
        "total": job.total,
        "per_second": round(rate, 1) if rate else None,
        "seconds_left": round((job.total - job.done) / rate) if rate and job.total else None,
        "message": job.message if with_costs else _DOLLARS.sub("$…", job.message),
        **costs,
    }


def _write_through(own: site.Site, db: Database, index: Index, known: list[Job]) -> dict[str, Any]:
    """Whether changes are indexed by themselves, and if not why."""
    reason = obstacle(db)
    stopped = next((job.state for job in known if job.kind == "sync" and job.state in {"paused", "cancelled"}), "")
    if not reason and stopped:
        reason = f"the sync was {stopped}; when somebody starts it again here, that starts again too"
    if not reason and db.path and own.jobs.has_failed(db.path, index):
        reason = "the last job has failed; they will be when somebody has started a sync here, or the server anew"
    if not reason and not own.sync_seconds:
        reason = "sync_interval_seconds is 0, or this is no server: run a sync here or with `datasette vec sync`"
    if not reason and own.access.daily_usd is None and own.is_paid(index.embedder):
        reason = (
            f"{index.embedder} costs money and no daily_usd is set: words are indexed by themselves, meaning when you "
            "run a sync"
        )
    return {"on": not reason, "reason": reason, "interval_seconds": own.sync_seconds}


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
