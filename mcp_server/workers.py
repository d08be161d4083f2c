"""Threads that have a SQLite connection each, and do one thing at a time that can be interrupted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from datasette_vec_gemini import sqlite3

T = TypeVar("T")
_log = logging.getLogger("mcp_server")


class _Task:
    """Something to do; `cancel` interrupts the statement that runs for it."""

    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()
        self._lock = threading.Lock()
        self._conn: sqlite3.Connection | None = None
        self._is_cancelled = False

    def run(self, conn: sqlite3.Connection) -> Any:
        with self._lock:
            if self._is_cancelled:
                return None
            self._conn = conn
        try:
            return self.work(conn)
        finally:
            with self._lock:
                self._conn = None

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._conn:
                self._conn.interrupt()


class Workers:
    """So many threads; a connection is opened by its thread when there is first something to do, and closed by it."""

    def __init__(self, count: int, name: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._live, name=name, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do it on a thread that is free; cancelled, interrupt it and do not wait for its end."""
        task = _Task(work)
        self._tasks.put(task)
        try:
            result: T = await asyncio.wrap_future(task.future)
        except asyncio.CancelledError:
            task.cancel()
            raise
        return result

    def begin(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do it after what waits now; that it failed stands in the log."""
        task = _Task(work)
        task.future.add_done_callback(_logged)
        self._tasks.put(task)

    def close(self, seconds: float = 15.0) -> None:
        """End the threads after what they do: a process that ends in the middle of a model's work crashes."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(seconds)

    def _live(self) -> None:
        conn: sqlite3.Connection | None = None
        while task := self._tasks.get():
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                conn = conn or self._connect()
                result = task.run(conn)
            except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
                task.future.set_exception(error)
            else:
                task.future.set_result(result)
            del task
        if conn:
            conn.close()


def _logged(future: Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()):
        _log.warning("What is done in the background failed: %s", error)
