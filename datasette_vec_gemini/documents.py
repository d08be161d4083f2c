"""Documents that come one by one: added, corrected and taken away through an index, as rows of its table.

Only rows are written here, in one short transaction; a `sync` afterwards makes them searchable. A table of our own,
`documents`, has a column for everything that a document says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Literal, TypeVar, cast, get_args

from .domain import Index
from .driver import sqlite3
from .errors import IndexExists, InvalidKey, InvalidQuery, UsageError, shown
from .indexing import create_index
from .keys import Key, key_to_path
from .placing import PROVENANCE, NewDocument, Target
from .schema import in_main, listed, quote_identifier
from .store import counting, registry, source
from .store.transactions import mapped_errors, transaction

OnConflict = Literal["replace", "skip", "error"]
ON_CONFLICT: tuple[OnConflict, ...] = get_args(OnConflict)
MEMORY = "documents"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of one document; an "error" changed nothing, and says why."""

    key: Key | None
    status: Literal["created", "updated", "unchanged", "deleted", "absent", "error"]
    error: str = ""


def create_memory(conn: sqlite3.Connection, *, embedder: str = "local") -> Index:
    """Make the table `documents` and an index on it, where they are missing: an empty memory that can be added to.

    The index offers category, added_by and added_at for filtering. Raises UsageError where a table of that name has
    other columns.
    """
    with mapped_errors():
        with transaction(conn):
            conn.execute(
                f"""
                create table if not exists main.{MEMORY} (
                    id text primary key not null, title text, text text not null, category text, url text,
                    metadata text check (metadata is null or json_valid(metadata)),
                    added_by text, added_at text not null
                )
                """
            )
        try:
            return create_index(
                conn,
                MEMORY,
                table=MEMORY,
                columns=["title", "text"],
                filter_columns=["category", "added_by", "added_at"],
                embedder=embedder,
            )
        except IndexExists:  # another process was as quick
            return registry.find(conn, MEMORY)


def add_documents(
    conn: sqlite3.Connection,
    index: Index,
    items: Sequence[NewDocument],
    *,
    on_conflict: OnConflict = "replace",
    added_by: str | None = None,
) -> list[Written]:
    """Write documents into the table of an index, and say of each what became of it; one that fails harms no other.

    A document without `id` gets one: in our own table a hash of its title and text, elsewhere the next integer.
    `on_conflict` says what happens where the key is taken: "replace" corrects what is given of the document, "skip"
    leaves it, "error" refuses. What the constraints of the table refuse is refused. `added_by` and the time are kept
    where the table has columns `added_by` and `added_at`. Raises UsageError for an index over a view,
    DatabaseUnavailable.
    """
    if on_conflict not in ON_CONFLICT:
        raise InvalidQuery(f"on_conflict is {shown(on_conflict)}; it can be {', '.join(ON_CONFLICT)}")
    with mapped_errors():
        table = Target.of(conn, index)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        stamp = dict(zip(PROVENANCE, (added_by, now), strict=True))
        provenance = {table.found.column(name): value for name, value in stamp.items() if table.has(name)}

        def write(item: NewDocument) -> Written:
            values = table.row(item)
            return _put(conn, table, values, on_conflict, provenance)

        return _each(conn, table, write, items)


def delete_documents(conn: sqlite3.Connection, index: Index, keys: Sequence[Sequence[object]]) -> list[Written]:
    """Delete the rows of these keys, and say of each whether it was there. Raises like `add_documents`."""
    with mapped_errors():
        table = Target.of(conn, index)
        written = _each(conn, table, partial(_deleted, conn, table), keys)
        return [replace(each, key=cast("Key", tuple(key))) for each, key in zip(written, keys, strict=True)]


