"""Retrieval quality against judged queries: nDCG and recall, as trec_eval computes them.

nDCG@k uses linear gains and a log2(rank + 1) discount; recall@k divides by min(k, number of relevant documents), so
that 1.0 can always be reached.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .budget import ledger_of
from .domain import MODES, Embedder, Index, Mode, Query
from .driver import sqlite3
from .errors import UsageError
from .searching import checked_embedder, embed, search

Judgements = Mapping[str, Mapping[str, float]]


def read_queries(path: Path) -> dict[str, str]:
    """Id -> text from JSON lines with `_id` and `text`. Raises UsageError with the line that is wrong."""
    queries = {}
    for number, line in _lines(path):
        try:
            query = json.loads(line)
            queries[str(query["_id"])] = str(query["text"])
        except (json.JSONDecodeError, KeyError, RecursionError, TypeError) as error:
            raise UsageError(f"{path.name}, line {number}: expected an object with _id and text ({error})") from error
    return queries


def read_judgements(path: Path) -> dict[str, dict[str, float]]:
    """Query id -> document's key as text -> relevance from tab-separated `query-id`, `corpus-id`, `score`."""
    judgements: dict[str, dict[str, float]] = {}
    header: list[str] = []
    for number, line in _lines(path):
        values = line.split("\t")
        if not header:
            header = values
            continue
        try:
            row = dict(zip(header, values, strict=True))
            judgements.setdefault(_filled(row["query-id"]), {})[row["corpus-id"]] = _finite(row["score"])
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"{path.name}, line {number}: expected the columns query-id, corpus-id and score ({error})"
            ) from error
    return judgements


def evaluate(
    conn: sqlite3.Connection,
    index: Index,
    queries: Mapping[str, str],
    judgements: Judgements,
    *,
    k: int = 10,
    modes: Sequence[Mode] = MODES,
    embedder: Embedder | None = None,
) -> dict[Mode, dict[str, float]]:
    """For each mode the mean nDCG@k and recall@k over the judged queries. Raises UsageError if none is judged."""
    judged = [query for query in queries if any(score > 0 for score in judgements.get(query, {}).values())]
    if not judged:
        raise UsageError(
            f"none of the {len(queries):,} queries has a relevant document in the judgements: check the ids"
        )
    model = checked_embedder(index, embedder)
    vectors = {}
    if set(modes) != {"keyword"}:  # each question is embedded once for all modes
        for query in judged:
            vectors[query] = embed(
                index, Query(queries[query], mode="semantic"), embedder=model, ledger=ledger_of(conn)
            ).vector
    figures: dict[Mode, dict[str, float]] = {}
    for mode in modes:
        results = {}
        for query in judged:
            text = queries[query]
            vector = vectors[query] if mode == "semantic" or (mode == "hybrid" and model.speaks(text)) else None
            asked = Query(text, k=k, mode=mode, vector=vector)
            results[query] = [",".join(map(str, hit.key)) for hit in search(conn, index, asked, embedder=model)]
        figures[mode] = {
            f"ndcg@{k}": _mean([ndcg(results[query], judgements[query], k=k) for query in judged]),
            f"recall@{k}": _mean([recall(results[query], judgements[query], k=k) for query in judged]),
            "queries": len(judged),
        }
    return figures


def ndcg(ranking: Sequence[str], relevance: Mapping[str, float], *, k: int) -> float:
    """Discounted gain of the first k divided by that of the ideal ranking; a negative judgement gains nothing."""
    gains = (max(0.0, relevance.get(document, 0.0)) for document in ranking[:k])
    gained = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
    ideal = sorted((score for score in relevance.values() if score > 0), reverse=True)[:k]
    return gained / sum(score / math.log2(rank + 1) for rank, score in enumerate(ideal, 1))


def recall(ranking: Sequence[str], relevance: Mapping[str, float], *, k: int) -> float:
    """How many of the relevant documents that could stand among the first k do."""
    relevant = {document for document, score in relevance.items() if score > 0}
    return len(relevant.intersection(ranking[:k])) / min(k, len(relevant))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _filled(text: str) -> str:
    if not text:
        raise ValueError("an empty query-id")
    return text


def _finite(text: str) -> float:
    score = float(text)
    if not math.isfinite(score):
        raise ValueError(f"a score of {text}")
    return score


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers as an editor counts them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} cannot be read as UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read as UTF-8 text: {error.strerror}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")
