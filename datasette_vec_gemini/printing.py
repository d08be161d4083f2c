"""What the command line prints: data to stdout, bars and remarks to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from .domain import Hit, Index, Mode, Progress, SyncReport
from .driver import sqlite3
from .keys import key_to_path
from .store import reading
from .syncing import OnProgress


def print_report(chosen: Index, report: SyncReport) -> None:
    """What one sync did, and why it compared every row if it did."""
    reused = f", {report.reused:,} reused" if report.reused else ""
    removed = f", {report.chunks_removed:,} chunks removed" if report.chunks_removed else ""
    click.echo(
        f"Synced {chosen.name}: {report.documents:,} documents read, {report.embedded:,} chunks embedded{reused}"
        f"{removed}, {report.seconds:.1f} s"
    )
    for note in report.notes:
        click.echo(f"  note: {note}")


@contextmanager
def progress_bars() -> Iterator[OnProgress | None]:
    """Bars with rate and ETA on stderr while it is a terminal; nothing otherwise."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            if progress.stage not in bars:
                started = time.monotonic()
                bars[progress.stage] = stack.enter_context(
                    click.progressbar(
                        length=progress.total,
                        label={"text": "Reading  ", "vectors": "Embedding"}[progress.stage],
                        show_pos=True,
                        item_show_func=lambda done: f"{(done or 0) / max(time.monotonic() - started, 1e-3):,.0f}/s",
                        file=sys.stderr,
                    )
                )
            bar = bars[progress.stage]
            bar.update(progress.done - bar.pos, progress.done)
            if bar.finished:
                bar.render_finish()

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
) -> None:
    """An answer, as JSON or for people; `offset` is where its ranks begin."""
    took_ms = round((time.perf_counter() - started) * 1000, 1)
    pending = reading.count_pending(conn, chosen)
    if as_json:
        print_json(
            {
                "query": query,
                "index": chosen.name,
                "mode": mode,
                "took_ms": took_ms,
                "pending": pending,
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
    if pending:
        click.echo(f"({pending:,} rows are not indexed yet: run `datasette vec sync`)", err=True)


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
