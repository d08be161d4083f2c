"""Who embeds which pending chunks: claims, which end by themselves when their owner has died."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..domain import Index
from ..driver import sqlite3
from ..schema import quote_identifier
from .counting import PENDING


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """A chunk without a vector that this process has taken on."""

    id: int
    text: str
    digest: bytes


def take(conn: sqlite3.Connection, index: Index, *, owner: str, limit: int, now: float, until: float) -> list[Claimed]:
    """Take on chunks that have no vector and whose text nobody else is embedding.

    The longest come first: texts of like length share a batch without padding, and an estimate of the time that is
    left errs on the safe side.
    """
    cursor = conn.execute(
        f"""
        update {quote_identifier(index.object("chunks"))} set claim = :owner, claimed_until = :until
        where id in (
            select id from {quote_identifier(index.object("chunks"))} as pending
            where {PENDING} and (claim is null or claimed_until < :now)
            and not exists (
                select 1 from {quote_identifier(index.object("chunks"))} as other where other.digest = pending.digest
                and other.embedding is null and other.claim <> :owner and other.claimed_until >= :now
            )
            order by length(text) desc, id desc limit :limit
        )
        returning id, text, digest
        """,
        {"owner": owner, "until": until, "now": now, "limit": limit},
    )
    return sorted(
        (Claimed(id=id_, text=text, digest=digest) for id_, text, digest in cursor.fetchall()), key=lambda c: c.id
    )


def held(conn: sqlite3.Connection, index: Index) -> dict[str, float]:
    """Owner -> when its claims end, for chunks that still have no vector."""
    cursor = conn.execute(
        f"""
        select claim, max(claimed_until) from {quote_identifier(index.object("chunks"))}
        where {PENDING} and claim is not null group by claim
        """
    )
    return dict(cursor.fetchall())


def release(conn: sqlite3.Connection, index: Index, owners: Iterable[str]) -> None:
    """Give up the claims of these owners."""
    conn.executemany(
        f"""
        update {quote_identifier(index.object("chunks"))} set claim = null, claimed_until = null
        where embedding is null and claim = ?
        """,
        [(owner,) for owner in owners],
    )


def unclaim(conn: sqlite3.Connection, index: Index, ids: Iterable[int]) -> None:
    """Give up the claims on these chunks."""
    conn.executemany(
        f"""
        update {quote_identifier(index.object("chunks"))} set claim = null, claimed_until = null
        where id = ? and embedding is null
        """,
        [(id_,) for id_ in ids],
    )


def renew(conn: sqlite3.Connection, index: Index, owner: str, *, until: float) -> None:
    """Keep an owner's claims for longer."""
    conn.execute(
        f"""
        update {quote_identifier(index.object("chunks"))} set claimed_until = ?
        where {PENDING} and claim = ?
        """,
        [until, owner],
    )
