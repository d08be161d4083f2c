"""The Datasette plugin: a table of hook implementations.

Their modules are imported when a hook is called, so that every other `datasette` command starts as fast as before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from datasette import hookimpl

if TYPE_CHECKING:
    import click
    from datasette import Request
    from datasette.app import Datasette

    from ..driver import sqlite3
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
def startup(datasette: Datasette) -> None:
    """Check how the key is kept, and load Google's SDK in the background if there is one."""
    from .site import start

    start(datasette)


@hookimpl(trylast=True)
def asgi_wrapper(datasette: Datasette) -> Callable[[App], App]:
    """See every request as it arrived: last is outermost, before other plugins rewrite the peer and the headers."""
    from .visitors import watch

    return lambda app: watch(datasette, app)


@hookimpl(tryfirst=True)
def actor_from_request(request: Request) -> None:
    """Know whom the SQL of a request works for; this finds no actor."""
    from .visitors import recognise

    recognise(request)


@hookimpl
def register_actions() -> list[object]:
    """Declare the permission `vec-embed`; Datasette 0.65 has no such hook and needs none."""
    from .visitors import actions

    return actions()


@hookimpl
def register_routes() -> list[tuple[str, Callable[..., Awaitable[object]]]]:
    """Serve the search page and the status page of an index, and their JSON twins."""
    from .status import STATUS_ROUTE, status_page
    from .views import ROUTE, search_page

    return [(ROUTE, search_page), (STATUS_ROUTE, status_page)]


@hookimpl
def table_actions(datasette: Datasette, database: str, table: str) -> Links:
    """Lead from a table to the search pages of its indexes."""
    from .views import links

    return lambda: links(datasette, database, table)


@hookimpl
def view_actions(datasette: Datasette, database: str, view: str) -> Links:
    """Lead from a view to the search pages of its indexes; Datasette 0.65 calls `table_actions` for views too."""
    from .views import links

    return lambda: links(datasette, database, view)
