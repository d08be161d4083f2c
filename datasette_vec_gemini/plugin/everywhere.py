"""Search every index that one may see: one question, embedded once for each model, with hits index by index."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from datasette import NotFound, Request, Response
from datasette.app import Datasette
from datasette.utils import add_cors_headers, tilde_decode

from ..domain import Index, Query
from ..errors import VecError
from ..schema import affinity
from . import compat, index_page, page, permissions, site
from .answers import Answer, listed
from .cards import Card
from .finding import ask, embedded
from .views import failure, nearest_sentences, read_query, read_settings, searchable, status_of

ROUTE = r"(/(?P<database>[^/.]+))?/-/vec(\.(?P<format>json))?$"
HITS = 3
"""Hits of each index, unless `_size` says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What one index answers; its scores mean nothing beside those of another. `error` is why it cannot."""

    database: str
    index: Index
    url: str
    answer: Answer | None = None
    error: str = ""
    cards: Sequence[Card] = ()

    def to_dict(self) -> dict[str, Any]:
        """The group in the JSON twin."""
        return {
            "database": self.database,
            "index": self.index.name,
            "table": self.index.table,
            "url": self.url,
            "mode": self.answer and self.answer.mode,
            "pending": self.answer and self.answer.pending,
            "hits": listed(self.answer.found) if self.answer else [],
            "notices": list(self.answer.notices) if self.answer else [],
            "error": self.error or None,
        }


def url(datasette: Datasette, database: str | None = None, pairs: page.Pairs = (), *, suffix: str = "") -> str:
    """The address of this page for all databases or one, or with the suffix `.json` of its twin."""
    path: str = datasette.urls.database(database) + "/-/vec" if database else datasette.urls.path("/-/vec")
    return f"{path}{suffix}?{urlencode(pairs)}" if pairs else f"{path}{suffix}"


async def everywhere_page(datasette: Datasette, request: Request) -> Response:
    """Answer `?q=…&mode=…&_size=…` for all databases, or for the one in the address."""
    only, databases = None, list(datasette.databases)
    if request.url_vars["database"]:
        try:
            only = datasette.get_database(route=tilde_decode(request.url_vars["database"])).name
        except KeyError:
            raise NotFound("Database not found") from None
        databases = [only]
        if not await compat.may_view_database(datasette, request.actor, only):
            raise NotFound("Database not found")
    started = time.perf_counter()
    indexes = [(name, index) for name in databases for index in await searchable(datasette, request.actor, name)]
    settings = replace(site.of(datasette).settings_of(), page_size=HITS)
    query, groups, error, status = None, list[Group](), "", 200
    try:
        if query := read_query(request, (), settings):
            groups = await _groups(datasette, request, indexes, query)
    except VecError as raised:
        error, status = str(raised), status_of(raised)
    form = request.url_vars["format"]
    took_ms = round((time.perf_counter() - started) * 1000, 1)
    if form:
        body = {
            "ok": True,
            "query": query.text if query else "",
            "mode": query.mode if query else settings.mode,
            "took_ms": took_ms if query else 0.0,
            "indexes": [{"database": name, "index": i.name, "table": i.table} for name, i in indexes],
            "groups": [group.to_dict() for group in groups],
        }
        response = failure(error, status, form) if error else Response.json(body)
        if datasette.cors:
            add_cors_headers(response.headers)
    else:
        context = {
            "database": only,
            "action": url(datasette, only),
            "status_url": datasette.urls.path("/-/vec/status"),
            "json_url": url(datasette, only, _kept(request), suffix=".json"),
            "text": request.args.get("q") or "",
            "mode": request.args.get("mode") or settings.mode,
            "asked": query is not None,
            "error": error,
            "took_ms": took_ms,
            "groups": groups,
            "indexes": [(name, index, page.index_url(datasette, name, index)) for name, index in indexes],
            "commands": [] if indexes else await _commands(datasette, request.actor, databases),
            "index_urls": await _index_urls(datasette, request.actor, databases),
        }
        response = Response.html(
            await datasette.render_template("vec_everywhere.html", context, request=request), status=status
        )
    response.headers["x-robots-tag"] = "noindex"
    return response


def _kept(request: Request) -> list[tuple[str, str]]:
    return [(name, value) for name in ("q", "mode", "_size") if (value := request.args.get(name))]


async def _groups(
    datasette: Datasette, request: Request, indexes: Sequence[tuple[str, Index]], query: Query
) -> list[Group]:
    """Each index's answer; of indexes of one model the first embeds the question for all."""
    first: dict[tuple[str, str], tuple[Query, list[str]] | VecError] = {}
    for database, index in indexes:
        model = (index.embedder, index.fingerprint)
        if model not in first:
            try:
                first[model] = await embedded(datasette, request, datasette.get_database(database), index, query)
            except VecError as error:
                first[model] = error

    async def group(database: str, index: Index) -> Group | None:
        made = Group(database=database, index=index, url=page.index_url(datasette, database, index, _kept(request)))
        asked = first[index.embedder, index.fingerprint]
        if isinstance(asked, VecError):
            return replace(made, error=str(asked))
        try:
            answer = await ask(datasette, request, datasette.get_database(database), index, asked[0])
            columns = read_settings(datasette, database, index.table).columns_shown
        except VecError as error:
            return replace(made, error=str(error))
        except NotFound:  # dropped meanwhile
            return None
        index = answer.index
        shown = index.filter_columns if columns is None else columns
        nearest = await nearest_sentences(datasette, request, answer, is_busy=is_busy)
        cards = page.cards(datasette, database, index, answer.found, text=query.text, columns=shown, nearest=nearest)
        answer = replace(answer, notices=list(dict.fromkeys([*asked[1], *answer.notices])))
        return replace(made, index=index, answer=answer, cards=cards)

    is_busy = site.of(datasette).is_busy  # with others: these wait for each other too
    groups = await asyncio.gather(*(group(database, index) for database, index in indexes))
    return [found for found in groups if found]


async def _commands(datasette: Datasette, actor: compat.Actor, databases: Sequence[str]) -> list[str]:
    """For each database file with a table of text that the actor may see, the command that indexes that."""
    commands = []
    for name in databases:
        db = datasette.get_database(name)
        if not db.path or not db.is_mutable:
            continue
        hidden = set(await db.hidden_table_names())
        for table in await db.table_names():
            if table in hidden or not await compat.may_view(datasette, actor, name, table):
                continue
            columns = await db.table_column_details(table)
            texts = [column.name for column in columns if affinity(column.type) == "TEXT" and not column.is_pk]
            if texts:
                options = [part for column in texts[:3] for part in ("-c", column)]
                commands.append(shlex.join(["datasette", "vec", "index", Path(db.path).name, table, *options]))
                break
    return commands


async def _index_urls(datasette: Datasette, actor: compat.Actor, databases: Sequence[str]) -> list[tuple[str, str]]:
    """Where the actor may make an index: database and address."""
    return [
        (name, index_page.url(datasette, name, None))
        for name in databases
        if datasette.get_database(name).is_mutable and await permissions.may_index(datasette, actor, name, None)
    ]
