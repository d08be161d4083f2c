"""The status of every index that the actor may see, on one page, and its JSON twin."""

from __future__ import annotations

from functools import partial
from typing import Any

from datasette import NotFound, Request, Response
from datasette.app import Datasette
from datasette.database import Database

from ..domain import Index
from ..driver import sqlite3
from ..errors import VecError
from ..store import counting, registry
from ..store import jobs as table
from ..store.jobs import Job
from ..store.transactions import snapshot
from . import page, permissions, site, views
from .declared import obstacle
from .finding import current
from .limits import limited
from .status import job_to_dict

SITE_STATUS_ROUTE = r"/-/vec/status(\.(?P<format>json))?$"


async def site_status_page(datasette: Datasette, request: Request) -> Response:
    """Answer `/-/vec/status`; what the actor may not see is neither listed nor counted."""
    own = site.of(datasette)
    databases, problems = [], []
    for name, db in list(datasette.databases.items()):
        indexes = await views.searchable(datasette, request.actor, name)
        if indexes:
            rows = [await _row(datasette, db, index) for index in indexes]
            databases.append({"database": name, "obstacle": obstacle(db), "indexes": rows})
        for declaration in own.declarations.get(name, ()):
            problem = own.problems.get((name, declaration.name.lower()))
            if problem and await _may_index(datasette, request, db, declaration.table):
                problems.append({"database": name, "index": declaration.name, "problem": problem})
    found = {"databases": databases, "declarations": problems, "interval_seconds": own.sync_seconds}
    if request.url_vars["format"]:
        return Response.json({"ok": True} | found)
    return Response.html(await datasette.render_template("vec_site_status.html", found, request=request))


async def _may_index(datasette: Datasette, request: Request, db: Database, table: str) -> bool:
    """Whether the actor may index a table that may not be there: then, any of its database."""
    is_there = await db.execute_fn(partial(registry.has_table, name=table))
    return await permissions.may_index(datasette, request.actor, db.name, table if is_there else None)


async def _row(datasette: Datasette, db: Database, index: Index) -> dict[str, Any]:
    """An index in figures that are quick to find, and what is done for it."""

    def read(conn: sqlite3.Connection) -> tuple[counting.Coverage, list[Job]]:
        with snapshot(conn):
            return counting.coverage(conn, current(conn, index)), table.of_index(conn, index.name)

    row: dict[str, Any] = {
        "index": index.name,
        "table": index.table,
        "embedder": index.embedder,
        "url": page.index_url(datasette, db.name, index),
        "status_url": page.index_url(datasette, db.name, index, suffix="/status"),
    }
    try:
        coverage, known = await limited(datasette, db, read)
    except (VecError, sqlite3.Error, NotFound):
        return row | {"documents": None, "job": None}
    run = site.of(datasette).jobs.find(db.path, index.name) if db.path else None
    job = run.job if run else next(iter(known), None)
    return row | {
        "documents": coverage.documents,
        "indexed": coverage.indexed,
        "pending": coverage.pending,
        "failed": coverage.failed,
        "job": job and job_to_dict(job, run, with_costs=False),
    }
