"""A client for tests, on a server in the same process."""

from contextlib import asynccontextmanager
from typing import Any

from mcp import Client
from mcp.types import Implementation

from mcp_server.library import Library
from mcp_server.server import build_server

ERAS = ["auto", "legacy"]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


class Caller:
    """A client that asks tools by name and gives back what they answer."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await self.client.call_tool(tool, arguments)
        assert not answer.is_error, answer.content[0].text
        return answer.structured_content

    async def text(self, tool: str, **arguments: Any) -> str:
        answer = await self.client.call_tool(tool, arguments)
        assert not answer.is_error
        (block,) = answer.content
        return block.text

    async def error(self, tool: str, **arguments: Any) -> str:
        answer = await self.client.call_tool(tool, arguments)
        assert answer.is_error
        (block,) = answer.content
        assert block.text != f"Error executing tool {tool}"
        return block.text


@asynccontextmanager
async def calling(library: Library, *, mode: str = "auto", writes: bool = True, **options: Any):
    server = build_server(library, writes=writes, is_remote=False, **options)
    client = Client(server, mode=mode, client_info=Implementation(name="the tester", version="1"))
    async with client:
        yield Caller(client)
