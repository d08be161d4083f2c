"""What embedding would cost, before it does: counted on this machine, without asking any service."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from .budget import PRICES_AS_OF, price
from .chunking import covers, digest, render, split
from .domain import Embedder, Estimate, Index
from .driver import sqlite3
from .filling import is_cut
from .keys import Key
from .paid import PaidEmbedder
from .searching import checked_embedder
from .store import reading, registry, source, writing
from .store.counting import FAILED, PENDING
from .store.transactions import mapped_errors
from .texting import ATTEMPTS

_BATCH = 500
_TIMED = 16
"""Texts by which a model on this machine is timed."""
_RETRIED = f"({FAILED} and attempts < {ATTEMPTS})"

Text = tuple[Key, str]


def estimate(conn: sqlite3.Connection, index: Index, *, embedder: Embedder | None = None) -> Estimate:
    """What the next sync would embed, or with another embedder a rebuild: chunks whose vector is not owned yet.

    Rows that wait in the queue are read and cut for it; a rebuild is reckoned from the chunks as they are cut now.
    Writes nothing. Raises DatabaseUnavailable.
    """
    with mapped_errors():
        index = registry.reread(conn, index)
        source.check(conn, index)
        if embedder is None or embedder.fingerprint == index.fingerprint:
            model = checked_embedder(index, embedder)
            return _count(conn, index, model, _after_text_stage(conn, index, model, only=f"{PENDING} or {_RETRIED}"))
        return _count(conn, index, embedder, _after_text_stage(conn, index, embedder, only="1"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What an index that is not there yet would be made of.

    The estimate is reckoned from `read` rows of all that there are, and exact if these are all. `first` is the first
    text that the model would get; empty where no row has any.
    """

    estimate: Estimate
    table_rows: int
    read: int
    first: str

    @property
    def is_exact(self) -> bool:
        """Whether every row was read."""
        return self.read == self.table_rows


def preview(conn: sqlite3.Connection, index: Index, embedder: Embedder, *, most_rows: int = 2_000) -> Preview:
    """What `create_index` and a sync would embed for a planned index, from at most about so many rows, evenly spread.

    A free model is timed on a few of the texts; a paid one is not asked. Writes nothing. Raises DatabaseUnavailable.
    """
    with mapped_errors():
        table_rows = source.count(conn, index)
        every = max(1, math.ceil(table_rows / most_rows))
        read, with_text, first, tokens = 0, 0, "", 0
        texts: dict[bytes, str] = {}
        for row in source.spread(conn, index, every=every):
            read += 1
            chunks = split(render(row, columns=index.columns, template=index.template), embedder)
            with_text += bool(chunks)
            first = first or (chunks[0].text if chunks else "")
            texts |= {digest(chunk.text, embedder.fingerprint): chunk.text for chunk in chunks}
        some = list(texts.values())
        if isinstance(embedder, PaidEmbedder):
            tokens = embedder.count_tokens(some)
        share = table_rows / read if read else 1.0
        found = reckon(
            index,
            embedder,
            rows=round(with_text * share),
            chunks=round(len(some) * share),
            tokens=round(tokens * share),
        )
        if some and not isinstance(embedder, PaidEmbedder):
            found = replace(found, minutes=found.chunks * _seconds_each(embedder, some[:_TIMED]) / 60)
    return Preview(estimate=found, table_rows=table_rows, read=read, first=first)


def _seconds_each(embedder: Embedder, texts: list[str]) -> float:
    """How long a model on this machine takes for one of these texts, once it is loaded."""
    embedder.embed_documents(texts[:1])
    started = time.perf_counter()
    embedder.embed_documents(texts)
    return (time.perf_counter() - started) / len(texts)


def estimate_pending(conn: sqlite3.Connection, index: Index, embedder: Embedder) -> Estimate:
    """What the chunks that have no vector would cost, after the text stage."""
    return _count(conn, index, embedder, _texts(conn, index, only=PENDING))


def _count(conn: sqlite3.Connection, index: Index, embedder: Embedder, texts: Iterable[Text]) -> Estimate:
    keys, seen, tokens = set[Key](), set[bytes](), 0
    model = embedder if isinstance(embedder, PaidEmbedder) else None
    generations = registry.generations(conn, index.name)
    texts = iter(texts)
    while batch := list(islice(texts, _BATCH)):
        wanted = {digest(text, embedder.fingerprint): (key, text) for key, text in batch}
        for known in [*seen.intersection(wanted), *_owned(conn, generations, embedder, wanted)]:
            wanted.pop(known, None)
        seen.update(wanted)
        keys.update(key for key, _ in wanted.values())
        if model:
            tokens += model.count_tokens([text for _, text in wanted.values()])
    return reckon(index, embedder, rows=len(keys), chunks=len(seen), tokens=tokens)


def reckon(index: Index, embedder: Embedder, *, rows: int, chunks: int, tokens: int) -> Estimate:
    """What so many tokens in so many chunks cost, and how long the limits a minute make them last."""
    model = embedder if isinstance(embedder, PaidEmbedder) else None
    limits = model.access if model else None
    return Estimate(
        index=index.name,
        embedder=embedder.name,
        rows=rows,
        chunks=chunks,
        tokens=tokens,
        usd=tokens * price(model.budget.model) if model else 0.0,
        minutes=max(chunks / limits.texts_per_minute, tokens / limits.tokens_per_minute) if limits else 0.0,
        prices_as_of=PRICES_AS_OF,
    )


def _owned(
    conn: sqlite3.Connection, generations: Iterable[Index], embedder: Embedder, wanted: dict[bytes, Text]
) -> Iterator[bytes]:
    """Digests of texts whose vector some generation has, in full or to be cut."""
    for generation in generations:
        if generation.fingerprint == embedder.fingerprint:
            yield from writing.owned(conn, [generation], wanted)
        elif embedder.matryoshka and is_cut(embedder, of=generation):
            longer = {digest(text, generation.fingerprint): short for short, (_, text) in wanted.items()}
            yield from (longer[found] for found in writing.owned(conn, [generation], longer))


def _after_text_stage(conn: sqlite3.Connection, index: Index, embedder: Embedder, *, only: str) -> Iterator[Text]:
    """The chunks that the text stage would add, then those for which the condition holds and that it would leave."""
    changed: set[Key] = set()
    for key, texts in _changed(conn, index, embedder):
        changed.add(key)
        yield from ((key, text) for text in texts)
    yield from (text for text in _texts(conn, index, only=only) if text[0] not in changed)


def _texts(conn: sqlite3.Connection, index: Index, *, only: str) -> Iterator[Text]:
    cursor = reading.keyed_texts(conn, index, only=only)
    return ((tuple(key), text) for text, *key in cursor)


def _changed(conn: sqlite3.Connection, index: Index, embedder: Embedder) -> Iterator[tuple[Key, list[str]]]:
    """The documents that are cut anew, with their chunks: of rows in the queue, or of all rows of a view."""
    cursor = reading.all_keys(conn, index) if index.is_view else reading.queue(conn, index)
    while keys := [tuple(key) for key in cursor.fetchmany(_BATCH)]:
        rows = source.rows(conn, index, keys, columns=index.columns)
        for key, row, stored in zip(keys, rows, reading.chunks_of(conn, index, keys), strict=True):
            document = render(row, columns=index.columns, template=index.template) if row else ""
            if not covers(document, [old.chunk for old in stored]):
                yield key, [chunk.text for chunk in split(document, embedder)]
