"""The nouns that every door shares, as frozen values that are valid from birth, and the Embedder protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable
from uuid import uuid4

from .errors import InvalidName, InvalidQuery, InvalidSetting, shown
from .keys import Key, key_to_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

Mode = Literal["hybrid", "semantic", "keyword"]
Quantize = Literal["bit", "int8", "float32"]
Kind = Literal["queue", "chunks", "codes", "fts", "map", "axes"]
MODES: tuple[Mode, ...] = ("hybrid", "semantic", "keyword")
QUANTIZERS: tuple[Quantize, ...] = ("bit", "int8", "float32")

MAX_HITS = 1_000
"""The depth to which an answer is ranked: `offset + k` may not pass it."""
MAX_QUERY_CHARACTERS = 10_000

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyColumn:
    """One column of a key: its name, and the affinity and collation that copies of it must have to compare alike."""

    name: str
    affinity: str
    collation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """A named semantic index over columns of one table, in one generation.

    `embedder` is a specification such as `"local"`; `fingerprint` says which model made the vectors. `int8_scale` is
    known once the first vectors are, and only where `quantize` is int8. `uid` tells this generation from one that gets
    its name and number after it was dropped.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    key: tuple[KeyColumn, ...]
    embedder: str
    fingerprint: str
    dimensions: int
    template: str | None = None
    filter_columns: tuple[str, ...] = ()
    quantize: Quantize = "bit"
    int8_scale: float | None = None
    generation: int = 1
    state: Literal["building", "active", "retired"] = "active"
    is_view: bool = False
    uid: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        check_name(self.name)
        check_quantize(self.quantize)

    def object(self, kind: Kind) -> str:
        """The name of one of this generation's tables."""
        return f"_vec_{self.name}_{self.generation}_{kind}"

    @property
    def view(self) -> str:
        """The name of the view for people who write SQL."""
        return f"_vec_{self.name}"

    @property
    def has_rowid_key(self) -> bool:
        """Whether the table has no primary key of its own, so that VACUUM may renumber what identifies its rows."""
        return len(self.key) == 1 and self.key[0].name in {"rowid", "_rowid_", "oid"} and not self.is_view


def check_name(name: str) -> None:
    """Raise InvalidName unless an index can have this name."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{shown(name)} cannot be the name of an index: use a letter, then up to 62 letters, digits or underscores "
            "(command line: --name)"
        )


def check_quantize(quantize: str) -> None:
    """Raise InvalidSetting unless codes can be of this kind."""
    if quantize not in QUANTIZERS:
        raise InvalidSetting(f"quantize is {shown(quantize)}; it can be {', '.join(QUANTIZERS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A contiguous piece of a document: `document[start:end]`, the `position`-th, counted from 0."""

    position: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked. Without `vector` the text is embedded by whoever runs the search; `vector` has unit length.

    `filters` maps `column` or `column__op` to a value; op is one of exact, not, gt, gte, lt, lte, in, isnull.
    Raises InvalidQuery on birth.
    """

    text: str
    k: int = field(default=10, kw_only=True)
    mode: Mode = field(default="hybrid", kw_only=True)
    filters: Mapping[str, object] = field(default_factory=dict, kw_only=True, hash=False)
    offset: int = field(default=0, kw_only=True)
    vector: NDArray[np.float32] | None = field(default=None, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        check_text(self.text)
        check_window(self.k, self.offset)
        if self.mode not in MODES:
            raise InvalidQuery(f"mode is {shown(self.mode)}; it can be {', '.join(MODES)}")


def check_text(text: object) -> None:
    """Raise InvalidQuery unless this is text to search for: not blank, not huge, valid Unicode without NUL."""
    if not isinstance(text, str):
        raise InvalidQuery(f"the query is {shown(text)}: it has to be text")
    if not text.strip():
        raise InvalidQuery("the query is empty: say what to search for")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise InvalidQuery(f"the query has {len(text):,} characters; the limit is {MAX_QUERY_CHARACTERS:,}: shorten it")
    for position, character in enumerate(text):
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise InvalidQuery(
                f"the query has the character U+{ord(character):04X} at position {position}, which is not text: "
                "remove it"
            )


def check_window(k: int, offset: int) -> None:
    """Raise InvalidQuery unless 1 <= k, 0 <= offset and offset + k <= MAX_HITS."""
    if type(k) is not int or not 1 <= k <= MAX_HITS:
        raise InvalidQuery(f"k is {shown(k)}; it can be 1 to {MAX_HITS:,}")
    if type(offset) is not int or offset < 0:
        raise InvalidQuery(f"offset is {shown(offset)}; it can be 0 or more")
    if offset + k > MAX_HITS:
        raise InvalidQuery(
            f"offset + k is {offset + k:,}; an answer is ranked to a depth of {MAX_HITS:,}: narrow it with filters"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordRank:
    """Place (from 1) among the keyword candidates and BM25, higher is better."""

    rank: int
    bm25: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticRank:
    """Place (from 1) among the candidates by meaning and the cosine to the query."""

    rank: int
    cosine: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Why:
    """Why a hit ranked where it did; a side that did not find it is None."""

    keyword: KeywordRank | None = None
    semantic: SemanticRank | None = None
    fused: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One answer: a document with its best chunk.

    `score` is higher for better and comparable within one answer only: the cosine in semantic mode, BM25 in keyword
    mode, in hybrid mode the fused score of 0 to 1 (`ranking.fuse`).
    """

    key: Key
    score: float
    title: str
    snippet: str
    chunk: Chunk
    row: Mapping[str, object]
    why: Why

    def to_dict(self) -> dict[str, Any]:
        """The hit as every door prints it, ready for JSON: in `row` a BLOB is `"<n bytes>"`, and infinity null."""
        why = self.why
        return {
            "key": key_to_json(self.key),
            "score": self.score,
            "title": self.title,
            "snippet": self.snippet,
            "chunk": {"position": self.chunk.position, "start": self.chunk.start, "end": self.chunk.end},
            "row": {name: _to_json(value) for name, value in self.row.items()},
            "why": {
                "keyword": why.keyword and {"rank": why.keyword.rank, "bm25": why.keyword.bm25},
                "semantic": why.semantic and {"rank": why.semantic.rank, "cosine": why.semantic.cosine},
                "fused": why.fused,
            },
        }


