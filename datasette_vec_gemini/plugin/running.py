"""One background job at work: how far it is, how it is ended, and what each kind of job does."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import TypeVar

from .. import checking, embedders, indexing
from ..access import Access
from ..budget import dollars
from ..domain import Estimate, Progress
from ..driver import sqlite3
from ..errors import ConfirmationNeeded, counted
from ..store import jobs as table
from ..store import registry
from ..store.jobs import Job, JobKind, JobState
from ..syncing import Stop, sync, told

_T = TypeVar("_T")

WRITE_SECONDS = 1.0
"""How often the progress of a job is written down; what it has spent is at once."""
RATE_SECONDS = 30.0
"""How far back the rate looks."""


class Ended(Exception):
    """Somebody wants the job to end in this state."""

    def __init__(self, state: JobState) -> None:
        super().__init__(state)
        self.state = state


@dataclass(eq=False)
class Run:
    """A job that is queued or running here, for the generation `uid`.

    Its thread alone replaces `job`; `over` is set once another may begin.
    """

    job: Job
    path: str | PathLike[str]
    access: Access
    uid: str = ""
    full: bool = False
    may_spend: bool = True
    asked: JobState | None = None
    stop: Stop = field(default_factory=Stop)
    samples: deque[tuple[float, str, int]] = field(default_factory=lambda: deque(maxlen=1_000))
    conn: sqlite3.Connection | None = None
    written: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

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
    try:
        return _DOING[run.job.kind](run)
    except ConfirmationNeeded as error:
        return str(error)


def _sync(run: Run) -> str:
    conn = _conn(run)
    index = registry.find(conn, run.job.index)
    return told(_embedding(run, index.embedder, partial(sync, conn, index, full=run.full)))


def _rebuild(run: Run) -> str:
    """Go on with the generation that is being built; where none is, make the derived tables of the active one anew."""
    conn = _conn(run)
    index = registry.find(conn, run.job.index)
    begun = registry.building(conn, index.name)
    work = partial(indexing.rebuild, conn, index, quantize=begun.quantize if begun else None)
    made, report = _embedding(run, (begun or index).embedder, work)
    if begun is None:
        return f"the keyword index and the codes were made anew; {told(report)}"
    took_over = "is in use" if made.generation == begun.generation else "is not in use: the model refused too much"
    return f"{told(report)}; generation {begun.generation} {took_over}"


def _embedding(run: Run, embedder: str, work: Callable[..., _T]) -> _T:
    """Do what may embed, with the model and within what was agreed to."""
    model = embedders.load(embedder, run.access)
    return work(
        embedder=model,
        max_usd=run.job.left_usd,
        approve=_approval(run),
        on_progress=_teller(run),
        stop=run.stop,
    )


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
            f"the text is up to date, so that words are found; {counted(expected.chunks, 'chunk')} "
            f"{'waits for its vector' if expected.chunks == 1 else 'wait for their vectors'}, about "
            f"{dollars(expected.usd)} with {expected.embedder}: sync here with a budget, or set daily_usd"
        )

    return None if run.may_spend else refuse


def _teller(run: Run) -> Callable[[Progress], None]:
    before = run.job.spent_usd

    def tell(progress: Progress) -> None:
        has_spent = before + progress.usd > run.job.spent_usd
        run.job = replace(
            run.job,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            spent_usd=before + progress.usd,
        )
        at = time.monotonic()
        run.samples.append((at, progress.stage, progress.done))
        if has_spent or at - run.written >= WRITE_SECONDS:
            run.written = at
            run.tell(_conn(run))

    return tell
