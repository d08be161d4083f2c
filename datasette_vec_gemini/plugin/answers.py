"""The answer to one request, as the page and its JSON twin both show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..domain import MAX_HITS, Hit, Index, Mode, Query


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was found; without `query` nothing was asked yet.

    `mode` is the one that made the hits and `notices` say why where another was asked for. `pending` rows cannot be
    found with their current text yet.
    """

    index: Index
    pending: int
    mode: Mode
    query: Query | None = None
    hits: Sequence[Hit] = ()
    notices: Sequence[str] = ()
    took_ms: float = 0.0

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
        """The body of the JSON twin."""
        return {
            "ok": True,
            "query": self.query.text if self.query else "",
            "index": self.index.name,
            "mode": self.mode,
            "took_ms": self.took_ms,
            "pending": self.pending,
            "hits": [hit.to_dict() for hit in self.hits],
            "next": str(self.next) if self.next else None,
            "notices": list(self.notices),
        }
