"""Search: a Query becomes candidates of two sides, one ranking, and hits that are true at this moment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import embedders
from .access import Access
from .budget import ledger_of
from .chunking import render
from .domain import MAX_HITS, Embedder, Hit, Index, KeywordRank, Mode, Query, SemanticRank, Why, check_window
from .driver import sqlite3
from .errors import (
    DocumentNotFound,
    EmbedderError,
    FingerprintMismatch,
    IndexNotFound,
    InvalidSetting,
    UnknownEmbedder,
)
from .keys import Key, key_to_json, key_to_path
from .paid import PaidEmbedder
from .store import counting, registry, source
from .store.filters import Condition, compile_filters, joined, unqueued
from .store.keyword import keyword, terms
from .store.nearest import Candidate, nearest, strengths
from .store.reading import chunks_by_id, chunks_of, vectors_of
from .store.transactions import mapped_errors, snapshot
from .vectors import Vector, normalise, unpack

DEPTHS = (100, MAX_HITS)
"""How many documents each side contributes: the second depth only serves pages beyond what the first one holds."""
SEMANTIC_WEIGHT = 0.6
"""The share of meaning in the fused score; measured with `benchmarks`, see `fuse`."""
SNIPPET_CHARACTERS = 240

TITLES = ("title", "name", "headline", "heading", "subject", "label")


def search(conn: sqlite3.Connection, index: Index, query: Query, *, embedder: Embedder | None = None) -> list[Hit]:
    """The k best documents from `offset` on, each with its best chunk; fewer only when no more match.

    Without `query.vector` the text is embedded by `embedder`, the index's own if None. Where that model does not speak
    the text's language, hybrid mode ranks by keywords alone. Rows that are gone, or changed since they were indexed,
    are never shown. Nothing is written but what a paid embedder cost, to the ledger. Raises FingerprintMismatch,
    InvalidFilter, EmbedderError, DatabaseUnavailable.
    """
    prepared = embed(index, query, embedder=embedder, ledger=ledger_of(conn))
    with mapped_errors(), snapshot(conn):
        return answer(conn, index, prepared)


def answer(conn: sqlite3.Connection, index: Index, query: Query, *, only: Condition | None = None) -> list[Hit]:
    """The search itself, for a query that has been through `embed`, in the state that the connection is reading.

    `only` is a filter of the caller's beside those of the query.
    """
    index = _current(conn, index)
    condition, vector = joined(compile_filters(conn, index, query.filters), only), query.vector

    def ranked(depth: int, condition: Condition | None = condition) -> list[_Ranked]:
        words = near = list[Candidate]()
        if query.mode != "semantic":
            words = keyword(conn, index, query.text, depth=depth, condition=condition)
        if query.mode != "keyword" and vector is not None:
            near = nearest(conn, index, vector, depth=depth, condition=condition)
            near += _strengths_of_others(conn, index, vector, words, near)
        return fuse(words, near, mode=query.mode)

    hits = _page(conn, index, ranked, k=query.k, offset=query.offset, text=query.text)
    if len(hits) < query.k and counting.count_queue(conn, index):
        # Rows deleted or edited since the last sync may fill the whole depth, and are hidden: look beside them.
        settled = unqueued(index, condition)
        hits = _page(conn, index, lambda depth: ranked(depth, settled), k=query.k, offset=query.offset, text=query.text)
    return hits


def _current(conn: sqlite3.Connection, index: Index) -> Index:
    """The generation that is active now, if its vectors can be asked with those of the one that was looked up."""
    try:
        current = registry.reread(conn, index)
    except IndexNotFound:
        current = registry.find(conn, index.name)
    if current.fingerprint != index.fingerprint:
        raise FingerprintMismatch(f"index {index.name!r} was rebuilt with {current.embedder} just now: ask again")
    source.check(conn, current)
    return current


def _strengths_of_others(
    conn: sqlite3.Connection, index: Index, vector: Vector, words: Sequence[Candidate], near: Sequence[Candidate]
) -> list[Candidate]:
    """The cosines of what only the keywords found, so that no hit is judged by one side for want of a look."""
    found = {candidate.key for candidate in near}
    others = [candidate for candidate in words if candidate.key not in found]
    return sorted(strengths(conn, index, vector, others), key=lambda c: -c.strength) if others else []


def embed(
    index: Index,
    query: Query,
    *,
    embedder: Embedder | None = None,
    access: Access | None = None,
    ledger: str = "",
    ask: Callable[[Embedder, str], Vector] = lambda embedder, text: embedder.embed_query(text),
) -> Query:
    """The query with its vector, where its mode needs one: the step of a search that needs no connection.

    The embedder is the index's own if None, reached by `access`. What a paid one costs is written to the ledger of that
    database file; `ask` is how it is asked. Raises FingerprintMismatch when it is not the one that made the index, and
    EmbedderError.
    """
    if query.vector is not None:
        return replace(query, vector=normalise(query.vector, dimensions=index.dimensions))
    if query.mode == "keyword":
        return query
    embedder = checked_embedder(index, embedder, access)
    if query.mode == "hybrid" and not embedder.speaks(query.text):
        return query
    # A budget that the caller has set up, with a ledger or a limit, stays.
    if isinstance(embedder, PaidEmbedder) and not embedder.budget.ledger and embedder.budget.max_usd is None:
        embedder = embedder.charged_to(ledger)
    return replace(query, vector=normalise(ask(embedder, query.text), dimensions=index.dimensions))


def embed_or_words(
    index: Index,
    query: Query,
    *,
    embedder: Embedder | None = None,
    access: Access | None = None,
    ledger: str = "",
    ask: Callable[[Embedder, str], Vector] = lambda embedder, text: embedder.embed_query(text),
) -> tuple[Query, list[str]]:
    """Like `embed`, for doors that can show a notice: what cannot be searched by meaning now is by words, and why.

    In semantic mode, which has nothing else to offer, it raises like `embed`.
    """
    try:
        asked = embed(index, query, embedder=embedder, access=access, ledger=ledger, ask=ask)
    except (EmbedderError, FingerprintMismatch, InvalidSetting, UnknownEmbedder) as error:
        if query.mode == "semantic":
            raise
        return replace(query, mode="keyword"), [f"Searched by exact words only: {error}"]
    if query.mode == "hybrid" and asked.vector is None:
        return asked, [f"Searched by exact words only: model {index.embedder} does not know the language of the query"]
    return asked, []


def checked_embedder(index: Index, embedder: Embedder | None = None, access: Access | None = None) -> Embedder:
    """The index's own embedder, or the given one if it makes the same vectors. Raises FingerprintMismatch."""
    embedder = embedder or embedders.load(index.embedder, access)
    if embedder.fingerprint != index.fingerprint:
        raise FingerprintMismatch(
            f"index {index.name!r} holds vectors of {index.fingerprint}, this is {embedder.fingerprint}: rebuild the "
            f"index with `datasette vec rebuild DB {index.name} --embedder {embedder.name}`, or search by keywords"
        )
    return embedder


