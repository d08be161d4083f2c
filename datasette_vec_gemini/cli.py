"""`datasette vec`: the command line. Every command parses, calls the library and prints; figures go to stdout.

Exit codes: 0 all done, 1 error, 2 usage or a cost that nobody agreed to, 3 some rows failed, 4 quota or budget reached.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from mcp_server.cli import mcp

from . import checking, evaluating, indexing, searching, spending
from . import demo as demos
from . import doctor as doctors
from .budget import ledger_of
from .connection import connect
from .domain import MODES, QUANTIZERS, Index, Mode, Quantize, Query, SyncReport
from .driver import sqlite3
from .errors import IndexNotFound, InvalidFilter, VecError
from .keys import key_from_path
from .printing import print_error, print_estimate, print_hits, print_json, print_report, print_status
from .spending import Consent
from .store import registry

SOME_FAILED = 3
INTERRUPTED = 130


class _Group(click.Group):
    """Turns our errors into one line on stderr and their exit code, and an interruption into a word of comfort."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VecError as error:
            print_error(error)
            ctx.exit(error.exit_code)
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


vec.add_command(mcp)

_database = click.argument("db", type=click.Path(path_type=Path))
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_filters = click.option(
    "filters",
    "--filter",
    multiple=True,
    metavar="COLUMN[__OP]=VALUE",
    help="Only rows where this holds: exact, not, gt, gte, lt, lte, in, isnull; repeatable.",
)
_k = click.option("-k", "k", type=int, default=10, show_default=True, help="How many hits.")
_offset = click.option("--offset", type=int, default=0, show_default=True, help="How many hits to pass over first.")
_embedder = click.option(
    "--embedder", metavar="NAME", help="The model: local, gemini[:MODEL[@DIMS]], hashing, or what a plugin brings."
)
_quantize = click.option("--quantize", type=click.Choice(QUANTIZERS), help="The codes that large searches scan.")


@vec.command()
@_database
@click.argument("table")
@click.option("columns", "-c", "--column", multiple=True, help="A column whose text is searched; repeatable.")
@click.option("--template", help="How columns become a document, such as '{title}: {body}'.")
@click.option("key", "--key", multiple=True, help="For a view: a column that identifies a row; repeatable.")
@click.option("--name", help="The name of the index; that of the table by default.")
@click.option("filter_columns", "--filter-column", multiple=True, help="A column offered for filtering; repeatable.")
@_embedder
@_quantize
@click.option("--no-sync", is_flag=True, help="Declare the index and leave the work to `sync`.")
@spending.options
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
        if not no_sync and (model := spending.paid(embedder or "local")):
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
            _finish(spending.sync_one(conn, made, consent))


@vec.command()
@_database
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@click.option("--full", is_flag=True, help="Compare every row instead of trusting the triggers.")
@click.option("--watch", is_flag=True, help="Look for changes every second until interrupted.")
@spending.options
def sync(db: Path, indexes: Sequence[str], full: bool, watch: bool, yes: bool, max_usd: float | None) -> None:
    """Bring indexes up to their tables: all of them, or those named."""
    consent = Consent(db=db, yes=yes or watch, max_usd=max_usd)
    with closing(connect(db)) as conn:
        chosen = _chosen(conn, indexes)
        if watch:
            reports: list[SyncReport] = []
            errors, is_done = spending.watch_once(conn, chosen, consent, full=full, is_quiet=False)
            while not errors:
                time.sleep(1)
                full = full and not is_done
                errors, is_done = spending.watch_once(conn, _chosen(conn, indexes), consent, full=full)
        else:
            reports, errors = spending.sync_all(conn, chosen, consent, full=full)
        _finish(*reports, errors=errors)


@vec.command()
@_database
@click.argument("name", metavar="INDEX")
@_embedder
@_as_json
def estimate(db: Path, name: str, embedder: str | None, as_json: bool) -> None:
    """Say what a sync would cost, or a rebuild with another model: counted here, for nothing, without a key."""
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        chosen = _only(conn, name)
        expected, model = spending.expect(conn, chosen, embedder)
    if as_json:
        print_json(expected.to_dict())
        return
    remedy = spending.remedy(expected, chosen, model, Consent(db=db))
    print_estimate(expected, paid=model.paid, remedy=remedy)


