"""One background job at work: how far it is, how it is ended, and what each kind of job does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike

from .. import checking, embedders, indexing
from ..access import Access
from ..budget import dollars
from ..domain import Embedder, Estimate, Progress, SyncReport
from ..driver import sqlite3
from ..errors import ConfirmationNeeded
from ..paid import PaidEmbedder
from ..store import jobs as table
from ..store import registry
from ..store.jobs import Job, JobKind, JobState
from ..syncing import Stop, sync

WRITE_SECONDS = 1.0
"""How often the progress of a job that costs nothing is written down; one that spends writes after every batch."""
RATE_SECONDS = 30.0
"""How far back the rate looks."""


class Ended(Exception):
    """Somebody wants the job to end in this state."""

    def __init__(self, state: JobState) -> None:
        super().__init__(state)
        self.state = state


@dataclass(eq=False)
class Run:
    """A job that is queued or running here. Its thread alone replaces `job`."""

    job: Job
    path: str | PathLike[str]
    access: Access
    full: bool = False
    may_spend: bool = True
    asked: JobState | None = None
    stop: Stop = field(default_factory=Stop)
    samples: deque[tuple[float, str, int]] = field(default_factory=lambda: deque(maxlen=1_000))
    conn: sqlite3.Connection | None = None
    written: float = 0.0

    def ask(self, reason: BaseException) -> None:
        """End the job between two batches, or in the middle of a check."""
        self.stop.request(reason)
        if self.job.kind == "verify" and self.conn:
            with suppress(sqlite3.Error):
                self.conn.interrupt()

    def end(self, state: JobState) -> None:
        """End the job so that it is in this state then."""
        self.asked = state
        self.ask(Ended(state))

    def tell(self, conn: sqlite3.Connection) -> None:
        """Write down how the job stands, and end it if another server asked for that."""
        asked = table.tell(conn, self.job)
        if asked and not self.stop.reason:
            self.end(asked)

    def rate(self) -> float | None:
        """Documents or chunks a second, of late; None until that can be told."""
        now, stage = time.monotonic(), self.job.stage
        recent = [(at, done) for at, of, done in list(self.samples) if of == stage and now - at <= RATE_SECONDS]
        if len(recent) < 2 or recent[-1][0] - recent[0][0] < 0.2:
            return None
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]) or None


def carry_out(run: Run) -> str:
    """Do the job on the run's connection and say what was done. Raises VecError, or what the run was asked to."""
    return _DOING[run.job.kind](run)


def _sync(run: Run) -> str:
    conn = _conn(run)
    index = registry.find(conn, run.job.index)
    model = embedders.load(index.embedder, run.access)
    try:
        report = sync(
            conn,
            index,
            embedder=model,
            full=run.full,
            max_usd=run.job.left_usd,
            approve=_approval(run),
            on_progress=_teller(run, model),
            stop=run.stop,
        )
    except ConfirmationNeeded as error:
        return str(error)
    return _told(report)


def _rebuild(run: Run) -> str:
    """Go on with the generation that is being built."""
    conn = _conn(run)
    index = registry.find(conn, run.job.index)
    begun = registry.building(conn, index.name)
    if begun is None:
        return "no other generation is being built"
    model = embedders.load(begun.embedder, run.access)
    made, report = indexing.rebuild(
        conn,
        index,
        embedder=model,
        quantize=begun.quantize,
        max_usd=run.job.left_usd,
        approve=_approval(run),
        on_progress=_teller(run, model),
        stop=run.stop,
    )
    took_over = "is in use" if made.generation == begun.generation else "is not in use: the model refused too much"
    return f"{_told(report)}; generation {begun.generation} {took_over}"


def _verify(run: Run) -> str:
    conn = _conn(run)
    found = checking.verify(conn, registry.find(conn, run.job.index))
    run.stop.check()
    return "\n".join(f"{problem.check}: {problem.text}" for problem in found) or "all checks hold"


_DOING: dict[JobKind, Callable[[Run], str]] = {"sync": _sync, "rebuild": _rebuild, "verify": _verify}


def _conn(run: Run) -> sqlite3.Connection:
    if run.conn is None:
        raise ValueError("a job works on its thread's connection only")
    return run.conn


def _approval(run: Run) -> Callable[[Estimate], None] | None:
    """Asked before a paid model is: nobody is there to say yes, so it was said before or it is no."""

    def refuse(expected: Estimate) -> None:
        raise ConfirmationNeeded(
            f"the text is up to date, so that words are found; {expected.chunks:,} chunks wait for their vectors, "
            f"about {dollars(expected.usd)} with {expected.embedder}: sync them here with a budget, or set daily_usd"
        )

    return None if run.may_spend else refuse


def _teller(run: Run, model: Embedder) -> Callable[[Progress], None]:
    before, is_paid = run.job.spent_usd, isinstance(model, PaidEmbedder)

    def tell(progress: Progress) -> None:
        run.job = replace(
            run.job,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            spent_usd=before + progress.usd,
        )
        at = time.monotonic()
        run.samples.append((at, progress.stage, progress.done))
        if (is_paid and progress.stage == "vectors") or at - run.written >= WRITE_SECONDS:
            run.written = at
            run.tell(_conn(run))

    return tell


def _told(report: SyncReport) -> str:
    parts = [
        f"{report.documents:,} documents read",
        f"{report.embedded:,} chunks embedded",
        *([f"{report.reused:,} reused"] if report.reused else []),
        *([f"{report.failed:,} failed"] if report.failed else []),
        f"{report.seconds:.1f} s",
    ]
    return ", ".join([*parts, *report.notes])
