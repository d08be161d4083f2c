"""The registry `_vec_indexes`: one row for each index and generation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from ..domain import Index, KeyColumn
from ..driver import sqlite3
from ..errors import DatabaseUnavailable, IndexNotFound, shown
from ..migrating import migrations
from ..schema import in_main, quote_identifier
from . import source
from .transactions import database, mapped_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What the last complete sync saw: a difference later means that a change went past the triggers."""

    schema_version: int
    rows: int
    greatest_rowid: int | None

    def same_rows(self, other: Checked) -> bool:
        """Whether both saw the same number of rows and the same greatest rowid."""
        return (self.rows, self.greatest_rowid) == (other.rows, other.greatest_rowid)


def has_table(conn: sqlite3.Connection, name: str) -> bool:
    """Whether a table or view of that name exists."""
    sql = "select 1 from sqlite_master where type in ('table', 'view') and name = ? collate nocase"
    return conn.execute(sql, [name]).fetchone() is not None


def migrate(conn: sqlite3.Connection) -> None:
    """Create the registry or bring it up to date; writes nothing when it is."""
    db = database(conn)
    if migrations.pending(db):
        migrations.apply(db)


@mapped_errors()
def indexes(conn: sqlite3.Connection) -> list[Index]:
    """The active generation of every index, by name; none in a database that has no registry."""
    return list(_select(conn, "state = 'active' order by name", []))


@mapped_errors()
def find(conn: sqlite3.Connection, name: str) -> Index:
    """The active generation of one index, in any case. Raises IndexNotFound with the names there are."""
    for index in _select(conn, "state = 'active' and name = ?", [name]):
        return index
    names = ", ".join(index.name for index in indexes(conn))
    raise IndexNotFound(
        f"the database has no index {shown(name)}; it has {names}"
        if names
        else f"the database has no index {shown(name)}, nor any other: make one with `datasette vec index`"
    )


def building(conn: sqlite3.Connection, name: str) -> Index | None:
    """The generation that is being built beside the active one, if any."""
    return next(_select(conn, "state = 'building' and name = ?", [name]), None)


def reread(conn: sqlite3.Connection, index: Index) -> Index:
    """The same generation as the database has it now. Raises IndexNotFound when it was dropped or replaced."""
    for current in _select(conn, "uid = ?", [index.uid]):
        return current
    raise IndexNotFound(f"index {index.name!r} was dropped or rebuilt meanwhile: look it up and start again")


def current(conn: sqlite3.Connection, index: Index) -> Index:
    """The same generation, or the active one where that was dropped or retired. Raises IndexNotFound."""
    for same in _select(conn, "uid = ? and state != 'retired'", [index.uid]):
        return same
    return find(conn, index.name)


def generations(conn: sqlite3.Connection, name: str) -> list[Index]:
    """Every generation of an index, newest first."""
    return list(_select(conn, "name = ? order by generation desc", [name]))


def _select(conn: sqlite3.Connection, where: str, values: list[object]) -> Iterator[Index]:
    if not has_table(conn, "_vec_indexes"):
        return
    cursor = conn.execute(
        f"""
        select name, generation, uid, state, "table", is_view, columns, template, filter_columns, key,
            embedder, fingerprint, dimensions, quantize, int8_scale
        from _vec_indexes where {where}
        """,
        values,
    )
    names = [description[0] for description in cursor.description]
    for values_of_row in cursor.fetchall():
        row = dict(zip(names, values_of_row, strict=True))
        try:
            read = {
                "is_view": bool(row["is_view"]),
                "columns": tuple(json.loads(row["columns"])),
                "filter_columns": tuple(json.loads(row["filter_columns"])),
                "key": tuple(KeyColumn(**column) for column in json.loads(row["key"])),
            }
        except (TypeError, ValueError) as error:
            raise DatabaseUnavailable(
                f"the row of index {shown(row['name'])} in _vec_indexes is damaged: restore a backup of the file"
            ) from error
        index = Index(**row | read)
        yield index if has_table(conn, index.table) else _renamed(conn, index)


def _renamed(conn: sqlite3.Connection, index: Index) -> Index:
    """The index under its table's new name: ALTER TABLE RENAME takes our triggers along."""
    prefix = f"_vec_{index.name}_{index.generation}_"
    found = conn.execute(
        "select tbl_name from sqlite_master where type = 'trigger' and name = ?", [f"{prefix}ins"]
    ).fetchone()
    return replace(index, table=found[0]) if found else index


def add(conn: sqlite3.Connection, index: Index) -> None:
    """Record a new generation."""
    row = {
        "name": index.name,
        "generation": index.generation,
        "uid": index.uid,
        "state": index.state,
        "table": index.table,
        "is_view": index.is_view,
        "columns": json.dumps(index.columns),
        "template": index.template,
        "filter_columns": json.dumps(index.filter_columns),
        "key": json.dumps([asdict(column) for column in index.key]),
        "embedder": index.embedder,
        "fingerprint": index.fingerprint,
        "dimensions": index.dimensions,
        "quantize": index.quantize,
        "int8_scale": index.int8_scale,
    }
    columns = ", ".join(map(quote_identifier, row))
    conn.execute(f"insert into _vec_indexes ({columns}) values ({', '.join(f':{name}' for name in row)})", row)


def update(conn: sqlite3.Connection, index: Index, **values: object) -> None:
    """Set columns of a generation's row."""
    assignments = ", ".join(f"{quote_identifier(name)} = :{name}" for name in values)
    conn.execute(
        f"update _vec_indexes set {assignments} where name = :_name and generation = :_generation",
        values | {"_name": index.name, "_generation": index.generation},
    )


def remove(conn: sqlite3.Connection, index: Index) -> None:
    """Forget a generation, and with the last one what was done for the index in the background."""
    conn.execute("delete from _vec_indexes where name = ? and generation = ?", [index.name, index.generation])
    if has_table(conn, "_vec__jobs"):
        conn.execute(
            'delete from _vec__jobs where "index" = :name and :name not in (select name from _vec_indexes)',
            {"name": index.name},
        )


def checked(conn: sqlite3.Connection, index: Index) -> Checked | None:
    """What the last complete sync recorded, None before the first."""
    (text,) = conn.execute(
        "select checked from _vec_indexes where name = ? and generation = ?", [index.name, index.generation]
    ).fetchone()
    return Checked(**json.loads(text)) if text else None


def record(conn: sqlite3.Connection, index: Index, seen: Checked) -> None:
    """Keep what a complete sync saw, and the table's name in case it was renamed."""
    update(conn, index, checked=json.dumps(asdict(seen)), table=index.table)


def observe(conn: sqlite3.Connection, index: Index) -> Checked:
    """The same figures of the source as it is now."""
    greatest = None
    if not index.is_view:
        try:
            (greatest,) = conn.execute(f"select max(_rowid_) from {in_main(index.table)}").fetchone()
        except sqlite3.OperationalError:  # WITHOUT ROWID
            greatest = None
    return Checked(
        schema_version=conn.execute("pragma schema_version").fetchone()[0],
        rows=source.count(conn, index),
        greatest_rowid=greatest if isinstance(greatest, int) else None,
    )
