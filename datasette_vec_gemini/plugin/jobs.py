"""Background jobs: one at a time for each index, two at a time for a site, each on a thread with its own connection.

How a job stands is kept in its database (`store.jobs`), so that the next server goes on where this one was stopped.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import replace
from os import PathLike

from ..access import Access
from ..connection import connect
from ..domain import Index
from ..driver import sqlite3
from ..errors import (
    BudgetReached,
    DatabaseUnavailable,
    EmbedderError,
    ExtensionUnavailable,
    IndexExists,
    IndexNotFound,
    VecError,
)
from ..owners import lives_elsewhere, new_owner
from ..store import jobs as table
from ..store import registry
from ..store.jobs import Job, JobKind, JobState, now
from .running import Ended, Run, carry_out

AT_ONCE = 2
_NICENESS = 10

_log = logging.getLogger("datasette_vec_gemini")
_RETRIED = (EmbedderError, DatabaseUnavailable, ExtensionUnavailable, IndexNotFound)
"""What may be over later without anybody doing anything about the index."""


def step_back() -> None:
    """Let this thread yield to those that answer visitors, where threads have priorities of their own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _Shutdown(BaseException):
    """The server ends; a sync waits less long then for what is under way."""


class Jobs:
    """The jobs of one site."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[Run] = deque()
        self._runs: dict[tuple[str, str], Run] = {}
        self._threads: set[threading.Thread] = set()
        self._is_ending = False
        self._failed: dict[tuple[str, str], str] = {}

    def find(self, path: str | PathLike[str], index: str) -> Run | None:
        """The run of an index that is queued or under way here."""
        with self._lock:
            return self._runs.get(_key(path, index))

    def has_failed(self, path: str | PathLike[str], index: Index) -> bool:
        """Whether the last job of a generation has failed here: it is left alone until somebody starts another."""
        with self._lock:
            return self._failed.get(_key(path, index.name)) == index.uid

    def start(
        self,
        path: str | PathLike[str],
        index: str,
        kind: JobKind,
        access: Access,
        *,
        max_usd: float | None = None,
        full: bool = False,
        may_spend: bool = True,
        goes_on: Job | None = None,
    ) -> Run:
        """Queue a job and write that down; with `goes_on` what was agreed to for that one still holds.

        Without `may_spend` a paid model is not asked, and only the text is brought up to date. Raises IndexExists where
        the index has a job already, here or in another server on the file, IndexNotFound and DatabaseUnavailable.
        """
        job = Job(index=index, kind=kind, state="queued", started=now(), max_usd=max_usd, owner=new_owner())
        if goes_on:
            job = replace(goes_on, state="queued", started=now(), ended=None, message="", owner=job.owner, asked=None)
        run = Run(job=job, path=path, access=access, full=full, may_spend=may_spend)
        key = _key(path, index)
        with self._lock:
            if key in self._runs:
                raise IndexExists(f"index {index!r} has a job already: wait until it has ended, or cancel it")
            self._runs[key] = run
            self._failed.pop(key, None)
        try:
            with closing(connect(path, require_vec=False)) as conn:
                run.uid = registry.find(conn, index).uid
                table.begin(conn, job, lives=lives_elsewhere)
        except BaseException:
            with self._lock:
                del self._runs[key]
            raise
        with self._lock:
            self._queue.append(run)
            if len(self._threads) < AT_ONCE and not self._is_ending:
                thread = threading.Thread(target=self._work, name="vec-job", daemon=True)
                self._threads.add(thread)
                thread.start()
        return run

    def end(self, path: str | PathLike[str], index: str, state: JobState) -> None:
        """Pause or cancel what is queued or under way for an index, here or in another server on the file.

        Of a job that stands still only the state is noted.
        """
        with self._lock:
            run = self._runs.get(_key(path, index))
            is_queued = run in self._queue
            if run and is_queued:
                self._queue.remove(run)
        if run and not is_queued:
            run.end(state)
        elif run:
            self._close(run, state)
        else:
            with closing(connect(path, require_vec=False)) as conn:
                table.ask(conn, index, state, ended=now(), lives=lives_elsewhere)

    def shut_down(self, seconds: float) -> None:
        """End all jobs so that the next server goes on with them; those that take longer are left behind."""
        with self._lock:
            self._is_ending = True
            self._queue.clear()
            runs, threads = list(self._runs.values()), list(self._threads)
        for run in runs:
            run.ask(_Shutdown())
        until = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        step_back()
        while True:
            with self._lock:
                if not self._queue:
                    self._threads.discard(threading.current_thread())
                    return
                run = self._queue.popleft()
            try:
                self._carry_out(run)
            except _Shutdown:
                return

    def _carry_out(self, run: Run) -> None:
        """Run a job to its end, whatever that is. Raises _Shutdown, which leaves it as it is."""
        state: JobState = "failed"
        try:
            with closing(connect(run.path)) as conn:
                run.conn = conn
                run.job = replace(run.job, state="running", started=now())
                run.tell(conn)
                run.stop.check()
                message = carry_out(run)
            state = "finished"
        except _RETRIED as error:
            state, message = "waiting", _on_page(error)
        except VecError as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - a job ends and says so, whatever a plugin's model raises
            message = f"an error that nobody foresaw, {type(error).__name__}: the server's log has it whole"
            if not run.stop.reason:
                _log.exception("A job of index %s has failed", run.job.index)
        finally:
            run.conn = None
        if isinstance(run.stop.reason, Ended) and state != "finished":
            state, message = run.stop.reason.state, ""
        elif isinstance(run.stop.reason, _Shutdown) and state != "finished":
            raise run.stop.reason
        self._close(run, state, message)

    def _close(self, run: Run, state: JobState, message: str = "") -> None:
        """Write down how a run ended, and only then let another begin."""
        ended = replace(run.job, state=state, ended=now(), message=message)
        key = _key(run.path, run.job.index)
        if state == "failed":
            _log.warning("Index %s: %s", run.job.index, message)
        try:
            with closing(connect(run.path, require_vec=False)) as conn:
                table.tell(conn, ended)
        except (VecError, sqlite3.Error) as error:
            _log.warning("How the job of index %s ended could not be written: %s", run.job.index, error)
        with self._lock:
            if state == "failed":
                self._failed[key] = run.uid
            self._runs.pop(key, None)
        run.over.set()


def _on_page(error: VecError) -> str:
    """An error with what can be done about it where there are buttons instead of commands."""
    if isinstance(error, BudgetReached) and error.of_run:
        return f"{error.what}: what was embedded is kept; agree to more here, and it goes on from there"
    return str(error)


def _key(path: str | PathLike[str], index: str) -> tuple[str, str]:
    return str(path), index.lower()