@vec.command()
@_database
@click.argument("query")
@click.option("name", "--index", help="Which index; needed where the database has several.")
@_k
@_offset
@click.option("--mode", type=click.Choice(MODES), default="hybrid", show_default=True, help="Meaning, words, or both.")
@_filters
@_as_json
def search(
    db: Path, query: str, name: str | None, k: int, offset: int, mode: Mode, filters: Sequence[str], as_json: bool
) -> None:
    """Search an index by meaning and by words."""
    asked = Query(query, k=k, mode=mode, filters=_parse_filters(filters), offset=offset)
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        chosen = _only(conn, name)
        started = time.perf_counter()
        asked, notices = searching.embed_or_words(chosen, asked, ledger=ledger_of(conn))
        hits = searching.search(conn, chosen, asked)
        print_hits(
            conn,
            chosen,
            hits,
            query=query,
            mode=asked.mode,
            started=started,
            as_json=as_json,
            offset=offset,
            notices=notices,
        )


@vec.command()
@_database
@click.argument("name", metavar="INDEX")
@click.argument("key")
@_k
@_offset
@_filters
@_as_json
def similar(db: Path, name: str, key: str, k: int, offset: int, filters: Sequence[str], as_json: bool) -> None:
    """Find the rows most like the row with this KEY, as it stands in Datasette's URL of the row."""
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        chosen = _only(conn, name)
        started = time.perf_counter()
        hits = searching.similar(conn, chosen, key_from_path(key), k=k, filters=_parse_filters(filters), offset=offset)
        print_hits(conn, chosen, hits, query=key, mode="semantic", started=started, as_json=as_json, offset=offset)


@vec.command()
@_database
@_as_json
def status(db: Path, as_json: bool) -> None:
    """Say of every index what is indexed, pending, failed and empty."""
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        found = [checking.status(conn, each) for each in _chosen(conn, ())]
    if as_json:
        print_json([each.to_dict() for each in found])
        return
    for each in found:
        print_status(each)


@vec.command()
@_database
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@click.option("--repair", is_flag=True, help="Mend what is found.")
@spending.options
@_as_json
def verify(db: Path, indexes: Sequence[str], repair: bool, yes: bool, max_usd: float | None, as_json: bool) -> None:
    """Prove indexes against their tables; exit code 1 if anything is wrong and not mended."""
    with closing(connect(db, read_only=not repair, require_vec=False)) as conn:
        consent = Consent(db=db, yes=yes, max_usd=max_usd)
        found = {each.name: spending.verify(conn, each, consent, repair=repair) for each in _chosen(conn, indexes)}
    if as_json:
        print_json(
            {
                name: [{"check": p.check, "text": p.text, "mended": p.mended} for p in problems]
                for name, problems in found.items()
            }
        )
    else:
        for name, problems in found.items():
            click.echo(f"{name}: {'all checks hold' if not problems else f'{len(problems)} problems'}")
            for problem in problems:
                click.echo(f"  {problem.check}: {problem.text}{' (mended)' if problem.mended else ''}")
    wrong = any(not problem.mended for problems in found.values() for problem in problems)
    if wrong and not repair and not as_json:
        click.echo("Mend them with --repair.", err=True)
    sys.exit(int(wrong))


@vec.command()
@_database
@click.argument("name", metavar="INDEX")
@_embedder
@_quantize
@click.option("--keep-old", is_flag=True, help="Keep the vectors of the model before, so that going back is free.")
@spending.options
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
            conn, _only(conn, name), consent, embedder=embedder, quantize=quantize, keep_old=keep_old
        )
        kept = " still" if registry.building(conn, made.name) else ""
        about = f"generation {made.generation}, embedder {made.embedder}, {made.quantize} codes"
        click.echo(f"Index {made.name} is{kept} {about}")
        print_report(made, report)
        _finish(report)


@vec.command()
@_database
@click.argument("name", metavar="INDEX")
@click.option(
    "--vec0-only", is_flag=True, help="Only its vec0 table, so that programs without sqlite-vec open the file."
)
def drop(db: Path, name: str, vec0_only: bool) -> None:
    """Remove an index. The table it was made from keeps every row."""
    with closing(connect(db)) as conn:
        indexing.drop(conn, _only(conn, name), vec0_only=vec0_only)
    click.echo(f"Dropped the vec0 table of index {name}" if vec0_only else f"Dropped index {name}")


