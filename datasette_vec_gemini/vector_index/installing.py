"""A derived index as objects of the database: made, moved with its table, taken away, and told from what is there.

What has a name of the index but is not in the registry is somebody else's, and never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..driver import sqlite3
from ..errors import ColumnNotFound, IndexExists, InvalidSetting, TableNotFound, shown
from ..schema import quote_identifier
from ..store.transactions import transaction
from .candidates import REGISTRY, literal, triggers_installed

if TYPE_CHECKING:
    from . import DerivedIndex

_SHADOWS = ("_info", "_chunks", "_rowids", "_vector_chunks00")
"""What vec0 appends to its name for tables of its own."""


def fits(index: DerivedIndex, key: str) -> str:
    """Whether a key, in SQL, is one that the table of changed keys takes: not NULL, and no text among integers."""
    return f"typeof({key}) = 'integer'" if index.key_type == "integer" else f"{key} is not null"


def create_statements(index: DerivedIndex) -> list[str]:
    """See `DerivedIndex.create_statements`."""
    if index.metric == "inner_product":
        raise InvalidSetting(
            "SQLite's vec0 has no inner product: use metric='cosine', which ranks unit vectors alike, or order by "
            "max_inner_product() without an index"
        )
    names = (index.table, index.key, index.column, index.name, index.dirty, *index.triggers)
    table, key, column, vec0, dirty, insert, update, delete = map(quote_identifier, names)
    code = {"float32": "float", "int8": "int8", "bit": "bit"}[index.quantize]
    fit, old, new = (fits(index, f"{row}.{key}") for row in ("t", "old", "new"))
    missing = f"(select {triggers_installed(index)} < 3 as some) as missing"
    registered: tuple[str | int, ...] = (
        index.name,
        index.table,
        index.key,
        index.key_type,
        index.column,
        index.dimensions,
        index.metric,
        index.quantize,
        index.definition,
    )
    return [
        f"""create table if not exists {REGISTRY} (
    name text primary key,
    "table" text not null,
    key text not null,
    key_type text not null,
    "column" text not null,
    dimensions integer not null,
    metric text not null,
    quantize text not null,
    definition text not null,
    rows integer not null default 0,
    scale real,
    sampled integer not null default 0
)""",
        f"""create virtual table if not exists {vec0}
using vec0(id {index.key_type} primary key, embedding {code}[{index.dimensions}])""",
        f"create table if not exists {dirty} (id {index.key_type} primary key)",
        # A cross join, so that no table is read through for a condition that is false.
        f"""insert into {dirty} (id)
select t.{key} from {missing} cross join {table} as t where missing.some and {fit}
union
select v.id from {missing} cross join {vec0} as v where missing.some
on conflict do nothing""",
        f"""create trigger if not exists {insert} after insert on {table} when {new} begin
    insert into {dirty} (id) values (new.{key}) on conflict do nothing;
end""",
        # Not `update of`, which neither rowid nor the sources of a generated column would fire.
        f"""create trigger if not exists {update} after update on {table}
when old.{key} is not new.{key} or old.{column} is not new.{column} begin
    insert into {dirty} (id) select old.{key} where {old} on conflict do nothing;
    insert into {dirty} (id) select new.{key} where {new} on conflict do nothing;
end""",
        f"""create trigger if not exists {delete} after delete on {table} when {old} begin
    insert into {dirty} (id) values (old.{key}) on conflict do nothing;
end""",
        f"""insert into {REGISTRY}
    (name, "table", key, key_type, "column", dimensions, metric, quantize, definition)
