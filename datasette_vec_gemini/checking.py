"""What an index says of itself: `status`, and `verify`, which proves it against its table and can mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .chunking import covers, digest, render
from .domain import Embedder, Estimate, Index, Kind
from .driver import sqlite3
from .errors import counted
from .keys import Key, key_to_path
from .store import counting, generations, picture, reading, registry, source, writing
from .store.nearest import nearest
from .store.transactions import mapped_errors, refuse_open_transaction, transaction
from .syncing import sync
from .vectors import unpack

_BATCH = 500
_SELF_MATCHES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """An index in figures: rows = indexed + pending + failed + empty. `failures` are the first keys with their reasons.

    `warnings` say what stands in the way of good answers, with the remedy.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    embedder: str
    dimensions: int
    quantize: str
    generation: int
    rows: int
    indexed: int
    pending: int
    failed: int
    empty: int
    chunks: int
    failures: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The status as JSON prints it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One broken promise: which check found it, what is wrong, and whether `verify(repair=True)` mends it."""

    check: str
    text: str
    mended: bool = False


def status(conn: sqlite3.Connection, index: Index) -> Status:
    """Count every row of the table in exactly one class. Writes nothing. Raises DatabaseUnavailable."""
    with mapped_errors():
        source.check(conn, index)
        counts = counting.counts(conn, index)
        failures = counting.failures(conn, index)
        return Status(
            name=index.name,
            table=index.table,
            columns=index.columns,
            embedder=index.embedder,
            dimensions=index.dimensions,
            quantize=index.quantize,
            generation=index.generation,
            failures=tuple((key_to_path(key), reason) for key, reason in failures),
            warnings=tuple(_warnings(conn, index)),
            **asdict(counts),
        )


def _warnings(conn: sqlite3.Connection, index: Index) -> Iterator[str]:
    if index.is_view:
        yield "a view has no triggers: changes are found by `sync`, which compares every row"
    elif reading.wrong_triggers(conn, index):
        yield "the triggers on the table are lost, so changes are not noted: run `sync`"
    if not reading.has_vec(conn):
        yield "this connection has no sqlite-vec: search scans every vector, and nothing can be indexed"
    elif not reading.has_codes(conn, index):
        yield "the vec0 table was dropped: search scans every vector; `rebuild` makes it again"
    begun = registry.building(conn, index.name)
    if begun:
        yield f"generation {begun.generation} with {begun.embedder} is not finished: run `rebuild` again to go on"
    for old in registry.generations(conn, index.name):
        if old.state == "retired":
            yield f"the vectors of generation {old.generation} with {old.embedder} are kept: a `rebuild` drops them"


def verify(
    conn: sqlite3.Connection,
    index: Index,
    *,
    repair: bool = False,
    embedder: Embedder | None = None,
    max_usd: float | None = None,
    approve: Callable[[Estimate], None] | None = None,
) -> list[Problem]:
    """Check every promise of the data design; empty when all hold. Rows that wait in the queue are no problem.

    `repair` mends what it finds without asking the model for anything it has answered before, and checks again: what
    is returned then says of each problem whether it was mended. Damaged vectors have to be asked for anew; `max_usd`
    and `approve` are as in `sync`. Raises like `sync`.
    """
    with mapped_errors():
        index = registry.reread(conn, index)
        source.check(conn, index)
        found = list(_problems(conn, index))
        if not repair or not found:
            return found
        refuse_open_transaction(conn)
        if not registry.has_table(conn, index.object("chunks")):
            return found
        with transaction(conn):
            generations.restore_tables(conn, index)
            wrong = _wrong_digests(conn, index)
            writing.set_digests(conn, index, wrong)
            # A vector under another text's digest may be another text's vector.
            writing.forget_vectors(conn, index, [*wrong, *_damaged_vectors(conn, index)])
            if reading.has_vec(conn):
                writing.rebuild_codes(conn, index)
            writing.rebuild_fts(conn, index)
        sync(conn, index, full=True, embedder=embedder, max_usd=max_usd, approve=approve)
        left = set(_problems(conn, index))
        return [Problem(check=problem.check, text=problem.text, mended=problem not in left) for problem in found] + [
            problem for problem in left if problem not in found
        ]


def _problems(conn: sqlite3.Connection, index: Index) -> Iterator[Problem]:
    kinds: tuple[Kind, ...] = ("queue", "chunks", "fts")
    missing = [kind for kind in kinds if not registry.has_table(conn, index.object(kind))]
    if missing:
        remedy = "drop the index and make it again" if "chunks" in missing else "it can be made anew"
        names = ", ".join(map(index.object, missing))
        yield Problem(check="tables", text=f"{names} is gone: {remedy}")
        return
    for result in (row[0] for row in conn.execute("pragma quick_check(5)").fetchall()):
        if result != "ok":
            yield Problem(check="file", text=f"the file is damaged: {result}")
    for name in reading.wrong_triggers(conn, index):
        yield Problem(check="triggers", text=f"trigger {name} is missing or was changed")
    if picture.is_broken(conn, index):
        yield Problem(check="map", text="a table or trigger of the map is missing: the next sync draws it anew")
    yield from _summed("documents", "row", "whose chunks are no cut of the text", _stale_keys(conn, index))
    yield from _summed("digests", "chunk", "whose digest is not that of the text", [*_wrong_digests(conn, index)])
    damaged = _damaged_vectors(conn, index)
    yield from _summed("vectors", "vector", "that the model cannot have made", damaged)
    yield from _keyword_problems(conn, index)
    if reading.has_vec(conn) and reading.has_codes(conn, index):
        yield from _summed("codes", "chunk", "whose code is missing or left over", reading.unmatched_codes(conn, index))
        if not damaged:  # one vector of another length stops every search
            yield from _summed("neighbours", "vector", "not among what is nearest to it", _lost_vectors(conn, index))


def _summed(check: str, noun: str, what: str, found: list[Any]) -> Iterator[Problem]:
    if found:
        spelled = ", ".join(key_to_path(item) if isinstance(item, tuple) else str(item) for item in found[:5])
        yield Problem(
            check=check, text=f"{counted(len(found), noun)} {what}: {spelled}{' …' if len(found) > 5 else ''}"
        )


def _stale_keys(conn: sqlite3.Connection, index: Index) -> list[Key]:
    waiting = reading.queued_keys(conn, index)
    stale = []
    keys = reading.all_keys(conn, index)
    while batch := keys.fetchmany(_BATCH):
        part = [key for key in map(tuple, batch) if key not in waiting]
        rows = source.rows(conn, index, part, columns=index.columns)
        for key, row, chunks in zip(part, rows, reading.chunks_of(conn, index, part), strict=True):
            document = render(row, columns=index.columns, template=index.template) if row else ""
            if not covers(document, [stored.chunk for stored in chunks]):
                stale.append(key)
    return stale


def _wrong_digests(conn: sqlite3.Connection, index: Index) -> dict[int, bytes]:
    """Id -> the digest that it should have."""
    return {
        id_: right
        for id_, text, stored in reading.texts(conn, index)
        if (right := digest(text, index.fingerprint)) != stored
    }


def _damaged_vectors(conn: sqlite3.Connection, index: Index) -> list[int]:
    damaged = []
    for id_, blob in reading.embeddings(conn, index):
        if len(blob) != 4 * index.dimensions or not abs(float(np.linalg.norm(unpack(blob))) - 1.0) < 1e-3:
            damaged.append(id_)
    return damaged


def _keyword_problems(conn: sqlite3.Connection, index: Index) -> Iterator[Problem]:
    indexed, chunks = reading.count_keyword_entries(conn, index), counting.count_chunks(conn, index)
    if indexed != chunks:
        yield Problem(check="keywords", text=f"entries of the keyword index: {indexed:,}, chunks: {chunks:,}")
    elif not reading.keyword_index_is_sound(conn, index):
        yield Problem(check="keywords", text="the keyword index does not agree with the chunks")


def _lost_vectors(conn: sqlite3.Connection, index: Index) -> list[int]:
    """A sample of vectors for which the planner does not answer with a document at distance 0."""
    return [
        id_
        for id_, blob in reading.sampled_embeddings(conn, index, _SELF_MATCHES)
        if not (found := nearest(conn, index, unpack(blob), depth=1)) or found[0].strength < 0.999
    ]
