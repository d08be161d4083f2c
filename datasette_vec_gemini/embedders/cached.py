"""The vectors of questions asked before, in memory; equal questions at one time cost one call.

A question is answered on a thread of its own, so that whoever asks can stop waiting while the answer, which is paid
for, still arrives and is there for the next time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from ..errors import ServiceUnavailable
from ..vectors import Vector

SIZE = 2_000
"""Vectors kept; the oldest use goes first. With 768 dimensions they take 6 MB."""
MOST_AT_ONCE = 8
LOST_SECONDS = 60.0


class QueryCache:
    """Question -> vector, bounded, shared by threads."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._vectors: OrderedDict[Hashable, Vector] = OrderedDict()
        self._asked: dict[Hashable, Future[Vector]] = {}
        self._given_up_at: dict[Future[Vector], float] = {}
        self._lock = threading.Lock()

    def find(self, question: Hashable) -> Vector | None:
        """The vector of a question that was answered before, without asking."""
        with self._lock:
            if question in self._vectors:
                self._vectors.move_to_end(question)
            return self._vectors.get(question)

    @property
    def busy(self) -> bool:
        """Whether a question is being answered."""
        with self._lock:
            self._forget_lost()
        return bool(self._asked)

    def is_asked(self, question: Hashable) -> bool:
        """Whether this question is being answered."""
        return question in self._asked

    def answer(
        self,
        question: Hashable,
        compute: Callable[[], Vector],
        *,
        timeout_seconds: float,
        afterwards: Callable[[], None] = lambda: None,
    ) -> Vector:
        """The vector, from memory, from whoever asks the same just now, or from `compute`.

        `afterwards` is called when an answer of `compute`, or its error, is with those who wait for it. Raises what
        `compute` raises, to everyone who waits for it, and ServiceUnavailable after the time.
        """
        with self._lock:
            if question in self._vectors:
                self._vectors.move_to_end(question)
                return self._vectors[question]
            self._forget_lost()
            future = self._asked.get(question)
            if future is None:
                if len(self._asked) >= MOST_AT_ONCE:
                    raise ServiceUnavailable(f"{MOST_AT_ONCE} questions are being embedded: try again in a moment")
                future = Future()
                threading.Thread(
                    target=self._run, args=(question, compute, future, afterwards), name="vec-question", daemon=True
                ).start()
                self._given_up_at[future] = time.monotonic() + LOST_SECONDS
                self._asked[question] = future  # no sooner: there may be no thread to be had; it waits for this lock
        try:
            return future.result(timeout_seconds)
        except TimeoutError:
            raise ServiceUnavailable(
                f"the model did not answer within {timeout_seconds:g} s: ask again in a moment, or search by keywords"
            ) from None

    def _forget_lost(self) -> None:
        """Ask anew what has been under way for longer than anything takes; such threads may never end."""
        now = time.monotonic()
        for question, future in list(self._asked.items()):
            if now > self._given_up_at[future]:
                del self._asked[question], self._given_up_at[future]

    def _end(self, question: Hashable, future: Future[Vector]) -> None:
        if self._given_up_at.pop(future, None) is not None:
            del self._asked[question]

    def _run(
        self,
        question: Hashable,
        compute: Callable[[], Vector],
        future: Future[Vector],
        afterwards: Callable[[], None],
    ) -> None:
        try:
            self._settle(question, compute, future)
        finally:
            afterwards()

    def _settle(self, question: Hashable, compute: Callable[[], Vector], future: Future[Vector]) -> None:
        try:
            vector = compute()
        except BaseException as error:  # noqa: BLE001 - it is raised again by those who wait
            with self._lock:
                self._end(question, future)
            future.set_exception(error)
            return
        vector.flags.writeable = False
        with self._lock:
            self._vectors[question] = vector
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
            self._end(question, future)
        future.set_result(vector)
