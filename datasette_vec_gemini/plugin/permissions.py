"""Who may search, index and add, and who may see the tables that an index is made of.

An index tells of the rows of its table, so nobody sees more of it than of that table. Its own tables and view are for
those who may see the table; what tells of every index of a database, such as `_vec_indexes`, is for those who may see
the tables of all of them. Only `execute-sql` goes past this, as it goes past every permission on a table.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from datasette import Forbidden, Request
from datasette.app import Datasette

from ..domain import Index
from ..store import registry
from . import compat, ownership
from .compat import Actor

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
_log = logging.getLogger("datasette_vec_gemini")


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """One of ours. Without a rule in `permissions:` root has it, and `for_everybody` all who may view the table."""

    name: str
    description: str
    of_tables: bool = True
    for_everybody: bool = False


SEARCH = Permission(name="vec-search", description="Search the indexes of a table", for_everybody=True)
INDEX = Permission(name="vec-index", description="Make, change and drop indexes of a table")
ADD = Permission(name="vec-add", description="Add, correct and delete documents of a table through an index")
EMBED = Permission(name="vec-embed", description="Embed new texts with a paid embedder when searching", of_tables=False)
PERMISSIONS = (SEARCH, INDEX, ADD, EMBED)


async def may_search(datasette: Datasette, actor: Actor, database: str, index: Index) -> bool:
    """Whether the actor may search an index, and so whether there is one for them."""
    return await _may(datasette, actor, SEARCH, database, index.table)


async def may_index(datasette: Datasette, actor: Actor, database: str, table: str | None) -> bool:
    """Whether the actor may index a table or view, or with None any at all of the database."""
    if table is not None:
        return await _may(datasette, actor, INDEX, database, table)
    if database not in datasette.databases:
        return False
    found = await compat.tables_permitted(datasette, actor, INDEX.name, database)
    ours = (await ownership.of(datasette.databases[database])).sources
    return any(ownership.fold(name) not in ours for name in found)


async def may_add(datasette: Datasette, actor: Actor, database: str, index: Index) -> bool:
    """Whether the actor may add documents to the table of an index through it."""
    return await _may(datasette, actor, ADD, database, index.table)


async def may_embed(datasette: Datasette, actor: Actor) -> bool:
    """Whether the actor may spend money on new texts."""
    return await compat.permitted(datasette, actor, EMBED.name)


async def _may(datasette: Datasette, actor: Actor, permission: Permission, database: str, table: str) -> bool:
    """Nobody may do anything with a table that is not there; nor index one of ours."""
    db = datasette.databases.get(database)
    if db is None or not await db.execute_fn(lambda conn: registry.has_table(conn, table)):
        return False
    if permission is not SEARCH and ownership.fold(table) in (await ownership.of(db)).sources:
        return False
    default = permission.for_everybody
    return await compat.permitted_on(datasette, actor, permission.name, database, table, default=default)


def actions() -> list[Any]:
    """Our permissions, as Datasette 1.0 wants them declared."""
    return [compat.declared(p.name, p.description, of_tables=p.of_tables) for p in PERMISSIONS]


@dataclass(slots=True)
class _Denials:
    """What was found out for one request, until it is answered."""

    found: dict[tuple[str, str], asyncio.Task[frozenset[str]]] | None


_denials: ContextVar[_Denials | None] = ContextVar("datasette_vec_gemini_denials", default=None)
_asking: ContextVar[bool] = ContextVar("datasette_vec_gemini_asking", default=False)
"""Whether it is us who ask for a permission, on a table that is not ours."""


def remember(app: App) -> App:
    """Wrap an ASGI application so that a page which lists a hundred tables finds out once what it must not list."""

    async def remembering(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        denials = _Denials({})
        token = _denials.set(denials)
        try:
            await app(scope, receive, send)
        finally:
            _denials.reset(token)
            # A task that the request leaves behind still sees this object, and must ask anew.
            denials.found = None

    return remembering


async def denied(datasette: Datasette, actor: Actor, database: str) -> frozenset[str]:
    """The folded names of our objects in a database that the actor may not see."""
    denials = _denials.get()
    if denials is None or denials.found is None:
        return await _denied(datasette, actor, database)
    key = (database, json.dumps(actor, default=repr))
    if key not in denials.found:
        denials.found[key] = asyncio.ensure_future(_denied(datasette, actor, database))
    return await asyncio.shield(denials.found[key])


async def _denied(datasette: Datasette, actor: Actor, database: str) -> frozenset[str]:
    ours = await ownership.of(datasette.databases[database])
    tables = sorted(ours.tables)
    token = _asking.set(True)
    try:
        verdicts = await asyncio.gather(*(compat.may_view(datasette, actor, database, table) for table in tables))
    finally:
        _asking.reset(token)
    visible = {table for table, verdict in zip(tables, verdicts, strict=True) if verdict}
    return frozenset(name for name, needed in ours.sources.items() if needed is None or not needed <= visible)


async def rules(datasette: Datasette, actor: Actor, action: str) -> list[Any]:
    """Our part in a decision of Datasette 1.0, which asks for all tables at once."""
    found = [compat.allow_everybody(p.description) for p in PERMISSIONS if p.for_everybody and p.name == action]
    if not _asking.get() and compat.is_about_tables(datasette, action):
        databases = list(datasette.databases)
        names = await asyncio.gather(*(denied(datasette, actor, database) for database in databases))
        pairs = [(db, name) for db, hidden in zip(databases, names, strict=True) for name in sorted(hidden)]
        if pairs:
            found.append(compat.deny(pairs, "it tells of a table that the actor may not view"))
    return found


async def verdict(datasette: Datasette, actor: Actor, action: str, resource: Any) -> bool | None:
    """Our part in a decision of Datasette 0.65: no to what nobody may see without its source, else nothing."""
    if action == "view-database" and resource in datasette.databases:
        await ownership.of(datasette.databases[resource])  # for `hidden`, which cannot wait
    if action != "view-table" or not resource or resource[0] not in datasette.databases or _asking.get():
        return None
    database, table = resource
    if ownership.may_be_ours(table) and ownership.fold(table) in await denied(datasette, actor, database):
        return False
    return None


def hidden(datasette: Datasette, key: str | None, database: str | None, table: str | None) -> dict[str, Any]:
    """Metadata for Datasette 0.65, by which it keeps our tables out of its lists.

    Only for who asks for all of one database, as those lists do: other metadata is shown to everybody.
    """
    db = datasette.databases.get(database) if database and key is None and table is None else None
    if db is None:
        return {}
    # New each time: Datasette writes the user's metadata into what it gets.
    tables = {name: {"hidden": True} for name in ownership.known(db).names}
    return {"databases": {database: {"tables": tables}}} if tables else {}


async def guard_filters(datasette: Datasette, request: Request, database: str) -> None:
    """Refuse `?_fts_table=` that names what the actor may not see: 0.65 would search any table with it."""
    for table in request.args.getlist("_fts_table"):
        if ownership.fold(table) in await denied(datasette, request.actor, database):
            raise Forbidden("view-table")


async def warn(datasette: Datasette) -> None:
    """Say once, at startup, which private tables with an index everybody can read through SQL."""
    found = [
        f"table {index.table!r} of database {name!r} (index {index.name!r})"
        for name, db in datasette.databases.items()
        if await compat.may_run_sql(datasette, None, name)
        for index in await _indexes(db)
        if not await compat.may_view(datasette, None, name, index.table)
    ]
    if found:
        _log.warning(
            "SQL shows everybody what is private: %s. Whoever may run SQL over a database can read all of its tables, "
            "those of an index too: close it with `allow_sql: {id: root}` in the block of the database, or with "
            "`--setting default_allow_sql off`",
            ", ".join(found),
        )


async def _indexes(db: Any) -> list[Index]:
    try:
        return list(await db.execute_fn(registry.indexes))
    except ownership.UNREADABLE:
        return []
