"""One batch of texts and what becomes of them: answers are checked, and what spoils a batch is found in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import EmbedderError, EmbedderUnavailable, EmbeddingFailed, InvalidVector
from ..vectors import Vector
from .service import OutOfOrder, Reply, TooMany

UNUSABLE = 3
"""So many texts in a row whose answer is unusable even alone end a run: they may be paid for."""
DOUBTFUL = 5
"""After so many refused texts in a row it is asked whether the witness is refused too."""
WITNESS = "This line tells whether the answers came back in order."
"""A text that goes with every batch at a random place; its vector must come back from that place."""
SMALL_BATCH = 20
FIRST_PART = 0.382
SAME = 0.98

_dice = random.SystemRandom()

Outcomes = list[Vector | str | None]


@dataclass
class Witness:
    """The vector of the witness, once there was one; with a title it is like no other."""

    vector: Vector | None = None

    def count(self, texts: int) -> int:
        """How many go along: none with a single text; two prove each other, or make up for a batch's being small."""
        if texts <= 1:
            return 0
        return 1 if self.vector is not None and texts >= SMALL_BATCH else 2


@dataclass
class Clearance:
    """For how many refused texts of a run it is known that they are at fault, and not the request.

    A witness that is served clears the request for five of them, the next one for ten and so on. A text that is served
    proves the request too, but only for that moment: it may be spoilt later.
    """

    left: int = 0
    _next: int = DOUBTFUL

    def end(self) -> None:
        """A text was served, so that the next refusal is a new matter."""
        self.left, self._next = 0, DOUBTFUL

    def grant(self) -> None:
        """The witness was served."""
        self.left, self._next = self._next, 2 * self._next


class Batch:
    """Texts with their `outcomes`, which are filled in: vectors of unit length, or reasons.

    `call` sends texts in one request and `check` makes a vector of what came for one of them, or raises InvalidVector.
    """

    def __init__(
        self,
        texts: Sequence[str],
        outcomes: Outcomes,
        *,
        call: Callable[[Sequence[str]], Reply],
        check: Callable[[object], Vector],
        witness: Witness,
        clearance: Clearance,
    ) -> None:
        self._texts = texts
        self._outcomes = outcomes
        self._call = call
        self._check = check
        self._witness = witness
        self._clearance = clearance
        self._doubtful: dict[int, str] = {}
        self._unusable = 0

    def witnesses(self, texts: int) -> int:
        """How many texts go along with so many."""
        return self._witness.count(texts)

    def ask(self, places: list[int]) -> bool:
        """Fill in the outcomes at these places; tells whether none was refused."""
        try:
            vectors = self._answers([self._texts[place] for place in places])
        except EmbeddingFailed as error:
            self._search(places, str(error))
            return False
        except TooMany:
            first, second = self.ask(places[: len(places) // 2]), self.ask(places[len(places) // 2 :])
            return first and second
        except OutOfOrder:
            for place in places:  # one at a time nothing can be mistaken for another
                self.ask([place])
        except InvalidVector as error:
            if len(places) == 1:
                self._count_unusable(error)
                self._outcomes[places[0]] = str(error)
            else:
                self.ask(places[: len(places) // 2])
                self.ask(places[len(places) // 2 :])
        else:
            for place, vector in zip(places, vectors, strict=True):
                self._outcomes[place] = vector
            self._unusable = 0
            self._clearance.end()
            self._believe()
        return True

    def _search(self, places: list[int], reason: str) -> None:
        """Find what is refused among texts that were refused together.

        Where the first part passes, the refused text is known to be in the rest, which need not be asked for whole.
        That is one call; the other way takes two, so the first part is the smaller one, by the golden ratio: one among
        98 takes at most 11 calls.
        """
        if len(places) == 1:
            self._doubtful[places[0]] = reason
            if len(self._doubtful) >= max(DOUBTFUL, self._clearance.left):
                self.settle()
            return
        while len(places) > 1:
            first = max(1, round(FIRST_PART * len(places)))
            passed = self.ask(places[:first])
            places = places[first:]
            if not passed:
                break
        self.ask(places)

    def settle(self) -> None:
        """Where texts were refused and none was served since, see by the witness whether they are at fault.

        Raises EmbedderUnavailable where they are not, and what asking for it raises.
        """
        count = len(self._doubtful)
        if count > self._clearance.left:
            self._ask_witness(count)
        else:
            self._clearance.left -= count
        self._believe()

    def _believe(self) -> None:
        for place, reason in self._doubtful.items():
            self._outcomes[place] = reason
        self._doubtful = {}

    def _ask_witness(self, count: int) -> None:
        try:
            self._call([WITNESS])
        except EmbeddingFailed as error:
            texts = "a text was" if count == 1 else f"{count} texts in a row were"
            told = str(error).rstrip(".")
            raise EmbedderUnavailable(
                f"{texts} refused, and so was a harmless one of ours: the request is at fault, and no text is marked "
                f"as failed for it. {told}; check the model, dimensions and base_url, update the model's package, then "
                "sync again"
            ) from error
        self._clearance.grant()

    def _count_unusable(self, error: InvalidVector) -> None:
        self._unusable += 1
        if self._unusable >= UNUSABLE:
            raise EmbedderError(
                f"{self._unusable} answers in a row were unusable, and might be paid for; the last because {error}"
            ) from error

    def _answers(self, texts: list[str]) -> list[Vector | str]:
        """A vector for each text, or the reason why its own one is unusable.

        Raises InvalidVector when the answer as a whole cannot be trusted: another count, or out of order.
        """
        sent = list(texts)
        places = _places(len(texts), self._witness.count(len(texts)))
        for place in places:
            sent.insert(place, WITNESS)
        reply = self._call(sent)
        if len(reply.vectors) != len(sent):
            raise InvalidVector(f"it answered {len(reply.vectors)} vectors for {len(sent)} texts")
        if places:
            self._check_order([self._check(reply.vectors[place]) for place in places])
        answers = [values for place, values in enumerate(reply.vectors) if place not in places]
        if len(texts) == 1:
            return [self._check(answers[0])]
        return [self._vector_or_reason(values) for values in answers]

    def _vector_or_reason(self, values: object) -> Vector | str:
        try:
            return self._check(values)
        except InvalidVector as error:
            return str(error)

    def _check_order(self, found: list[Vector]) -> None:
        known = found[-1] if self._witness.vector is None else self._witness.vector
        if any(float(vector @ known) < SAME for vector in found):
            raise OutOfOrder("it answered out of order")
        self._witness.vector = known


def _places(texts: int, witnesses: int) -> list[int]:
    """Where witnesses stand among texts, at random, but so that the same answers reversed have none of them there."""
    last = texts + witnesses - 1
    places: list[int] = []
    while len(places) < witnesses:
        place = _dice.randint(0, last)
        if 2 * place != last and place not in places and last - place not in places:
            places.append(place)
    return sorted(places)