def similar(
    conn: sqlite3.Connection,
    index: Index,
    key: Sequence[object],
    *,
    k: int = 10,
    filters: Mapping[str, object] | None = None,
    offset: int = 0,
) -> list[Hit]:
    """The documents nearest to that of a row, without the row itself, by the mean of its chunks' stored vectors.

    No model is called. Raises DocumentNotFound when the table has no such row or it has no vector yet.
    """
    check_window(k, offset)
    with mapped_errors(), snapshot(conn):
        index = _current(conn, index)
        vector = document_vector(conn, index, key)
        condition = compile_filters(conn, index, filters or {})
        own = {stored.id for stored in chunks_of(conn, index, [key])[0]}

        def ranked(depth: int) -> list[_Ranked]:
            found = nearest(conn, index, vector, depth=depth + 1, condition=condition)
            return fuse([], [candidate for candidate in found if candidate.chunk_id not in own], mode="semantic")

        return _page(conn, index, ranked, k=k, offset=offset)


def document_vector(conn: sqlite3.Connection, index: Index, key: Sequence[object]) -> Vector:
    """The mean of a document's chunks' vectors, of unit length. Raises DocumentNotFound."""
    spelled = key_to_path(key)
    row = source.rows(conn, index, [key], columns=index.columns)[0] if len(key) == len(index.key) else None
    if row is None:
        raise DocumentNotFound(f"{index.table!r} has no row with the key {spelled}")
    blobs = vectors_of(conn, index, key)
    if not blobs:
        raise DocumentNotFound(
            f"row {spelled} of {index.table!r} has no vector: its text is empty or not indexed yet; "
            f"run `datasette vec sync DB {index.name}`"
        )
    return normalise(np.mean([unpack(blob) for blob in blobs], axis=0), dimensions=index.dimensions)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ranked:
    key: Key
    chunk_id: int
    score: float
    why: Why


