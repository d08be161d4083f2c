"""The gate before paid embeddings: a SQL function or a page may ask for anything, as often as anybody likes.

One SQL statement can call a function once a row, and Datasette cannot interrupt it within a call: without a gate a
single anonymous request would make hundreds of paid calls and hold a thread all the while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, get_args

from . import state
from .errors import EmbedderError, GateClosed, VecError
from .paid import PaidEmbedder
from .state import ERRORS_KEPT
from .vectors import Vector

SqlEmbedding = Literal["auto", "on", "cached", "off"]
SQL_EMBEDDING: tuple[SqlEmbedding, ...] = get_args(SqlEmbedding)
TEXTS_PER_MINUTE = 10
SQL_SECONDS = 1.0

_log = logging.getLogger("datasette_vec_gemini")


class Gate:
    """Lets known texts through, and new ones one at a time, so many a minute, for those who may.

    `mode` is `on` (everybody may), `auto` (whom `may_embed` allows), `cached` (only what was embedded before) or `off`.
    A second new text while one is under way is refused at once unless `queueing`; who asks the same waits in any case.
    `errors` keeps the last reasons, each once, with their time: SQLite's drivers hide what is raised in a function.
    """

    def __init__(
        self,
        *,
        mode: SqlEmbedding = "auto",
        texts_per_minute: int = TEXTS_PER_MINUTE,
        queueing: bool = False,
        may_embed: Callable[[], bool] = lambda: True,
        errors: deque[tuple[str, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mode = mode
        self.errors = deque[tuple[str, str]](maxlen=ERRORS_KEPT) if errors is None else errors
        self._texts_per_minute = texts_per_minute
        self._queueing = queueing
        self._may_embed = may_embed
        self._clock = clock
        self._changed = threading.Condition()
        self._passing: set[tuple[str, str, str]] = set()
        self._latest: tuple[str, str, str] | None = None
        self._passed: deque[float] = deque()

    def vector(
        self, embedder: PaidEmbedder, text: str, *, task: str, timeout_seconds: float, allowed: bool | None = None
    ) -> Vector:
        """The vector of a text, if it may pass. Raises GateClosed, or what the embedder raises.

        `allowed` is the answer of `may_embed` where the caller has it already.
        """
        if self.mode == "off":
            raise GateClosed("texts are not embedded in SQL here: sql_embedding is off")
        question = (embedder.name, task, text)
        until = time.monotonic() + timeout_seconds
        with self._changed:
            self._changed.wait_for(lambda: question not in self._passing, timeout_seconds)
            known = embedder.known_query(text, task=task)
            if known is not None:
                return known
            is_under_way = embedder.is_asked(text, task=task)
            if not is_under_way:
                if self.mode == "cached":
                    raise GateClosed("only texts that were embedded before are known here: sql_embedding is cached")
                if not self._queueing and (self._passing or self._is_late(embedder)):
                    raise GateClosed("another new text is being embedded: ask again in a moment")
                self._passing.add(question)
                self._latest = question
        left = max(0.05, until - time.monotonic())
        if is_under_way:  # somebody who may has asked it, and may have given up waiting
            return embedder.embed_query(text, task=task, timeout_seconds=left)
        try:
            if self.mode == "auto" and not (self._may_embed() if allowed is None else allowed):
                raise GateClosed(
                    "new texts are embedded for actors with the permission vec-embed: sign in, or ask what was asked "
                    "before"
                )
            self._count()
            return embedder.embed_query(text, task=task, timeout_seconds=left)
        finally:
            with self._changed:
                self._passing.discard(question)
                self._changed.notify_all()

    def _is_late(self, embedder: PaidEmbedder) -> bool:
        """Whether the last text that was let through is under way, though nobody waits for it any more."""
        return self._latest is not None and embedder.is_asked(self._latest[2], task=self._latest[1])

    def note(self, error: VecError) -> None:
        """Keep an error for those who cannot see it, and write each new one to the log and to the user's state."""
        at, message = datetime.now(UTC).isoformat(timespec="seconds"), str(error)
        known = [entry for entry in list(self.errors) if entry[1] == message]
        for entry in known:
            with suppress(ValueError):  # another thread was faster
                self.errors.remove(entry)
        self.errors.append((at, message))
        if not known:
            _log.warning("A text was not embedded: %s", message)
            if isinstance(error, EmbedderError):  # other messages may quote what somebody has typed
                state.shared().note(message, at)

    def _count(self) -> None:
        with self._changed:
            now = self._clock()
            while self._passed and self._passed[0] <= now - 60.0:
                self._passed.popleft()
            if len(self._passed) >= self._texts_per_minute:
                raise GateClosed(
                    f"{self._texts_per_minute:,} new texts a minute are embedded here: wait a minute, or make an index "
                    "to embed a whole column"
                )
            self._passed.append(now)
