"""What the calls of all tools have in common: how a fault reaches the caller, and how progress does."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from datasette_vec_gemini import VecError, sqlite3

from .library import Tell
from .text import on_one_line

P = ParamSpec("P")
R = TypeVar("R")

ERROR_CHARACTERS = 1_500
_log = logging.getLogger("mcp_server")


def explaining(tool: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """What goes wrong in a tool reaches the caller as words that help; nothing else of it does."""

    @functools.wraps(tool)
    async def explained(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await tool(*args, **kwargs)
        except VecError as error:
            raise ToolError(on_one_line(str(error), ERROR_CHARACTERS)) from error
        except ToolError:
            raise
        except sqlite3.Error as error:
            _log.exception("SQLite failed in a tool")
            raise ToolError(
                "SQLite could not do this; the log of the server says why, and `datasette vec verify` what is damaged"
            ) from error
        except Exception as error:
            _log.exception("A tool failed")
            raise ToolError("this failed for a reason that nobody foresaw; the log of the server says more") from error

    return explained


def teller(ctx: Context[Any]) -> Tell:
    """What tells the client of a request how far it is, where it wants to know."""
    loop = asyncio.get_running_loop()

    def tell(done: float, total: float, message: str) -> None:
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(ctx.report_progress(done, total, message), loop)

    return tell