@vec.command(name="eval")
@_database
@click.argument("name", metavar="INDEX")
@click.option("--queries", required=True, type=click.Path(path_type=Path), help="JSON lines with _id and text.")
@click.option("--qrels", required=True, type=click.Path(path_type=Path), help="TSV: query-id, corpus-id, score.")
@spending.options
@_as_json
def evaluate(db: Path, name: str, queries: Path, qrels: Path, yes: bool, max_usd: float | None, as_json: bool) -> None:
    """Measure nDCG@10 and recall@10 of each mode against judged queries."""
    consent = Consent(db=db, yes=yes, max_usd=max_usd)
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        asked, judgements = evaluating.read_queries(queries), evaluating.read_judgements(qrels)
        figures = spending.evaluate(conn, _only(conn, name), asked, judgements, consent)
    if as_json:
        print_json(figures)
        return
    click.echo(f"{'mode':<10}{'nDCG@10':>9}{'recall@10':>11}   {int(figures['hybrid']['queries'])} queries")
    for mode, values in figures.items():
        click.echo(f"{mode:<10}{values['ndcg@10']:>9.4f}{values['recall@10']:>11.4f}")


@vec.command()
def doctor() -> None:
    """Look whether this machine can do what is needed, and say how to mend it if not."""
    wrong = False
    for finding in doctors.examine():
        click.echo(f"{'PROBLEM' if finding.remedy else 'ok':<8}{finding.what:<14}{finding.found}")
        if finding.remedy:
            wrong = True
            click.echo(f"{'':<22}remedy: {finding.remedy}")
    sys.exit(int(wrong))


@vec.command()
@click.argument("path", type=click.Path(path_type=Path), default="demo.db")
@click.option("--no-serve", is_flag=True, help="End after the sample searches instead of starting Datasette.")
@click.option("--limit", type=int, help="Only the first so many rows.")
@click.option("--port", type=int, default=8001, show_default=True, help="Where Datasette listens.")
@click.pass_context
def demo(ctx: click.Context, path: Path, no_serve: bool, limit: int | None, port: int) -> None:
    """Build a database of the standard library's documentation, index it with the local model, and search it."""
    with closing(connect(path, create=True)) as conn:
        made = demos.build(conn, limit=limit)
        click.echo(f"{path}: {checking.status(conn, made).rows:,} docstrings of Python's standard library")
        _finish(spending.sync_one(conn, made, Consent(db=path)))
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


def _chosen(conn: sqlite3.Connection, names: Sequence[str]) -> list[Index]:
    """The indexes of these names, or all; IndexNotFound where there is none."""
    chosen = [registry.find(conn, name) for name in names] or registry.indexes(conn)
    if not chosen:
        raise IndexNotFound("the database has no index yet: make one with `datasette vec index DB TABLE -c COLUMN`")
    return chosen


def _only(conn: sqlite3.Connection, name: str | None) -> Index:
    """The index of this name, or the only one there is."""
    chosen = _chosen(conn, [name] if name else ())
    if len(chosen) > 1:
        raise IndexNotFound(
            f"the database has several indexes, {', '.join(i.name for i in chosen)}: name one with --index"
        )
    return chosen[0]


def _parse_filters(options: Sequence[str]) -> dict[str, object]:
    parsed: dict[str, object] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise InvalidFilter(f"filter {option!r} has no value: write COLUMN=VALUE or COLUMN__OP=VALUE")
        if name in parsed:
            column = name.partition("__")[0]
            raise InvalidFilter(f"filter {name!r} is given twice: for several values write {column}__in=A,B")
        parsed[name] = value
    return parsed


def _finish(*reports: SyncReport, errors: Sequence[VecError] = ()) -> None:
    """End with the exit code of what stopped some index, or of rows that failed, if any did."""
    failed = sum(report.failed for report in reports)
    if failed:
        click.echo(f"{failed:,} chunks failed; `datasette vec status DB` lists them with their reasons.", err=True)
    for error in errors:
        print_error(error)
    if errors or failed:
        sys.exit(errors[0].exit_code if errors else SOME_FAILED)
