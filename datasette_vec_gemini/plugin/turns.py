"""What costs much is done by turns: Datasette has few threads for SQL, and other pages need theirs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..errors import DatabaseUnavailable

_T = TypeVar("_T")

WAITING = 24
"""So many may wait; who comes then is sent away at once."""
PATIENCE_SECONDS = 5.0
RETRY_SECONDS = 5
"""When to come again, as the header `Retry-After` of every 503 of ours says."""


class Busy(DatabaseUnavailable):
    """Too many wait already, or this one has for too long; come again after `RETRY_SECONDS`."""

    def __init__(self) -> None:
        super().__init__(f"too many ask at once: ask again in {RETRY_SECONDS} seconds")


class Turns:
    """Lets so many work at once, in the order in which they came; `waiting` counts the others. For one event loop."""

    def __init__(self, at_once: int, *, waiting: int = WAITING, seconds: float = PATIENCE_SECONDS) -> None:
        self._free = at_once
        self._queue: deque[asyncio.Future[None]] = deque()
        self._most_waiting = waiting
        self._seconds = seconds

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._queue)

    async def take(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do the work when it is its turn. Raises Busy.

        Who gives up does not end the turn, which lasts until the work is done: its thread cannot be stopped.
        """
        await self._come()

        async def working() -> _T:
            return await work()

        task = asyncio.ensure_future(working())
        task.add_done_callback(self._end)
        return await asyncio.shield(task)

    async def _come(self) -> None:
        if self._free:
            self._free -= 1
            return
        if self.waiting >= self._most_waiting:
            raise Busy
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except TimeoutError:
            self._leave(turn)
            raise Busy from None
        except asyncio.CancelledError:
            self._leave(turn)
            raise

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if turn in self._queue:
            self._queue.remove(turn)
        elif not turn.cancelled():  # it had come in the same moment
            self._pass_on()

    def _end(self, task: asyncio.Future[Any]) -> None:
        self._pass_on()
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report what nobody waits for any more

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
