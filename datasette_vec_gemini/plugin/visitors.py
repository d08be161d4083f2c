"""Who is asking, as far as money is concerned: the owner at this machine, or somebody else.

While every request came straight from this machine, whoever asks is its owner and may spend. The first one from
elsewhere shows that this is a site: from then on, until the process ends, only actors with the permission `vec-embed`
may. A web page that makes the owner's browser ask may not in any case, whatever cookies come along. Not told from the
owner are other users of this machine, and who comes through a tunnel or proxy that leaves no trace and a local Host.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import Context, ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

from datasette import Request
from datasette.app import Datasette

from . import permissions

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("datasette_vec_gemini")
_FORWARDING = tuple(
    b"forwarded via x-forwarded x-real-ip x-client-ip x-cluster-client-ip x-original- x-proxy x-scheme true-client-ip "
    b"cf- cdn-loop fly- fastly- x-appengine- x-cloud-trace-context x-envoy- x-amzn- x-arr- x-azure- x-vercel- akamai- "
    b"ngrok- tailscale- front-end-https x-auth-request- remote-user".split()
)
"""How the headers begin that proxies, tunnels and hosts add."""
_ADDRESS = re.compile(rb"client-?ip|remote-addr|forwarded")
_LOCAL = re.compile(rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_FRAMES = (b"iframe", b"frame", b"fencedframe", b"embed", b"object")
_AFTERMATH_S = 5.0
"""How long SQL may still run for a request that has ended: when one of its queries fails, the others go on."""


@dataclass
class Visit:
    """A request: `foreign` if another web page made the browser send it, `request` once Datasette asks for an actor."""

    foreign: bool
    loop: asyncio.AbstractEventLoop
    thread: int
    request: Request | None = None


_visit: ContextVar[Visit | None] = ContextVar("datasette_vec_gemini_visit", default=None)


class Visitors:
    """Everybody who asked one Datasette instance; `elsewhere` says what gave the first one from elsewhere away."""

    def __init__(self, datasette: Datasette) -> None:
        proxied = datasette.setting("base_url") != "/" or datasette.setting("force_https_urls")
        self.elsewhere = "its settings are those of a site behind a proxy" if proxied else ""
        self._lock = Lock()
        self._foreign = 0
        self._foreign_until = 0.0

    def enter(self, scope: Scope) -> Visit:
        """Judge a request before anything answers it; what a foreign one asks of Datasette's own client is foreign."""
        outer, headers = _visit.get(), [(name.lower(), value) for name, value in scope["headers"]]
        foreign = _is_foreign(dict(headers)) or (outer is not None and outer.foreign)
        visit = Visit(foreign, asyncio.get_running_loop(), get_ident())
        reason = _elsewhere(scope, headers)
        with self._lock:
            news, self.elsewhere = reason and not self.elsewhere, self.elsewhere or reason
            self._foreign += visit.foreign
        if news:
            _log.warning("A request from elsewhere (%s): new texts are now embedded for actors with vec-embed", reason)
        return visit

    def leave(self, visit: Visit) -> None:
        """Note the end of a request."""
        if visit.foreign:
            with self._lock:
                self._foreign -= 1
                self._foreign_until = time.monotonic() + _AFTERMATH_S

    def at_home(self, visit: Visit | None) -> bool:
        """Whether the owner asks; of an unknown request (None), whether any that is answered now may be foreign."""
        with self._lock:
            around = self._foreign > 0 or time.monotonic() < self._foreign_until
            return not self.elsewhere and not (visit.foreign if visit else around)


_all: WeakKeyDictionary[Datasette, Visitors] = WeakKeyDictionary()
_all_lock = Lock()


def of(datasette: Datasette) -> Visitors:
    """The visitors of an instance."""
    with _all_lock:
        if datasette not in _all:
            _all[datasette] = Visitors(datasette)
        return _all[datasette]


