"""The ledger `_vec_usage`: what was used of each paid model on each day (UTC)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from ..driver import sqlite3
from . import registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Requests that were answered, the texts and tokens in them, and their price."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            requests=self.requests + other.requests,
            texts=self.texts + other.texts,
            tokens=self.tokens + other.tokens,
            usd=self.usd + other.usd,
        )

    def __mul__(self, times: int) -> Usage:
        return Usage(
            requests=self.requests * times, texts=self.texts * times, tokens=self.tokens * times, usd=self.usd * times
        )


def add(conn: sqlite3.Connection, used: Iterable[tuple[str, str, Usage]]) -> None:
    """Add to the rows of (day, model). The caller has a transaction open."""
    conn.executemany(
        """
        insert into _vec_usage (day, model, requests, texts, tokens, usd) values (?, ?, ?, ?, ?, ?)
        on conflict (day, model) do update set
            requests = requests + excluded.requests, texts = texts + excluded.texts,
            tokens = tokens + excluded.tokens, usd = usd + excluded.usd
        """,
        [(day, model, *astuple(usage)) for day, model, usage in used],
    )


def of_day(conn: sqlite3.Connection, day: str) -> dict[str, Usage]:
    """Model -> what was used of it on that day; empty where there is no ledger."""
    if not registry.has_table(conn, "_vec_usage"):
        return {}
    cursor = conn.execute("select model, requests, texts, tokens, usd from _vec_usage where day = ?", [day])
    return {
        model: Usage(requests=requests, texts=texts, tokens=tokens, usd=usd)
        for model, requests, texts, tokens, usd in cursor
    }
