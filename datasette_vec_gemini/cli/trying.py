"""Commands for who is new here: whether this machine is fit, and a database to try."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path

import click

from .. import checking, searching, spending
from .. import demo as demos
from .. import doctor as doctors
from ..connection import connect
from ..consent import Consent
from ..domain import Query
from ..printing import print_hits
from . import options


@click.command()
def doctor() -> None:
    """Look whether this machine can do what is needed, and say how to mend it if not."""
    wrong = False
    for finding in doctors.examine():
        click.echo(f"{'PROBLEM' if finding.remedy else 'ok':<8}{finding.what:<14}{finding.found}")
        if finding.remedy:
            wrong = True
            click.echo(f"{'':<22}remedy: {finding.remedy}")
    sys.exit(int(wrong))


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default="demo.db")
@click.option("--no-serve", is_flag=True, help="End after the sample searches instead of starting Datasette.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many rows.")
@click.option("--port", type=int, default=8001, show_default=True, help="Where Datasette listens.")
@click.pass_context
def demo(ctx: click.Context, path: Path, no_serve: bool, limit: int | None, port: int) -> None:
    """Build a database of the standard library's documentation, index it with the local model, and search it."""
    with closing(connect(path, create=True)) as conn:
        made = demos.build(conn, limit=limit)
        click.echo(f"{path}: {checking.status(conn, made).rows:,} docstrings of Python's standard library")
        options.finish(spending.sync_one(conn, made, Consent(db=path)))
        for question in demos.QUESTIONS:
            click.echo(f"\n$ datasette vec search {path} {question!r} -k 3")
            started = time.perf_counter()
            hits = searching.search(conn, made, Query(question, k=3))
            print_hits(conn, made, hits, query=question, mode="hybrid", started=started, as_json=False, offset=0)
    if no_serve:
        return
    click.echo(f"\nSearch page: http://127.0.0.1:{port}/{path.stem}/-/vec/{made.name}  (Ctrl-C to stop)")
    root = ctx.find_root().command
    root.main(["serve", str(path), "--port", str(port)], prog_name="datasette")
