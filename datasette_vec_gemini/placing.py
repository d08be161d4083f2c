"""Where in a table the parts of a document go: its title, text and so on to the columns that are called so."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .domain import Index
from .driver import sqlite3
from .errors import ColumnNotFound, InvalidKey, InvalidQuery, UsageError, shown
from .keys import Key, key_from_path
from .schema import source_key
from .store import source
from .titles import TITLES

MAX_DOCUMENT_CHARACTERS = 200_000
MAX_FIELD_CHARACTERS = 10_000
MAX_ID_CHARACTERS = 1_000
TEXTS = ("body", "content", "description")
"""What a column for the text of a document may be called, where none is called text and an index has several."""
PROVENANCE = ("added_by", "added_at")
"""Columns that are filled by whoever writes the documents down."""
_MEMORY_COLUMNS = ("id", "title", "text", "category", "url", "metadata", *PROVENANCE)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDocument:
    """A document to be added, or with the `id` of one that is there, its correction: what is None stays as it is.

    `id` is the key as text, of several columns joined by commas; `key`, which goes before it, the very values, as
    `find_key` finds them. `fields` are the values of further columns by their names.
    """

    text: str
    id: str | int | None = None
    key: Key | None = None
    title: str | None = None
    category: str | None = None
    url: str | None = None
    metadata: Mapping[str, object] | None = None
    fields: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The table of an index as something to write to: `declared` has what each column is, in words."""

    index: Index
    found: source.Source
    declared: Mapping[str, str]
    has_default: frozenset[str]

    @classmethod
    def of(cls, conn: sqlite3.Connection, index: Index) -> Target:
        """The table of an index. Raises UsageError for a view."""
        found = source.find(conn, index.table)
        if found.is_view:
            raise UsageError(f"index {index.name!r} is over the view {index.table!r}, which cannot be written to")
        rows = conn.execute(
            """
            select name, type, "notnull", dflt_value, pk from pragma_table_xinfo(?, 'main') where hidden = 0
            """,
            [found.name],
        ).fetchall()
        declared = {}
        for name, kind, not_null, default, pk in rows:
            is_needed = not_null and default is None and not pk and name.lower() not in PROVENANCE
            declared[name] = " ".join(filter(None, [name, kind, "key" if pk else "", "required" if is_needed else ""]))
        defaults = frozenset(name for name, _, _, default, _ in rows if default is not None)
        return cls(index=index, found=found, declared=declared, has_default=defaults)

    @property
    def columns(self) -> str:
        """The columns that can be written, in words."""
        return ", ".join(self.declared.values())

    @property
    def key(self) -> list[str]:
        """The key columns."""
        return source_key(self.index)

    @property
    def is_memory(self) -> bool:
        """Whether it is a table as `create_memory` makes it."""
        return self.key == ["id"] and all(name in self.declared for name in _MEMORY_COLUMNS)

    @property
    def assigns_keys(self) -> bool:
        """Whether SQLite, or a default, makes a key where none is given."""
        if self.index.has_rowid_key or set(self.key) <= self.has_default:
            return True
        return len(self.key) == 1 and self.found.columns[self.key[0]].upper() == "INTEGER"

    def has(self, name: str) -> bool:
        """Whether it has a column of that name, given in lower case, in any case."""
        return any(column.lower() == name for column in self.declared)

    def column(self, name: str) -> str:
        """A column that can be written, as the table spells it. Raises ColumnNotFound."""
        column = self.found.column(name)
        if column not in self.declared:
            raise ColumnNotFound(f"column {column!r} is computed from others: leave it out")
        return column

    def row(self, item: NewDocument) -> dict[str, object]:
        """Column -> value, for what the document says. Raises UsageError."""
        for name in item.fields:
            if name.lower() in PROVENANCE:
                raise InvalidQuery(f"{name} cannot be given: it says who has added the document, and when")
        values = {self.column(name): _storable(name, value) for name, value in item.fields.items()}

        def put(name: str, column: str, value: object) -> None:
            if column in values:
                raise InvalidQuery(f"{name} is for column {column!r}, which stands in fields too: give it once")
            values[column] = _storable(name, value, most=_LIMITS.get(name, MAX_FIELD_CHARACTERS))

        given: dict[str, object] = {
            "title": item.title,
            "category": item.category,
            "url": item.url,
            "metadata": item.metadata,
        }
        for name, value in given.items():
            if value is not None:
                put(name, self._home(name, TITLES if name == "title" else (name,)), value)
        for column, value in self._key_of(item, values).items():
            put("id", column, value)
        if not item.text.strip():
            raise InvalidQuery("the text is blank: nothing could be found by it")
        put("text", self._text_column(values), item.text)
        if self.is_memory and "id" not in values:
            hashed = f"{values.get('title') or ''}\0{item.text}".encode()
            values["id"] = hashlib.sha256(hashed).hexdigest()[:16]
        return values

    def _home(self, name: str, names: Sequence[str]) -> str:
        for each in names:
            if self.has(each):
                return self.column(each)
        raise ColumnNotFound(f"table {self.found.name!r} has no column for {name}; its columns are {self.columns}")

    def _text_column(self, values: Mapping[str, object]) -> str:
        for column in self.index.columns:
            if column.lower() == "text":
                return column
        left = [name for name in self.index.columns if name not in values and name not in self.key]
        for name in TEXTS:
            for column in left:
                if column.lower() == name:
                    return column
        if len(left) == 1:
            return left[0]
        raise InvalidQuery(
            f"it cannot be told which column the text is for: give all but one of {', '.join(self.index.columns)} in "
            "fields"
        )

    def _key_of(self, item: NewDocument, values: Mapping[str, object]) -> dict[str, object]:
        """The key columns and their values, where the document has an id; whole numbers where the column holds them."""
        if item.key is not None:
            return dict(zip(self.key, item.key, strict=True))
        if item.id is None:
            if not self.is_memory and not self.assigns_keys and not set(self.key) <= values.keys():
                raise InvalidKey(
                    f"an id is needed: {', '.join(self.key)} of table {self.found.name!r} makes no key itself"
                )
            return {}
        parts: Sequence[object] = [item.id] if len(self.key) == 1 else key_from_path(str(item.id))
        if len(parts) != len(self.key) or not all(str(part).strip() for part in parts):
            raise InvalidKey(
                f"id is {shown(item.id)}; it must have a value for {', '.join(self.key)}, joined by commas"
            )
        kinds = [column.affinity for column in self.index.key]
        return {
            name: self._whole(name, part) if kind == "INTEGER" else str(part)
            for name, part, kind in zip(self.key, parts, kinds, strict=True)
        }

    def _whole(self, name: str, value: object) -> int:
        if isinstance(value, int) or re.fullmatch(r"\s*-?\d{1,19}\s*", str(value)):
            return int(str(value))
        remedy = ": leave it out, and one is assigned" if self.assigns_keys else ""
        raise InvalidKey(f"id has {shown(value)} for column {name!r}, which holds whole numbers{remedy}")


_LIMITS = {"text": MAX_DOCUMENT_CHARACTERS, "id": MAX_ID_CHARACTERS}


def _storable(name: str, value: object, *, most: int = MAX_FIELD_CHARACTERS) -> object:
    """The value as SQLite takes it, lists and objects as JSON. Raises InvalidQuery."""
    if isinstance(value, Mapping | list | tuple):
        try:
            value = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidQuery(f"{shown(name)} cannot be written as JSON ({error})") from error
    if isinstance(value, str):
        if len(value) > most:
            raise InvalidQuery(f"{shown(name)} has {len(value):,} characters; the limit is {most:,}: cut it in parts")
        if wrong := _NO_TEXT.search(value):
            code, place = ord(wrong[0]), wrong.start()
            raise InvalidQuery(f"{shown(name)} has the character U+{code:04X} at position {place}, which is not text")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidQuery(f"{shown(name)} is {value}, which is no number to store")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidQuery(f"{shown(name)} is beyond 64 bits: give it as text")
    elif not isinstance(value, str | int | float | bytes | None):
        raise InvalidQuery(
            f"{shown(name)} is of type {type(value).__name__}; text, bytes, numbers, lists and objects can be stored"
        )
    return value
