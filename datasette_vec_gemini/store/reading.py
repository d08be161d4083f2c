"""What an index holds: its chunks, keys, texts and vectors. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..domain import Chunk, Index
from ..driver import sqlite3
from ..keys import Key
from ..schema import in_main, key_names, listed, quote_identifier, source_key, triggers
from . import source
from .registry import has_table


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredChunk:
    """A chunk as it stands in the truth table, without its vector."""

    id: int
    key: Key
    digest: bytes
    chunk: Chunk


def has_function(conn: sqlite3.Connection, name: str) -> bool:
    """Whether this connection has a SQL function of this name."""
    sql = "select exists (select 1 from pragma_function_list where name = ?)"
    return bool(conn.execute(sql, [name]).fetchone()[0])


def has_vec(conn: sqlite3.Connection) -> bool:
    """Whether this connection has sqlite-vec."""
    return has_function(conn, "vec_version")


def has_codes(conn: sqlite3.Connection, index: Index) -> bool:
    """Whether the vec0 table of this generation exists (`drop --vec0-only` removes it)."""
    return has_table(conn, index.object("codes"))


def chunks_of(conn: sqlite3.Connection, index: Index, keys: Sequence[Sequence[object]]) -> list[list[StoredChunk]]:
    """The chunks of each of these keys, in order of position."""
    found: list[list[StoredChunk]] = [[] for _ in keys]
    for first in range(0, len(keys), source.KEYS):
        part = keys[first : first + source.KEYS]
        matches = " and ".join(f"c.{name} = wanted.{name}" for name in key_names(index))
        cursor = conn.execute(
            f"""
            {source.wanted(index, len(part))}
            select wanted.n, c.id, c.digest, c.position, c.start, c."end", c.text, {listed(key_names(index), of="c")}
            from wanted cross join {quote_identifier(index.object("chunks"))} as c on {matches}
            """,
            [value for key in part for value in key],
        )
        for number, id_, digest, position, start, end, text, *key in cursor:
            chunk = Chunk(position=position, start=start, end=end, text=text)
            found[first + number].append(StoredChunk(id=id_, key=tuple(key), digest=digest, chunk=chunk))
    return [sorted(stored, key=lambda each: each.chunk.position) for stored in found]


def chunks_by_id(conn: sqlite3.Connection, index: Index, ids: Sequence[int]) -> dict[int, Chunk]:
    """Chunks by the ids that candidates carry; one that has gone meanwhile is left out."""
    cursor = conn.execute(
        f"""
        select id, position, start, "end", text from {quote_identifier(index.object("chunks"))}
        where id in ({", ".join("?" * len(ids))})
        """,
        ids,
    )
    return {
        id_: Chunk(position=position, start=start, end=end, text=text) for id_, position, start, end, text in cursor
    }


def vectors_of(conn: sqlite3.Connection, index: Index, key: Sequence[object]) -> list[bytes]:
    """The packed vectors of one document; those that are pending are left out."""
    matches = " and ".join(f"{name} = ?" for name in key_names(index))
    cursor = conn.execute(
        f"""
        select embedding from {quote_identifier(index.object("chunks"))}
        where {matches} and embedding is not null order by position
        """,
        list(key),
    )
    return [embedding for (embedding,) in cursor]


def embeddings_at(
    conn: sqlite3.Connection, index: Index, places: Sequence[tuple[Sequence[object], int]]
) -> list[bytes | None]:
    """The packed vector of each of these chunks, by key and position; None while it is pending."""
    matches = " and ".join(f"{name} = ?" for name in key_names(index))
    sql = f"select embedding from {quote_identifier(index.object('chunks'))} where {matches} and position = ?"
    found = [conn.execute(sql, [*key, position]).fetchone() for key, position in places]
    return [row and row[0] for row in found]


def wrong_triggers(conn: sqlite3.Connection, index: Index) -> dict[str, str]:
    """Name -> right statement of those triggers that are missing or are not what they should be."""
    expected = triggers(index)
    installed = dict(
        conn.execute(
            f"""
            select name, sql from sqlite_master
            where type = 'trigger' and name in ({", ".join("?" * len(expected))})
            """,
            list(expected),
        )
    )
    return {name: sql for name, sql in expected.items() if installed.get(name) != sql}


def all_keys(conn: sqlite3.Connection, index: Index) -> sqlite3.Cursor:
    """The key of every row of the source that has one, and of every document whose row is gone, as a cursor."""
    table, chunks = in_main(index.table), quote_identifier(index.object("chunks"))
    return conn.execute(
        f"""
        select {listed(source_key(index), of="t")} from {table} as t where {source.has_key(index, of="t")}
        union select {", ".join(key_names(index))} from {chunks}
        """
    )


def queued_keys(conn: sqlite3.Connection, index: Index) -> set[Key]:
    """The keys that wait for the text stage."""
    return set(map(tuple, queue(conn, index)))


def queue(conn: sqlite3.Connection, index: Index) -> sqlite3.Cursor:
    """The keys that wait for the text stage, as a cursor."""
    return conn.execute(f"select {', '.join(key_names(index))} from {quote_identifier(index.object('queue'))}")


def keyed_texts(conn: sqlite3.Connection, index: Index, *, only: str) -> sqlite3.Cursor:
    """(text, key columns...) of the chunks for which a condition of ours holds, as a cursor."""
    chunks = quote_identifier(index.object("chunks"))
    return conn.execute(f"select text, {', '.join(key_names(index))} from {chunks} where {only}")


def texts(conn: sqlite3.Connection, index: Index) -> sqlite3.Cursor:
    """(id, text, digest) of every chunk, as a cursor."""
    return conn.execute(f"select id, text, digest from {quote_identifier(index.object('chunks'))}")


def embeddings(conn: sqlite3.Connection, index: Index) -> sqlite3.Cursor:
    """(id, packed vector) of every chunk that has one, as a cursor."""
    return conn.execute(
        f"select id, embedding from {quote_identifier(index.object('chunks'))} where embedding is not null order by id"
    )


def sampled_embeddings(conn: sqlite3.Connection, index: Index, count: int) -> list[tuple[int, bytes]]:
    """(id, packed vector) of up to `count` chunks, evenly spread over the ids."""
    chunks = quote_identifier(index.object("chunks"))
    # One step down the tree for each, instead of a scan.
    return conn.execute(
        f"""
        with recursive
        bounds as (select min(id) as low, max(id) as high from {chunks}),
        numbers (n) as (select 0 union all select n + 1 from numbers where n + 1 < :count),
        ids as materialized (
            select distinct (
                select id from {chunks} where id >= low + n * (high - low) / max(1, :count - 1) order by id limit 1
            ) as id
            from bounds, numbers
        )
        select c.id, embedding from ids cross join {chunks} as c on c.id = ids.id
        where embedding is not null order by c.id
        """,
        {"count": count},
    ).fetchall()


def unmatched_codes(conn: sqlite3.Connection, index: Index) -> list[int]:
    """Ids that have a vector and no code, or a code and no vector."""
    # vec0 takes a millisecond a row to list its ids; its shadow table has them at once.
    codes = quote_identifier(index.object("codes") + "_rowids")
    chunks = f"select id from {quote_identifier(index.object('chunks'))} where embedding is not null"
    cursor = conn.execute(
        f"""
        select * from (select rowid from {codes} except {chunks})
        union select * from ({chunks} except select rowid from {codes})
        """
    )
    return [id_ for (id_,) in cursor]


def count_keyword_entries(conn: sqlite3.Connection, index: Index) -> int:
    """How many chunks the keyword index has entries for."""
    total: int = conn.execute(f"select count(*) from {quote_identifier(index.object('fts') + '_docsize')}").fetchone()[
        0
    ]
    return total


def keyword_index_is_sound(conn: sqlite3.Connection, index: Index) -> bool:
    """FTS5's own comparison of the index with the chunks; taken to hold where the file cannot be written."""
    fts, was_open = quote_identifier(index.object("fts")), conn.in_transaction
    try:
        conn.execute(f"insert into {fts} ({fts}, rank) values ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        return "malformed" not in str(error) and "corrupt" not in str(error)
    finally:
        if conn.in_transaction and not was_open:  # the driver opens one before any insert; the check writes nothing
            conn.rollback()
    return True
