"""What the command line prints: data to stdout, bars and remarks to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import click

from .budget import dollars
from .checking import Status
from .domain import Estimate, Hit, Index, Mode, Progress, SyncReport
from .driver import sqlite3
from .errors import counted
from .keys import key_to_path
from .store import counting
from .syncing import OnProgress, told


def print_report(chosen: Index, report: SyncReport) -> None:
    """What one sync did, and why it compared every row if it did."""
    click.echo(f"Synced {chosen.name}: {told(replace(report, notes=()), with_costs=True)}")
    for note in report.notes:
        click.echo(f"  note: {note}")


def print_status(found: Status) -> None:
    """An index in figures, with what failed and what stands in the way."""
    click.echo(
        f"{found.name}: {found.table} ({', '.join(found.columns)}), {found.embedder}, {found.dimensions} dimensions"
    )
    click.echo(
        f"  {counted(found.rows, 'row')} = {found.indexed:,} indexed + {found.pending:,} pending + {found.failed:,} "
        f"failed + {found.empty:,} empty; {counted(found.chunks, 'chunk')}"
    )
    for key, reason in found.failures:
        click.echo(f"  failed: {key}: {printable(reason)}")
    for warning in found.warnings:
        click.echo(f"  note: {warning}")


def print_error(error: BaseException | str) -> None:
    """One line on stderr, whatever the message holds."""
    click.echo(f"Error: {printable(str(error))}", err=True)


def print_aside(text: str) -> None:
    """A remark on stderr, beside what is printed."""
    click.echo(printable(text), err=True)


def spelled_cost(expected: Estimate) -> str:
    """Tokens, dollars and minutes of an estimate, in words."""
    minutes = math.ceil(expected.minutes)
    lasting = "less than a minute" if minutes <= 1 else f"at least {minutes:,} minutes"
    return (
        f"about {counted(expected.tokens, 'token')}, {dollars(expected.usd)} (prices as of {expected.prices_as_of}), "
        f"{lasting}"
    )


def print_estimate(expected: Estimate, *, paid: bool, remedy: str) -> None:
    """What embedding would take and cost; `remedy` is the command that does it."""
    click.echo(
        f"{expected.index} with {expected.embedder}: {counted(expected.chunks, 'chunk')} of "
        f"{counted(expected.rows, 'row')} to embed"
    )
    if not paid:
        click.echo(f"It costs nothing: {expected.embedder} is no paid model")
    elif not expected.chunks:
        click.echo("It costs nothing: every vector is there")
    else:
        click.echo(printable(f"{spelled_cost(expected).capitalize()}\nNothing was spent; to go on: {remedy}"))


def is_terminal() -> bool:
    """Whether there is somebody who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask on the terminal; anything but a yes is a no."""
    try:
        return click.confirm(question, default=False, err=True)
    except click.Abort:
        click.echo(err=True)
        return False


@contextmanager
def progress_bars(*, hidden: bool = False) -> Iterator[OnProgress | None]:
    """Bars with rate and ETA on stderr while it is a terminal; nothing otherwise."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        bars: dict[str, tuple[Any, ExitStack]] = {}

        def show(progress: Progress) -> None:
            if progress.stage not in bars:
                started = time.monotonic()
                own = stack.enter_context(ExitStack())
                made = click.progressbar(
                    length=progress.total,
                    label={"text": "Reading  ", "vectors": "Embedding"}[progress.stage],
                    show_pos=True,
                    item_show_func=lambda done: f"{(done or 0) / max(time.monotonic() - started, 1e-3):,.0f}/s",
                    file=sys.stderr,
                )
                bars[progress.stage] = own.enter_context(made), own
            bar, own = bars[progress.stage]
            bar.update(progress.done - bar.pos, progress.done)
            if bar.finished:
                own.close()

        yield show


def print_hits(
    conn: sqlite3.Connection,
    chosen: Index,
    hits: Sequence[Hit],
    *,
    query: str,
    mode: Mode,
    started: float,
    as_json: bool,
    offset: int,
    notices: Sequence[str] = (),
) -> None:
    """An answer, as JSON or for people; `offset` is where its ranks begin, `notices` say what it is not."""
    took_ms = round((time.perf_counter() - started) * 1000, 1)
    pending = counting.count_pending(conn, chosen)
    if as_json:
        print_json(
            {
                "query": query,
                "index": chosen.name,
                "mode": mode,
                "took_ms": took_ms,
                "pending": pending,
                "notices": list(notices),
                "hits": [hit.to_dict() for hit in hits],
            }
        )
        return
    for rank, hit in enumerate(hits, offset + 1):
        key = "" if hit.title == ", ".join(map(str, hit.key)) else f"  [{key_to_path(hit.key)}]"
        click.echo(f"{rank:>3}. {printable(hit.title)}{key}")
        click.echo(f"     {printable(hit.snippet)}")
        click.echo(f"     {_reason(hit)}")
    if not hits:
        click.echo("Nothing found.")
    for notice in notices:
        print_aside(f"({notice})")
    if pending:
        click.echo(f"({counted(pending, 'row')} not indexed yet: run `datasette vec sync`)", err=True)


def _reason(hit: Hit) -> str:
    parts = [f"score {hit.score:.3f}"]
    if hit.why.keyword:
        parts.append(f"words: #{hit.why.keyword.rank}, BM25 {hit.why.keyword.bm25:.2f}")
    if hit.why.semantic:
        parts.append(f"meaning: #{hit.why.semantic.rank}, cosine {hit.why.semantic.cosine:.3f}")
    return " · ".join(parts)


def print_json(value: object) -> None:
    """Indented, with every character as itself."""
    click.echo(printable(json.dumps(value, ensure_ascii=False, indent=2)))


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text that stdout's encoding takes and that cannot steer a terminal: anything else becomes an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.translate(_CONTROLS).encode(encoding, "backslashreplace").decode(encoding)
