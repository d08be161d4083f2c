"""Commands that ask an index: for rows, for how it is, and for how well it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from .. import checking, evaluating, searching, spending
from ..budget import ledger_of
from ..checking import Status
from ..connection import connect
from ..consent import Consent, spending_options
from ..domain import MODES, Mode, Query
from ..errors import VecError
from ..keys import key_from_path
from ..lookup import find_key
from ..printing import print_hits, print_json, print_status
from . import options


@click.command()
@options.database
@click.argument("query")
@click.option("name", "--index", help="Which index; needed where the database has several.")
@options.k
@options.offset
@click.option("--mode", type=click.Choice(MODES), default="hybrid", show_default=True, help="Meaning, words, or both.")
@options.filters
@options.as_json
def search(
    db: Path, query: str, name: str | None, k: int, offset: int, mode: Mode, filters: Sequence[str], as_json: bool
) -> None:
    """Search an index by meaning and by words."""
    asked = Query(query, k=k, mode=mode, filters=options.parsed(filters), offset=offset)
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        chosen = options.only(conn, name)
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


@click.command()
@options.database
@click.argument("name", metavar="INDEX")
@click.argument("key")
@options.k
@options.offset
@options.filters
@options.as_json
def similar(db: Path, name: str, key: str, k: int, offset: int, filters: Sequence[str], as_json: bool) -> None:
    """Find the rows most like the row with this KEY, as it stands in Datasette's URL of the row."""
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        chosen = options.only(conn, name)
        started = time.perf_counter()
        own = find_key(conn, chosen, key) or key_from_path(key)  # which is no row's then, and the message says so
        hits = searching.similar(conn, chosen, own, k=k, filters=options.parsed(filters), offset=offset)
        print_hits(conn, chosen, hits, query=key, mode="semantic", started=started, as_json=as_json, offset=offset)


@click.command()
@options.database
@options.as_json
def status(db: Path, as_json: bool) -> None:
    """Say of every index what is indexed, pending, failed and empty."""
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        found, errors = list[Status](), list[VecError]()
        for each in options.chosen(conn, ()):
            try:
                found.append(checking.status(conn, each))
            except options.OF_ONE_INDEX as error:
                errors.append(error)
    if as_json:
        print_json([each.to_dict() for each in found])
    else:
        for each_status in found:
            print_status(each_status)
    options.finish(errors=errors)


@click.command(name="eval")
@options.database
@click.argument("name", metavar="INDEX")
@click.option("--queries", required=True, type=click.Path(path_type=Path), help="JSON lines with _id and text.")
@click.option("--qrels", required=True, type=click.Path(path_type=Path), help="TSV: query-id, corpus-id, score.")
@spending_options
@options.as_json
def evaluate(db: Path, name: str, queries: Path, qrels: Path, yes: bool, max_usd: float | None, as_json: bool) -> None:
    """Measure nDCG@10 and recall@10 of each mode against judged queries."""
    consent = Consent(db=db, yes=yes, max_usd=max_usd)
    with closing(connect(db, read_only=True, require_vec=False)) as conn:
        asked, judgements = evaluating.read_queries(queries), evaluating.read_judgements(qrels)
        figures = spending.evaluate(conn, options.only(conn, name), asked, judgements, consent)
    if as_json:
        print_json(figures)
        return
    click.echo(f"{'mode':<10}{'nDCG@10':>9}{'recall@10':>11}   {int(figures['hybrid']['queries'])} queries")
    for mode, values in figures.items():
        click.echo(f"{mode:<10}{values['ndcg@10']:>9.4f}{values['recall@10']:>11.4f}")
