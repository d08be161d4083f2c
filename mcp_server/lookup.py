"""What tools call an index and a document, and which ones those are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mcp.server.mcpserver.exceptions import ToolError

from datasette_vec_gemini import Document, find_key, get_document, key_to_path, sqlite3

from .library import Library, Shelf
from .text import on_one_line

Key = tuple[str | int | float | bytes, ...]


async def find_shelf(library: Library, name: str | None) -> Shelf:
    """The index of that name, or the only one. Raises ToolError with the names there are."""
    return choose(await library.shelves(), name)


def choose(shelves: Sequence[Shelf], name: str | None) -> Shelf:
    """The same, among these."""
    wanted = (name or "").lower()
    # In a library of several databases the name of an index is enough where only one has it.
    matching = [each for each in shelves if each.name.lower() == wanted]
    matching = matching or [each for each in shelves if name is None or each.index.name.lower() == wanted]
    if len(matching) == 1:
        return matching[0]
    there = ", ".join(each.name for each in shelves[:20]) + (", …" if len(shelves) > 20 else "")
    if not shelves:
        raise ToolError("there is no index here that could be searched")
    if matching:
        raise ToolError(f"there are several indexes: call again with index set to one of {there}; see list_indexes")
    raise ToolError(
        f"there is no index {on_one_line(name or '', 80)!r}; there are {there}. Call list_indexes to see them"
    )


async def read_document(library: Library, index: str | None, key: str | int) -> tuple[Shelf, Document]:
    """A document by the names that tools have for it. Raises ToolError."""
    shelf = await find_shelf(library, index)
    return shelf, await library.read(shelf, partial(read_row, shelf=shelf, key=key))


def read_row(conn: sqlite3.Connection, *, shelf: Shelf, key: str | int) -> Document:
    """The document of a key, on a connection that reads. Raises ToolError."""
    found = key_of(conn, shelf, key)
    if found is None:
        columns = ", ".join(on_one_line(name, 100) for name in key_columns(shelf))
        raise ToolError(
            f"index {shelf.name} has no row with the key {on_one_line(str(key), 80)!r} (its key is {columns}). Take a "
            "key from search_documents"
        )
    return get_document(conn, shelf.index, found)


def key_of(conn: sqlite3.Connection, shelf: Shelf, key: str | int) -> Key | None:
    """The key of the document that is called so: as hits spell it, or as it stands in its column."""
    spelled = find_key(conn, shelf.index, str(key))
    return spelled if spelled is not None else find_key(conn, shelf.index, key_to_path([key]))


def key_spelled(conn: sqlite3.Connection, shelf: Shelf, key: str | int) -> Key | None:
    """The key of the document of which a hit has exactly this key."""
    found = find_key(conn, shelf.index, str(key))
    return found if found is not None and key_to_path(found) == str(key) else None


def key_columns(shelf: Shelf) -> list[str]:
    """The columns of the key, by the names the table gives them."""
    return [column.name for column in shelf.index.key]
