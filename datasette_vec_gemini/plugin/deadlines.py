"""Every page of ours answers in time, if only to say that it cannot, and leaves other pages theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from datasette import Request, Response
from datasette.app import Datasette

from ..errors import VecError
from ..store.transactions import mapped_errors
from . import site, views
from .turns import RETRY_SECONDS, Busy
from .visitors import App, Receive, Scope, Send

_T = TypeVar("_T")
Page = Callable[[Datasette, Request], Awaitable[Response]]

PAGE_SECONDS = 15.0
"""Longer than all that a page waits for by itself: its turn, SQL within its limit, a lock, a model."""
BRIEF_SECONDS = 2.0

_is_asking: ContextVar[bool] = ContextVar("datasette_vec_gemini_is_asking", default=False)
"""Whether the request has its turn: what it asks of Datasette's own client is part of it."""


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
    """

    async def guarding(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        if "/-/vec" in scope["path"]:
            return await app(scope, receive, partial(_inviting, send))
        if _is_asking.get() or "semantic_search" not in unquote_plus(scope["query_string"].decode("latin-1")).lower():
            return await app(scope, receive, send)

        async def ask() -> None:
            _is_asking.set(True)
            await app(scope, receive, send)

        try:
            await site.of(datasette).lasting.take(ask)
        except Busy as error:
            form = "json" if scope["path"].endswith(".json") else "csv"
            await views.failure(str(error), 503, form).asgi_send(partial(_inviting, send))

    return guarding


async def _inviting(send: Send, message: Any) -> None:
    """Send on, and say when to come again where that is now impossible."""
    if message["type"] == "http.response.start" and message["status"] == 503:
        message = {**message, "headers": [*message["headers"], (b"retry-after", str(RETRY_SECONDS).encode())]}
    await send(message)
