"""The planner of vector search: which way leads to the nearest documents of a vector for the least work.

Vectors have unit length and L2 distance d, so cosine = 1 - d*d/2. Three ways give the same order:

exact       every candidate's vector is read from the truth; right for small indexes and narrow filters;
two-pass    vec0's bit codes give ten neighbours and with them a radius, then everything within the Hamming radius that
            corresponds to it (angle/pi of the bits differ, plus z standard deviations) is scored exactly;
codes       int8 and float32 codes give candidates by their own distance, which are then scored exactly.

A connection without sqlite-vec, or an index whose vec0 table was dropped, is scanned exactly with numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..domain import Index
from ..driver import sqlite3
from ..keys import Key
from ..schema import key_names, quote_identifier
from ..vectors import Vector, pack, quantise_int8
from . import source
from .filters import Condition
from .reading import has_codes, has_vec

EXACT_CHUNKS = 5_000
"""Up to so many chunks an exact scan is as fast as codes."""
EXACT_MATCHES = 10_000
"""Up to so many chunks left by a filter an exact scan of just those is faster."""
MAX_CODES = 4_096
"""The greatest k that vec0 takes."""
RADIUS_NEIGHBOURS = 10
RADIUS_DEVIATIONS = 1.0

_Row = tuple[int, Key, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A document by its best chunk; `strength` is higher for better: a cosine, or BM25."""

    key: Key
    chunk_id: int
    strength: float


def nearest(
    conn: sqlite3.Connection, index: Index, vector: Vector, *, depth: int, condition: Condition | None = None
) -> list[Candidate]:
    """The `depth` documents nearest to the vector that fulfil the condition, best first; fewer if there are no more."""
    search = _Search(conn, index, vector, condition)
    if not has_vec(conn):
        return best_by_document(search.scan(), depth)
    if search.prefers_exact():
        return _grow(search.exact, depth)
    found = _grow(search.coded, depth, limit=MAX_CODES)
    return found if len(found) >= depth else _grow(search.exact, depth)


