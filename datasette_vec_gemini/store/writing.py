"""Every write to the content of an index, as steps of short transactions that the caller opens; no model is called."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .. import schema
from ..domain import Chunk, Index
from ..driver import sqlite3
from ..keys import Key
from ..schema import key_names, quote_identifier
from ..vectors import quantise_int8, unpack
from .claims import Claimed
from .counting import FAILED
from .reading import has_codes

SPARE = "_vec_spare"
"""A temporary table of the vectors whose chunks went away in a text stage: a text that moved finds its own there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What one queue entry asks for: the ids of chunks to remove and the chunks, with digests, to add."""

    seq: int
    key: Key
    remove: Sequence[int] = ()
    add: Sequence[tuple[Chunk, bytes]] = field(default=())


def queued(conn: sqlite3.Connection, index: Index, *, after: int, limit: int) -> list[tuple[int, Key]]:
    """The oldest entries of the queue with a number greater than `after`."""
    cursor = conn.execute(
        f"""
        select seq, {", ".join(key_names(index))} from {quote_identifier(index.object("queue"))}
        where seq > ? order by seq limit ?
        """,
        [after, limit],
    )
    return [(seq, tuple(key)) for seq, *key in cursor]


def begin_text_stage(conn: sqlite3.Connection) -> None:
    """Make the temporary table `SPARE`, empty."""
    end_text_stage(conn)
    conn.execute(f"create temp table {SPARE} (digest blob primary key, embedding blob not null) without rowid")


def end_text_stage(conn: sqlite3.Connection) -> None:
    """Remove the temporary table."""
    conn.execute(f"drop table if exists temp.{SPARE}")


def apply_changes(conn: sqlite3.Connection, index: Index, changes: Sequence[Change]) -> tuple[int, int, int]:
    """Carry out the changes whose queue entry is still there, and remove the entry: (added, removed, reused vectors).

    A row edited since it was read has a new `seq`, so that its old entry is gone: that change is left to a later batch.
    """
    queue, chunks, fts = (quote_identifier(index.object(kind)) for kind in ("queue", "chunks", "fts"))
    alive = {
        seq
        for (seq,) in conn.execute(
            f"delete from {queue} where seq in (select value from json_each(?)) returning seq",
            [json.dumps([change.seq for change in changes])],
        ).fetchall()
    }
    current = [change for change in changes if change.seq in alive]
    removed = [(id_,) for change in current for id_ in change.remove]
    if removed:
        conn.executemany(
            f"""
            insert or ignore into temp.{SPARE} select digest, embedding from {chunks}
            where id = ? and embedding is not null
            """,
            removed,
        )
        conn.executemany(
            f"insert into {fts} ({fts}, rowid, text) select 'delete', id, text from {chunks} where id = ?", removed
        )
        if has_codes(conn, index):
            conn.executemany(f"delete from {quote_identifier(index.object('codes'))} where id = ?", removed)
        conn.executemany(f"delete from {chunks} where id = ?", removed)
    added = [(change.key, chunk, digest) for change in current for chunk, digest in change.add]
    if not added:
        return 0, len(removed), 0
    last = conn.execute("select seq from sqlite_sequence where name = ?", [index.object("chunks")]).fetchone()
    first = (last[0] if last else 0) + 1
    marks = ", ".join("?" * len(index.key))
    conn.executemany(
        f"""
        insert into {chunks} (id, {", ".join(key_names(index))}, position, start, "end", text, digest, embedding)
        values (?, {marks}, ?, ?, ?, ?, ?, coalesce(
            (select embedding from {chunks} where digest = ? and embedding is not null limit 1),
            (select embedding from temp.{SPARE} where digest = ?)))
        """,
        [
            (first + number, *key, chunk.position, chunk.start, chunk.end, chunk.text, digest, digest, digest)
            for number, (key, chunk, digest) in enumerate(added)
        ],
    )
    conn.executemany(
        f"insert into {fts} (rowid, text) values (?, ?)",
        [(first + number, chunk.text) for number, (_, chunk, _) in enumerate(added)],
    )
    reused = conn.execute(
        f"select id, embedding from {chunks} where id >= ? and embedding is not null", [first]
    ).fetchall()
    add_codes(conn, index, reused)
    return len(added), len(removed), len(reused)


def add_codes(conn: sqlite3.Connection, index: Index, pairs: Iterable[tuple[int, bytes]]) -> None:
    """Write the codes of packed vectors, unless the vec0 table has been dropped."""
    pairs = list(pairs)
    if not pairs or not has_codes(conn, index):
        return
    encode = {"bit": "vec_quantize_binary(?)", "int8": "vec_int8(?)", "float32": "?"}[index.quantize]
    if index.quantize == "int8":
        if index.int8_scale is None:
            raise ValueError("an int8 index needs its scale before its first code")
        pairs = [(id_, quantise_int8(unpack(blob), scale=index.int8_scale)) for id_, blob in pairs]
    conn.executemany(
        f"insert into {quote_identifier(index.object('codes'))} (id, embedding) values (?, {encode})", pairs
    )


def owned(conn: sqlite3.Connection, indexes: Sequence[Index], digests: Iterable[bytes]) -> dict[bytes, bytes]:
    """Digest -> packed vector, where a chunk of one of these generations has one."""
    found: dict[bytes, bytes] = {}
    for digest in set(digests):
        for index in indexes:
            row = conn.execute(
                f"""
                select embedding from {quote_identifier(index.object("chunks"))}
                where digest = ? and embedding is not null limit 1
                """,
                [digest],
            ).fetchone()
            if row:
                found[digest] = row[0]
                break
    return found


def write_vectors(conn: sqlite3.Connection, index: Index, vectors: Iterable[tuple[Claimed, bytes]]) -> None:
    """Store packed vectors and their codes; a chunk that went away or got its vector meanwhile is passed over."""
    chunks = quote_identifier(index.object("chunks"))
    stored = [
        (claimed.id, blob)
        for claimed, blob in vectors
        if conn.execute(
            f"""
            update {chunks} set embedding = ?, claim = null, claimed_until = null, error = null
            where id = ? and digest = ? and embedding is null
            """,
            [blob, claimed.id, claimed.digest],
        ).rowcount
    ]
    add_codes(conn, index, stored)


def write_failure(conn: sqlite3.Connection, index: Index, id_: int, reason: str) -> None:
    """Record that the model refuses this chunk."""
    conn.execute(
        f"""
        update {quote_identifier(index.object("chunks"))}
        set error = ?, attempts = attempts + 1, claim = null, claimed_until = null where id = ?
        """,
        [reason, id_],
    )


def retry_failures(conn: sqlite3.Connection, index: Index, *, attempts: int | None) -> None:
    """Make refused chunks pending again: those tried fewer than `attempts` times, or all, counted from 0 again."""
    conn.execute(
        f"""
        update {quote_identifier(index.object("chunks"))}
        set error = null, attempts = case when :attempts is null then 0 else attempts end
        where {FAILED} and (:attempts is null or attempts < :attempts)
        """,
        {"attempts": attempts},
    )


def rebuild_fts(conn: sqlite3.Connection, index: Index) -> None:
    """Make the keyword index anew from the chunks."""
    fts = quote_identifier(index.object("fts"))
    conn.execute(f"insert into {fts} ({fts}) values ('rebuild')")


def rebuild_codes(conn: sqlite3.Connection, index: Index) -> None:
    """Make the vec0 table anew from the truth; the space of deleted codes comes back with the next VACUUM."""
    conn.execute(f"drop table if exists {quote_identifier(index.object('codes'))}")
    conn.execute(schema.codes(index))
    cursor = conn.execute(
        f"select id, embedding from {quote_identifier(index.object('chunks'))} where embedding is not null order by id"
    )
    while pairs := cursor.fetchmany(2_000):
        add_codes(conn, index, pairs)


def drop_codes(conn: sqlite3.Connection, index: Index) -> None:
    """Remove only the vec0 table, so that programs without sqlite-vec open the file; search then reads the truth."""
    conn.execute(f"drop table if exists {quote_identifier(index.object('codes'))}")


def set_digests(conn: sqlite3.Connection, index: Index, digests: Mapping[int, bytes]) -> None:
    """Correct the digests of chunks, by id."""
    conn.executemany(
        f"update {quote_identifier(index.object('chunks'))} set digest = ? where id = ?",
        [(digest, id_) for id_, digest in digests.items()],
    )


def forget_vectors(conn: sqlite3.Connection, index: Index, ids: Sequence[int]) -> None:
    """Make chunks pending again whose vectors are damaged."""
    conn.executemany(
        f"update {quote_identifier(index.object('chunks'))} set embedding = null, claim = null where id = ?",
        [(id_,) for id_ in ids],
    )
    if has_codes(conn, index):
        conn.executemany(f"delete from {quote_identifier(index.object('codes'))} where id = ?", [(id_,) for id_ in ids])
