"""How a SQL function waits for something: in a thread of its own, for a bounded time.

A statement keeps its connection to itself while it runs a function. Datasette leaves the cursors of failed statements
in reference circles; whichever thread collects such garbage, or drops the last reference, waits for the cursor's
connection (pysqlite3's `pysqlite_cursor_dealloc` resets its statement). Were that thread to hold a lock the function
waits for, neither would ever go on; were it to do the function's own work, that work would wait for itself.
"""

from __future__ import annotations

import gc
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

from .errors import ServiceUnavailable

_T = TypeVar("_T")

SELDOM = 100_000
"""New objects between two collections while anybody waits: some 10 MB of garbage at most, however long that is."""


def apart(work: Callable[[], _T], *, seconds: float) -> _T:
    """Do the work in a thread of its own and wait for it, no longer than this; ServiceUnavailable then.

    Meanwhile garbage is collected seldom, in the whole process.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again by who waits
            future.set_exception(error)

    with _seldom_collecting():
        start_new_thread(copy_context().run, (run,))  # Thread.start() waits for the new thread, without a bound
        try:
            return future.result(seconds)
        except TimeoutError:
            raise ServiceUnavailable(f"there was no answer within {seconds:g} s: ask again in a moment") from None


_lock = threading.Lock()
_waiting = 0
_threshold = 0


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Raise the garbage collector's first threshold until the last who is in here leaves."""
    global _waiting, _threshold  # noqa: PLW0603 - as the collector itself they are one for the process
    with _lock:
        if not _waiting:
            _threshold, *rest = gc.get_threshold()
            gc.set_threshold(_threshold and max(_threshold, SELDOM), *rest)  # 0 means never, and stays
        _waiting += 1
    try:
        yield
    finally:
        with _lock:
            _waiting -= 1
            if not _waiting:
                gc.set_threshold(_threshold, *gc.get_threshold()[1:])
