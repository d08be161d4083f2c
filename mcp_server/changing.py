"""The tools that write: documents added, corrected and deleted, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult

from datasette_vec_gemini import (
    NewDocument,
    VecError,
    Written,
    add_documents,
    count_pending,
    delete_documents,
    key_to_path,
    sqlite3,
)

from . import arguments as given
from .answers import Changes, Item, answered
from .calls import explaining, teller
from .library import Library, Shelf, Tell
from .lookup import find_shelf, key_of, key_spelled
from .text import ANSWER_CHARACTERS, on_one_line, visible

BATCH_CHARACTERS = 1_000_000
REASON_CHARACTERS = 500
FULL_CHARACTERS = ANSWER_CHARACTERS // 2
SHORT_CHARACTERS = 60
"""What a key or a reason may have, once so much of an answer says everything of its documents."""


class Writing:
    """The tools; `library_of` finds the library for the caller of a request."""

    def __init__(self, library_of: Callable[[Context[Any]], Library]) -> None:
        self._library_of = library_of

    @explaining
    async def add_documents(
        self,
        ctx: Context[Any],
        *,
        documents: given.Documents,
        index: given.IndexName = None,
        on_conflict: given.OnConflict = "replace",
    ) -> Annotated[CallToolResult, Changes]:
        """Add documents to an index, or correct them; they can be found in the next call.

        Give up to 100 at once, each with its text and, where it helps, title, category, url and metadata. Search first,
        so that nothing is added twice: the same title and text are known again. To correct a document give its key as
        id; what you leave out stays. In an index over a table with columns of its own, put them into fields, which
        list_indexes shows. Each document has its own status: created, updated, unchanged or error with the reason.
        """
        size = sum(len(each.text) for each in documents)
        if size > BATCH_CHARACTERS:
            raise ToolError(
                f"the documents have {size:,} characters together; {BATCH_CHARACTERS:,} fit into one call: send fewer"
            )
        library, tell = self._library_of(ctx), teller(ctx)
        shelf = await find_shelf(library, index)
        author = _author(library, ctx)

        def work(conn: sqlite3.Connection) -> list[Written]:
            new = [_new(conn, shelf, each) for each in documents]
            return add_documents(conn, shelf.index, new, on_conflict=on_conflict, added_by=author)

        written = await library.write(shelf, work)
        return await _changes(library, shelf, written, tell)

    @explaining
    async def delete_documents(
        self, ctx: Context[Any], *, keys: given.Keys, index: given.IndexName = None
    ) -> Annotated[CallToolResult, Changes]:
        """Delete documents for good, by the keys that hits have.

        There is no way back: read a document with get_document before you delete it. To correct one, use add_documents
        with its key as id. A key that is not there is no error: its status is absent.
        """
        library, tell = self._library_of(ctx), teller(ctx)
        shelf = await find_shelf(library, index)

        def work(conn: sqlite3.Connection) -> list[Written]:
            found = [key_of(conn, shelf, key) for key in keys]
            deleted = iter(delete_documents(conn, shelf.index, [key for key in found if key is not None]))
            return [Written(key=None, status="absent") if key is None else next(deleted) for key in found]

        written = await library.write(shelf, work)
        return await _changes(library, shelf, written, tell)


def _new(conn: sqlite3.Connection, shelf: Shelf, document: given.GivenDocument) -> NewDocument:
    """The document, as one that is there already where its id spells a key."""
    known = None if document.id is None else key_spelled(conn, shelf, document.id)
    return NewDocument(**document.model_dump(exclude={"fields"}), key=known, fields=document.fields or {})


def _author(library: Library, ctx: Context[Any]) -> str:
    """Who adds: whoever has signed in, else the name that the client's program gives itself."""
    client = ctx.session.client_params
    named = library.caller or (client.client_info.name if client else "") or (ctx.headers or {}).get("user-agent", "")
    return on_one_line(named, 100) or "mcp"


async def _changes(library: Library, shelf: Shelf, written: Sequence[Written], tell: Tell) -> CallToolResult:
    """Make searchable what was written, or waits since another call was cut off; say of each what became of it."""
    answer = Changes(index=shelf.name, items=[], pending=0)
    _fill(answer, shelf, written)
    count = partial(count_pending, index=shelf.index)
    is_changed = any(each.status in {"created", "updated", "deleted"} for each in written)
    if is_changed or await library.read(shelf, count) > 0:
        try:
            answer.notes += await library.sync(shelf, tell)
        except VecError as error:
            answer.notes.append(f"Everything is saved, but cannot be searched yet: {visible(str(error))}")
    answer.pending = await library.read(shelf, count)
    return answered(answer, is_error=all(item.status == "error" for item in answer.items))


def _fill(answer: Changes, shelf: Shelf, written: Sequence[Written]) -> None:
    """Put into an answer what became of each document, of the last ones in short."""
    size = 0
    for position, each in enumerate(written):
        key = key_to_path(each.key) if each.key else None
        made = Item(position=position, status=each.status, key=key, error=each.error or None)
        if size < FULL_CHARACTERS:
            made.uri = shelf.uri(each.key) if each.key and each.status not in {"deleted", "absent"} else None
            made.error = on_one_line(each.error, REASON_CHARACTERS) or None
            size += len(made.model_dump_json(exclude_none=True))
        else:
            made.key = key if key and len(key) <= SHORT_CHARACTERS else None
            made.error = on_one_line(each.error, SHORT_CHARACTERS) or None
        answer.items.append(made)
    if size >= FULL_CHARACTERS:
        answer.notes.append(
            "What became of the last documents is said in short, without their uris: give fewer to see all"
        )
