"""Streamable HTTP: who may connect, from where, and how much they may send."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from .catching_up import Refused

PATH = "/mcp"
BODY_BYTES = 8 * 1024 * 1024
"""A batch of the greatest documents, written as JSON escapes, fits in."""
TOKEN_CHARACTERS = 16
AT_ONCE = 100
END_SECONDS = 3
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


def application(
    server: MCPServer[Any],
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    is_stateless: bool = True,
) -> App:
    """The ASGI application: stateless, so that a restart loses no session, with progress over SSE.

    Tools that ask the client something, which ours do not, need sessions. Raises Refused for an address that others can
    reach without a token and without allowed hosts.
    """
    if not is_loopback(host) and not (token and allowed_hosts):
        raise Refused(
            f"{host} can be reached by others: give a token (--token-file, or DATASETTE_VEC_MCP_TOKEN) and the names "
            "it is reached by (--allowed-host), and put a proxy with TLS before it"
        )
    if token is not None and len(token) < TOKEN_CHARACTERS:
        raise Refused(f"the token has {len(token)} characters; it must have {TOKEN_CHARACTERS} or more")
    hosts = [*(LOOPBACK if is_loopback(host) else ()), *allowed_hosts]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[spelled for name in hosts for spelled in (name, f"{name}:*")],
        allowed_origins=[
            f"{scheme}://{spelled}" for name in hosts for scheme in ("http", "https") for spelled in (name, f"{name}:*")
        ],
    )
    app: App = server.streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=is_stateless,
        max_request_body_size=BODY_BYTES,
        transport_security=security,
        host=host,
    )
    return guarded(app, token) if token else app


def guarded(app: App, token: str) -> App:
    """The application for those who have the token, compared in constant time."""
    expected = f"Bearer {token}".encode()

    async def guard(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
            scheme, _, rest = given.partition(b" ")
            if not hmac.compare_digest(scheme.capitalize() + b" " + rest.strip(), expected):
                headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"www-authenticate", b"Bearer")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b"A bearer token is needed here."})
                return
        await app(scope, receive, send)

    return guard


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes one that is free. Raises Refused where somebody else listens there."""
    try:
        # A name may have several addresses, such as localhost: IPv4 goes first, which every client tries.
        family, *_, address = min(socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM))
        return socket.create_server(address, family=family)
    except OSError as error:
        raise Refused(f"it cannot listen on {host}:{port}: {error.strerror or error}") from error


def serve(app: App, listening: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    settings = uvicorn.Config(
        app, log_level="warning", limit_concurrency=AT_ONCE, timeout_graceful_shutdown=END_SECONDS
    )
    with listening, suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listening])
