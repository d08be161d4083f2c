"""The second stage of a sync: pending chunks are claimed, embedded with no transaction open, and given their vectors.

A paid model is asked for several batches at a time, on threads that never see the database and that may be left behind;
what an interrupted run has paid for is written before it ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from .chunking import digest
from .domain import Embedder, Index, Progress
from .driver import sqlite3
from .errors import EmbedderError, EmbeddingFailed, IndexNotFound, InvalidVector
from .owners import has_died, new_owner, running
from .paid import PaidEmbedder
from .store import claims, counting, registry, writing
from .store.claims import Claimed
from .store.transactions import transaction
from .vectors import Vector, int8_scale, normalise, pack, unpack

LEASE_SECONDS = 300.0
"""A claim whose process cannot be seen to have died is retaken after this time; one that lives renews it before."""
RESCUE_SECONDS = 10.0
"""How long a run that failed waits for answers that are paid for."""
INTERRUPTED_SECONDS = 1.0
"""The same where somebody at the keyboard waits for its end."""
ABANDON_SECONDS = 0.5
"""How long threads that wait for nothing any more may take to hand over what they have."""
FIRST_BATCH = 16
BATCH_SECONDS = 1.0
"""A model on this machine begins with so few texts and then gets as many at once as take it about so long, so that it
is seen how far it is, and it can be stopped. Of one that is paid, a request is the smallest step."""

Outcome = Vector | str | None


@runtime_checkable
class _Abandonable(Protocol):
    """An embedder that can let its callers go with what they have, though the service has not answered."""

    def abandon(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch under way: the vectors owned already by digest, and the texts that the model is asked for."""

    batch: Sequence[Claimed]
    blobs: dict[bytes, bytes]
    texts: dict[bytes, str]
    answer: Future[list[Outcome]]


