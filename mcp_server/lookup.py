"""What tools call an index and a document, and which ones those are."""

from __future__ import annotations

import re
from functools import partial

from mcp.server.mcpserver.exceptions import ToolError

from datasette_vec_gemini import Document, VecError, get_document, key_from_path, sqlite3

from .library import Library, Shelf
from .text import on_one_line, visible


async def find_shelf(library: Library, name: str | None) -> Shelf:
    """The index of that name, or the only one. Raises ToolError with the names there are."""
    shelves = await library.shelves()
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


def key_parts(shelf: Shelf, key: str | int) -> tuple[object, ...]:
    """A key as SQLite compares it; whole numbers where the column holds them."""
    parts: list[object] = []
    for part, column in zip(key_from_path(str(key)), shelf.index.key, strict=False):
        is_number = column.affinity == "INTEGER" and re.fullmatch(r"-?\d{1,18}", part)
        parts.append(int(part) if is_number else part)
    if len(parts) != len(shelf.index.key) or len(key_from_path(str(key))) != len(parts):
        columns = ", ".join(key_columns(shelf))
        raise ToolError(
            f"key {on_one_line(str(key), 80)!r} does not have the {len(shelf.index.key)} parts of a key of index "
            f"{shelf.name} ({columns}): take the key from a hit of search_documents"
        )
    return tuple(parts)


def read_row(conn: sqlite3.Connection, *, shelf: Shelf, key: str | int) -> Document:
    """The document of a key, on a connection that reads. Raises ToolError."""
    try:
        return get_document(conn, shelf.index, key_parts(shelf, key))
    except VecError as error:
        raise ToolError(f"{visible(str(error))}. Take a key from search_documents") from error


def key_columns(shelf: Shelf) -> list[str]:
    """The columns of the key, by the names the table gives them."""
    return [column.name for column in shelf.index.key]
