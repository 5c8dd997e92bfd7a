"""Who may talk to the server: the Host they name, the page they come from, the token they bring, how many they are."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web

from game.serve.limits import Limits

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LOOPBACK = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class Guard:
    """Looks at every request before anything else does.

    ``names`` are those a Host header may have beside loopback's; a server bound to every address also takes numbers, for a name
    that leads here without being ours (DNS rebinding) is never a number. ``token`` is None where only this machine can come in.
    """

    host: str
    token: str | None
    names: tuple[str, ...] = ()
    refused: dict[str, int] = field(default_factory=dict)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        reason = self._why_not(request)
        if reason is not None:
            self.refused[reason] = self.refused.get(reason, 0) + 1
            status = 401 if reason == "token" else 403
            response: web.StreamResponse = web.Response(status=status, text=_WORDS[reason] + "\n")
            response.force_close()  # what is still to come of the request is not read
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:  # 404, 405: an answer like any other
                response = error
        if not response.prepared:
            response.headers.update({name: value for name, value in HEADERS.items() if name not in response.headers})
        if isinstance(response, web.HTTPException):
            raise response
        return response

    def _why_not(self, request: web.Request) -> str | None:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return "host"
        origin = request.headers.get("Origin")
        asks = request.method in ("GET", "HEAD") and request.headers.get("Upgrade") is None
        if origin is None and not asks:  # a browser always says where such a request comes from
            return "origin"
        if origin is not None and _place(origin) != hosts[0].lower():
            return "origin"
        if request.path != "/health" and not self._has_token(request):
            return "token"
        return None

    def _is_ours(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if name in LOOPBACK or name == self.host.lower() or name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return not is_loopback(self.host)

    def _has_token(self, request: web.Request) -> bool:
        if self.token is None:
            return True
        given = [request.query.get("token"), request.cookies.get(self.cookie(request))]
        kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given.append(bearer if kind.lower() == "bearer" else None)
        right = self.token.encode()
        return any(hmac.compare_digest(word.encode("utf-8", "replace"), right) for word in given if word is not None)

    @staticmethod
    def cookie(request: web.Request) -> str:
        """Name of the cookie: servers on other ports of the same machine have their own."""
        _, _, port = request.headers.get("Host", "").rpartition(":")
        return f"reverie-{port if port.isdecimal() else 'web'}"


_WORDS = {
    "host": "403: this server does not go by that name",
    "origin": "403: this request comes from another page than ours",
    "token": "401: the link needs its token: open the whole link that the server printed when it started",
}


def _place(origin: str) -> str | None:
    """Host and port of an Origin header; None where that is no web page."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


class Door:
    """Makes aiohttp's connections, not more than so many, and closes those that say nothing: aiohttp itself waits for ever."""

    def __init__(self, server: web.Server, limits: Limits) -> None:
        self.refused = 0
        self._server, self._limits = server, limits
        self._silent: dict[asyncio.Protocol, float] = {}  # since when; oldest first

    def __call__(self) -> asyncio.Protocol:
        if len(self._server.connections) >= self._limits.connections:
            self.refused += 1
            return _Shut()
        if len(self._silent) > 2 * self._limits.connections:  # they come and go faster than they are swept
            self._sweep()
        protocol = self._server()
        self._silent[protocol] = time.monotonic()
        return protocol

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.pop(request.protocol, None)
        return await handler(request)

    async def watch(self) -> None:
        """Runs as long as the server."""
        while True:
            await asyncio.sleep(min(1.0, self._limits.silent / 3))
            self._sweep()

    def _sweep(self) -> None:
        """Close those that have been silent for too long; forget those that have gone."""
        now = time.monotonic()
        for protocol, since in list(self._silent.items()):
            transport = getattr(protocol, "transport", None)
            if transport is None or now - since > self._limits.silent:
                del self._silent[protocol]
                if transport is not None:
                    transport.abort()


class _Shut(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()