@dataclass
class Filling:
    """One run of the stage: how many vectors were `embedded` or `reused`, and what is `failed` or `pending` then."""

    conn: sqlite3.Connection
    index: Index
    embedder: Embedder
    on_progress: Callable[[Progress], None]
    embedded: int = 0
    reused: int = 0
    failed: int = 0
    pending: int = 0
    # The process can be told from the name, the run from the token: two threads do not share claims.
    owner: str = field(default_factory=new_owner)

    def __post_init__(self) -> None:
        self._flights: deque[_Flight] = deque()
        self._paid = self.embedder if isinstance(self.embedder, PaidEmbedder) else None
        self._batch = self.embedder.batch_size if self._paid else min(FIRST_BATCH, self.embedder.batch_size)

    def run(self) -> None:
        """Give every pending chunk its vector or the reason why it has none. Raises EmbedderError, IndexNotFound."""
        total, done = counting.count_chunks(self.conn, self.index, only=counting.PENDING), 0
        most = self._paid.concurrency if self._paid else 1
        running.add(self.owner)
        try:
            self._tell(0, total)
            while total:
                # The first batch goes alone: a bad key or a missing model is found out by one call.
                while len(self._flights) < (most if done else 1) and (batch := self._claim()):
                    self._begin(batch)
                if self._flights:
                    size = len(self._flights[0].batch)
                    self._finish(self._awaited(self._flights[0]))
                    done += size
                    self._tell(done, total)
                elif self._others_are_embedding():
                    done = total - counting.count_chunks(self.conn, self.index, only=counting.PENDING)
                    self._tell(done, total)  # this is also where who waits for others is stopped
                else:
                    break
        except IndexNotFound:
            raise
        except BaseException as error:
            if isinstance(error, sqlite3.OperationalError):  # of an index that was dropped the tables are missing
                with suppress(sqlite3.Error):
                    registry.reread(self.conn, self.index)
            self._rescue(RESCUE_SECONDS if isinstance(error, Exception) else INTERRUPTED_SECONDS)
            raise
        finally:
            running.discard(self.owner)
            if self._paid:
                self._paid.budget.stop()  # who is still under way, for an index that is gone, tries nothing again
                with suppress(sqlite3.Error), self._paid.budget.settling(self.conn):
                    pass
        self.failed = counting.count_chunks(self.conn, self.index, only=counting.FAILED)
        self.pending = counting.count_chunks(self.conn, self.index, only=counting.PENDING)

    def _tell(self, done: int, total: int) -> None:
        if total:
            self.on_progress(Progress(stage="vectors", done=min(max(done, 0), total), total=total))

    def _claim(self) -> Sequence[Claimed]:
        now, limit = time.time(), self._batch
        with transaction(self.conn):
            return claims.take(self.conn, self.index, owner=self.owner, limit=limit, now=now, until=now + LEASE_SECONDS)

    def _begin(self, batch: Sequence[Claimed]) -> None:
        """Ask the model for the texts whose vector is neither owned nor asked for already."""
        blobs = self._owned(batch)
        asked = {key for flight in self._flights for key in flight.texts}
        texts = {c.digest: c.text for c in batch if c.digest not in blobs and c.digest not in asked}
        wanted = list(texts.values())
        answer: Future[list[Outcome]] = Future()
        # Before it is sent: an interruption in between must find it.
        self._flights.append(_Flight(batch, blobs, texts, answer))
        if self._paid:
            threading.Thread(target=self._answer, args=(answer, wanted), name="vec-filling", daemon=True).start()
        else:  # a model on this machine gains nothing from threads
            started = time.perf_counter()
            self._answer(answer, wanted)
            if wanted:
                self._fit(len(batch), time.perf_counter() - started)

    def _fit(self, size: int, seconds: float) -> None:
        """Let the next batch take about BATCH_SECONDS; at most four times this one, which may just have been quick."""
        fitting = int(size * BATCH_SECONDS / max(seconds, 1e-3))
        self._batch = max(1, min(fitting, 4 * size, self.embedder.batch_size))

    def _answer(self, answer: Future[list[Outcome]], texts: Sequence[str]) -> None:
        try:
            answer.set_result(self._outcomes(texts))
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
            answer.set_exception(error)

    def _owned(self, batch: Sequence[Claimed]) -> dict[bytes, bytes]:
        """Vectors of equal texts, also of other generations of the model, whose longer ones may only need a cut."""
        index = self.index
        others = [g for g in registry.generations(self.conn, index.name) if g.uid != index.uid]
        same = [generation for generation in others if generation.fingerprint == index.fingerprint]
        blobs = writing.owned(self.conn, [index, *same], (claimed.digest for claimed in batch))
        for elder in others:
            if self.embedder.matryoshka and is_cut(index, of=elder):
                digests = {digest(c.text, elder.fingerprint): c.digest for c in batch if c.digest not in blobs}
                for long, blob in writing.owned(self.conn, [elder], digests).items():
                    vector = normalise(unpack(blob)[: index.dimensions], dimensions=index.dimensions)
                    blobs[digests[long]] = pack(vector)
        return blobs

    def _outcomes(self, texts: Sequence[str]) -> list[Outcome]:
        """For each text its vector, or the reason why the model refuses it; found by halving where it does not say.

        Runs on a thread of its own for a paid model. Raises EmbedderError with what there is in its `outcomes`.
        """
        try:
            return list(self._vectors(texts))
        except (EmbeddingFailed, InvalidVector) as error:
            if error.outcomes is not None:
                return list(error.outcomes)
            if len(texts) == 1:
                return [str(error)]
            middle = len(texts) // 2
            return self._outcomes(texts[:middle]) + self._outcomes(texts[middle:])

    def _vectors(self, texts: Sequence[str]) -> Iterable[Vector]:
        if not texts:
            return []
        vectors = self.embedder.embed_documents(texts)
        if vectors.shape != (len(texts), self.index.dimensions):
            raise EmbedderError(
                f"{self.embedder.name} returned an array of shape {vectors.shape} for {len(texts)} texts of "
                f"{self.index.dimensions} dimensions"
            )
        return normalise(vectors, dimensions=self.index.dimensions)

    def _awaited(self, flight: _Flight) -> list[Outcome]:
        """The answer, however long it takes; the claims are renewed meanwhile."""
        while True:
            try:
                return flight.answer.result(LEASE_SECONDS / 3)
            except TimeoutError:
                if flight.answer.done():  # the model's own, not that of the wait
                    raise
                with transaction(self.conn):
                    claims.renew(self.conn, self.index, self.owner, until=time.time() + LEASE_SECONDS)

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        """Write what the oldest batch under way has come to; chunks without an outcome are claimed again later."""
        flight = self._flights[0]
        blobs, reasons = dict(flight.blobs), dict[bytes, str]()
        for key, outcome in zip(flight.texts, outcomes, strict=True):
            if isinstance(outcome, str):
                reasons[key] = outcome
            elif outcome is not None:
                blobs[key] = pack(outcome)
        elsewhere = [c.digest for c in flight.batch if c.digest not in blobs and c.digest not in flight.texts]
        blobs |= writing.owned(self.conn, [self.index], elsewhere)
        with self._writing():
            self._fix_scale(blobs)
            written = [(claimed, blobs[claimed.digest]) for claimed in flight.batch if claimed.digest in blobs]
            writing.write_vectors(self.conn, self.index, written)
            for claimed in flight.batch:
                if claimed.digest in reasons:
                    writing.write_failure(self.conn, self.index, claimed.id, reasons[claimed.digest])
            left = (c.id for c in flight.batch if c.digest not in blobs and c.digest not in reasons)
            claims.unclaim(self.conn, self.index, left)
        embedded = sum(key in blobs for key in flight.texts)
        self.embedded += embedded
        self.reused += len(written) - embedded
        self._flights.popleft()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction on the index as it is now, in which spending is written down. Raises IndexNotFound."""
        with self._paid.budget.settling(self.conn) if self._paid else transaction(self.conn):
            self.index = registry.reread(self.conn, self.index)
            yield

    def _rescue(self, seconds: float) -> None:
        """Ask nothing more, write what the batches under way come to within this time, and give their claims back."""
        if self._paid:
            self._paid.budget.stop()
            answers = [flight.answer for flight in self._flights]
            with suppress(KeyboardInterrupt):  # a second one ends the waiting, and what has come is kept all the same
                wait(answers, seconds)
            if not all(answer.done() for answer in answers) and isinstance(self._paid, _Abandonable):
                self._paid.abandon()
                with suppress(KeyboardInterrupt):
                    wait(answers, ABANDON_SECONDS)
        # A second failure, of the disk perhaps, must not hide the first.
        with suppress(sqlite3.Error, IndexNotFound):
            while self._flights:
                flight = self._flights[0]
                self._finish(_rescued(flight.answer) or [None] * len(flight.texts))
        with suppress(sqlite3.Error), transaction(self.conn):
            claims.release(self.conn, self.index, [self.owner])

    def _fix_scale(self, blobs: Mapping[bytes, bytes]) -> None:
        if self.index.quantize == "int8" and self.index.int8_scale is None and blobs:
            scale = int8_scale(np.stack([unpack(blob) for blob in blobs.values()]))
            self.index = replace(self.index, int8_scale=scale)
            registry.update(self.conn, self.index, int8_scale=scale)

    def _others_are_embedding(self) -> bool:
        """Free the chunks of processes that died and wait a moment for those that live; tells if any are claimed."""
        owners = claims.held(self.conn, self.index)
        dead = [owner for owner in owners if has_died(owner)]
        if dead:
            with transaction(self.conn):
                claims.release(self.conn, self.index, dead)
        elif owners:
            time.sleep(0.2)
        return bool(owners)


def is_cut(model: Index | Embedder, *, of: Index) -> bool:
    """Whether an embedder, or an index of it, has the vectors of another index's model with fewer dimensions."""
    shorter = of.fingerprint.replace(f"@{of.dimensions}", f"@{model.dimensions}", 1)
    return of.dimensions > model.dimensions and shorter == model.fingerprint


def _rescued(answer: Future[list[Outcome]]) -> Sequence[Outcome] | None:
    """What there is of an answer, even of one that failed."""
    if not answer.done():
        return None
    error = answer.exception()
    if error is None:
        return answer.result()
    return error.outcomes if isinstance(error, EmbedderError) else None
