"""A limiter that counts texts and tokens in every window of a minute, shared by the threads that use one key."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ServiceUnavailable

WINDOW_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 600.0


@dataclass(eq=False, slots=True)
class Permit:
    """A request that may be sent. It counts until a window after `ended`, since the service may count it any time."""

    texts: int
    tokens: int
    ended: float | None = None


class Limiter:
    """Never more texts or tokens in any window than allowed, whenever within a request the service counts it.

    `clock` and `wait` stand for time: `wait(condition, seconds)` waits at most so long for a change.
    """

    def __init__(
        self,
        *,
        texts: int,
        tokens: int,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float], object] = threading.Condition.wait,
    ) -> None:
        self.texts = texts
        self.tokens = tokens
        self._clock = clock
        self._wait = wait
        self._changed = threading.Condition()
        self._permits: deque[Permit] = deque()
        self._paused_until = 0.0

    def acquire(self, *, texts: int, tokens: int, until: float, stop: Callable[[], bool] = lambda: False) -> Permit:
        """Wait for room, at most until that moment of the clock. More than fits in a window counts as a full one.

        Raises ServiceUnavailable when there would be no room in time, at once where that is certain, and when `stop`.
        """
        with self._changed:
            while True:
                if stop():
                    raise ServiceUnavailable("stopped before the next request")
                permit = Permit(texts=min(texts, self.texts), tokens=min(tokens, self.tokens))
                delay = self._delay(permit)
                if delay <= 0:
                    self._permits.append(permit)
                    return permit
                left = until - self._clock()
                if left <= 0 or (delay > left and delay != _UNKNOWN):
                    raise ServiceUnavailable(
                        f"the limit of {self.texts:,} texts and {self.tokens:,} tokens a minute is reached: "
                        "try again in a minute"
                    )
                self._wait(self._changed, min(delay, left))

    def _delay(self, wanted: Permit) -> float:
        """Seconds until there may be room; 0 where there is. Of requests under way nobody knows when they end."""
        now = self._clock()
        if now < self._paused_until:
            return self._paused_until - now
        while self._permits and (ended := self._permits[0].ended) is not None and ended <= now - WINDOW_SECONDS:
            self._permits.popleft()
        alive = [p for p in self._permits if p.ended is None or p.ended > now - WINDOW_SECONDS]
        texts = sum(p.texts for p in alive) + wanted.texts - self.texts
        tokens = sum(p.tokens for p in alive) + wanted.tokens - self.tokens
        if texts <= 0 and tokens <= 0:
            return 0.0
        for permit in sorted((p for p in alive if p.ended is not None), key=lambda p: p.ended or 0.0):
            texts, tokens = texts - permit.texts, tokens - permit.tokens
            if texts <= 0 and tokens <= 0:
                return max((permit.ended or 0.0) + WINDOW_SECONDS - now, 1e-3)
        return _UNKNOWN

    def finish(self, permit: Permit, *, counted: bool = True, tokens: int | None = None) -> None:
        """A request has ended; one that the service refused is not counted, and the true tokens replace a guess."""
        with self._changed:
            if counted:
                permit.ended = self._clock()
                permit.tokens = permit.tokens if tokens is None else min(tokens, self.tokens)
            else:
                self._permits.remove(permit)
            self._changed.notify_all()

    def pause(self, seconds: float, *, texts: int | None = None) -> None:
        """Send nothing for so long: the service said so, and perhaps how many texts a minute it takes.

        It knows its own windows best: what was sent before does not count any more after that time.
        """
        with self._changed:
            self._permits = deque(permit for permit in self._permits if permit.ended is None)
            self._paused_until = max(self._paused_until, self._clock() + min(seconds, LONGEST_PAUSE_SECONDS))
            if texts:
                self.texts = min(self.texts, texts)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait look at their `stop` again."""
        with self._changed:
            self._changed.notify_all()


_UNKNOWN = 3_600.0
