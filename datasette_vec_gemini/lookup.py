"""Documents by their keys, and keys by how they are spelled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, product
from typing import cast

from .chunking import render
from .domain import Index
from .driver import sqlite3
from .errors import DocumentNotFound, shown
from .keys import Key, key_from_path, key_to_path
from .schema import source_key
from .store import source
from .store.transactions import mapped_errors
from .titles import title

MOST_CANDIDATES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A row as its index reads it: `text` is what is searched, `row` all of its columns."""

    key: Key
    title: str
    text: str
    row: Mapping[str, object]


def get_document(conn: sqlite3.Connection, index: Index, key: Sequence[object]) -> Document:
    """The document of a key as its row is now. Raises DocumentNotFound."""
    with mapped_errors():
        row = _rows(conn, index, [key])[0] if len(key) == len(index.key) else None
        if row is None:
            raise DocumentNotFound(f"{index.table!r} has no row with the key {shown(key_to_path(key))}")
        own = _own_key(index, key, row)
        try:
            text = render(row, columns=index.columns, template=index.template)
        except KeyError:
            source.check(conn, index)  # says so where the table has lost a column
            raise
        return Document(key=own, title=title(index, own, row), text=text, row=row)


def find_key(conn: sqlite3.Connection, index: Index, path: str) -> Key | None:
    """The key that is spelled so (`key_to_path`), as its row has it; None where no row has it.

    In a column without affinity 5, '5' and x'35' are three values. Several of them are spelled the same: text goes
    first, then numbers, then BLOBs.
    """
    parts = key_from_path(path)
    if len(parts) != len(index.key):
        return None
    kinds = zip(parts, index.key, strict=True)
    found = [_values(part) if column.affinity == "BLOB" else [part] for part, column in kinds]
    with mapped_errors():
        candidates = list(islice(product(*found), MOST_CANDIDATES))
        rows = zip(candidates, _rows(conn, index, candidates), strict=True)
        return next((_own_key(index, key, row) for key, row in rows if row is not None), None)


def _values(part: str) -> list[object]:
    """What a part of a key may be in a column that takes everything."""
    found: list[object] = [part]
    with suppress(ValueError):
        found.append(int(part) if re.fullmatch(r"-?\d{1,18}", part) else float(part))
    with suppress(ValueError):
        found.append(bytes.fromhex(part))
    return found


def _rows(conn: sqlite3.Connection, index: Index, keys: Sequence[Sequence[object]]) -> list[source.Row | None]:
    try:
        return source.rows(conn, index, keys)
    except sqlite3.OperationalError:
        source.check(conn, index)  # says so where the table is gone
        raise


def _own_key(index: Index, key: Sequence[object], row: source.Row) -> Key:
    # A rowid is no column of `*`; what found the row is its number.
    own = (int(str(key[0])),) if index.has_rowid_key else tuple(row[name] for name in source_key(index))
    return cast("Key", own)
