"""Every page of ours answers in time, if only to say that it cannot, and leaves other pages theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from datasette import Request, Response
from datasette.app import Datasette

from ..errors import VecError
from ..store.transactions import mapped_errors
from . import compat, site, views
from .turns import RETRY_SECONDS, Busy
from .visitors import App, Receive, Scope, Send

_T = TypeVar("_T")
Page = Callable[[Datasette, Request], Awaitable[Response]]

PAGE_SECONDS = 15.0
"""Longer than all that a page waits for by itself: its turn, SQL within its limit, a lock, a model."""
BRIEF_SECONDS = 2.0
_SEARCHES = "semantic_search"

_turn: ContextVar[asyncio.Event | None] = ContextVar("datasette_vec_gemini_turn", default=None)
"""The turn of the request, set when it is over: what it asks of Datasette's own client meanwhile is part of it. A
connection's next request is not, though servers start it in the same context."""


def within(page: Page, seconds: float = PAGE_SECONDS) -> Page:
    """The page, with an answer after so many seconds whatever holds it up, such as a disk that hangs.

    What a form starts has its end in any case: who sent it must know how it went.
    """

    @wraps(page)
    async def answering(datasette: Datasette, request: Request) -> Response:
        try:
            with mapped_errors():
                return await asyncio.wait_for(page(datasette, request), None if request.method == "POST" else seconds)
        except TimeoutError:
            error, status = f"there was no answer within {seconds:g} seconds: try again later", 503
        except VecError as raised:
            error, status = str(raised), views.status_of(raised)
        # In plain words: a page of Datasette's has a menu, which asks the database too.
        form = "json" if request.url_vars.get("format") == "json" else "csv"
        return views.failure(error, status, form)

    return answering


async def briefly(work: Awaitable[_T], otherwise: _T, seconds: float = BRIEF_SECONDS) -> _T:
    """What the work gives if it does so at once, for what a page can do without."""
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return otherwise


def guard(datasette: Datasette, app: App) -> App:
    """Wrap an ASGI application: visitors' SQL that searches takes turns, and our 503s say when to come again.

    Such a statement holds one of Datasette's threads for SQL up to its time limit, and three of them would hold all.
    The turn is over when its first rows are there: who reads them slowly keeps nobody from theirs.
    """

    async def guarding(scope: Scope, receive: Receive, send: Send) -> None:
        if not await _needs_turn(datasette, scope):
            is_ours = scope["type"] == "http" and "/-/vec" in scope["path"]
            return await app(scope, receive, partial(_inviting, send) if is_ours else send)
        over = asyncio.Event()

        async def telling(message: Any) -> None:
            if message["type"] == "http.response.body":
                over.set()
            await send(message)

        async def answer() -> None:
            _turn.set(over)
            try:
                await app(scope, receive, telling)
            finally:
                over.set()

        answering: list[asyncio.Task[None]] = []

        async def ask() -> None:
            answering.append(asyncio.create_task(answer()))
            await over.wait()

        try:
            await site.of(datasette).searching_sql.take(ask)
        except Busy as error:
            form = "json" if scope["path"].endswith(".json") else "csv"
            await views.failure(str(error), 503, form).asgi_send(partial(_inviting, send))
        else:
            await answering[0]

    return guarding


async def _needs_turn(datasette: Datasette, scope: Scope) -> bool:
    """Whether a request brings SQL that searches, or is for a saved query that does."""
    if scope["type"] != "http" or scope["method"] == "POST" or "/-/vec" in scope["path"]:
        return False
    outer = _turn.get()
    if outer is not None and not outer.is_set():
        return False
    asked = unquote_plus(scope.get("query_string", b"").decode("latin-1"))
    if _SEARCHES in asked.lower():
        return True
    with suppress(Exception):  # a plugin's, say: Datasette answers with it
        return _SEARCHES in (await compat.saved_sql(datasette, scope["path"])).lower()
    return False


async def _inviting(send: Send, message: Any) -> None:
    """Send on, and say when to come again where that is now impossible."""
    if message["type"] == "http.response.start" and message["status"] == 503:
        message = {**message, "headers": [*message["headers"], (b"retry-after", str(RETRY_SECONDS).encode())]}
    await send(message)
