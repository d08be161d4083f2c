"""A hit as pages show it: its snippet in pieces, its columns in short, what matched."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

from ..browsing import Strength
from ..domain import Hit
from ..store.keyword import terms

_WORD = re.compile(r"([^\W_]+)")
_TELLING = re.compile(r"[^\W_]{3}|[^\x00-\x7f]|\d")
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e|ly)$")
_SHOWN_CHARACTERS = 120
_BARS = {"strong": 1.0, "fair": 0.66, "weak": 0.33}


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A hit as a page shows it, with the near-duplicates that are folded under it.

    `parts` are its snippet's: whether it is the sentence that is nearest in meaning, and its pieces, each with whether
    the keyword side looked for it.
    """

    hit: Hit
    strength: Strength
    url: str | None
    similar_url: str | None
    parts: Sequence[tuple[bool, Sequence[tuple[str, bool]]]]
    columns: Sequence[tuple[str, str]]
    duplicates: Sequence[Card] = ()

    @property
    def is_by_meaning(self) -> bool:
        """Whether its meaning matched; where nothing else did, it must have been that."""
        return self.hit.why.semantic is not None and (self.hit.why.keyword is None or self.strength.by_meaning)

    @property
    def bar(self) -> float:
        """How long the bar is, 0 to 1: the share of the best score, but never that of a stronger word than its own."""
        return self.strength.share * _BARS[self.strength.word]

    @property
    def has_nearest(self) -> bool:
        """Whether a sentence is known to be the nearest."""
        return any(is_nearest for is_nearest, _ in self.parts)

    @property
    def matched_by(self) -> str:
        """Which sides found it, in words."""
        return " and ".join([*["words"] * (self.hit.why.keyword is not None), *["meaning"] * self.is_by_meaning])


def shown(value: object) -> str:
    """A value of a row on one short line."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def stems(text: str) -> frozenset[str]:
    """What is marked of a question: words like "a" and "in" only where nothing else was asked for."""
    words = [word for term in terms(text) for word in _WORD.findall(term)]
    return frozenset(map(_stem, filter(_TELLING.search, words))) or frozenset(map(_stem, words))


def parted(
    hit: Hit, asked: frozenset[str], nearest: tuple[int, int] | None = None
) -> list[tuple[bool, list[tuple[str, bool]]]]:
    """The snippet in parts, of which one may be the nearest sentence, each in pieces that may have an asked stem."""
    start, end = nearest or (0, 0)
    cuts = [(False, hit.snippet[:start]), (True, hit.snippet[start:end]), (False, hit.snippet[end:])]
    return [(is_nearest, _marked(hit, part, asked)) for is_nearest, part in cuts if part]


def _marked(hit: Hit, snippet: str, asked: frozenset[str]) -> list[tuple[str, bool]]:
    if hit.why.keyword is None:
        return [(snippet, False)]
    flagged = [(piece, _stem(piece) in asked) for piece in _WORD.split(snippet) if piece]
    return [("".join(piece for piece, _ in run), is_match) for is_match, run in groupby(flagged, key=itemgetter(1))]


@lru_cache(10_000)  # a page of a thousand hits has 40,000 words, few of them different
def _stem(word: str) -> str:
    """About what FTS5 compares: no case, no accents, no English ending; good enough for marking."""
    letters = (c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
    return _ENDING.sub("", "".join(letters))
