"""The loop around a remote model: which texts go in a request, what is tried again, what an answer must be.

An SDK is behind a `Service`, which turns its errors into those of its module and of `errors`; what comes out of here
is a checked vector of unit length, a reason, or one of our errors.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import tenacity

from ..access import Access
from ..budget import Budget
from ..errors import EmbedderError, EmbeddingFailed, InvalidVector, ServiceUnavailable
from ..vectors import Vector, normalise
from .batching import WITNESS, Batch, Clearance, Witness
from .cached import QueryCache
from .sending import Sending
from .service import PREFIX_VERSION, TASKS, Model, Reply, Service, TooMany, Transient, count_tokens

REQUEST_BYTES = 3_000_000
"""Of JSON in a request; Google refuses more than 4,194,304."""
REQUEST_SECONDS = 60.0
SLACK_SECONDS = 2.0
"""A request is given up so long after the HTTP client's own timeout, which can tell what is wrong, and may be busy."""
REFUSALS = 5
"""A batch that the quota of a minute had no room for so many times in a row may be greater than the quota is."""

_dice = random.SystemRandom()


@dataclass
class _Shared:
    """What the copies of an embedder have in common: answers, and the vector of the witness once it is known."""

    queries: QueryCache = field(default_factory=QueryCache)
    witness: Witness = field(default_factory=Witness)


@dataclass
class _Run:
    """What a copy has of its own: requests under way, and for how many refusals the request is known to be good."""

    sending: Sending = field(default_factory=Sending)
    clearance: Clearance = field(default_factory=Clearance)


