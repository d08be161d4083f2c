"""Which tables and views of a database are ours, and whose content each tells of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from datasette.database import Database

from ..driver import sqlite3
from ..errors import VecError
from ..store import registry

_OURS = re.compile(r"_vec_|_sqlite_migrations$|sqlite_(sequence|stat\d)$")
"""SQLite's own are ours too where an index is: they name its tables and count their rows."""
UNREADABLE = (VecError, sqlite3.Error, ValueError, TypeError, KeyError)
"""What reading a registry raises that somebody else has written into."""
_CASE = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a database has of ours, as of one version of its schema.

    `names` are those of our own tables, as they are spelled. `sources` maps each object, by its folded name, to the
    tables whose content it tells of: that of its index, or where it serves no single one, those of every index. None:
    they cannot be told, so nobody may see the object.
    """

    schema_version: int
    names: tuple[str, ...]
    sources: Mapping[str, frozenset[str] | None]

    @property
    def tables(self) -> frozenset[str]:
        """Every table that an object of ours tells of."""
        return frozenset().union(*(tables for tables in self.sources.values() if tables))


_known: WeakKeyDictionary[Database, Belongings] = WeakKeyDictionary()


def fold(name: str) -> str:
    """A name as SQLite compares it, which takes no notice of the case of ASCII letters."""
    return name.translate(_CASE)


def may_be_ours(name: str) -> bool:
    """Whether it is worth looking: an object of another name is never ours."""
    return _OURS.match(fold(name)) is not None


def known(db: Database) -> Belongings:
    """What was there when the database was looked at last, for those who cannot wait."""
    return _known.get(db) or Belongings(-1, (), {})


async def of(db: Database) -> Belongings:
    """What the database has of ours now, whichever program made it: every index made or dropped changes the schema."""
    before = known(db)
    if before.schema_version >= 0 and not db.is_mutable:
        return before

    def look(conn: sqlite3.Connection) -> Belongings:
        # Read first: what changes meanwhile is seen the next time.
        (version,) = conn.execute("pragma schema_version").fetchone()
        return before if version == before.schema_version else _look(conn, version)

    try:
        _known[db] = await db.execute_fn(look)
    except sqlite3.Error:
        return before  # its pages cannot be read either, and those of other databases can
    return _known[db]


def _look(conn: sqlite3.Connection, version: int) -> Belongings:
    rows = conn.execute("select name, type from sqlite_master where type in ('table', 'view')").fetchall()
    found = [(name, kind) for name, kind in rows if may_be_ours(name)]
    if ("_vec_indexes", "table") not in found:
        return Belongings(version, (), {})
    names = tuple(name for name, kind in found if kind == "table" and name.startswith("_"))
    return Belongings(version, names, _sources(conn, [fold(name) for name, _ in found]))


def _sources(conn: sqlite3.Connection, names: list[str]) -> dict[str, frozenset[str] | None]:
    try:
        views, prefixes = _owners(conn)
    except UNREADABLE:
        return dict.fromkeys(names)
    everything = frozenset(prefixes.values())
    direct = {}
    for name in names:
        # The longest: an index docs has _vec_docs_1_chunks, and one called docs_1 has _vec_docs_1_1_chunks.
        prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")
        owner = views.get(name) or prefixes.get(prefix)
        direct[name] = frozenset([owner]) if owner else everything
    return {name: _followed(tables, direct) for name, tables in direct.items()}


def _owners(conn: sqlite3.Connection) -> tuple[dict[str, str], dict[str, str]]:
    """The table of each index, of whatever generation: by the name of its view, and by how its tables' names begin."""
    views, prefixes = {}, {}
    for (name,) in conn.execute("select distinct name from _vec_indexes").fetchall():
        for index in registry.generations(conn, name):
            views[fold(index.view)] = index.table
            prefixes[fold(f"_vec_{index.name}_{index.generation}_")] = index.table
    return views, prefixes


def _followed(tables: Iterable[str], direct: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The user's tables at the end: an index may be over a view or table of another index."""
    seen: set[str] = set()
    found, waiting = set(), list(tables)
    while waiting:
        table = waiting.pop()
        if fold(table) not in direct:
            found.add(table)
        elif fold(table) not in seen:
            seen.add(fold(table))
            waiting.extend(direct[fold(table)])
    return frozenset(found)
