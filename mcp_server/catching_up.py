"""After something was written: embed what waits, within the time of one call, and say what is left and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from datasette_vec_gemini import (
    Embedder,
    Estimate,
    Index,
    PaidEmbedder,
    Progress,
    Stop,
    VecError,
    count_pending,
    sqlite3,
    sync,
)

from .library import Tell

SYNC_SECONDS = 40.0
"""How long a call embeds; what is left is done by the next one. Clients give up after 60 seconds or so."""
_WORDS_ONLY = "Everything is saved and found by words; by meaning not all of it yet"


class Refused(VecError):
    """What was asked for is not done here, or not now."""


class _Paused(Exception):
    """Others have their turn now."""


def catch_up(
    conn: sqlite3.Connection, index: Index, *, model: Embedder, tell: Tell, stop: Stop, seconds: float = SYNC_SECONDS
) -> list[str]:
    """Sync an index for at most so long, a paid model only where a daily limit is set; remarks on what is left.

    What stops a sync is no error of the call: the rows are saved, and the next call or `datasette vec sync` goes on.
    """
    too_long = Refused(f"there was more to embed than fits into a call of {seconds:.0f} seconds: the next one goes on")
    timer = threading.Timer(seconds, stop.request, [too_long])
    timer.daemon = True
    timer.start()
    try:
        report = sync(
            conn,
            index,
            embedder=model,
            approve=partial(_approve, model),
            on_progress=lambda progress: tell(*_told(progress)),
            stop=stop,
        )
    except VecError as error:
        return [f"{_WORDS_ONLY}: {error}"]
    finally:
        timer.cancel()
    if report.failed:
        return [f"The model refused {report.failed} chunks of the index, which are found by words only"]
    return []


def catch_up_a_little(
    conn: sqlite3.Connection, index: Index, *, model: Embedder, seconds: float, is_over: Callable[[], bool]
) -> float | None:
    """Sync an index for about so long, where documents of it wait, or until it is over; how long to go on, or None.

    What gets nowhere in this time is given twice as much, up to that of a call. Raises VecError.
    """
    before, until, stages = count_pending(conn, index), time.monotonic() + seconds, set[str]()

    def pause(progress: Progress) -> None:
        stages.add(progress.stage)
        if is_over() or time.monotonic() > until:
            raise _Paused

    if not before or is_over():
        return None
    try:
        sync(conn, index, embedder=model, on_progress=pause)
    except _Paused:
        is_moving = "vectors" in stages or count_pending(conn, index) < before
        longer = seconds if is_moving else 2 * seconds
        return longer if longer <= SYNC_SECONDS else None
    return None


def _approve(model: Embedder, expected: Estimate) -> None:
    """Nobody is there to say yes to a cost: a daily limit that somebody has set is the yes."""
    if isinstance(model, PaidEmbedder) and model.access.daily_usd is None:
        raise Refused(
            f"model {expected.embedder} costs money, and adding needs a limit that somebody has set: daily_usd "
            "(DATASETTE_VEC_DAILY_USD)"
        )


def _told(progress: Progress) -> tuple[float, float, str]:
    what = "documents read" if progress.stage == "text" else "chunks embedded"
    return progress.done, progress.total, f"{progress.done} of {progress.total} {what}"
