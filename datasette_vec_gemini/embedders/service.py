"""What is known of remote models, and what an SDK must do to be asked for their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import EmbedderError, InvalidVector


class OutOfOrder(InvalidVector):
    """The vectors of an answer are not those of the texts at their places."""


class TooMany(EmbedderError):
    """So many texts at once are more than the quota of a minute: fewer may pass."""


class Transient(Exception):
    """Worth another try: after `retry_after` seconds where the service named a time.

    `is_quota` is whether a quota of a minute is used up, `texts_per_minute` what it is where that is told;
    `may_be_billed` is whether the service may have done the work all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        is_quota: bool = False,
        texts_per_minute: int | None = None,
        may_be_billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_quota = is_quota
        self.texts_per_minute = texts_per_minute
        self.may_be_billed = may_be_billed


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the service answered: a list of numbers, or something else, for each text; the tokens if it counted them."""

    vectors: Sequence[Sequence[float] | None]
    tokens: int | None = None


class Service(Protocol):
    """An SDK, seen from here."""

    def require_key(self) -> None:
        """Raise EmbedderUnavailable where there is nothing to show to the service."""
        ...

    def prepare(self) -> None:
        """Load what takes time, once."""
        ...

    def check(self) -> None:
        """Look whether key, address and model are good, for nothing. Raises like `embed`."""
        ...

    def embed(
        self, texts: Sequence[str], *, task: str | None, title: str | None, dimensions: int, timeout_seconds: float
    ) -> Reply:
        """One request. Raises Transient, EmbeddingFailed (a text was refused), or another EmbedderError for all."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What has to be known of a remote model. `scheme` says how it is told what a text is for."""

    name: str
    max_tokens: int
    max_dimensions: int
    scheme: str


TASKS = {
    "RETRIEVAL_QUERY": "task: search result | query: {}",
    "RETRIEVAL_DOCUMENT": "title: {title} | text: {}",
    "QUESTION_ANSWERING": "task: question answering | query: {}",
    "FACT_VERIFICATION": "task: fact checking | query: {}",
    "CODE_RETRIEVAL_QUERY": "task: code retrieval | query: {}",
    "CLASSIFICATION": "task: classification | query: {}",
    "CLUSTERING": "task: clustering | query: {}",
    "SEMANTIC_SIMILARITY": "task: sentence similarity | query: {}",
}
"""Google's task types, and the prefixes that gemini-embedding-2 knows in their stead (ai.google.dev, embeddings)."""
PREFIX_VERSION = 1


def count_tokens(text: str) -> int:
    """About how many tokens a text has, rather too many: 4 ASCII characters make one, others 2, those of CJK one."""
    ascii_only = sum(map(str.isascii, text)) if not text.isascii() else len(text)
    wide = sum(character >= "\u2e80" for character in text) if ascii_only < len(text) else 0
    return -(-ascii_only // 4) + -(-(len(text) - ascii_only - wide) // 2) + wide
