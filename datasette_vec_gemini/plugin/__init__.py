"""The Datasette plugin: a table of hook implementations.

Their modules are imported when a hook is called, so that every other `datasette` command starts as fast as before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from datasette import hookimpl

if TYPE_CHECKING:
    import click
    from datasette.app import Datasette

    from ..driver import sqlite3

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
def register_routes() -> list[tuple[str, Callable[..., Awaitable[object]]]]:
    """Serve the search page of an index and its JSON twin."""
    from .views import ROUTE, search_page

    return [(ROUTE, search_page)]


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