values ({", ".join(map(literal, registered))})
on conflict do nothing""",
    ]


def drop_statements(index: DerivedIndex) -> list[str]:
    """See `DerivedIndex.drop_statements`."""
    return [
        *(f"drop trigger if exists {quote_identifier(name)}" for name in index.triggers),
        f"drop table if exists {quote_identifier(index.name)}",
        f"drop table if exists {quote_identifier(index.dirty)}",
        f"delete from {REGISTRY} where name = {literal(index.name)}",
    ]


def create(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    """See `DerivedIndex.create`."""
    with transaction(conn):
        settle(conn, [index])
        known = _registered(conn, index.name)
        refuse_missing(conn, index)
        if known is None:
            _refuse_taken(conn, index)
        elif not _is_of(known, index):
            raise IndexExists(
                f"the vector index {shown(index.name)} is on the table {shown(known.table)} already and cannot be on "
                f"{shown(index.table)} too: give one of them another name"
            )
        elif known.definition != index.definition:
            _drop(conn, index)
        for trigger in _strays(conn, index):
            conn.execute(f"drop trigger {quote_identifier(trigger)}")
        for statement in index.create_statements():
            conn.execute(statement)


def drop(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    """See `DerivedIndex.drop`."""
    with transaction(conn):
        known = _registered(conn, index.name)
        if known is not None and (_is_of(known, index) or not _has_table(conn, known.table)):
            _drop(conn, index)


def settle(conn: sqlite3.Connection, indexes: Iterable[DerivedIndex]) -> None:
    """Let indexes whose table is gone follow their triggers to its new name, or go with it."""
    for index in indexes:
        known = _registered(conn, index.name)
        if known is None or _has_table(conn, known.table):
            continue
        with transaction(conn):
            tables = set(_strays(conn, index, known.table).values())
            if len(tables) == 1:
                conn.execute(f'update {REGISTRY} set "table" = ? where name = ?', [*tables, index.name])
            else:
                _drop(conn, index)


def is_installed(conn: sqlite3.Connection, index: DerivedIndex) -> bool:
    """Whether the index is there, by this definition, with all of its triggers."""
    known = _registered(conn, index.name)
    if known is None or known.definition != index.definition or not _is_of(known, index):
        return False
    (triggers,) = conn.execute(f"select {triggers_installed(index)}").fetchone()
    return bool(triggers == len(index.triggers))


class _Registered(NamedTuple):
    table: str
    definition: str


def _registered(conn: sqlite3.Connection, name: str) -> _Registered | None:
    if not _has_table(conn, REGISTRY):
        return None
    row = conn.execute(f'select "table", definition from {REGISTRY} where name = ?', [name]).fetchone()
    return _Registered(*row) if row else None


def _is_of(known: _Registered, index: DerivedIndex) -> bool:
    return known.table.lower() == index.table.lower()


def _drop(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    for statement in index.drop_statements():
        conn.execute(statement)
    if not conn.execute(f"select 1 from {REGISTRY}").fetchone():
        conn.execute(f"drop table {REGISTRY}")


def _strays(conn: sqlite3.Connection, index: DerivedIndex, table: str | None = None) -> dict[str, str]:
    """The index's triggers that are on another table, as after a renaming, with that table."""
    names = ", ".join(map(literal, index.triggers))
    return dict(
        conn.execute(
            f"select name, tbl_name from sqlite_master where type = 'trigger' and name in ({names}) "
            "and tbl_name <> ? collate nocase",
            [table or index.table],
        )
    )


def _has_table(conn: sqlite3.Connection, name: str) -> bool:
    found = "select 1 from sqlite_master where type = 'table' and name = ? collate nocase"
    return bool(conn.execute(found, [name]).fetchone())


def missing(conn: sqlite3.Connection, index: DerivedIndex) -> list[str]:
    """Which of the index's columns the table has not; a trigger that names one would fail every later write."""
    columns = {name.lower() for (name,) in conn.execute("select name from pragma_table_xinfo(?)", [index.table])}
    return [name for name in (index.key, index.column) if name.lower() not in columns]


def refuse_missing(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    """Raise TableNotFound or ColumnNotFound for what is not there."""
    if not _has_table(conn, index.table):
        raise TableNotFound(f"there is no table {shown(index.table)} for the vector index {shown(index.name)}")
    if gone := missing(conn, index):
        raise ColumnNotFound(
            f"the vector index {shown(index.name)} needs the column {shown(gone[0])}, which the table "
            f"{shown(index.table)} has not: drop the index, or create it by the column's new name"
        )


def _refuse_taken(conn: sqlite3.Connection, index: DerivedIndex) -> None:
    names = [index.name, index.dirty, *index.triggers, *(f"{index.name}{shadow}" for shadow in _SHADOWS)]
    found = conn.execute(
        f"select type, name from sqlite_master where name collate nocase in ({', '.join(map(literal, names))})"
    ).fetchone()
    if found:
        raise IndexExists(
            f"the vector index {shown(index.name)} would need the name of a {found[0]} that is there already, "
            f"{shown(found[1])}: give the index another name"
        )
