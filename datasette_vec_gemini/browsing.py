"""What somebody who reads an answer wants beyond its hits: facets, near-duplicates, and how strong a hit is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from .domain import Hit, Index, Query
from .driver import sqlite3
from .errors import InvalidQuery
from .keys import Key
from .schema import affinity
from .searching import answer, current, document_vector, similar
from .store import reading, source
from .store.keyword import terms
from .store.transactions import mapped_errors, snapshot
from .vectors import Vector, unpack

AMONG = 100
"""How many hits facets are counted among: those are ranked for any page."""
FACETS = 10
"""How many columns may be counted at once."""
FACET_VALUES = 20
NEAR_DUPLICATE = 0.97
"""The cosine from which two chunks say the same."""

Word = Literal["strong", "fair", "weak"]
_WORDS: tuple[Word, ...] = ("weak", "fair", "strong")
_SAMPLE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Facet:
    """The values of a column among the first `among` hits, the most frequent first; `is_cut` if there are more.

    In a column that `is_typed` SQLite compares text that is a number as the column's type says.
    """

    column: str
    among: int
    counts: tuple[tuple[object, int], ...]
    is_cut: bool
    is_typed: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Strength:
    """How strong a hit is: its `share` of the best hit's score, 0 to 1, and one of three words.

    `by_meaning` says whether its meaning alone would have been fair.
    """

    share: float
    word: Word
    by_meaning: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Browsed:
    """One page of an answer.

    `strengths` belong to the hits, in their order. `duplicate_of` maps the key of a hit to that of a better one of the
    same page whose chunk says the same.
    """

    hits: tuple[Hit, ...] = ()
    strengths: tuple[Strength, ...] = ()
    duplicate_of: Mapping[Key, Key] = field(default_factory=dict)
    facets: tuple[Facet, ...] = ()


def browse(conn: sqlite3.Connection, index: Index, query: Query, *, facets: Sequence[str] = ()) -> Browsed:
    """Answer a query that has been through `searching.embed`, with value counts of the columns in `facets`.

    Raises what `search` raises, and ColumnNotFound for a facet of no column.
    """
    with mapped_errors(), snapshot(conn):
        index = current(conn, index)
        deep = answer(conn, index, replace(query, k=max(AMONG, query.offset + query.k), offset=0))
        vector = None if query.mode == "keyword" else query.vector
        usual = _usual_cosine(conn, index, vector) if deep and vector is not None else 0.0
        return _page(conn, index, deep, query, usual=usual, facets=facets)


def browse_similar(
    conn: sqlite3.Connection,
    index: Index,
    key: Sequence[object],
    *,
    k: int = 10,
    offset: int = 0,
    filters: Mapping[str, object] | None = None,
    facets: Sequence[str] = (),
) -> Browsed:
    """The same for `searching.similar`: no model is called. Raises what that raises."""
    window = Query("-", k=k, offset=offset, mode="semantic")
    with mapped_errors(), snapshot(conn):
        index = current(conn, index)
        deep = similar(conn, index, key, k=max(AMONG, offset + k), filters=filters)
        usual = _usual_cosine(conn, index, document_vector(conn, index, key))
        return _page(conn, index, deep, window, usual=usual, facets=facets)


def relaxed(query: Query) -> Query | None:
    """What to ask instead of a query that found nothing, to show what is nearest; None where there is nothing else.

    Filters go first, since with one that no row passes no mode finds anything; words are looked for by their meaning.
    """
    if query.mode == "keyword":
        return replace(query, mode="semantic", offset=0)
    return replace(query, filters={}, offset=0) if query.filters else None


def strength(hit: Hit, best: Hit, *, words: Sequence[str] = (), usual: float = 0.0) -> Strength:
    """What the bar and the word beside a hit say, of two measures that mean something in themselves.

    By meaning: how far the cosine goes from `usual`, which the question has with any chunk of this index, towards 1:
    strong from 0.4 of that way, fair from 0.28. Models differ in their usual cosines, so that a fixed one would call
    everything strong for one and nothing for another. By words: the share of the question's words that the best chunk
    holds as they are written: strong if all, fair from half. The better of the two counts. A hit with less than 0.4 of
    the best hit's score is no more than fair. These steps were set by eye on questions to the demo, some of them about
    nothing that is in it: the word is for reading, not a threshold to program against.
    """
    share = max(0.0, min(1.0, hit.score / best.score)) if best.score > 0 else 1.0
    by_meaning = by_words = 0
    if hit.why.semantic and usual < 1:
        way = (hit.why.semantic.cosine - usual) / (1 - usual)
        by_meaning = (way >= 0.28) + (way >= 0.4)
    if hit.why.keyword and words:
        text = hit.chunk.text.casefold()
        held = sum(word.casefold() in text for word in words) / len(words)
        by_words = (held >= 0.5) + (held >= 1)
    place = min(max(by_meaning, by_words), 1 if share < 0.4 else 2)
    return Strength(share=share, word=_WORDS[place], by_meaning=by_meaning > 0)


def _page(
    conn: sqlite3.Connection, index: Index, deep: Sequence[Hit], query: Query, *, usual: float, facets: Sequence[str]
) -> Browsed:
    hits = tuple(deep[query.offset : query.offset + query.k])
    words = terms(query.text)
    return Browsed(
        hits=hits,
        strengths=tuple(strength(hit, deep[0], words=words, usual=usual) for hit in hits),
        duplicate_of=_duplicates(conn, index, hits),
        facets=_facets(conn, index, deep[:AMONG], facets),
    )


def _facets(conn: sqlite3.Connection, index: Index, hits: Sequence[Hit], names: Sequence[str]) -> tuple[Facet, ...]:
    if len(names) > FACETS:
        raise InvalidQuery(f"there are {len(names):,} facets; {FACETS} can be counted at once")
    if not names:
        return ()
    table = source.find(conn, index.table)
    found = []
    for column in dict.fromkeys(map(table.column, names)):
        # By type too: 1, 1.0 and True are one to Python.
        counted = Counter((type(hit.row[column]), hit.row[column]) for hit in hits)
        counts = sorted(counted.items(), key=lambda item: (-item[1], str(item[0][1])))
        found.append(
            Facet(
                column=column,
                among=len(hits),
                counts=tuple((value, count) for (_, value), count in counts[:FACET_VALUES]),
                is_cut=len(counts) > FACET_VALUES,
                is_typed=affinity(table.columns[column]) != "BLOB",
            )
        )
    return tuple(found)


def _duplicates(conn: sqlite3.Connection, index: Index, hits: Sequence[Hit]) -> dict[Key, Key]:
    """Each hit whose best chunk is, in text or nearly in meaning, that of a better one; only the best have none."""
    vectors = np.zeros((len(hits), index.dimensions), dtype=np.float32)
    places = [(hit.key, hit.chunk.position) for hit in hits]
    for vector, blob in zip(vectors, reading.embeddings_at(conn, index, places), strict=True):
        vector[:] = 0.0 if blob is None else unpack(blob)
    first: dict[str, int] = {}
    texts = np.array([first.setdefault(hit.chunk.text, number) for number, hit in enumerate(hits)])
    found: dict[Key, Key] = {}
    same = (vectors @ vectors.T >= NEAR_DUPLICATE) | (texts[:, None] == texts)
    for number, hit in enumerate(hits):
        better = (hits[other].key for other in np.flatnonzero(same[number, :number]).tolist())
        original = next((key for key in better if key not in found), None)
        if original is not None:
            found[hit.key] = original
    return found


def _usual_cosine(conn: sqlite3.Connection, index: Index, vector: Vector) -> float:
    """The mean cosine of a question to chunks from all over the index."""
    blobs = [blob for _, blob in reading.sampled_embeddings(conn, index, _SAMPLE)]
    if not blobs:
        return 0.0
    return float(np.mean(np.stack([unpack(blob) for blob in blobs]) @ vector))
