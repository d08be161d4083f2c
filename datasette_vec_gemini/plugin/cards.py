"""A hit as pages show it: its snippet in pieces, its columns in short, what matched."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from ..browsing import Strength
from ..domain import Hit
from ..store.keyword import terms

_WORD = re.compile(r"([^\W_]+)")
_TELLING = re.compile(r"[^\W_]{3}|[^\x00-\x7f]|\d")
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e|ly)$")
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A hit as a page shows it, with the near-duplicates that are folded under it.

    `pieces` are its snippet's, each with whether the keyword side looked for it.
    """

    hit: Hit
    strength: Strength
    url: str | None
    similar_url: str | None
    pieces: Sequence[tuple[str, bool]]
    columns: Sequence[tuple[str, str]]
    duplicates: Sequence[Card] = ()

    @property
    def is_by_meaning(self) -> bool:
        """Whether its meaning matched; where nothing else did, it must have been that."""
        return self.hit.why.semantic is not None and (self.hit.why.keyword is None or self.strength.by_meaning)

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


def marked(hit: Hit, text: str) -> list[tuple[str, bool]]:
    """The snippet in pieces, each with whether the keyword side looked for it.

    Words like "a" and "in" are marked only where nothing else was asked for.
    """
    if hit.why.keyword is None:
        return [(hit.snippet, False)]
    words = [word for term in terms(text) for word in _WORD.findall(term)]
    stems = {_stem(word) for word in filter(_TELLING.search, words)} or {_stem(word) for word in words}
    flagged = [(piece, _stem(piece) in stems) for piece in _WORD.split(hit.snippet) if piece]
    return [("".join(piece for piece, _ in run), is_match) for is_match, run in groupby(flagged, key=itemgetter(1))]


def _stem(word: str) -> str:
    """About what FTS5 compares: no case, no accents, no English ending; good enough for marking."""
    letters = (c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
    return _ENDING.sub("", "".join(letters))
