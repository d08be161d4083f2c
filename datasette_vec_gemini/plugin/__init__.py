"""The Datasette plugin: a table of hook implementations.

Their modules are imported when a hook is called, so that every other `datasette` command starts as fast as before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette import hookimpl

if TYPE_CHECKING:
    import click
    from datasette import Request
    from datasette.app import Datasette
    from mcp.server.mcpserver import MCPServer

    from ..driver import sqlite3
    from .compat import Actor
    from .visitors import App

    Links = Callable[[], Awaitable[list[dict[str, str]]]]


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Hang `datasette vec` on Datasette's command line."""
    from ..cli import vec

    cli.add_command(vec)


@hookimpl
def prepare_connection(datasette: Datasette, conn: sqlite3.Connection, database: str) -> None:
    """Give every connection sqlite-vec and our SQL functions."""
    from .connections import prepare

    prepare(datasette, conn, database)


@hookimpl
def startup(datasette: Datasette) -> Awaitable[None]:
    """Check how the key is kept, load Google's SDK in the background if there is one, and warn of what SQL shows."""
    from .permissions import warn
    from .site import start

    start(datasette)
    return warn(datasette)


@hookimpl(trylast=True)
def asgi_wrapper(datasette: Datasette) -> Callable[[App], App]:
    """See every request as it arrived: last is outermost, before other plugins rewrite the peer and the headers."""
    from .background import attend
    from .deadlines import guard
    from .permissions import remember
    from .visitors import watch

    return lambda app: watch(datasette, guard(datasette, remember(attend(datasette, app))))


@hookimpl(tryfirst=True)
def actor_from_request(request: Request) -> None:
    """Know whom the SQL of a request works for; this finds no actor."""
    from .visitors import recognise

    recognise(request)


@hookimpl
def register_actions() -> list[object]:
    """Declare our permissions; Datasette 0.65 has no such hook and needs none."""
    from .permissions import actions

    return actions()


@hookimpl
def permission_resources_sql(datasette: Datasette, actor: Actor, action: str) -> Awaitable[list[object]]:
    """Say who may search, and keep an index's tables from those who may not view its source; Datasette 1.0."""
    from .permissions import rules

    return rules(datasette, actor, action)


@hookimpl(trylast=True)
def permission_allowed(datasette: Datasette, actor: Actor, action: str, resource: object) -> Awaitable[bool | None]:
    """The same on Datasette 0.65, where the last word counts."""
    from .permissions import verdict

    return verdict(datasette, actor, action, resource)


@hookimpl
def get_metadata(datasette: Datasette, key: str | None, database: str | None, table: str | None) -> dict[str, object]:
    """Keep our tables out of Datasette 0.65's lists; 1.0 knows them by their names."""
    from .permissions import hidden

    return hidden(datasette, key, database, table)


@hookimpl(tryfirst=True)
def filters_from_request(request: Request, database: str, datasette: Datasette) -> Awaitable[None]:
    """Let no table page search in an index's tables that the actor may not see."""
    from .permissions import guard_filters

    return guard_filters(datasette, request, database)


@hookimpl
def register_routes() -> list[tuple[str, Callable[..., Awaitable[object]]]]:
    """Serve the pages of an index, and their twins in JSON and CSV."""
    from . import everywhere, similar
    from .deadlines import within
    from .index_page import INDEX_ROUTE, index_page
    from .map import MAP_ROUTE, map_page
    from .site_status import SITE_STATUS_ROUTE, site_status_page
    from .status import STATUS_ROUTE, status_page
    from .views import ROUTE, search_page

    pages = [
        (everywhere.ROUTE, everywhere.everywhere_page),
        (ROUTE, search_page),
        (similar.ROUTE, similar.similar_page),
        (STATUS_ROUTE, status_page),
        (MAP_ROUTE, map_page),
        (SITE_STATUS_ROUTE, site_status_page),
        (INDEX_ROUTE, index_page),
    ]
    return [(route, within(page)) for route, page in pages]


@hookimpl
def render_cell(value: object, table: str | None) -> str | None:
    """Show how long a vector is; Datasette cannot link to a BLOB of our view, which has no primary key."""
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) and table and table.startswith("_vec_") else None


@hookimpl
def menu_links(datasette: Datasette, actor: Actor, request: Request | None) -> Links:
    """Lead from every page to the search over all indexes, and on 0.65 from a row to those that are similar to it."""
    from .deadlines import briefly
    from .menus import of_instance

    return lambda: briefly(of_instance(datasette, actor, request), [])


@hookimpl
def table_actions(datasette: Datasette, actor: Actor, database: str, table: str) -> Links:
    """Lead from a table to the search pages of its indexes."""
    from .menus import of_table

    return lambda: of_table(datasette, actor, database, table)


@hookimpl
def view_actions(datasette: Datasette, actor: Actor, database: str, view: str) -> Links:
    """Lead from a view to the search pages of its indexes; Datasette 0.65 calls `table_actions` for views too."""
    from .menus import of_table

    return lambda: of_table(datasette, actor, database, view)


@hookimpl
def database_actions(datasette: Datasette, actor: Actor, database: str) -> Links:
    """Lead from a database to the page on which its tables are indexed."""
    from .index_page import links

    return lambda: links(datasette, actor, database, None)


@hookimpl
def row_actions(datasette: Datasette, request: Request, database: str, table: str) -> Links:
    """Lead from a row to the rows that are similar to it; Datasette 1.0."""
    from .menus import of_row

    return lambda: of_row(datasette, request, database, table)


@hookimpl
def extra_template_vars(
    datasette: Datasette, request: Request | None, view_name: str, database: str | None, table: str | None
) -> Callable[[], Awaitable[dict[str, object]]] | None:
    """The same for Datasette 0.65, by our template of a row's page; where a site has its own, the menu has them."""
    from .compat import has_row_menu
    from .menus import of_row_page

    if view_name != "row" or request is None or not database or not table or has_row_menu(datasette):
        return None
    return lambda: of_row_page(datasette, request, database, table)


@hookimpl
def register_mcp_tools(datasette: Datasette, mcp: MCPServer[Any]) -> None:
    """Offer search to agents at `/-/mcp`; called by datasette-mcp, where that is installed."""
    from .mcp import register

    register(datasette, mcp)
