"""Requests that can be given up. An HTTP client times each byte and not the whole, so none is trusted with the clock.

Each goes on a daemon thread, which is left behind when its time is over: it holds up neither its caller nor the end of
the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress

from .service import Reply, Transient


class Sending:
    """The requests of one run that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[Future[Reply]] = set()
        self._is_over = False

    def send(self, ask: Callable[[], Reply], *, seconds: float) -> Reply:
        """What `ask` returns or raises; Transient, perhaps billed, after the time or when all is given up."""
        answer: Future[Reply] = Future()
        with self._lock:
            if self._is_over:
                raise Transient("it is given up")
            self._under_way.add(answer)
        try:
            _start(ask, answer)
            return answer.result(seconds)
        except TimeoutError:
            raise Transient("no answer in time", may_be_billed=True) from None
        except CancelledError:
            raise Transient("it is given up", may_be_billed=True) from None
        finally:
            with self._lock:
                self._under_way.discard(answer)

    def give_up(self) -> None:
        """Let nobody wait any longer, and nothing more be sent."""
        with self._lock:
            self._is_over = True
            for answer in self._under_way:
                answer.cancel()


def _start(ask: Callable[[], Reply], answer: Future[Reply]) -> None:
    try:
        threading.Thread(target=_answer, args=(ask, answer), name="vec-request", daemon=True).start()
    except RuntimeError as error:
        raise Transient(f"there is no thread to be had: {error}") from error


def _answer(ask: Callable[[], Reply], answer: Future[Reply]) -> None:
    try:
        reply = ask()
    except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
        with suppress(InvalidStateError):
            answer.set_exception(error)
    else:
        with suppress(InvalidStateError):  # given up meanwhile
            answer.set_result(reply)
