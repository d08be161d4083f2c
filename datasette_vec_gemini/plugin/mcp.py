"""The tools of `mcp_server` at datasette-mcp's `/-/mcp`, for the actor of each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from datasette import Request
from datasette.app import Datasette
from datasette.database import Database
from mcp.server.mcpserver import Context, MCPServer

from mcp_server.catching_up import Refused, catch_up
from mcp_server.library import Found, Shelf, Tell, found
from mcp_server.lookup import find_shelf
from mcp_server.server import register_resource, register_tools

from .. import embedders
from ..connection import connect
from ..domain import Index, Query
from ..driver import sqlite3
from ..store import registry
from ..syncing import Stop
from . import compat, finding, limits, ownership, permissions, site
from .compat import Actor
from .declared import obstacle

T = TypeVar("T")


def register(datasette: Datasette, server: MCPServer[Any]) -> None:
    """Put the tools on Datasette's server; each call sees what its actor may."""

    def library_of(ctx: Context[Any]) -> SiteLibrary:
        return SiteLibrary(datasette, _request(ctx))

    # Which models the databases have is not known yet, and they may be made anew: texts may go to a service.
    register_tools(server, library_of, writes=True, is_remote=True)
    register_resource(server, library_of)


class SiteLibrary:
    """The indexes of all databases, called `database/index`, as the actor of a request may use them."""

    def __init__(self, datasette: Datasette, request: Request) -> None:
        self._datasette = datasette
        self._request = request

    @property
    def _actor(self) -> Actor:
        actor: Actor = self._request.scope.get("actor")
        return actor

    @property
    def caller(self) -> str | None:
        """The id of the actor."""
        return str(self._actor["id"]) if self._actor and self._actor.get("id") is not None else None

    async def shelves(self) -> Sequence[Shelf]:
        """Those that the actor may search: others are as if they were not there."""
        shelves = []
        for name, db in self._datasette.databases.items():
            try:
                indexes: list[Index] = await db.execute_fn(registry.indexes)
            except ownership.UNREADABLE:
                continue
            for index in indexes:
                if await permissions.may_search(self._datasette, self._actor, name, index):
                    about = f"{', '.join(index.columns)} of table {index.table} in database {name}"
                    shelves.append(Shelf(name=f"{name}/{index.name}", index=index, description=about, database=name))
        return shelves

    async def search(self, name: str | None, query: Query, tell: Tell) -> Found:  # noqa: ARG002 - no progress here
        """As the search page does, through its gate."""
        shelf = await find_shelf(self, name)
        if _is_foreign(self._request) and query.mode != "keyword":
            raise Refused("another web page made the browser ask this: only mode keyword is answered then")
        db = self._database(shelf)
        asked, notes = await finding.embedded(self._datasette, self._request, db, shelf.index, query)
        return await self.read(shelf, partial(found, shelf=shelf, query=asked, notes=notes))

    async def read(self, shelf: Shelf, work: Callable[[sqlite3.Connection], T]) -> T:
        """On one of Datasette's SQL threads, within its time limit."""
        return await limits.limited(self._datasette, self._database(shelf), work)

    async def write(self, shelf: Shelf, work: Callable[[sqlite3.Connection], T]) -> T:
        """On Datasette's one thread that writes, for actors with vec-add."""
        db = self._database(shelf)
        if not await permissions.may_add(self._datasette, self._actor, shelf.database, shelf.index):
            raise Refused(f"nothing can be added to or deleted from index {shelf.name} by you: it needs vec-add")
        if _is_foreign(self._request):
            raise Refused("another web page made the browser ask this: nothing is written then")
        if reason := obstacle(db):
            raise Refused(f"index {shelf.name} cannot be written to: {reason}")
        return await compat.written(db, partial(_with_foreign_keys, work))

    async def sync(self, shelf: Shelf, tell: Tell) -> list[str]:
        """On a connection of its own: a model must not hold the thread that writes."""
        own, db, stop = site.of(self._datasette), self._database(shelf), Stop()
        if own.fault:
            raise own.fault

        def work() -> list[str]:
            model = embedders.load(shelf.index.embedder, own.access)
            with closing(connect(str(db.path))) as conn:
                return catch_up(conn, shelf.index, model=model, tell=tell, stop=stop)

        try:
            return await asyncio.get_running_loop().run_in_executor(own.threads, work)
        except asyncio.CancelledError:
            stop.request(Refused("the call was cancelled"))
            raise

    def _database(self, shelf: Shelf) -> Database:
        return self._datasette.databases[shelf.database]


def _with_foreign_keys(work: Callable[[sqlite3.Connection], T], conn: sqlite3.Connection) -> T:
    """What the constraints of a table refuse is refused, those included that Datasette leaves switched off."""
    (before,) = conn.execute("pragma foreign_keys").fetchone()
    conn.execute("pragma foreign_keys = 1")
    try:
        return work(conn)
    finally:
        conn.execute(f"pragma foreign_keys = {before}")


def _request(ctx: Context[Any]) -> Request:
    """The request of the client, with the actor that Datasette has found."""
    scope = getattr(ctx.request_context.request, "scope", None)
    return Request(scope if isinstance(scope, dict) else {"type": "http", "headers": []}, None)


def _is_foreign(request: Request) -> bool:
    """Whether a browser sent this for a page of somebody else: datasette-mcp lets such requests pass on Datasette 0.65.

    Judged by the request itself: a session's calls run in a task that its first request began.
    """
    headers = {name.lower(): value for name, value in request.scope["headers"]}
    if fetched := headers.get(b"sec-fetch-site"):
        return fetched not in {b"same-origin", b"none"}
    origin = headers.get(b"origin", b"").partition(b"://")[2]
    return b"origin" in headers and origin.lower() != headers.get(b"host", b"").lower()
