"""What commands share: their options, the indexes that these name, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ..domain import QUANTIZERS, Index, SyncReport
from ..driver import sqlite3
from ..errors import DatabaseUnavailable, IndexNotFound, InvalidFilter, UsageError, VecError, counted
from ..printing import print_error
from ..store import registry

SOME_FAILED = 3
OF_ONE_INDEX = (UsageError, DatabaseUnavailable)
"""What may be wrong with one index of several, which the others go on without."""

database = click.argument("db", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
filters = click.option(
    "filters",
    "--filter",
    multiple=True,
    metavar="COLUMN[__OP]=VALUE",
    help="Only rows where this holds: exact, not, gt, gte, lt, lte, in, isnull; repeatable.",
)
k = click.option("-k", "k", type=int, default=10, show_default=True, help="How many hits.")
offset = click.option("--offset", type=int, default=0, show_default=True, help="How many hits to pass over first.")
embedder = click.option(
    "--embedder", metavar="NAME", help="The model: local, gemini[:MODEL[@DIMS]], hashing, or what a plugin brings."
)
quantize = click.option("--quantize", type=click.Choice(QUANTIZERS), help="The codes that large searches scan.")


def chosen(conn: sqlite3.Connection, names: Sequence[str]) -> list[Index]:
    """The indexes of these names, or all; IndexNotFound where there is none."""
    found = [registry.find(conn, name) for name in names] or registry.indexes(conn)
    if not found:
        raise IndexNotFound("the database has no index yet: make one with `datasette vec index DB TABLE -c COLUMN`")
    return found


def only(conn: sqlite3.Connection, name: str | None) -> Index:
    """The index of this name, or the only one there is."""
    found = chosen(conn, [name] if name else ())
    if len(found) > 1:
        raise IndexNotFound(
            f"the database has several indexes, {', '.join(i.name for i in found)}: name one with --index"
        )
    return found[0]


def parsed(given: Sequence[str]) -> dict[str, object]:
    """The filters of these options; InvalidFilter for one that is no filter."""
    found: dict[str, object] = {}
    for option in given:
        name, equals, value = option.partition("=")
        if not equals:
            raise InvalidFilter(f"filter {option!r} has no value: write COLUMN=VALUE or COLUMN__OP=VALUE")
        if name in found:
            column = name.partition("__")[0]
            raise InvalidFilter(f"filter {name!r} is given twice: for several values write {column}__in=A,B")
        found[name] = value
    return found


def finish(*reports: SyncReport, errors: Sequence[VecError] = ()) -> None:
    """End with the exit code of what stopped some index, or of rows that failed, if any did."""
    failed = sum(report.failed for report in reports)
    if failed:
        click.echo(f"{counted(failed, 'chunk')} failed; `datasette vec status DB` tells of them.", err=True)
    for error in errors:
        print_error(error)
    if errors or failed:
        sys.exit(errors[0].exit_code if errors else SOME_FAILED)
