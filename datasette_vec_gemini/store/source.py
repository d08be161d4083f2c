"""The user's table or view: what it looks like, and its rows by key. Read only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..domain import Index, KeyColumn
from ..driver import sqlite3
from ..errors import ColumnNotFound, InvalidKey, TableNotFound, shown
from ..schema import in_main, key_column, key_names, listed, quote_identifier, source_key

Row = dict[str, object]

KEYS = 100
"""Keys a statement: for several hundred SQLite would rather build an index of its own over the whole table."""
VIEW_KEYS = 5_000
"""Keys a statement on a view, which may be evaluated whole for each of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A table or view as the database spells it: columns with their declared types, and its key (views have none)."""

    name: str
    is_view: bool
    columns: dict[str, str]
    key: tuple[KeyColumn, ...]

    def column(self, name: str) -> str:
        """The column as the table spells it. Raises ColumnNotFound with the names there are."""
        # The exact name first: SQLite's names differ in the case of letters beyond ASCII, ours may not even then.
        for same in (str, str.lower):
            for column in self.columns:
                if same(column) == same(name):
                    return column
        raise ColumnNotFound(f"{self.name!r} has no column {shown(name)}; it has {', '.join(self.columns)}")


def find(conn: sqlite3.Connection, name: str) -> Source:
    """Look a table or view up, in any case. Raises TableNotFound with the names there are."""
    found = conn.execute(
        "select name, type, sql from sqlite_master where type in ('table', 'view') and name = ? collate nocase", [name]
    ).fetchone()
    if found is not None and re.match(r"create\s+virtual\b|\s*$", found[2] or "", re.IGNORECASE):
        raise TableNotFound(f"{found[0]!r} is a virtual table, which takes no triggers: index a view over it")
    if found is not None and found[0].startswith("sqlite_"):
        raise TableNotFound(f"{found[0]!r} is one of SQLite's own tables, which takes no triggers")
    if found is None:
        there = [
            row[0]
            for row in conn.execute(
                """
                select name from sqlite_master where type in ('table', 'view') and substr(name, 1, 1) <> '_'
                and substr(name, 1, 7) <> 'sqlite_' order by name limit 20
                """
            )
        ]
        raise TableNotFound(
            f"the database has no table or view {shown(name)}; it has {', '.join(there) or 'none at all'}"
        )
    information = conn.execute(
        "select name, type, pk from pragma_table_xinfo(?, 'main') where hidden <> 1", [found[0]]
    ).fetchall()
    strict = conn.execute("select strict from pragma_table_list(?) where schema = 'main'", [found[0]]).fetchone()
    # ANY has no affinity in a STRICT table, and is a NUMERIC type's name in any other.
    is_any = "ANY" if strict and strict[0] else None
    columns = {column: "" if declared.upper() == is_any else declared for column, declared, _ in information}
    primary = [column for column, _, pk in sorted(information, key=lambda row: row[2]) if pk]
    is_view = found[1] == "view"
    key = () if is_view else _table_key(conn, found[0], columns, primary)
    return Source(name=found[0], is_view=is_view, columns=columns, key=key)


def _table_key(
    conn: sqlite3.Connection, table: str, columns: dict[str, str], primary: Sequence[str]
) -> tuple[KeyColumn, ...]:
    if not primary:
        taken = {column.casefold() for column in columns}
        free = [alias for alias in ("rowid", "_rowid_", "oid") if alias not in taken]
        if not free:
            raise InvalidKey(f"the rows of {table!r} cannot be identified: give the table a primary key")
        return (key_column(free[0], "INTEGER", "BINARY"),)
    collations = dict(
        conn.execute(
            """
            select x.name, x.coll from pragma_index_list(?, 'main') as l, pragma_index_xinfo(l.name, 'main') as x
            where l.origin = 'pk' and x.key
            """,
            [table],
        )
    )
    return tuple(key_column(name, columns[name], collations.get(name, "BINARY")) for name in primary)


def view_key(conn: sqlite3.Connection, source: Source, names: Sequence[str]) -> tuple[KeyColumn, ...]:
    """The key of a view from the columns the user names. Raises InvalidKey unless they identify its rows."""
    if not names:
        raise InvalidKey(
            f"{source.name!r} is a view and has no key of its own: name the columns that identify a row (--key)"
        )
    key = tuple(key_column(name, source.columns[name], "BINARY") for name in map(source.column, names))
    columns = listed([column.name for column in key])
    duplicates = conn.execute(
        f"""
        select count(*) from (
            select 1 from {in_main(source.name)} group by {columns} having count(*) > 1
        )
        """
    ).fetchone()[0]
    if duplicates:
        raise InvalidKey(
            f"{', '.join(names)} cannot be the key of {source.name!r}: {duplicates:,} values stand in more than one row"
        )
    return key


def matching(index: Index, *, left: str, right: str) -> str:
    """The condition that a row of the source (`left`) and one of our tables (`right`) have the same key."""
    return " and ".join(
        f"{left}.{quote_identifier(column.name)} = {right}.{name}"
        # A primary key may have another collation than its column, and its index serves only that one.
        + ("" if column.collation == "BINARY" else f" collate {column.collation}")
        for column, name in zip(index.key, key_names(index), strict=True)
    )


def has_key(index: Index, *, of: str) -> str:
    """The condition that a row of the source can be identified: no part of its key is NULL."""
    return " and ".join(f"{of}.{quote_identifier(column)} is not null" for column in source_key(index))


def wanted(index: Index, count: int) -> str:
    """A `with` clause of `count` bound keys, numbered from 0 in column `n`."""
    marks = ", ".join("?" * len(index.key))
    values = ", ".join(f"({number}, {marks})" for number in range(count))
    return f"with wanted (n, {', '.join(key_names(index))}) as (values {values})"


def rows(
    conn: sqlite3.Connection, index: Index, keys: Sequence[Sequence[object]], *, columns: Iterable[str] | None = None
) -> list[Row | None]:
    """The rows of these keys, in their order, None where there is none; all columns, or only some."""
    found: list[Row | None] = [None] * len(keys)
    step = VIEW_KEYS if index.is_view else KEYS
    for start in range(0, len(keys), step):
        part = keys[start : start + step]
        # Named, because SQLite calls a rowid by another of its names.
        own = ", ".join(f"t.{quote_identifier(name)} as {quote_identifier(name)}" for name in columns or ())
        selected = own or "t.*"
        cursor = conn.execute(
            f"""
            {wanted(index, len(part))}
            select wanted.n, {selected} from wanted cross join {in_main(index.table)} as t
            on {matching(index, left="t", right="wanted")}
            """,
            [value for key in part for value in key],
        )
        names = [description[0] for description in cursor.description[1:]]
        for number, *values in cursor:
            found[start + number] = dict(zip(names, values, strict=True))
    return found


def spread(conn: sqlite3.Connection, index: Index, *, every: int) -> Iterator[Row]:
    """Every so many-th row of the source that can be identified, with the columns of the index."""
    columns = listed(index.columns, of="t")
    cursor = conn.execute(
        f"""
        select * from (
            select row_number() over () as n, {columns} from {in_main(index.table)} as t
            where {has_key(index, of="t")}
        ) where (n - 1) % ? = 0
        """,
        [every],
    )
    for _, *values in cursor:
        yield dict(zip(index.columns, values, strict=True))


def check(conn: sqlite3.Connection, index: Index) -> None:
    """Raise TableNotFound, ColumnNotFound or InvalidKey when the table is no longer what the index was made from."""
    remedy = f"drop index {index.name!r} and make it again, or undo the change"
    try:
        table = find(conn, index.table)
    except TableNotFound:
        raise TableNotFound(f"the table {index.table!r} of index {index.name!r} is gone: {remedy}") from None
    missing = [name for name in (*index.columns, *source_key(index)) if name not in table.columns]
    if index.has_rowid_key:
        missing = [name for name in index.columns if name not in table.columns]
    if missing:
        raise ColumnNotFound(f"{table.name!r} has no column {', '.join(map(repr, missing))} any more: {remedy}")
    if table.is_view != index.is_view or not (table.is_view or table.key == index.key):
        raise InvalidKey(f"{table.name!r} has another key or kind than when it was indexed: {remedy}")


def count(conn: sqlite3.Connection, index: Index) -> int:
    """How many rows the source has that can be identified."""
    total: int = conn.execute(
        f"select count(*) from {in_main(index.table)} as t where {has_key(index, of='t')}"
    ).fetchone()[0]
    return total
