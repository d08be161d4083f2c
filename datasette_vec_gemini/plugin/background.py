"""What a server does by itself: it goes on with jobs, makes declared indexes, and follows what is written to tables.

It begins when the server does and not before: nothing of it happens in `datasette --get`, in tests that ask an
application in their own process, or in the other commands.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any

from datasette.app import Datasette
from datasette.database import Database

from ..connection import connect
from ..domain import Index
from ..driver import sqlite3
from ..errors import IndexExists, VecError
from ..owners import lives_elsewhere
from ..schema import in_main, listed, source_key
from ..store import jobs as table
from ..store import registry
from ..store.jobs import Job
from ..texting import is_behind
from . import declared, site
from .declared import obstacle
from .running import Run
from .visitors import App, Receive, Scope, Send
from .warming import warm

LOOK_SECONDS = 60.0
"""A database that nobody writes to is looked at so often all the same: for what waits, and for claims that expire."""
RETRY_SECONDS = 60.0
MOST_RETRY_SECONDS = 3_600.0
END_SECONDS = 1.5
"""How long the end of the server waits for jobs."""

_log = logging.getLogger("datasette_vec_gemini")


def attend(datasette: Datasette, app: App) -> App:
    """Wrap an ASGI application so that the background work begins and ends with the server."""

    async def attending(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        background = Background(datasette)

        async def hear() -> Any:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(background.end)
            return message

        async def say(message: Any) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                background.begin()

        await app(scope, hear, say)

    return attending


@dataclass(frozen=True, slots=True)
class _Seen:
    """A view as it was read at some time: `version` is that of the data before it was read."""

    version: int
    at: float
    digest: int


@dataclass
class _Watch:
    """A database that is looked at: the version of its data and the time of the last look.

    `tries` counts how often what waits was tried again, `views` has how each view was when it was compared last.
    """

    conn: sqlite3.Connection
    version: int = -1
    looked: float = -inf
    tries: dict[str, int] = field(default_factory=dict)
    views: dict[str, _Seen] = field(default_factory=dict)


class Background:
    """The background work of one server."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        self._site = site.of(datasette)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="vec-background", daemon=True)
        self._watches: dict[str, _Watch] = {}

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """End the thread and the jobs, within two seconds; what was under way is gone on with by the next server."""
        self._over.set()
        self._site.jobs.shut_down(END_SECONDS)
        if self._thread.is_alive():
            self._thread.join(0.3)

    def _live(self) -> None:
        self._guarded(partial(warm, self._site))
        self._guarded(self._go_on)
        self._guarded(partial(declared.make, self._site))
        while not self._over.is_set():
            self._guarded(self.look)
            self._over.wait(self._site.sync_seconds or LOOK_SECONDS)
        for watch in self._watches.values():
            watch.conn.close()

    def _guarded(self, step: Callable[[Database], None]) -> None:
        """Do a step for every database that can be written; what is wrong with one is no matter of the others."""
        for db in list(self._datasette.databases.values()):
            if self._over.is_set():
                return
            try:
                step(db)
            except (VecError, sqlite3.Error) as error:
                _log.info("Database %s is left alone for now: %s", db.name, error)
            except Exception:  # noqa: BLE001 - the work on other databases goes on
                _log.exception("The background work on database %s has failed", db.name)

    def _go_on(self, db: Database) -> None:
        """Go on with what the last server was doing."""
        own = self._site
        if obstacle(db):
            return
        with closing(connect(db.path, read_only=True, require_vec=False)) as conn:
            left = [job for job in table.jobs(conn) if job.state in table.UNDER_WAY and not lives_elsewhere(job.owner)]
        for job in left:
            with suppress(IndexExists):  # another server was as quick, or a job of the index is under way
                own.jobs.start(db.path, job.index, job.kind, own.access, goes_on=job, may_spend=_may_go_on(own, job))

    def look(self, db: Database) -> None:
        """See what has changed in a database, which costs one pragma where nothing has."""
        if obstacle(db):
            return
        if db.name not in self._watches:
            self._watches[db.name] = _Watch(connect(db.path, read_only=True, require_vec=False))
        watch = self._watches[db.name]
        (version,) = watch.conn.execute("pragma data_version").fetchone()
        now = time.monotonic()
        if version == watch.version and now - watch.looked < LOOK_SECONDS:
            return
        if version != watch.version:
            declared.compare(self._site, db)
        is_first, watch.version, watch.looked = watch.version < 0, version, now
        for index in registry.indexes(watch.conn):
            with suppress(VecError, sqlite3.Error):  # of an index that has just gone or has a job by now, a broken view
                self._follow(db, watch, index, is_first=is_first)

    def _follow(self, db: Database, watch: _Watch, index: Index, *, is_first: bool) -> None:
        """Start what is due for an index, unless somebody has paused or cancelled it."""
        own, conn = self._site, watch.conn
        known = table.of_index(conn, index.name)
        if run := own.jobs.find(db.path, index.name):
            _hear(run, known)
            return
        if any(job.state in table.UNDER_WAY and lives_elsewhere(job.owner) for job in known):
            return  # another server is at it
        waiting = [job for job in known if job.state == "waiting"]
        for job in waiting:
            tries = watch.tries.get(index.uid, 0)
            if _age_seconds(job) >= min(RETRY_SECONDS * 2**tries, MOST_RETRY_SECONDS):
                watch.tries[index.uid] = tries + 1
                own.jobs.start(db.path, index.name, job.kind, own.access, goes_on=job, may_spend=_may_go_on(own, job))
                return
        stands = any(job.kind == "sync" and job.state in {"paused", "cancelled", "waiting"} for job in known)
        if stands or not own.sync_seconds or own.jobs.has_failed(db.path, index):
            return
        may_spend = own.access.daily_usd is not None or not own.is_paid(index.embedder)
        seen = self._seen(watch, index) if index.is_view else None
        before = watch.views.get(index.uid)
        if index.is_view:
            due = seen is not None and (before is None or before.digest != seen.digest)
        else:
            due = is_behind(conn, index, text_only=not may_spend, thorough=is_first)
        if due:
            watch.tries.pop(index.uid, None)
            own.jobs.start(db.path, index.name, "sync", own.access, may_spend=may_spend)
        if seen:
            watch.views[index.uid] = seen

    @staticmethod
    def _seen(watch: _Watch, index: Index) -> _Seen | None:
        """A view as it is now, read after anything was written, at most once a minute; None where that is not due.

        A view has no triggers. What a job itself writes cannot be told from what others write meanwhile, but it leaves
        the rows of the view as they were.
        """
        before, now = watch.views.get(index.uid), time.monotonic()
        if before and (before.version == watch.version or now - before.at < LOOK_SECONDS):
            return None
        return _Seen(watch.version, now, _digest(watch.conn, index))


def _hear(run: Run, known: list[Job]) -> None:
    """End a run if another server asked for that, which one that waits for a service does not read itself."""
    for job in known:
        if job.owner == run.job.owner and job.asked and not run.asked:
            run.end(job.asked)


def _digest(conn: sqlite3.Connection, index: Index) -> int:
    """A number that is another one when a row of a view is, as far as its index reads it; their order is no matter."""
    names = dict.fromkeys([*source_key(index), *index.columns])
    rows = conn.execute(f"select {listed(tuple(names))} from {in_main(index.table)}")
    digests = (hashlib.blake2b(repr(row).encode(errors="surrogatepass"), digest_size=16).digest() for row in rows)
    return sum(int.from_bytes(digest) for digest in digests)


def _may_go_on(own: site.Site, job: Job) -> bool:
    """Whether a paid model may be asked: somebody agreed to a budget, or configured one."""
    return job.max_usd is not None or own.access.daily_usd is not None


def _age_seconds(job: Job) -> float:
    ended = datetime.fromisoformat(job.ended or job.started)
    return (datetime.now(UTC) - ended).total_seconds()