def _to_json(value: object) -> object:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a sync has come: `stage` is "text" (documents) or "vectors" (chunks); `usd` is what it has spent."""

    stage: Literal["text", "vectors"]
    done: int
    total: int
    usd: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What one sync did.

    `documents` were read again; `embedded` vectors were computed, `reused` ones were owned already; `failed` counts
    chunks that the model refuses, `pending` chunks that another process is embedding at this moment. `tokens` and `usd`
    are what a paid model counted and what that costs.
    """

    documents: int = 0
    chunks_added: int = 0
    chunks_removed: int = 0
    embedded: int = 0
    reused: int = 0
    failed: int = 0
    pending: int = 0
    tokens: int = 0
    usd: float = 0.0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What giving vectors to the pending chunks of an index would take, counted on this machine without any call.

    `chunks` of `rows` are pending; `tokens` is rather too many, `usd` is at the prices as of `prices_as_of`, both 0 for
    a model that costs nothing; `minutes` is at least what the limits a minute demand.
    """

    index: str
    embedder: str
    rows: int
    chunks: int
    tokens: int
    usd: float
    minutes: float
    prices_as_of: str

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON prints it."""
        return asdict(self)


@runtime_checkable
class Embedder(Protocol):
    """Turns text into vectors. Plain attributes do where properties stand here."""

    @property
    def name(self) -> str:
        """The specification that loads this embedder again, such as `"hashing@64"`."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever an equal text would get another vector."""

    @property
    def dimensions(self) -> int:
        """How long its vectors are."""

    @property
    def batch_size(self) -> int:
        """How many texts are handed over at once."""

    @property
    def chunk_capacity(self) -> int:
        """The longest text that is embedded whole, in tokens of `tokenizer`, or characters where that is None."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What counts a text's tokens."""

    @property
    def paid(self) -> bool:
        """Whether a call costs money."""

    @property
    def matryoshka(self) -> bool:
        """Whether its vectors cut to n dimensions, made unit length again, are those of the model with n dimensions."""

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Array of shape (len(texts), dimensions), in order. Raises EmbedderError."""

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Array of shape (dimensions,). Raises EmbedderError."""

    def speaks(self, text: str) -> bool:
        """Whether the model was trained on this text's language; if not, hybrid search leaves it to the keywords."""
