"""Ranking: the candidates of both sides become one order, by nothing but their strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .domain import KeywordRank, Mode, SemanticRank, Why
from .keys import Key
from .store.nearest import Candidate

SEMANTIC_WEIGHT = 0.6
"""The share of meaning in the fused score; measured with `benchmarks`, see `fuse`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A document in its place, with the chunk that stands for it."""

    key: Key
    chunk_id: int
    score: float
    why: Why


def fuse(words: Sequence[Candidate], near: Sequence[Candidate], *, mode: Mode = "hybrid") -> list[Ranked]:
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
        ranking.append(Ranked(key=key, chunk_id=chunk_id, score=score, why=why))
    # Ties are broken by the age of the chunk, so that pages are stable.
    ranking.sort(key=lambda r: (-r.score, r.chunk_id))
    return ranking


def _stretch(candidates: Sequence[Candidate]) -> dict[Key, float]:
    values = [candidate.strength for candidate in candidates]
    high, low = max(values, default=0.0), min(values, default=0.0)
    return {c.key: (c.strength - low) / (high - low) if high > low else 1.0 for c in candidates}
