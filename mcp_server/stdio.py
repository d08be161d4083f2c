"""The SDK's stdio transport, read and written by the event loop itself where stdin and stdout are pipes.

The SDK does both on threads, which serves files and terminals too, but costs a call five switches from one thread to
another: half a millisecond.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, cast

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.stdio import stdio_server

_STDIN, _STDOUT, _STDERR = 0, 1, 2
LINE_BYTES = 128 << 20
"""The longest line that is read: far more than the tools take, so that they say so; twice as much may wait."""
_log = logging.getLogger("mcp_server")
_lent: dict[int, bool] = {}
"""Descriptors that do not block for now, though others may share what they lead to, and whether they did before."""


def give_back() -> None:
    """Let stdin and stdout block again as they did; for a process that ends at once."""
    for descriptor, could_block in _lent.items():
        os.set_blocking(descriptor, could_block)


async def serve(server: MCPServer[Any]) -> None:
    """Answer what comes over stdin, until its end."""
    if os.name == "nt" or not (_is_pipe(_STDIN) and _is_pipe(_STDOUT)):
        await server.run_stdio_async()
        return
    with ExitStack() as stack:
        nothing = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, nothing)
        source = stack.enter_context(_taken(_STDIN, instead=nothing))
        sink = stack.enter_context(_taken(_STDOUT, instead=_STDERR))
        lines = asyncio.StreamReader(limit=LINE_BYTES)
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(source, "rb", closefd=False)
        )
        stack.enter_context(closing(pipe))
        streams = cast("Any", (_Lines(lines), _Answers(sink)))
        async with stdio_server(*streams) as (read, write):
            lowlevel = server._lowlevel_server  # noqa: SLF001 - the SDK runs a server on streams of its own choice only
            await lowlevel.run(read, write, lowlevel.create_initialization_options())


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@contextmanager
def _taken(descriptor: int, *, instead: int) -> Iterator[int]:
    """A copy of a descriptor, which does not block; the descriptor leads elsewhere meanwhile, for others that print."""
    copy = os.dup(descriptor)
    _lent[copy] = os.get_blocking(copy)
    try:
        with suppress(OSError):  # stderr may be closed
            os.dup2(instead, descriptor)
        os.set_blocking(copy, False)
        yield copy
    finally:
        os.set_blocking(copy, _lent.pop(copy))
        os.dup2(copy, descriptor)
        os.close(copy)


class _Lines:
    """What the transport reads of a file."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionError:
                return
            except ValueError:
                _log.warning("A message of more than %s bytes was not read", f"{LINE_BYTES:,}")
                continue
            if not line:
                return
            yield line.decode("utf-8", "replace")


class _Answers:
    """What the transport writes to a file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unsent = bytearray()

    async def write(self, text: str) -> None:
        self._unsent += text.encode()

    async def flush(self) -> None:
        while self._unsent:
            try:
                sent = os.write(self._descriptor, self._unsent)
            except BlockingIOError:
                await anyio.wait_writable(self._descriptor)
            except ConnectionError:  # nobody is there to be answered: stdin ends too
                self._unsent.clear()
            else:
                del self._unsent[:sent]
