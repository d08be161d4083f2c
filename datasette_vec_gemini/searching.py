"""Search: a Query becomes candidates of two sides, one ranking, and hits that are true at this moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from . import embedders
from .access import Access
from .budget import ledger_of
from .chunking import render
from .domain import MAX_HITS, Embedder, Hit, Index, Query, check_window
from .driver import sqlite3
from .errors import (
    DocumentNotFound,
    EmbedderError,
    FingerprintMismatch,
    InvalidSetting,
    UnknownEmbedder,
    VecError,
)
from .keys import Key, key_to_path
from .paid import PaidEmbedder
from .ranking import Ranked, fuse
from .store import counting, registry, source
from .store.filters import Condition, compile_filters, joined, unqueued
from .store.keyword import keyword, terms
from .store.nearest import Candidate, nearest, strengths
from .store.reading import chunks_by_id, chunks_of, vectors_of
from .store.transactions import mapped_errors, snapshot
from .titles import snippet, title
from .vectors import Vector, normalise, unpack

DEPTHS = (100, MAX_HITS)
"""How many documents each side contributes: the second depth only serves pages beyond what the first one holds."""


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
    index = current(conn, index)
    condition, vector = joined(compile_filters(conn, index, query.filters), only), query.vector

    def ranked(depth: int, condition: Condition | None = condition) -> list[Ranked]:
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


def current(conn: sqlite3.Connection, index: Index) -> Index:
    """The generation that is active now, if its vectors can be asked with those of the one that was looked up.

    Raises IndexNotFound, FingerprintMismatch, and what `source.check` raises.
    """
    found = registry.current(conn, index)
    if found.fingerprint != index.fingerprint:
        raise FingerprintMismatch(f"index {index.name!r} was rebuilt with {found.embedder} just now: ask again")
    source.check(conn, found)
    return found


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
        return by_words(query, error)
    if query.mode == "hybrid" and asked.vector is None:
        return asked, [f"Searched by exact words only: model {index.embedder} does not know the language of the query"]
    return asked, []


def by_words(query: Query, error: VecError) -> tuple[Query, list[str]]:
    """The query by words where its meaning cannot be had, with a notice why; in semantic mode the error is raised."""
    if query.mode == "semantic":
        raise error
    return replace(query, mode="keyword"), [f"Searched by exact words only: {error}"]


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
        index = current(conn, index)
        vector = document_vector(conn, index, key)
        condition = compile_filters(conn, index, filters or {})
        own = {stored.id for stored in chunks_of(conn, index, [key])[0]}

        def ranked(depth: int) -> list[Ranked]:
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


def _page(
    conn: sqlite3.Connection,
    index: Index,
    ranked: Callable[[int], list[Ranked]],
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
    conn: sqlite3.Connection, index: Index, ranking: Sequence[Ranked], words: Sequence[str]
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
