"""The library of one SQLite file: threads that read, one that writes, one that embeds what was written."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from datasette_vec_gemini import (
    Embedder,
    Index,
    PaidEmbedder,
    Query,
    Stop,
    VecError,
    by_words,
    connect,
    create_memory,
    embed_or_words,
    find_index,
    indexes,
    ledger_of,
    load_embedder,
    sqlite3,
)

from .catching_up import SYNC_SECONDS, Refused, catch_up, catch_up_a_little
from .library import Found, Shelf, Tell, found
from .lookup import choose
from .models import READY_SECONDS, Models, StillLoading
from .workers import Workers

T = TypeVar("T")

READERS = 3
SEARCHERS = 6
"""Some may be waiting for the answer of a service; who only reads has threads apart from them."""
MEMORY = "documents"
"""The table, and the index, of a file that is made new."""
BACKLOG_SECONDS = 2.0
"""About how long a call may have to wait for what is embedded in the background."""


class FileLibrary:
    """The indexes of a file, or the one called `only`; `load` is how models are loaded. Close it at the end."""

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        only: str | None = None,
        load: Callable[[str], Embedder] = load_embedder,
        ready_seconds: float = READY_SECONDS,
        sync_seconds: float = SYNC_SECONDS,
    ) -> None:
        self.read_only = read_only
        self._path = path
        self._only = only
        self._models = Models(load, ready_seconds=ready_seconds)
        self._sync_seconds = sync_seconds
        self._ledger = ""
        self._is_closed = threading.Event()
        self._readers = Workers(READERS, "mcp-read", self._open_to_read)
        self._searchers = Workers(SEARCHERS, "mcp-search", self._open_to_read)
        self._writer = Workers(1, "mcp-write", self._open_to_write)
        self._syncer = Workers(1, "mcp-sync", lambda: connect(path, require_vec=False))

    def start(self) -> list[Index]:
        """Look that the file can be served, and begin to load its models; the indexes there are. Raises VecError."""
        with closing(self._open_to_read()) as conn:
            self._ledger = ledger_of(conn)
            found = [find_index(conn, self._only)] if self._only else indexes(conn)
        for index in found:
            loaded = self._models.warm(index.embedder)
            if not self.read_only:
                loaded.add_done_callback(partial(self._begin_backlog, index))
        return found

    def _begin_backlog(self, index: Index, loaded: Future[Embedder]) -> None:
        if not loaded.exception():
            self._go_on(index, loaded.result())

    def _go_on(self, index: Index, model: Embedder) -> None:
        """Embed what waits, a little at a time so that calls have their turn.

        Nobody is there to agree to a cost, and an index over a view would be read whole: those wait for a call, or for
        `datasette vec sync`.
        """
        if isinstance(model, PaidEmbedder) or index.is_view:
            return

        def work(conn: sqlite3.Connection, seconds: float = BACKLOG_SECONDS) -> None:
            more = catch_up_a_little(conn, index, model=model, seconds=seconds, is_over=self._is_closed.is_set)
            if more is not None:
                self._syncer.begin(partial(work, seconds=more))

        self._syncer.begin(work)

    def close(self) -> None:
        """End the threads, and with them their connections."""
        self._is_closed.set()
        for each in (self._models, self._readers, self._searchers, self._writer, self._syncer):
            each.close()

    @property
    def caller(self) -> str | None:
        """Nobody has signed in to a file."""
        return None

    async def shelves(self) -> Sequence[Shelf]:
        """The indexes as they are now."""
        return await self._readers.do(self._shelves)

    def _shelves(self, conn: sqlite3.Connection) -> list[Shelf]:
        return [
            Shelf(name=index.name, index=index, description=f"{', '.join(index.columns)} of table {index.table}")
            for index in indexes(conn)
            if not self._only or index.name.lower() == self._only.lower()
        ]

    async def search(self, name: str | None, query: Query, tell: Tell) -> Found:
        """On one thread, from the name of the index to the hits: each step on one of its own would cost a switch.

        While the model is being loaded, for words only.
        """
        if query.mode == "keyword":
            return await self._readers.do(lambda conn: found(conn, choose(self._shelves(conn), name), query, []))

        def work(conn: sqlite3.Connection, model: Embedder | VecError | None = None) -> Found:
            shelf = choose(self._shelves(conn), name)
            if model is None:
                model = self._models.loaded(shelf.index.embedder)
            if isinstance(model, VecError):
                return found(conn, shelf, *by_words(query, model))
            return found(conn, shelf, *embed_or_words(shelf.index, query, embedder=model, ledger=self._ledger))

        try:
            return await self._searchers.do(work)
        except StillLoading as loading:  # nobody else's call waits for that
            try:
                model: Embedder | VecError = await self._models.ready(loading.specification, tell)
            except VecError as error:
                model = error
        return await self._searchers.do(partial(work, model=model))

    async def read(self, shelf: Shelf, work: Callable[[sqlite3.Connection], T]) -> T:  # noqa: ARG002 - one file
        """On one of the threads that only read."""
        return await self._readers.do(work)

    async def write(self, shelf: Shelf, work: Callable[[sqlite3.Connection], T]) -> T:  # noqa: ARG002 - one file
        """On the one thread that writes."""
        if self.read_only:
            raise Refused("the file is served read-only: nothing can be added or deleted here")
        return await self._writer.do(work)

    async def sync(self, shelf: Shelf, tell: Tell) -> list[str]:
        """On a thread of its own, so that another call can write meanwhile; what is left goes on without the call."""
        until = time.monotonic() + self._sync_seconds
        model, stop = await self._models.ready(shelf.index.embedder, tell), Stop()

        def work(conn: sqlite3.Connection) -> list[str]:
            # Of the time of this call some may have gone by, while another one was embedding.
            left = max(until - time.monotonic(), 0.1)
            return catch_up(conn, shelf.index, model=model, tell=tell, stop=stop, seconds=left)

        try:
            notes = await self._syncer.do(work)
        except asyncio.CancelledError:
            stop.request(Refused("the call was cancelled"))
            self._go_on(shelf.index, model)
            raise
        if notes:
            self._go_on(shelf.index, model)
        return notes

    def _open_to_read(self) -> sqlite3.Connection:
        conn = connect(self._path, read_only=True, require_vec=False)
        conn.execute("pragma query_only = 1")
        return conn

    def _open_to_write(self) -> sqlite3.Connection:
        conn = connect(self._path, require_vec=False)
        conn.execute("pragma foreign_keys = 1")
        return conn


def is_writable(path: Path) -> bool:
    """Whether the file, and the directory where SQLite keeps its journal, can be written."""
    return os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK)


def make_memory(path: Path, *, embedder: str) -> bool:
    """Give a file that does not exist, or has nothing in it yet, a memory; tells whether it did. Raises VecError.

    Where that fails, a file that was not there before is not there after.
    """
    is_new = not path.exists()
    try:
        with closing(connect(path, create=True)) as conn:
            names = {name for (name,) in conn.execute("select name from sqlite_master where type = 'table'").fetchall()}
            if indexes(conn) or not names <= {MEMORY}:
                return False
            create_memory(conn, embedder=embedder)
    except VecError:
        if is_new:
            path.unlink(missing_ok=True)
        raise
    return True
