"""DDL: the tables, triggers and view of one generation of an index.

Statements are text that can be pasted into a shell. Identifiers pass through `quote_identifier`, and only there.
"""

from __future__ import annotations

import re

from sqlite_utils.db import quote_identifier

from .domain import Index, KeyColumn

__all__ = ["quote_identifier"]


def affinity(declared_type: str) -> str:
    """The column affinity of a declared type, by SQLite's five rules (sqlite.org/datatype3.html, section 3.1)."""
    upper = declared_type.upper()
    if "INT" in upper:
        return "INTEGER"
    if any(word in upper for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if not upper or "BLOB" in upper:
        return "BLOB"
    if any(word in upper for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"


def key_names(index: Index) -> list[str]:
    """The names under which our tables keep the key: k0, k1 and so on."""
    return [f"k{position}" for position in range(len(index.key))]


def listed(names: list[str] | tuple[str, ...], *, of: str = "") -> str:
    """Identifiers quoted and joined by commas, each after the prefix `of.`."""
    prefix = f"{of}." if of else ""
    return ", ".join(prefix + quote_identifier(name) for name in names)


def in_main(table: str) -> str:
    """A table of the user's as `main."name"`: a temporary one of the same name would hide it."""
    return f"main.{quote_identifier(table)}"


def source_key(index: Index) -> list[str]:
    """The key columns by the names the source table gives them."""
    return [column.name for column in index.key]


def tables(index: Index) -> list[str]:
    """The statements that create the tables of a generation, but for `codes`."""
    keys = ", ".join(
        f"{name} {column.affinity} collate {column.collation} not null"
        for name, column in zip(key_names(index), index.key, strict=True)
    )
    key_list = ", ".join(key_names(index))
    queue, chunks, fts = (quote_identifier(index.object(kind)) for kind in ("queue", "chunks", "fts"))
    return [
        f"create table if not exists {queue} (seq integer primary key autoincrement, {keys}, unique ({key_list}))",
        f"""
        create table if not exists {chunks} (
            id integer primary key autoincrement, {keys},
            position integer not null, start integer not null, "end" integer not null,
            text text not null, digest blob not null, embedding blob,
            attempts integer not null default 0, error text, claim text, claimed_until real,
            unique ({key_list}, position)
        )
        """,
        f"""
        create index if not exists {quote_identifier(index.object("chunks") + "_digest")} on {chunks} (digest)
        """,
        f"""
        create index if not exists {quote_identifier(index.object("chunks") + "_pending")}
        on {chunks} (length(text)) where embedding is null
        """,
        f"""
        create virtual table if not exists {fts} using fts5 (
            text, content={quote_identifier(index.object("chunks"))}, content_rowid='id', tokenize='porter unicode61'
        )
        """,
    ]


def picture(index: Index) -> list[str]:
    """The statements that create what the map of a generation is kept in, and the triggers that note what it lacks.

    `axes` has one row once a map was asked for, and from then on each document whose vectors change loses its place:
    its `turn` is a number greater than that of every other one that waits. A document that has its place has none.
    """
    keys = ", ".join(
        f"{name} {column.affinity} collate {column.collation} not null"
        for name, column in zip(key_names(index), index.key, strict=True)
    )
    key_list = ", ".join(key_names(index))
    points, axes, chunks = (quote_identifier(index.object(kind)) for kind in ("map", "axes", "chunks"))
    return [
        f"""
        create table if not exists {axes} (
            id integer primary key check (id = 1), version integer not null default 0,
            documents integer not null default 0, share real not null default 1,
            fitted integer not null default 0, projected integer not null default 0,
            variance_x real, variance_y real, mean blob, directions blob
        )
        """,
        f"""
        create table if not exists {points} (
            {keys}, sample real, x real, y real, turn integer, primary key ({key_list})
        ) without rowid
        """,
        f"""
        create index if not exists {quote_identifier(index.object("map") + "_waiting")}
        on {points} (turn) where turn is not null
        """,
        *(
            f"""
            create trigger if not exists {quote_identifier(name)} after {event} on {chunks}
            when exists (select 1 from {axes}) and {row}.embedding is not null begin
                insert into {points} ({key_list}, turn) values (
                    {listed(key_names(index), of=row)},
                    (select coalesce(max(turn), 0) + 1 from {points} where turn is not null)
                ) on conflict ({key_list}) do update set x = null, y = null, turn = excluded.turn;
            end
            """
            for name, (event, row) in picture_triggers(index).items()
        ),
    ]


def picture_triggers(index: Index) -> dict[str, tuple[str, str]]:
    """Name -> event and row of the triggers on the chunks that `picture` creates."""
    prefix = index.object("map")
    return {
        f"{prefix}_ins": ("insert", "new"),
        f"{prefix}_upd": ("update of embedding", "new"),
        f"{prefix}_del": ("delete", "old"),
    }


def codes(index: Index) -> str:
    """The statement that creates the vec0 table; it needs sqlite-vec."""
    element = {"bit": "bit", "int8": "int8", "float32": "float"}[index.quantize]
    return f"""
        create virtual table {quote_identifier(index.object("codes"))}
        using vec0 (id integer primary key, embedding {element}[{index.dimensions}])
        """


def view(index: Index) -> str:
    """The statement that creates `_vec_<name>` over this generation; a key column keeps its name, ours give way."""
    taken = {name.casefold() for name in source_key(index)}
    ours = [
        f"{expression} as {quote_identifier(name if name not in taken else f'chunk_{name}')}"
        for name, expression in (
            ("key", _json_key(index)),
            ("position", "position"),
            ("start", "start"),
            ("end", '"end"'),
            ("text", "text"),
            ("embedding", "embedding"),
        )
    ]
    own = [
        f"{name} as {quote_identifier(column)}"
        for name, column in zip(key_names(index), source_key(index), strict=True)
    ]
    return f"""
        create view {quote_identifier(index.view)} as
        select {", ".join(own + ours)} from {quote_identifier(index.object("chunks"))}
        """


def triggers(index: Index) -> dict[str, str]:
    """Name -> statement of the four triggers that note changed keys; none for a view.

    They need no extension and run in the writer's transaction. They delete and insert, because `or ignore` would be
    overridden by the conflict clause of the writer's statement, and because a new `seq` tells a sync that what it has
    read is out of date. Columns are compared with `collate binary` and by type, so that a change of case counts, and
    one from 1 to 1.0.
    """
    if index.is_view:
        return {}
    table = quote_identifier(index.table)
    key_changed = _changed(source_key(index))
    changed = _changed([*source_key(index), *index.columns])
    parts = {
        "ins": ("insert", _not_null("new", index), "new"),
        "upd": ("update", f"({changed}) and {_not_null('new', index)}", "new"),
        "key": ("update", f"({key_changed}) and {_not_null('old', index)}", "old"),
        "del": ("delete", _not_null("old", index), "old"),
    }
    statements = {}
    for suffix, (event, condition, row) in parts.items():
        name = f"_vec_{index.name}_{index.generation}_{suffix}"
        # In capitals because SQLite keeps the statement so, and what is installed is compared with this text.
        statements[name] = (
            f"CREATE TRIGGER {quote_identifier(name)} after {event} on {table} when {condition} "
            f"begin {_enqueue(row, index)} end"
        )
    return statements


def _enqueue(row: str, index: Index) -> str:
    queue = quote_identifier(index.object("queue"))
    columns = [f"{row}.{quote_identifier(name)}" for name in source_key(index)]
    matches = " and ".join(f"{name} = {column}" for name, column in zip(key_names(index), columns, strict=True))
    return (
        f"delete from {queue} where {matches}; "
        f"insert into {queue} ({', '.join(key_names(index))}) values ({', '.join(columns)});"
    )


def _changed(columns: list[str]) -> str:
    return " or ".join(
        f"old.{name} is not new.{name} collate binary or typeof(old.{name}) is not typeof(new.{name})"
        for name in map(quote_identifier, columns)
    )


def _not_null(row: str, index: Index) -> str:
    return " and ".join(f"{row}.{quote_identifier(name)} is not null" for name in source_key(index))


def _json_key(index: Index) -> str:
    # A BLOB cannot stand in JSON: its hexadecimal digits do.
    parts = (f"case typeof({name}) when 'blob' then hex({name}) else {name} end" for name in key_names(index))
    return f"json_array({', '.join(parts)})"


_COLLATIONS = {"BINARY", "NOCASE", "RTRIM"}


def key_column(name: str, declared_type: str, collation: str) -> KeyColumn:
    """A key column as our tables repeat it; a collation that SQLite itself does not know is compared as BINARY."""
    upper = collation.upper()
    return KeyColumn(name=name, affinity=affinity(declared_type), collation=upper if upper in _COLLATIONS else "BINARY")


SHADOW = re.compile(r"_(chunks|rowids|info|vector_chunks\d\d|data|idx|content|docsize|config)$")
"""The suffixes of the tables that vec0 and FTS5 make beside their own."""
