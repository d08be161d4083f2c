"""Documents that come one by one: added, corrected, read and taken away through an index, as rows of its table.

Only rows are written here, in one short transaction; a `sync` afterwards makes them searchable. A table of our own,
`documents`, has a column for everything that a document says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast, get_args

from .chunking import render
from .domain import Index
from .driver import sqlite3
from .errors import DocumentNotFound, IndexExists, InvalidKey, InvalidQuery, UsageError, shown
from .indexing import create_index
from .keys import Key, key_to_path
from .placing import PROVENANCE, NewDocument, Target
from .schema import in_main, listed, quote_identifier, source_key
from .searching import title
from .store import reading, registry, source
from .store.transactions import mapped_errors, transaction

OnConflict = Literal["replace", "skip", "error"]
ON_CONFLICT: tuple[OnConflict, ...] = get_args(OnConflict)
MEMORY = "documents"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of one document; an "error" changed nothing, and says why."""

    key: Key | None
    status: Literal["created", "updated", "unchanged", "deleted", "absent", "error"]
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A row as its index reads it: `text` is what is searched, `row` all of its columns."""

    key: Key
    title: str
    text: str
    row: Mapping[str, object]


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
        try:
            with transaction(conn):
                return [_attempted(conn, table, item, on_conflict, provenance) for item in items]
        except sqlite3.IntegrityError as error:  # a foreign key that is looked at only now
            return [_refused(table, error) for _ in items]


def delete_documents(conn: sqlite3.Connection, index: Index, keys: Sequence[Sequence[object]]) -> list[Written]:
    """Delete the rows of these keys, and say of each whether it was there. Raises like `add_documents`."""
    with mapped_errors():
        table = Target.of(conn, index)
        try:
            with transaction(conn):
                return [_deleted(conn, table, key) for key in keys]
        except sqlite3.IntegrityError as error:
            return [_refused(table, error) for _ in keys]


def get_document(conn: sqlite3.Connection, index: Index, key: Sequence[object]) -> Document:
    """The document of a key as its row is now. Raises DocumentNotFound."""
    with mapped_errors():
        row = source.rows(conn, index, [key])[0] if len(key) == len(index.key) else None
        if row is None:
            raise DocumentNotFound(f"{index.table!r} has no row with the key {shown(key_to_path(key))}")
        # A rowid is no column of `*`; what found the row is its number.
        own = (int(str(key[0])),) if index.has_rowid_key else tuple(row[name] for name in source_key(index))
        text = render(row, columns=index.columns, template=index.template)
        return Document(key=cast("Key", own), title=title(index, cast("Key", own), row), text=text, row=row)


def describe_index(conn: sqlite3.Connection, index: Index) -> Description:
    """What an index holds, how much of it can be found, and what can be written to it; quick enough for every call."""
    with mapped_errors():
        found = source.find(conn, index.table)
        covered = reading.coverage(conn, index)
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


def _attempted(
    conn: sqlite3.Connection,
    table: Target,
    item: NewDocument,
    on_conflict: OnConflict,
    provenance: Mapping[str, object],
) -> Written:
    """Write one document in a savepoint of its own."""
    try:
        values = table.row(item)
        with transaction(conn):
            return _put(conn, table, values, on_conflict, provenance)
    except UsageError as error:
        return Written(key=None, status="error", error=str(error))
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
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
    rows = conn.execute(
        f"""
        insert into {in_main(table.found.name)} ({listed([*values])}) values ({", ".join("?" * len(values))})
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
        f"update {in_main(table.found.name)} set {assignments} where {_matches(table)}", [*values.values(), *key]
    )


def _deleted(conn: sqlite3.Connection, table: Target, key: Sequence[object]) -> Written:
    spelled = cast("Key", tuple(key))
    if len(key) != len(table.key) or source.rows(conn, table.index, [key])[0] is None:
        return Written(key=spelled, status="absent")
    try:
        with transaction(conn):
            conn.execute(f"delete from {in_main(table.found.name)} where {_matches(table)}", list(key))
    except (sqlite3.IntegrityError, OverflowError) as error:
        return Written(key=spelled, status="error", error=_refused(table, error).error)
    return Written(key=spelled, status="deleted")


def _matches(table: Target) -> str:
    return " and ".join(f"{quote_identifier(column.name)} = ? collate {column.collation}" for column in table.index.key)


def _refused(table: Target, error: Exception) -> Written:
    reason = f"table {table.found.name!r} refuses it ({error}); its columns are {table.columns}"
    return Written(key=None, status="error", error=reason)
