"""What the tools need of a place that has indexes: whom they belong to, and how they are read and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import quote

from datasette_vec_gemini import Hit, Index, Query, count_pending, key_to_path, search, sqlite3

T = TypeVar("T")
Tell = Callable[[float, float, str], None]
"""Tells a caller who waits how far it is: done, of how much, and what; from any thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """An index as the tools call it; `database` is where it lies, in a library that has several."""

    name: str
    index: Index
    description: str
    database: str = ""

    def uri(self, key: Sequence[object]) -> str:
        """The document of a key, as a resource."""
        # As RFC 6570 expands the template: a client that fills it in comes to the same, and no comma splits a key.
        return f"doc://{key_to_path([self.name])}/{quote(key_to_path(key), safe='~')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search came to: `query` as it was asked in the end, and in `notes` why not as it was meant."""

    shelf: Shelf
    query: Query
    hits: list[Hit]
    pending: int
    notes: list[str]


def found(conn: sqlite3.Connection, shelf: Shelf, query: Query, notes: list[str]) -> Found:
    """Search for a query that has its vector, or is for words only with a note why. Raises VecError."""
    hits = search(conn, shelf.index, query)
    pending = count_pending(conn, shelf.index)
    return Found(shelf=shelf, query=query, hits=hits, pending=pending, notes=notes)


class Library(Protocol):
    """Indexes, as one caller may use them. Everything raises VecError with words for the caller."""

    @property
    def caller(self) -> str | None:
        """Who the caller is, where that is known for sure."""
        ...

    async def shelves(self) -> Sequence[Shelf]:
        """The indexes that the caller may search."""
        ...

    async def search(self, name: str | None, query: Query, tell: Tell) -> Found:
        """Search the index of that name, or the only one; by words where meaning cannot be had. Or ToolError."""
        ...

    async def read(self, shelf: Shelf, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with a connection that only reads; cancelled, it is interrupted."""
        ...

    async def write(self, shelf: Shelf, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with a connection that may write, if the caller may."""
        ...

    async def sync(self, shelf: Shelf, tell: Tell) -> list[str]:
        """Make what was written searchable; what is left to do, in words."""
        ...
