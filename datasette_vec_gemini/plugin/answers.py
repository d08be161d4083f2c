"""The answer to one request, as the page and its twins in JSON and CSV all show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..browsing import Browsed
from ..domain import MAX_HITS, Hit, Index, Mode, Query
from ..keys import Key, key_to_json
from ..store.counting import Coverage


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was found; without `query` nothing was asked yet.

    `mode` is the one that made the hits and `notices` say why where another was asked for. Where nothing was found,
    `nearest` is what comes nearest, and `nearest_query` how that was asked. For the rows similar to one, `key` and
    `title` are that row's.
    """

    index: Index
    mode: Mode
    coverage: Coverage = field(default_factory=Coverage)
    query: Query | None = None
    found: Browsed = field(default_factory=Browsed)
    nearest: Browsed = field(default_factory=Browsed)
    nearest_query: Query | None = None
    key: Key = ()
    title: str = ""
    notices: Sequence[str] = ()
    took_ms: float = 0.0

    @property
    def hits(self) -> Sequence[Hit]:
        """The hits of this page."""
        return self.found.hits

    @property
    def pending(self) -> int:
        """How many rows cannot be found with their current text yet."""
        return self.coverage.pending

    @property
    def next(self) -> int | None:
        """The offset of the next page; None after the last hit, or where that page would pass the ranking's depth."""
        if self.query is None or len(self.hits) < self.query.k:
            return None
        end = self.query.offset + self.query.k
        return end if end + self.query.k <= MAX_HITS else None

    @property
    def is_cut(self) -> bool:
        """Whether there may be more hits than pages can show."""
        return self.query is not None and len(self.hits) == self.query.k and self.next is None

    def to_dict(self) -> dict[str, Any]:
        """The body of the JSON twin, but for the facets, which hold addresses."""
        asked = {"key": key_to_json(self.key), "title": self.title} if self.key else {}
        return {
            "ok": True,
            "query": self.query.text if self.query and not self.key else "",
            "index": self.index.name,
            "mode": self.mode,
            **asked,
            "took_ms": self.took_ms,
            "pending": self.pending,
            "hits": listed(self.found),
            "nearest": listed(self.nearest),
            "next": str(self.next) if self.next else None,
            "notices": list(self.notices),
        }


def listed(found: Browsed) -> list[dict[str, Any]]:
    """Hits as every door prints them, each with the key of a better one on its page that says the same."""
    keys = [found.duplicate_of.get(hit.key) for hit in found.hits]
    return [
        hit.to_dict() | {"duplicate_of": key and key_to_json(key)} for hit, key in zip(found.hits, keys, strict=True)
    ]