def describe_index(conn: sqlite3.Connection, index: Index) -> Description:
    """What an index holds, how much of it can be found, and what can be written to it; quick enough for every call."""
    with mapped_errors():
        found = source.find(conn, index.table)
        covered = counting.coverage(conn, index)
        return Description(
            columns=tuple(found.columns),
            filters=index.filter_columns or tuple(found.columns),
            writable="" if found.is_view else Target.of(conn, index).columns,
            documents=covered.documents,
            pending=covered.pending,
            failed=covered.failed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """An index in words and figures.

    `filters` are the columns offered for filtering, `writable` those that a new document may fill, with what each is;
    empty for a view. Of `documents`, `pending` ones are not found with their current text yet, or by words only.
    """

    columns: tuple[str, ...]
    filters: tuple[str, ...]
    writable: str
    documents: int
    pending: int
    failed: int


def _each(conn: sqlite3.Connection, table: Target, write: Callable[[T], Written], items: Sequence[T]) -> list[Written]:
    """Write all in one transaction, each in a savepoint of its own.

    Where one undoes them all, by a foreign key that is looked at only at the end or by a trigger that rolls back, each
    has a transaction of its own.
    """
    is_nested = conn.in_transaction
    try:
        with transaction(conn):
            return [_attempted(conn, table, write, item) for item in items]
    except sqlite3.IntegrityError:
        if is_nested:
            raise
        return [_attempted(conn, table, write, item) for item in items]


def _attempted(conn: sqlite3.Connection, table: Target, write: Callable[[T], Written], item: T) -> Written:
    """Write one document in a savepoint, or a transaction, of its own. Raises IntegrityError where it undid more."""
    is_nested = conn.in_transaction
    try:
        with transaction(conn):
            return write(item)
    except UsageError as error:
        return Written(key=None, status="error", error=str(error))
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
        if is_nested and not conn.in_transaction:
            raise
        return _refused(table, error)


def _put(
    conn: sqlite3.Connection,
    table: Target,
    values: dict[str, object],
    on_conflict: OnConflict,
    provenance: Mapping[str, object],
) -> Written:
    key = cast("Key", tuple(values[name] for name in table.key)) if set(table.key) <= values.keys() else None
    before = source.rows(conn, table.index, [key])[0] if key is not None else None
    if key is None or before is None:
        made = _insert(conn, table, {**values, **provenance})
        return Written(key=made, status="created")
    if on_conflict == "error":
        raise InvalidKey(
            f"there is a document {shown(key_to_path(key))} already: use on_conflict replace or skip, or another id"
        )
    changed = {name: value for name, value in values.items() if name not in table.key and before[name] != value}
    if on_conflict == "skip" or not changed:
        return Written(key=key, status="unchanged")
    _update(conn, table, key, {**changed, **provenance})
    return Written(key=key, status="updated")


def _insert(conn: sqlite3.Connection, table: Target, values: Mapping[str, object]) -> Key:
    # "or abort" goes before what the constraints of the table say: one with "on conflict replace" would delete the
    # rows that are in the way, one with "on conflict rollback" undo the documents before.
    rows = conn.execute(
        f"""
        insert or abort into {in_main(table.found.name)} ({listed([*values])}) values ({", ".join("?" * len(values))})
        returning {listed(table.key)}
        """,
        list(values.values()),
    ).fetchall()
    if not rows:
        raise InvalidQuery(f"a trigger of table {table.found.name!r} keeps the document out")
    return tuple(rows[0])


def _update(conn: sqlite3.Connection, table: Target, key: Key, values: Mapping[str, object]) -> None:
    assignments = ", ".join(f"{quote_identifier(name)} = ?" for name in values)
    conn.execute(
        f"update or abort {in_main(table.found.name)} set {assignments} where {_matches(table)}",
        [*values.values(), *key],
    )


def _deleted(conn: sqlite3.Connection, table: Target, key: Sequence[object]) -> Written:
    if len(key) != len(table.key) or source.rows(conn, table.index, [key])[0] is None:
        return Written(key=None, status="absent")
    conn.execute(f"delete from {in_main(table.found.name)} where {_matches(table)}", list(key))
    return Written(key=None, status="deleted")


def _matches(table: Target) -> str:
    return " and ".join(f"{quote_identifier(column.name)} = ? collate {column.collation}" for column in table.index.key)


def _refused(table: Target, error: Exception) -> Written:
    reason = f"table {table.found.name!r} refuses it ({error}); its columns are {table.columns}"
    return Written(key=None, status="error", error=reason)