class RemoteEmbedder:
    """An embedder whose model is behind a `Service`. What it costs goes to its `budget`."""

    tokenizer = None
    paid = True
    concurrency = 2
    chunk_capacity = 2_000
    matryoshka = True

    def __init__(self, service: Service, model: Model, *, name: str, dimensions: int, access: Access) -> None:
        self.name = name
        self.model = model
        self.dimensions = dimensions
        self.access = access
        self.batch_size = max(1, access.texts_per_request - 1)
        scheme = f"prefix-{PREFIX_VERSION}" if model.scheme == "prefix" else "task-type"
        self.fingerprint = f"gemini/{model.name}@{dimensions}/{scheme}"
        self.budget = Budget(access, model.name)
        self._service = service
        self._shared = _Shared()
        self._run = _Run()

    def charged_to(self, ledger: str, *, max_usd: float | None = None, bulk: bool = False) -> RemoteEmbedder:
        """The same embedder with a budget of its own; see `Budget`."""
        other = copy.copy(self)
        other.budget = Budget(self.access, self.model.name, ledger=ledger, max_usd=max_usd, bulk=bulk)
        other._run = _Run()  # noqa: SLF001 - a copy of this one
        return other

    def abandon(self) -> None:
        """Ask nothing more and wait for nothing: a request under way is left to itself, and counted as answered."""
        self.budget.stop()
        self._run.sending.give_up()

    def require_key(self) -> None:
        """Raise EmbedderUnavailable where there is nothing to show to the service."""
        self._service.require_key()

    def prepare(self) -> None:
        """Load the SDK, which takes a second, before a question is waiting for it."""
        self._service.prepare()

    def check(self) -> None:
        """See by one free call whether key, address and model are good. Raises EmbedderError."""
        try:
            self._service.check()
        except Transient as error:
            raise ServiceUnavailable(f"{self.model.name} is not to be had: {error}; try again later") from error

    def speaks(self, text: str) -> bool:  # noqa: ARG002 - trained on more than a hundred languages
        """Always true."""
        return True

    def count_tokens(self, texts: Sequence[str]) -> int:
        """About how many tokens these texts are charged as, with what is sent along, rather too many."""
        total = sum(count_tokens(self._worded(text, "RETRIEVAL_DOCUMENT", None)) + 1 for text in texts)
        if len(texts) < 2:
            return total
        requests = -(-len(texts) // self.batch_size) + total // self.access.tokens_per_request
        return total + requests * 2 * (count_tokens(self._worded(WITNESS, "RETRIEVAL_DOCUMENT", None)) + 1)

    def embed_documents(self, texts: Sequence[str], *, title: str | None = None) -> Vector:
        """Vectors of unit length; `title` is that of the document which all these texts belong to.

        Blank texts and those longer than the model reads are not sent. Raises EmbedderError; its `outcomes` keep what
        was answered.
        """
        outcomes: list[Vector | str | None] = [self._fault(text) for text in texts]
        patience = self.access.patience_seconds
        batch = Batch(
            texts,
            outcomes,
            call=lambda sent: self.call(
                sent,
                task="RETRIEVAL_DOCUMENT",
                title=title,
                seconds=min(REQUEST_SECONDS, max(1.0, patience)),
                patience=patience,
            ),
            check=self.checked,
            witness=self._shared.witness if title is None else Witness(),
            clearance=self._run.clearance,
        )
        try:
            for part in self._parts(batch, texts, [place for place, fault in enumerate(outcomes) if fault is None]):
                batch.ask(part)
            batch.settle()
        except EmbedderError as error:
            error.outcomes = outcomes
            raise
        refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if refused:
            failure = EmbeddingFailed(f"{len(refused):,} of {len(texts):,} texts were not embedded: {refused[0]}")
            failure.outcomes = outcomes
            raise failure
        return np.stack([o for o in outcomes if isinstance(o, np.ndarray)]) if texts else self._none()

    def embed_query(self, text: str, *, task: str = "RETRIEVAL_QUERY", timeout_seconds: float | None = None) -> Vector:
        """The vector of a question, or of a text for another task, from memory where it was asked before.

        Raises EmbedderError; ServiceUnavailable after `timeout_seconds`, 2.5 unless the access says otherwise.
        """
        if fault := self._fault(text):
            raise EmbeddingFailed(fault)
        started = time.monotonic()
        self._service.prepare()
        seconds = self.access.patience_seconds if self.budget.bulk else self.access.query_seconds
        wanted = timeout_seconds or seconds
        # Loading the SDK counts, once, but leaves the question a second.
        left = max(min(1.0, wanted), wanted - (time.monotonic() - started))
        return self._shared.queries.answer(
            (task, text),
            lambda: self._compute(text, task, seconds),
            timeout_seconds=left,
            afterwards=self.budget.write_ledger,
        )

    def known_query(self, text: str, *, task: str = "RETRIEVAL_QUERY") -> Vector | None:
        """The vector of a question that was asked before; nothing is asked now."""
        return self._shared.queries.find((task, text))

    def is_asked(self, text: str, *, task: str = "RETRIEVAL_QUERY") -> bool:
        """Whether this very question is being answered just now."""
        return self._shared.queries.is_asked((task, text))

    @property
    def busy(self) -> bool:
        """Whether a question is being answered just now."""
        return self._shared.queries.busy

    def _compute(self, text: str, task: str, seconds: float) -> Vector:
        self.budget.read_ledger()
        # Nobody waits any longer than `seconds`; what comes a little later is paid for, and kept.
        reply = self.call([text], task=task, title=None, seconds=min(REQUEST_SECONDS, 4 * seconds), patience=seconds)
        if len(reply.vectors) != 1:
            raise InvalidVector(f"{self.model.name} answered {len(reply.vectors)} vectors for one text")
        return self.checked(reply.vectors[0])

    def _fault(self, text: str) -> str | None:
        """Why a text is not sent."""
        if not text.strip():
            return "the text is blank"
        if (tokens := count_tokens(text)) > self.model.max_tokens - 16:
            return f"the text has about {tokens:,} tokens, {self.model.name} reads {self.model.max_tokens:,}: split it"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return "the text holds a lone surrogate, which is no character"
        return None

    def _parts(self, batch: Batch, texts: Sequence[str], places: Sequence[int]) -> Iterator[list[int]]:
        """Places of texts that go in one request; planned anew after each, since limits are learnt on the way."""
        start = 0
        while start < len(places):
            limiter = self.budget.account.limiter
            most = max(1, min(self.access.texts_per_request, limiter.texts) - batch.witnesses(len(places)))
            tokens_left, bytes_left = min(self.access.tokens_per_request, limiter.tokens), REQUEST_BYTES
            part: list[int] = []
            for place in places[start : start + most]:
                tokens_left -= count_tokens(texts[place]) + 16
                bytes_left -= 12 * len(texts[place]) + 500
                if part and (tokens_left < 0 or bytes_left < 0):
                    break
                part.append(place)
            # What is left of a cap may do for some of them.
            while len(part) > 1 and not self._fits(texts, part, batch.witnesses(len(part))):
                part = part[: len(part) // 2]
            start += len(part)
            yield part

    def _fits(self, texts: Sequence[str], part: Sequence[int], witnesses: int) -> bool:
        most_texts, most_tokens = self.budget.room()
        sent = [texts[place] for place in part] + [WITNESS] * witnesses
        tokens = sum(count_tokens(self._worded(text, "RETRIEVAL_DOCUMENT", None)) + 1 for text in sent)
        return len(sent) <= most_texts and tokens <= most_tokens

    def _worded(self, text: str, task: str, title: str | None) -> str:
        if self.model.scheme != "prefix":
            return text
        before, _, after = TASKS[task].partition("{}")
        return before.replace("{title}", " ".join((title or "none").split())) + text + after

    def call(self, texts: Sequence[str], *, task: str, title: str | None, seconds: float, patience: float) -> Reply:
        """One request, tried again while that may help and `patience` lasts; every try is reserved and settled."""
        wire = [self._worded(text, task, title) for text in texts]
        by_type = self.model.scheme != "prefix"
        until, refusals = time.monotonic() + patience, 0
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=_wait,
            stop=tenacity.stop_before_delay(patience),
            sleep=tenacity.sleep_using_event(self.budget.is_stopped),
            reraise=True,
        )

        def ask() -> Reply:
            return self._service.embed(
                wire,
                task=task if by_type else None,
                title=title if by_type and task == "RETRIEVAL_DOCUMENT" else None,
                dimensions=self.dimensions,
                timeout_seconds=seconds,
            )

        def attempt() -> Reply:
            nonlocal refusals
            self._service.prepare()  # loading the SDK is no time of the request
            reservation = self.budget.reserve(
                texts=len(wire), tokens=sum(map(count_tokens, wire)) + len(wire), until=until
            )
            try:
                reply = self._run.sending.send(ask, seconds=seconds + SLACK_SECONDS)
            except Transient as error:
                if error.may_be_billed:
                    self.budget.settle(reservation)
                else:
                    self.budget.cancel(reservation)
                if error.is_quota and error.retry_after is not None:
                    self.budget.account.limiter.pause(error.retry_after, texts=error.texts_per_minute)
                refusals += error.is_quota
                told = error.texts_per_minute
                if len(wire) > 1 and ((told and told < len(wire)) or refusals >= REFUSALS):
                    raise TooMany(f"{self.model.name} takes fewer than {len(wire)} texts at once") from None
                raise
            except (InvalidVector, KeyboardInterrupt):  # an interruption ends the waiting, not the request
                self.budget.settle(reservation)
                raise
            except BaseException:
                self.budget.cancel(reservation)
                raise
            self.budget.settle(reservation, tokens=reply.tokens)
            return reply

        try:
            return retrying(attempt)
        except Transient as error:
            raise ServiceUnavailable(f"{self.model.name} is not to be had: {error}; try again later") from error

    def checked(self, values: object) -> Vector:
        """One vector of unit length. Raises InvalidVector."""
        if not isinstance(values, Sequence | np.ndarray) or not len(values):
            raise InvalidVector(f"{self.model.name} answered a text without a vector")
        return normalise(values, dimensions=self.dimensions)

    def _none(self) -> Vector:
        return np.empty((0, self.dimensions), dtype=np.float32)


def _wait(state: tenacity.RetryCallState) -> float:
    """The time that the service named and up to a second more, else twice as long each time, up to a minute."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Transient) and error.retry_after is not None:
        return error.retry_after + _dice.uniform(0.05, 0.5)
    return _dice.uniform(0.5, 1.0) * min(60.0, 0.5 * 2.0**state.attempt_number)
