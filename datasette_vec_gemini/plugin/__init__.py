"""The Datasette plugin: a table of hook implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasette import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Hang `datasette vec` on Datasette's command line."""
    from ..cli import vec

    cli.add_command(vec)
