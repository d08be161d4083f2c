"""The ways from Datasette's own pages to ours: entries of its menus, and of a row's page."""

from __future__ import annotations

from typing import Any

from datasette import Request
from datasette.app import Datasette
from datasette.utils import tilde_decode

from ..domain import Index
from . import compat, everywhere, index_page, page, views

Links = list[dict[str, str]]


async def of_table(datasette: Datasette, actor: compat.Actor, database: str, table: str) -> Links:
    """Entries of a table or view, one for each of its indexes, and one to make another."""
    own = await _indexes(datasette, actor, database, table)
    return [
        {
            "href": page.index_url(datasette, database, index),
            "label": _named("Semantic search", index, own),
            "description": f"Find rows by meaning and by words in {', '.join(index.columns)}",
        }
        for index in own
    ] + await index_page.links(datasette, actor, database, table)


async def of_row(datasette: Datasette, request: Request, database: str, table: str) -> Links:
    """Entries of the row whose page is asked for, one for each index of its table."""
    own = await _indexes(datasette, request.actor, database, table)
    return [
        {
            "href": page.similar_url(datasette, database, index, request.url_vars["pks"]),
            "label": _named("Similar rows", index, own),
            "description": f"Rows that mean about the same, by {', '.join(index.columns)}",
        }
        for index in own
    ]


async def of_row_page(datasette: Datasette, request: Request, database: str, table: str) -> dict[str, Any]:
    """The same for the template of a row's page, where Datasette has no menu of a row's actions (0.65)."""
    return {"vec_row_links": await of_row(datasette, request, database, table)}


async def of_instance(datasette: Datasette, actor: compat.Actor, request: Request | None) -> Links:
    """The entries of Datasette's own menu; none where the actor has nothing to search.

    On the page of a row, where Datasette has no menu of a row's actions (0.65), those of the row too: a site's own
    template of that page may not show them.
    """
    for database in datasette.databases:
        if await views.searchable(datasette, actor, database):
            return [
                {"href": everywhere.url(datasette), "label": "Semantic search"},
                *await _of_shown(datasette, request),
            ]
    return []


async def _of_shown(datasette: Datasette, request: Request | None) -> Links:
    shown = request.scope.get("url_route", {}).get("kwargs", {}) if request else {}
    if request is None or compat.has_row_menu(datasette) or not {"database", "table", "pks"} <= set(shown):
        return []
    try:
        database = datasette.get_database(route=tilde_decode(shown["database"])).name
    except KeyError:
        return []
    return await of_row(datasette, request, database, tilde_decode(shown["table"]))


async def _indexes(datasette: Datasette, actor: compat.Actor, database: str, table: str) -> list[Index]:
    return [index for index in await views.searchable(datasette, actor, database) if index.table == table]


def _named(label: str, index: Index, own: list[Index]) -> str:
    return label if len(own) == 1 else f"{label}: {index.name}"
