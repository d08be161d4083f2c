"""The table `_vec__jobs`: what a server does for an index in the background, or did last; one row an index and kind.

Its name has two underscores because an index called `jobs` has a view `_vec_jobs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Literal

from ..driver import sqlite3
from ..errors import IndexExists
from ..schema import listed, quote_identifier
from . import registry
from .transactions import mapped_errors, transaction

JobKind = Literal["sync", "rebuild", "verify"]
JobState = Literal["queued", "running", "paused", "cancelled", "finished", "failed", "waiting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as it stands: times are UTC in ISO 8601, `done` of `total` count documents or chunks, as `stage` says.

    `max_usd` is what somebody agreed to, `spent_usd` what has gone of it, by all runs since. A job that is waiting is
    tried again later, and `message` says why; of one that is finished it says what was done. `owner` names the run, and
    `asked` is the state that another server wants it to end in.
    """

    index: str
    kind: JobKind
    state: JobState
    started: str
    ended: str | None = None
    stage: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    max_usd: float | None = None
    spent_usd: float = 0.0
    owner: str = ""
    asked: JobState | None = None

    @property
    def left_usd(self) -> float | None:
        """What is left of the dollars agreed to; None where no limit was."""
        return None if self.max_usd is None else max(0.0, self.max_usd - self.spent_usd)


UNDER_WAY = ("queued", "running")
_COLUMNS = tuple(field.name for field in fields(Job))
_TOLD = [name for name in _COLUMNS if name not in {"index", "kind", "owner", "asked"}]
"""What a run says of itself."""


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@mapped_errors()
def jobs(conn: sqlite3.Connection) -> list[Job]:
    """Every job of the database, the one that was started last first; none where nothing ever ran."""
    if not registry.has_table(conn, "_vec__jobs"):
        return []
    cursor = conn.execute(f"select {listed(_COLUMNS)} from _vec__jobs order by started desc")
    return [Job(**dict(zip(_COLUMNS, row, strict=True))) for row in cursor]


def of_index(conn: sqlite3.Connection, index: str) -> list[Job]:
    """The jobs of one index, by its name in any case."""
    return [job for job in jobs(conn) if job.index.lower() == index.lower()]


@mapped_errors()
def begin(conn: sqlite3.Connection, job: Job, *, lives: Callable[[str], bool]) -> None:
    """Keep a job in place of the one before of its index and kind, in a transaction of its own; none without index.

    Raises IndexExists where a job of the index is under way whose owner `lives` in another process.
    """
    registry.migrate(conn)
    with transaction(conn):
        if any(known.state in UNDER_WAY and lives(known.owner) for known in of_index(conn, job.index)):
            raise IndexExists(f"index {job.index!r} has a job already, of another server: wait until it has ended")
        _put(conn, job)


@mapped_errors()
def note(conn: sqlite3.Connection, job: Job) -> None:
    """Keep what was done for an index by another program than a server, unless a server's own job stands there.

    One that somebody paused or cancelled, or that waits, stays as it is: what it stands for goes on.
    """
    registry.migrate(conn)
    with transaction(conn):
        known = next((known for known in of_index(conn, job.index) if known.kind == job.kind), None)
        if known is None or known.state in {"finished", "failed"}:
            _put(conn, job)


def _put(conn: sqlite3.Connection, job: Job) -> None:
    conn.execute(
        f"""
        insert or replace into _vec__jobs ({listed(_COLUMNS)})
        select {", ".join(f":{name}" for name in _COLUMNS)}
        where exists (select 1 from _vec_indexes where name = :index)
        """,
        asdict(job),
    )


@mapped_errors()
def tell(conn: sqlite3.Connection, job: Job) -> JobState | None:
    """Write how a run stands, and read what it was asked for: "cancelled" where its row is another's, or gone."""
    assignments = ", ".join(f"{quote_identifier(name)} = :{name}" for name in _TOLD)
    own = '"index" = :index and kind = :kind and owner = :owner'
    with transaction(conn):
        conn.execute(
            f"update _vec__jobs set {assignments}, asked = iif(:ended is null, asked, null) where {own}", asdict(job)
        )
        row = conn.execute(f"select asked from _vec__jobs where {own}", asdict(job)).fetchone()
    return row[0] if row else "cancelled"


@mapped_errors()
def ask(conn: sqlite3.Connection, index: str, state: JobState, *, ended: str, lives: Callable[[str], bool]) -> None:
    """Ask a job under way, whose owner `lives` in another process, to end in this state; give it to any other.

    One that was asked before and has not ended is not waited for again.
    """
    registry.migrate(conn)
    with transaction(conn):
        for job in of_index(conn, index):
            if job.state not in {*UNDER_WAY, "paused", "waiting"}:
                continue
            waits = job.state in UNDER_WAY and job.asked is None and lives(job.owner)
            conn.execute(
                """
                update _vec__jobs set asked = iif(state in ('queued', 'running'), :asked, null),
                    state = iif(:waits, state, :asked), ended = iif(:waits, ended, :ended)
                where "index" = :index and kind = :kind
                """,
                {"asked": state, "waits": waits, "ended": ended, "index": job.index, "kind": job.kind},
            )