def strengths(
    conn: sqlite3.Connection, index: Index, vector: Vector, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """The same documents by their chunk nearest to the vector, in the same order; without those that have none."""
    keys = ", ".join(f"c.{name}" for name in key_names(index))
    matches = " and ".join(f"c.{name} = wanted.{name}" for name in key_names(index))
    rows: list[_Row] = []
    for start in range(0, len(candidates), source.KEYS):
        part = candidates[start : start + source.KEYS]
        cursor = conn.execute(
            f"""
            {source.wanted(index, len(part))}
            select c.id, {keys}, c.embedding from wanted cross join {quote_identifier(index.object("chunks"))} as c
            on {matches} where c.embedding is not null
            """,
            [value for candidate in part for value in candidate.key],
        )
        rows += [(id_, tuple(key), float(np.frombuffer(blob, "<f4") @ vector)) for id_, *key, blob in cursor]
    best = {found.key: found for found in best_by_document(sorted(rows, key=lambda row: -row[2]), len(candidates))}
    return [best[candidate.key] for candidate in candidates if candidate.key in best]


def best_by_document(rows: Iterable[_Row], depth: int) -> list[Candidate]:
    """The first chunk of each of the first `depth` documents, from rows (chunk id, key, strength), best first."""
    best: dict[Key, Candidate] = {}
    for chunk_id, key, strength in rows:
        if key not in best:
            best[key] = Candidate(key=key, chunk_id=chunk_id, strength=strength)
            if len(best) == depth:
                break
    return list(best.values())


def _grow(ranked: Callable[[int], list[_Row]], depth: int, *, limit: int | None = None) -> list[Candidate]:
    """Ask for more and more chunks until they belong to `depth` documents or there are no more."""
    chunks = depth + depth // 2
    while True:
        chunks = min(chunks, limit) if limit else chunks
        rows = ranked(chunks)
        found = best_by_document(rows, depth)
        if len(found) == depth or len(rows) < chunks or chunks == limit:
            return found
        chunks *= 4


class _Search:
    """One query's ways to its neighbours; rows are (chunk id, key, cosine), best first."""

    def __init__(self, conn: sqlite3.Connection, index: Index, vector: Vector, condition: Condition | None) -> None:
        self.conn = conn
        self.index = index
        self.vector = vector
        self.blob = pack(vector)
        self.chunks = quote_identifier(index.object("chunks"))
        self.codes = quote_identifier(index.object("codes"))
        self.keys = ", ".join(key_names(index))
        self.where = f"and {condition.sql}" if condition else ""
        self.values = condition.values if condition else ()

    def prefers_exact(self) -> bool:
        if not has_codes(self.conn, self.index):
            return True
        if not self.where:
            return self._counted(EXACT_CHUNKS) <= EXACT_CHUNKS
        return self._counted(EXACT_MATCHES) <= EXACT_MATCHES

    def _counted(self, most: int) -> int:
        sql = f"select count(*) from (select 1 from {self.chunks} where 1 {self.where} limit ?)"
        total: int = self.conn.execute(sql, [*self.values, most + 1]).fetchone()[0]
        return total

    def exact(self, limit: int) -> list[_Row]:
        return self._rows(
            f"""
            select id, {self.keys}, vec_distance_L2(embedding, ?) as distance from {self.chunks}
            where embedding is not null {self.where} order by distance, id limit ?
            """,
            [self.blob, *self.values, limit],
        )

    def coded(self, limit: int) -> list[_Row]:
        """Exactly scored rows among the candidates of the codes: at least `limit` where there are so many."""
        if self.index.quantize == "bit":
            return self._two_pass(limit)
        return self._scored("k = ?", limit)

    def _two_pass(self, limit: int) -> list[_Row]:
        neighbours = self._scored("k = ?", RADIUS_NEIGHBOURS)
        if not neighbours:
            return []
        share = math.acos(max(-1.0, min(1.0, neighbours[-1][2]))) / math.pi
        bits = self.index.dimensions
        radius = math.ceil(bits * share + RADIUS_DEVIATIONS * math.sqrt(bits * share * (1 - share)))
        while True:
            rows = self._scored("k = ? and distance <= ?", MAX_CODES, radius)
            if len(rows) >= min(limit, MAX_CODES) or radius >= bits:
                return rows
            radius += max(1, bits // 50)

    def _scored(self, constraint: str, *bounds: int) -> list[_Row]:
        query, code = {
            "bit": ("vec_quantize_binary(?)", self.blob),
            "float32": ("?", self.blob),
            "int8": ("vec_int8(?)", quantise_int8(self.vector, scale=self.index.int8_scale or 1.0)),
        }[self.index.quantize]
        only = f"and id in (select id from {self.chunks} where 1 {self.where})" if self.where else ""
        return self._rows(
            f"""
            with candidates as materialized (
                select id from {self.codes} where embedding match {query} and {constraint} {only}
            )
            select c.id, {self.keys}, vec_distance_L2(c.embedding, ?) as distance
            from candidates cross join {self.chunks} as c on c.id = candidates.id
            where c.embedding is not null order by distance, c.id
            """,
            [code, *bounds, *self.values, self.blob],
        )

    def _rows(self, sql: str, values: Sequence[object]) -> list[_Row]:
        cursor = self.conn.execute(sql, values)
        return [(id_, tuple(key), 1.0 - distance * distance / 2.0) for id_, *key, distance in cursor]

    def scan(self) -> list[_Row]:
        """Every row, scored with numpy in batches that bound memory to the scores and keys."""
        cursor = self.conn.execute(
            f"select id, {self.keys}, embedding from {self.chunks} where embedding is not null {self.where}",
            self.values,
        )
        rows: list[_Row] = []
        while batch := cursor.fetchmany(2_000):
            matrix = np.frombuffer(b"".join(row[-1] for row in batch), dtype="<f4").reshape(len(batch), -1)
            for (id_, *key, _), cosine in zip(batch, (matrix @ self.vector).tolist(), strict=True):
                rows.append((id_, tuple(key), cosine))
        rows.sort(key=lambda row: (-row[2], row[0]))
        return rows
