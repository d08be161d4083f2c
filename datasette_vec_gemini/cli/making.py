"""Commands that make an index, keep it, prove it and remove it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from .. import indexing, spending
from ..checking import Problem
from ..connection import connect
from ..consent import Consent, paid, remedy, spending_options
from ..domain import Quantize, SyncReport
from ..errors import VecError, counted
from ..printing import print_estimate, print_json, print_report
from ..store import registry
from . import options


@click.command()
@options.database
@click.argument("table")
@click.option("columns", "-c", "--column", multiple=True, help="A column whose text is searched; repeatable.")
@click.option("--template", help="How columns become a document, such as '{title}: {body}'.")
@click.option("key", "--key", multiple=True, help="For a view: a column that identifies a row; repeatable.")
@click.option("--name", help="The name of the index; that of the table by default.")
@click.option("filter_columns", "--filter-column", multiple=True, help="A column offered for filtering; repeatable.")
@options.embedder
@options.quantize
@click.option("--no-sync", is_flag=True, help="Declare the index and leave the work to `sync`.")
@spending_options
def index(
    db: Path,
    table: str,
    columns: Sequence[str],
    template: str | None,
    key: Sequence[str],
    name: str | None,
    filter_columns: Sequence[str],
    embedder: str | None,
    quantize: Quantize | None,
    no_sync: bool,
    yes: bool,
    max_usd: float | None,
) -> None:
    """Index columns of a table or view, so that its rows can be searched by meaning."""
    consent = Consent(db=db, yes=yes, max_usd=max_usd)
    with closing(connect(db)) as conn:
        if not no_sync and (model := paid(embedder or "local")):
            consent.require(model)
        made = indexing.create_index(
            conn,
            name or table,
            table=table,
            columns=columns,
            template=template,
            key=key,
            filter_columns=filter_columns,
            embedder=embedder or "local",
            quantize=quantize or "bit",
        )
        click.echo(f"Index {made.name} on {made.table} ({', '.join(made.columns)}), embedder {made.embedder}")
        if not no_sync:
            options.finish(spending.sync_one(conn, made, consent))


@click.command()
@options.database
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@click.option("--full", is_flag=True, help="Compare every row instead of trusting the triggers.")
@click.option("--watch", is_flag=True, help="Look for changes every second until interrupted.")
@spending_options
def sync(db: Path, indexes: Sequence[str], full: bool, watch: bool, yes: bool, max_usd: float | None) -> None:
    """Bring indexes up to their tables: all of them, or those named."""
    consent = Consent(db=db, yes=yes or watch, max_usd=max_usd)
    with closing(connect(db)) as conn:
        chosen = options.chosen(conn, indexes)
        if watch:
            reports: list[SyncReport] = []
            errors, is_done = spending.watch_once(conn, chosen, consent, full=full, is_quiet=False)
            while not errors:
                time.sleep(1)
                full = full and not is_done
                errors, is_done = spending.watch_once(conn, options.chosen(conn, indexes), consent, full=full)
        else:
            reports, errors = spending.sync_all(conn, chosen, consent, full=full)
        options.finish(*reports, errors=errors)


@click.command()
@options.database
@click.argument("name", metavar="INDEX")
@options.embedder
@options.as_json
def estimate(db: Path, name: str, embedder: str | None, as_json: bool) -> None:
    """Say what a sync would cost, or a rebuild with another model: counted here, for nothing, without a key."""
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        chosen = options.only(conn, name)
        expected, model = spending.expect(conn, chosen, embedder)
    if as_json:
        print_json(expected.to_dict())
        return
    print_estimate(expected, paid=model.paid, remedy=remedy(expected, chosen, model, Consent(db=db)))


@click.command()
@options.database
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@click.option("--repair", is_flag=True, help="Mend what is found.")
@spending_options
@options.as_json
def verify(db: Path, indexes: Sequence[str], repair: bool, yes: bool, max_usd: float | None, as_json: bool) -> None:
    """Prove indexes against their tables; exit code 1 if anything is wrong and not mended."""
    with closing(connect(db, read_only=not repair, require_vec=False)) as conn:
        consent, errors = Consent(db=db, yes=yes, max_usd=max_usd), list[VecError]()
        found: dict[str, list[Problem]] = {}
        for each in options.chosen(conn, indexes):
            try:
                found[each.name] = spending.verify(conn, each, consent, repair=repair)
            except options.OF_ONE_INDEX as error:
                errors.append(error)
    if as_json:
        print_json(
            {
                name: [{"check": p.check, "text": p.text, "mended": p.mended} for p in problems]
                for name, problems in found.items()
            }
        )
    else:
        for name, problems in found.items():
            click.echo(f"{name}: {counted(len(problems), 'problem') if problems else 'all checks hold'}")
            for problem in problems:
                click.echo(f"  {problem.check}: {problem.text}{' (mended)' if problem.mended else ''}")
    wrong = any(not problem.mended for problems in found.values() for problem in problems)
    if wrong and not repair and not as_json:
        click.echo("Mend them with --repair.", err=True)
    options.finish(errors=errors)
    sys.exit(int(wrong))


@click.command()
@options.database
@click.argument("name", metavar="INDEX")
@options.embedder
@options.quantize
@click.option("--keep-old", is_flag=True, help="Keep the vectors of the model before, so that going back is free.")
@spending_options
def rebuild(
    db: Path,
    name: str,
    embedder: str | None,
    quantize: Quantize | None,
    keep_old: bool,
    yes: bool,
    max_usd: float | None,
) -> None:
    """Make an index anew: its derived tables, or with another model or quantizer all of it, beside the one in use."""
    consent = Consent(db=db, yes=yes, max_usd=max_usd)
    with closing(connect(db)) as conn:
        made, report = spending.rebuild(
            conn, options.only(conn, name), consent, embedder=embedder, quantize=quantize, keep_old=keep_old
        )
        kept = " still" if registry.building(conn, made.name) else ""
        about = f"generation {made.generation}, embedder {made.embedder}, {made.quantize} codes"
        click.echo(f"Index {made.name} is{kept} {about}")
        print_report(made, report)
        options.finish(report)


@click.command()
@options.database
@click.argument("name", metavar="INDEX")
@click.option(
    "--vec0-only", is_flag=True, help="Only its vec0 table, so that programs without sqlite-vec open the file."
)
def drop(db: Path, name: str, vec0_only: bool) -> None:
    """Remove an index. The table it was made from keeps every row."""
    with closing(connect(db)) as conn:
        indexing.drop(conn, options.only(conn, name), vec0_only=vec0_only)
    click.echo(f"Dropped the vec0 table of index {name}" if vec0_only else f"Dropped index {name}")