def fuse(words: Sequence[Candidate], near: Sequence[Candidate], *, mode: Mode = "hybrid") -> list[_Ranked]:
    """One ranking of both sides' candidates.

    In hybrid mode a document's BM25 (0 where no word matches) and cosine are each stretched to 0..1 over all candidates
    and added, 0.4 for words and 0.6 for meaning. Keywords' candidates come with their cosine, so that the scale of a
    model's cosines does not matter; one whose vector is still pending is judged by its words alone. This convex
    combination (Bruch, Gai, Ingber 2023, "An Analysis of Fusion Functions for Hybrid Retrieval") ranks better than
    reciprocal rank fusion on the sets of `benchmarks`.
    """
    keyword_ranks = {c.key: KeywordRank(rank=rank, bm25=c.strength) for rank, c in enumerate(words, 1)}
    semantic_ranks = {c.key: SemanticRank(rank=rank, cosine=c.strength) for rank, c in enumerate(near, 1)}
    chunk_ids = {c.key: c.chunk_id for c in (*near, *words)}
    weight = SEMANTIC_WEIGHT if words and near else float(bool(near))
    absent = [Candidate(key=key, chunk_id=0, strength=0.0) for key in chunk_ids if key not in keyword_ranks]
    by_words, by_meaning = _stretch([*words, *absent]), _stretch(near)
    ranking = []
    for key, chunk_id in chunk_ids.items():
        fused = (1 - weight) * by_words[key] + weight * by_meaning.get(key, by_words[key])
        why = Why(keyword=keyword_ranks.get(key), semantic=semantic_ranks.get(key), fused=fused)
        if mode == "semantic" and why.semantic:
            score, why = why.semantic.cosine, replace(why, fused=None)
        elif mode == "keyword" and why.keyword:
            score, why = why.keyword.bm25, replace(why, fused=None)
        else:
            score = fused
        ranking.append(_Ranked(key=key, chunk_id=chunk_id, score=score, why=why))
    # Ties are broken by the age of the chunk, so that pages are stable.
    ranking.sort(key=lambda r: (-r.score, r.chunk_id))
    return ranking


def _stretch(candidates: Sequence[Candidate]) -> dict[Key, float]:
    values = [candidate.strength for candidate in candidates]
    high, low = max(values, default=0.0), min(values, default=0.0)
    return {c.key: (c.strength - low) / (high - low) if high > low else 1.0 for c in candidates}


def _page(
    conn: sqlite3.Connection,
    index: Index,
    ranked: Callable[[int], list[_Ranked]],
    *,
    k: int,
    offset: int,
    text: str = "",
) -> list[Hit]:
    """Hits `offset` to `offset + k` of those that still are what was indexed, in an order that no page size changes."""
    words = terms(text)
    seen: set[Key] = set()
    hits: list[Hit] = []
    for depth in DEPTHS:
        fresh = [candidate for candidate in ranked(depth) if candidate.key not in seen]
        seen.update(candidate.key for candidate in fresh)
        if hits:  # a deeper ranking stretches its scores anew; they may not pass those that stand before
            fresh = [replace(candidate, score=min(candidate.score, hits[-1].score)) for candidate in fresh]
        for start in range(0, len(fresh), DEPTHS[0]):
            hits += _true_hits(conn, index, fresh[start : start + DEPTHS[0]], words)
            if len(hits) >= offset + k:
                return hits[offset : offset + k]
    return hits[offset : offset + k]


def _true_hits(
    conn: sqlite3.Connection, index: Index, ranking: Sequence[_Ranked], words: Sequence[str]
) -> Iterator[Hit]:
    """The candidates whose row exists and still has the chunk's text at its place, as hits."""
    chunks = chunks_by_id(conn, index, [candidate.chunk_id for candidate in ranking])
    rows = source.rows(conn, index, [candidate.key for candidate in ranking])
    for candidate, row in zip(ranking, rows, strict=True):
        chunk = chunks.get(candidate.chunk_id)
        if row is None or chunk is None:
            continue
        document = render(row, columns=index.columns, template=index.template)
        if document[chunk.start : chunk.end] != chunk.text:
            continue
        called = title(index, candidate.key, row)
        yield Hit(
            key=candidate.key,
            score=candidate.score,
            title=called,
            snippet=snippet(chunk.text.removeprefix(called) or chunk.text, words),
            chunk=chunk,
            row=row,
            why=candidate.why,
        )


def title(index: Index, key: Key, row: Mapping[str, object]) -> str:
    """What to call a document: a column named like a title, else the first of several indexed columns, else its key."""
    by_name = {name.casefold(): name for name in row}
    columns = [by_name[name] for name in TITLES if name in by_name]
    if len(index.columns) > 1:
        columns.append(index.columns[0])
    for column in columns:
        value = row[column]
        if isinstance(value, str | int | float) and str(value).strip():
            return " ".join(str(value).split())[:200]
    return ", ".join(map(str, key_to_json(key)))


def snippet(text: str, words: Sequence[str]) -> str:
    """About 240 characters of a chunk on one line, from a little before its first occurrence of a word."""
    line = " ".join(text.split())
    if len(line) <= SNIPPET_CHARACTERS:
        return line
    lowered = line.lower()
    places = [match.start() for word in words if (match := re.search(rf"\b{re.escape(word)}", lowered))]
    start = max(0, min(places, default=0) - SNIPPET_CHARACTERS // 4)
    start = min(start, len(line) - SNIPPET_CHARACTERS)
    if start:
        start = line.find(" ", start) + 1 or start
    piece = line[start : start + SNIPPET_CHARACTERS]
    if start + SNIPPET_CHARACTERS < len(line):
        piece = piece.rpartition(" ")[0] or piece
        piece += " …"
    return f"… {piece}" if start else piece
