"""Find: embed without holding any connection, then search on one of Datasette's SQL threads within its time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from datasette import NotFound, Request
from datasette.app import Datasette
from datasette.database import Database

from ..browsing import Browsed, browse, browse_similar, relaxed
from ..domain import Embedder, Index, Query
from ..driver import sqlite3
from ..errors import (
    DocumentNotFound,
    EmbedderError,
    FingerprintMismatch,
    GateClosed,
    IndexNotFound,
    VecError,
    shown,
)
from ..lookup import find_key, get_document
from ..paid import PaidEmbedder
from ..searching import by_words, embed_or_words
from ..store import counting, reading, registry
from ..store.transactions import mapped_errors, snapshot
from ..vectors import Vector
from . import site, visitors
from .answers import Answer
from .limits import limited
from .turns import Busy

NOT_FOUND = "There is no such index, or you may not view its table"


async def find(
    datasette: Datasette, request: Request, db: Database, index: Index, query: Query, *, facets: Sequence[str] = ()
) -> Answer:
    """Answer a query; where nothing is found, with what is nearest.

    Who asks must have been found to be allowed to. Raises VecError.
    """
    started = time.perf_counter()
    answer = await ask(datasette, request, db, index, query, facets=facets)
    if not answer.hits and answer.query and not query.offset:
        answer = await _with_nearest(datasette, request, db, answer, answer.query)
    return replace(answer, took_ms=_since(started))


async def ask(
    datasette: Datasette, request: Request, db: Database, index: Index, query: Query, *, facets: Sequence[str] = ()
) -> Answer:
    """The answer alone, by the vector that the query brings or is given here. Raises VecError, NotFound."""
    started = time.perf_counter()
    asked, notices = await embedded(datasette, request, db, index, query)

    def read(conn: sqlite3.Connection) -> Answer:
        with mapped_errors(), snapshot(conn):
            now = current(conn, index)
            return Answer(
                index=now,
                coverage=counting.coverage(conn, now),
                mode=asked.mode,
                query=asked,
                found=browse(conn, index, asked, facets=facets),
                notices=[*notices, *_notices(db, conn, now, asked)],
            )

    turns = site.of(datasette).searching
    try:
        answer = await limited(datasette, db, read, turns=turns)
    except FingerprintMismatch:  # rebuilt with another model meanwhile
        index = await limited(datasette, db, partial(current, index=index))
        asked, notices = await embedded(datasette, request, db, index, replace(query, vector=None))
        answer = await limited(datasette, db, read, turns=turns)
    return replace(answer, took_ms=_since(started))


async def find_similar(
    datasette: Datasette, db: Database, index: Index, path: str, window: Query, *, facets: Sequence[str] = ()
) -> Answer:
    """Answer which rows are similar to the one whose key is spelled so.

    `window` says how many, from where, and with which filters.
    """
    started = time.perf_counter()

    def read(conn: sqlite3.Connection) -> Answer:
        with mapped_errors(), snapshot(conn):
            now = current(conn, index)
            key = find_key(conn, now, path)
            if key is None:
                raise DocumentNotFound(f"{now.table!r} has no row with the key {shown(path)}")
            document = get_document(conn, now, key)
            found = browse_similar(
                conn, now, key, k=window.k, offset=window.offset, filters=window.filters, facets=facets
            )
            return Answer(
                index=now,
                coverage=counting.coverage(conn, now),
                mode="semantic",
                query=window,
                found=found,
                key=key,
                title=document.title,
                notices=_notices(db, conn, now, window),
            )

    turns = site.of(datasette).searching
    return replace(await limited(datasette, db, read, turns=turns), took_ms=_since(started))


async def coverage(datasette: Datasette, db: Database, index: Index) -> counting.Coverage:
    """How much of the index can be found, for a page that asks nothing."""

    def read(conn: sqlite3.Connection) -> counting.Coverage:
        with mapped_errors(), snapshot(conn):
            return counting.coverage(conn, current(conn, index))

    return await limited(datasette, db, read)


def current(conn: sqlite3.Connection, index: Index) -> Index:
    """The generation in use now of an index that a visitor was found to be allowed to see; read it in one snapshot.

    Raises NotFound where there is none any more, or one of another table.
    """
    try:
        found = registry.current(conn, index)
    except IndexNotFound:
        raise NotFound(NOT_FOUND) from None
    if found.table != index.table:
        raise NotFound(NOT_FOUND)
    return found


async def embedded(
    datasette: Datasette, request: Request, db: Database, index: Index, query: Query
) -> tuple[Query, list[str]]:
    """The query with its vector; or for keywords only, where the model cannot help, with the notice why.

    No model holds one of Datasette's few SQL threads.
    """
    if query.mode == "keyword":
        return query, []
    own = site.of(datasette)
    allowed = await visitors.may_embed_async(datasette, request)

    def ask(model: Embedder, text: str) -> Vector:
        if not isinstance(model, PaidEmbedder):
            return model.embed_query(text)
        try:
            seconds = own.ready(model, own.access.query_seconds)
            return own.page_gate.vector(model, text, task="RETRIEVAL_QUERY", timeout_seconds=seconds, allowed=allowed)
        except GateClosed:
            raise  # the visitor is told, and it is nothing that went wrong
        except EmbedderError as error:
            own.gate.note(error)
            raise

    work = partial(embed_or_words, index, query, access=own.access, ledger=site.ledger(db), ask=ask)
    if await asyncio.to_thread(own.is_paid, index.embedder):
        return await asyncio.get_running_loop().run_in_executor(own.threads, work)
    try:
        return await own.embedding.take(partial(asyncio.to_thread, work))
    except Busy as error:
        return by_words(query, error)


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)


async def _with_nearest(datasette: Datasette, request: Request, db: Database, answer: Answer, query: Query) -> Answer:
    """What is nearest to a query that found nothing; exact words are never a reason to pay for their meaning."""
    own, index, nearest = site.of(datasette), answer.index, Browsed()
    with suppress(VecError):
        while not nearest.hits and (again := relaxed(query)):
            if query.mode == "keyword":
                if await asyncio.to_thread(own.is_paid, index.embedder):
                    return answer
                again, _ = await embedded(datasette, request, db, index, again)
            query = again
            nearest = await limited(datasette, db, partial(_browse, index=index, query=query), turns=own.searching)
    return replace(answer, nearest=nearest, nearest_query=query) if nearest.hits else answer


def _browse(conn: sqlite3.Connection, index: Index, query: Query) -> Browsed:
    with mapped_errors(), snapshot(conn):
        current(conn, index)
        return browse(conn, index, query)


def _notices(db: Database, conn: sqlite3.Connection, index: Index, query: Query) -> list[str]:
    """What the visitor should know of how this was searched."""
    notices = []
    if query.mode != "keyword" and not reading.has_vec(conn):
        notices.append("sqlite-vec is not loaded here: every vector is compared with the question, which takes longer")
    if not db.is_mutable and (count := counting.count_pending(conn, index)):
        rows = "1 row is" if count == 1 else f"{count:,} rows are"
        notices.append(
            f"The file is served as immutable, so {rows} not searched with the current text until it is synced"
        )
    return notices
