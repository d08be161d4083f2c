"""The tables, triggers and view of a generation: made, kept whole, removed; and its rows queued, all or the orphans."""

from __future__ import annotations

from typing import get_args

from .. import schema
from ..domain import Index, Kind
from ..driver import sqlite3
from ..errors import IndexExists
from ..schema import in_main, key_names, listed, quote_identifier, source_key
from . import picture, registry, source
from .reading import wrong_triggers


def create(conn: sqlite3.Connection, index: Index) -> None:
    """Create a generation's tables and triggers and queue every row. Raises IndexExists if a name is taken."""
    names = [index.object(kind) for kind in get_args(Kind)]
    if index.state == "active":
        names.append(index.view)
    for (name,) in conn.execute("select name from sqlite_master where type <> 'trigger'").fetchall():
        if name in names or schema.SHADOW.sub("", name) in names:
            raise IndexExists(
                f"the database has an object {name!r}, which index {index.name!r} would need: use another --name"
            )
    restore_tables(conn, index)
    conn.execute(schema.codes(index))
    if index.state == "active":
        conn.execute(schema.view(index))
    install_triggers(conn, index)
    enqueue_all(conn, index)
    registry.add(conn, index)


def restore_tables(conn: sqlite3.Connection, index: Index) -> None:
    """Create what is missing of a generation's tables, empty; the vec0 table is not among them."""
    for statement in schema.tables(index):
        conn.execute(statement)
    picture.create(conn, index)


def drop(conn: sqlite3.Connection, index: Index) -> None:
    """Remove a generation with everything that belongs to it; the source table loses its triggers, nothing else."""
    for name in schema.triggers(index):
        conn.execute(f"drop trigger if exists {quote_identifier(name)}")
    if index.state == "active":
        conn.execute(f"drop view if exists {quote_identifier(index.view)}")
    picture.drop(conn, index)
    kinds: tuple[Kind, ...] = ("codes", "fts", "chunks", "queue")
    for kind in kinds:
        conn.execute(f"drop table if exists {quote_identifier(index.object(kind))}")
    registry.remove(conn, index)


def retire(conn: sqlite3.Connection, index: Index) -> None:
    """Keep of a generation only its vectors with their digests, which another one of the same model can take over."""
    for name in schema.triggers(index):
        conn.execute(f"drop trigger if exists {quote_identifier(name)}")
    conn.execute(f"drop view if exists {quote_identifier(index.view)}")
    picture.drop(conn, index)
    kinds: tuple[Kind, ...] = ("codes", "fts", "queue")
    for kind in kinds:
        conn.execute(f"drop table if exists {quote_identifier(index.object(kind))}")
    conn.execute(f"update {quote_identifier(index.object('chunks'))} set text = ''")
    registry.update(conn, index, state="retired")


def replace_view(conn: sqlite3.Connection, index: Index) -> None:
    """Point `_vec_<name>` at this generation."""
    conn.execute(f"drop view if exists {quote_identifier(index.view)}")
    conn.execute(schema.view(index))


def install_triggers(conn: sqlite3.Connection, index: Index) -> None:
    """Make the triggers what they should be."""
    for name, sql in wrong_triggers(conn, index).items():
        conn.execute(f"drop trigger if exists {quote_identifier(name)}")
        conn.execute(sql)


def enqueue_all(conn: sqlite3.Connection, index: Index) -> None:
    """Queue every row, and every document whose row is gone."""
    queue, keys = quote_identifier(index.object("queue")), ", ".join(key_names(index))
    conn.execute(
        f"""
        insert into {queue} ({keys})
        select {listed(source_key(index), of="t")} from {in_main(index.table)} as t
        where {source.has_key(index, of="t")}
        on conflict do nothing
        """
    )
    enqueue_orphans(conn, index)


def enqueue_orphans(conn: sqlite3.Connection, index: Index) -> None:
    """Queue the documents whose row is gone; REPLACE through another unique column removes rows behind our triggers."""
    queue, keys = quote_identifier(index.object("queue")), ", ".join(key_names(index))
    chunks, table = quote_identifier(index.object("chunks")), in_main(index.table)
    if index.is_view:  # a view may have no index to look its rows up with
        orphans = f"select {keys} from {chunks} except select {listed(source_key(index))} from {table}"
    else:
        orphans = f"""
            select distinct {listed(key_names(index), of="c")} from {chunks} as c
            where not exists (select 1 from {table} as t where {source.matching(index, left="t", right="c")})
            """
    conn.execute(f"insert into {queue} ({keys}) select * from ({orphans}) where true on conflict do nothing")
