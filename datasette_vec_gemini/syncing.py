"""Sync: bring an index up to its table, in two stages.

Text (`texting`), without any model: compare documents with their chunks, so that keyword search is current. Vectors
(`filling`): claim chunks that have none, embed them with no transaction open, and write each vector only where its
chunk still stands. Chunks are immutable, so nothing that happens to a row meanwhile can give it a vector of another
text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace

from . import mapping
from .budget import Budget, dollars, ledger_of
from .domain import Embedder, Estimate, Index, Progress, SyncReport
from .driver import sqlite3
from .errors import EmbedderError, ExtensionUnavailable, VecError, counted
from .estimating import estimate_pending
from .filling import Filling
from .paid import PaidEmbedder
from .searching import checked_embedder
from .store import jobs, reading, registry
from .store.transactions import mapped_errors, refuse_open_transaction
from .store.usage import Usage
from .texting import Texting

OnProgress = Callable[[Progress], None]


class Stop:
    """How another thread ends a sync: between two batches, or while it waits for a service."""

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self.budget: Budget | None = None

    def request(self, reason: BaseException) -> None:
        """Let the sync raise this; what is under way then is waited for as after any failure, and kept."""
        self.reason = reason
        if self.budget:
            self.budget.stop()

    def check(self) -> None:
        """Raise the reason if there is one."""
        if self.reason:
            raise self.reason

    @contextmanager
    def watching(self, budget: Budget) -> Iterator[None]:
        """Let no request wait in the block once the end was asked for; what comes of that is the reason."""
        self.budget = budget
        try:
            self.check()
            yield
        except EmbedderError:
            self.check()
            raise


def sync(
    conn: sqlite3.Connection,
    index: Index,
    *,
    embedder: Embedder | None = None,
    full: bool = False,
    max_usd: float | None = None,
    approve: Callable[[Estimate], None] | None = None,
    on_progress: OnProgress | None = None,
    stop: Stop | None = None,
) -> SyncReport:
    """Index what has changed since the last sync, and remove what is gone; running it again changes nothing.

    `full` compares every row instead of trusting the triggers; that happens by itself when they were lost, or when rows
    appeared or vanished behind them. Interrupted at any moment, the next sync goes on where this one stopped. Chunks
    that another process is embedding are waited for.

    With a paid embedder, `approve` is called with the estimate before anything is spent and can refuse by raising;
    `max_usd` and the daily cap stop the run. The text stage is finished in any case, and so is what was paid for kept.
    What another thread has asked `stop` for is raised.
    Raises TransactionOpen, FingerprintMismatch, EmbedderError, DatabaseUnavailable, ExtensionUnavailable.
    """
    started, began = time.monotonic(), jobs.now()
    refuse_open_transaction(conn)
    with mapped_errors():
        index = registry.reread(conn, index)
        model = checked_embedder(index, embedder)
        tell, stop, last = on_progress or (lambda _: None), stop or Stop(), list[Progress]()

        def progressed(progress: Progress) -> None:
            progress = replace(progress, usd=stop.budget.spent.usd) if stop.budget else progress
            if last != [progress]:  # who waits for others has nothing new to say, and may be stopped
                last[:] = [progress]
                tell(progress)
            stop.check()

        if reading.has_codes(conn, index) and not reading.has_vec(conn):
            raise ExtensionUnavailable(
                f"index {index.name!r} has a vec0 table and this connection has no sqlite-vec: open it with "
                "datasette_vec_gemini.connect(), or run `datasette vec drop DB INDEX --vec0-only` where that works"
            )
        texting = Texting(conn, index, model, progressed)
        texting.run(full=full)
        spent = Usage()
        if isinstance(model, PaidEmbedder):
            if approve and (expected := estimate_pending(conn, index, model)).chunks:
                approve(expected)
            model = model.charged_to(ledger_of(conn), max_usd=max_usd, bulk=True)
            model.budget.account.read(model.budget.ledger, conn)
        filling = Filling(conn, texting.index, model, progressed)
        with stop.watching(model.budget) if isinstance(model, PaidEmbedder) else nullcontext():
            filling.run()
        if isinstance(model, PaidEmbedder):
            spent = model.budget.spent
        notes = (*texting.report.notes, *_draw(conn, texting.index))
    report = replace(
        texting.report,
        notes=notes,
        embedded=filling.embedded,
        reused=texting.report.reused + filling.reused,
        failed=filling.failed,
        pending=filling.pending,
        tokens=spent.tokens,
        usd=spent.usd,
        seconds=time.monotonic() - started,
    )
    _note(conn, index, report, began=began)
    return report


def told(report: SyncReport, *, with_costs: bool = False) -> str:
    """What a sync did, in words; what it cost is not for everybody who may see a job."""
    parts = [
        f"{counted(report.documents, 'document')} read",
        f"{counted(report.embedded, 'chunk')} embedded",
        *([f"{report.reused:,} reused"] if report.reused else []),
        *([f"{counted(report.chunks_removed, 'chunk')} removed"] if report.chunks_removed else []),
        *([f"{report.failed:,} failed"] if report.failed else []),
        *([f"{counted(report.tokens, 'token')}, {dollars(report.usd)}"] if with_costs and report.usd else []),
        f"{report.seconds:.1f} s",
    ]
    return ", ".join([*parts, *report.notes])


def _note(conn: sqlite3.Connection, index: Index, report: SyncReport, *, began: str) -> None:
    """Let servers tell of a sync that has done something; it is not at fault where that cannot be written."""
    if index.state == "active" and (report.documents or report.embedded):
        job = jobs.Job(
            index=index.name,
            kind="sync",
            state="finished",
            started=began,
            ended=jobs.now(),
            done=report.documents,
            total=report.documents,
            message=told(report),
            spent_usd=report.usd,
        )
        with suppress(VecError, sqlite3.Error):
            jobs.note(conn, job)


def sync_text(conn: sqlite3.Connection, index: Index, *, embedder: Embedder | None = None) -> SyncReport:
    """The text stage alone, which calls no model; also in an open transaction, with whose commit it comes to hold.

    What has changed is found by words then, by meaning after the next `sync`. Raises like it.
    """
    with mapped_errors():
        index = registry.reread(conn, index)
        texting = Texting(conn, index, checked_embedder(index, embedder), lambda _: None)
        texting.run(full=False)
    return texting.report


def _draw(conn: sqlite3.Connection, index: Index) -> Iterator[str]:
    """Bring the map up to date, or say why not: what was embedded is kept in any case, and the map can wait."""
    try:
        with mapped_errors():
            mapping.refresh(conn, index)
    except (VecError, sqlite3.Error) as error:
        yield f"the map was not brought up to date, the next sync tries again: {error}"
