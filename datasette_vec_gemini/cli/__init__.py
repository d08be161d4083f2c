"""`datasette vec`: the command line. Every command parses, calls the library and prints; figures go to stdout.

Exit codes: 0 all done, 1 error, 2 usage or a cost that nobody agreed to, 3 some rows failed, 4 quota or budget reached.
"""

from __future__ import annotations

from typing import Any

import click

from mcp_server.cli import mcp

from ..driver import sqlite3
from ..errors import UsageError, VecError
from ..printing import print_error
from . import asking, making, trying

INTERRUPTED = 130


class _Group(click.Group):
    """Turns our errors into one line on stderr and their exit code, and an interruption into a word of comfort."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VecError as error:
            print_error(error)
            ctx.exit(error.exit_code)
        except UnicodeEncodeError as error:  # of bytes that Python took for text as well as it could
            print_error(f"{error.object!a} on the command line is not UTF-8: write it as text")
            ctx.exit(UsageError.exit_code)
        except sqlite3.Error as error:
            print_error(f"SQLite says: {error}; `datasette vec verify DB` may tell more")
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nStopped. What was finished is kept; `datasette vec sync` goes on from there.", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Group, name="vec")
def vec() -> None:
    """Semantic search for any SQLite file.

    Exit codes: 0 all done, 1 error, 2 usage or a cost that nobody agreed to, 3 some rows failed, 4 quota or budget
    reached.
    """


for command in (
    making.index,
    making.sync,
    making.estimate,
    asking.search,
    asking.similar,
    asking.status,
    making.verify,
    making.rebuild,
    making.drop,
    asking.evaluate,
    trying.doctor,
    trying.demo,
    mcp,
):
    vec.add_command(command)