def watch(datasette: Datasette, app: App) -> App:
    """Wrap an ASGI application; to be the outermost wrapper, since others may rewrite the peer and the headers."""

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            return await app(scope, receive, send)
        visit = of(datasette).enter(scope)
        token = _visit.set(visit)
        try:
            await app(scope, receive, send)
        finally:
            _visit.reset(token)
            of(datasette).leave(visit)

    return watching


def recognise(request: Request) -> None:
    """Keep the request that Datasette is about to find the actor of: it writes the actor into this object's scope."""
    if visit := _visit.get():
        visit.request = request


def may_embed(datasette: Datasette) -> bool:
    """Whether new texts may be embedded for who runs this SQL function, called from any thread; on any error, not.

    Datasette 0.65 does not tell SQL threads which request they work for: there an actor's permission cannot be asked
    for. Nor can it on the event loop's own thread, and with a single SQL thread, which the question would wait for.
    """
    try:
        visit = _visit.get()
        if of(datasette).at_home(visit):
            return True
        if visit is None or visit.foreign or visit.thread == get_ident() or not visit.loop.is_running():
            return False
        check = permissions.may_embed(datasette, visit.request.actor if visit.request else None)
        # An empty context: inside `client.get(…, skip_permission_checks=True)` everybody would have the permission.
        future = Context().run(asyncio.run_coroutine_threadsafe, check, visit.loop)
        try:
            return future.result(timeout=0.5)
        finally:
            future.cancel()
    except Exception:  # noqa: BLE001 - plugins decide too, and may raise anything
        _log.exception("Whether a visitor may embed cannot be told; the answer is no")
        return False


async def may_embed_async(datasette: Datasette, request: Request) -> bool:
    """Whether new texts may be embedded for this request of a view; on any error, not."""
    try:
        visit = _visit.get()
        if visit is None or visit.foreign:
            return False
        if of(datasette).at_home(visit):
            return True
        return await asyncio.create_task(permissions.may_embed(datasette, request.actor), context=Context())
    except Exception:  # noqa: BLE001 - plugins decide too, and may raise anything
        _log.exception("Whether a visitor may embed cannot be told; the answer is no")
        return False


def is_foreign() -> bool:
    """Whether another web page made the browser send the request that is being answered."""
    visit = _visit.get()
    return visit is not None and visit.foreign


def _elsewhere(scope: Scope, headers: list[tuple[bytes, bytes]]) -> str:
    """What shows that a request does not come straight from this machine; empty where nothing does."""
    client = scope.get("client")
    if not client or not _is_loopback(client[0]):
        return "its peer is another machine, or a proxy at a Unix socket"
    if scope.get("http_version") == "1.0":
        return "HTTP/1.0, which no browser speaks but proxies do"
    for name, _ in headers:
        if name.startswith(_FORWARDING) or _ADDRESS.search(name):
            return f"it has a header {name.decode('latin-1')[:40]!r}"
    hosts = [value for name, value in headers if name == b"host"]
    if not hosts or not all(map(_LOCAL.fullmatch, hosts)):
        return "its Host is not this machine"
    # A proxy may write a Host of its own, but the browser says by which name it reached the site.
    if (b"sec-fetch-site", b"same-origin") in headers:
        sources = [_host(value) for name, value in headers if name in {b"origin", b"referer"}]
        if not all(_LOCAL.fullmatch(source) for source in sources if source):
            return "its page's address is not this machine"
    return ""


def _is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether another web page made the browser ask, or shows ours in a frame, where clicks can be stolen.

    Every current browser says so itself. An older one may show the page that it comes from; if not, nothing is known.
    """
    if site := headers.get(b"sec-fetch-site"):
        return site not in {b"same-origin", b"none"} or headers.get(b"sec-fetch-dest") in _FRAMES
    if source := headers.get(b"origin") or headers.get(b"referer"):
        return _host(source).lower() != headers.get(b"host", b"").lower()
    return headers.get(b"user-agent", b"").lower().startswith(b"mozilla/")


def _host(url: bytes) -> bytes:
    found = re.match(rb"\w+://([^/?#]*)", url)
    return found[1] if found else b""


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
