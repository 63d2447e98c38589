"""Who may ask what: the token in the path, the Host and Origin headers, sizes of bodies, headers of every answer."""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from ssa_fast.explore.images import MAX_BYTES, too_many_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_SETTINGS = 64 << 10
"""Bytes of a request that holds no image."""
MAX_DISCARDED = 1 << 30
"""Bytes of a body that is too large that are read, not kept; then the connection is closed on who sends it."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer."""

SAFE = ("GET", "HEAD")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")


def is_local(host: str) -> bool:
    """Return whether only this machine reaches a server that is bound to ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Answers only those who know the token, ask this server by its own name, and come from its own page.

    A foreign page that a browser has open can send requests here, and by a DNS name that it makes point to this machine
    read the answers (DNS rebinding); it knows neither the token nor a name that is allowed.

    Args:
        app: The application behind it.
        token: The first part of every path.
        host: What the server is bound to. Bound to every address, it may also be asked by any IP address and by this
            machine's name.
    """

    def __init__(self, app: ASGIApp, *, token: str, host: str = "127.0.0.1") -> None:
        self.app, self.token = app, token
        self.any_address = host in EVERYWHERE
        names = {*LOOPBACK, host}
        if self.any_address:
            names |= {socket.gethostname(), socket.getfqdn()}
        self.names = {name.casefold() for name in names if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application do it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        first, slash, rest = scope["path"].removeprefix("/").partition("/")
        if not secrets.compare_digest(first.encode(), self.token.encode()):
            await _answer(send, 404)
        elif not self._is_own_name(headers.get("host", "")):
            await _answer(send, 421, "this server is asked by a name that is not its own; use the address it printed")
        elif not slash:
            await _answer(send, 308, headers={"Location": f"/{self.token}/"})
        elif scope["method"] not in SAFE and not self._is_own_page(headers):
            await _answer(send, 403, "the request comes from another page; use the address that the server printed")
        else:
            limit = MAX_BYTES if rest == "api/images" else MAX_SETTINGS
            declared = headers.get("content-length", "0")
            if declared.isdecimal() and int(declared) > limit:
                await _discard(receive)
                await _answer(send, 413, _too_large(limit))
            else:
                await self.app(scope, _limited(receive, limit), _with_headers(send))

    def _is_own_name(self, host: str) -> bool:
        name = _without_port(host)
        if name in self.names:
            return True
        if not self.any_address:
            return False
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _is_own_page(self, headers: Headers) -> bool:
        """Return whether a request that may change something comes from this server's page, or from no page."""
        origin = headers.get("origin")
        return origin is None or origin.casefold() == f"http://{headers['host']}".casefold()


def _without_port(host: str) -> str:
    """Return the name or address in a Host header."""
    host = host.casefold()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _limited(receive: Receive, limit: int) -> Receive:
    """Return ``receive`` that fails once a body is longer than ``limit`` bytes, whatever its header said."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            if message.get("more_body", False):
                await _discard(receive)
            raise HTTPException(413, _too_large(limit))
        return message

    return counted


async def _discard(receive: Receive) -> None:
    """Read the rest of a body and keep none of it: a client that is still sending would not see the answer."""
    discarded, more = 0, True
    while more and discarded < MAX_DISCARDED:
        message = await receive()
        discarded += len(message.get("body", b""))
        more = message.get("more_body", False)


def _too_large(limit: int) -> str:
    return str(too_many_bytes()) if limit == MAX_BYTES else f"the request has more than {limit:,} bytes"


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sent


async def _answer(send: Send, status: int, sentence: str = "", *, headers: Mapping[str, str] | None = None) -> None:
    body = json.dumps({"error": sentence}).encode() if sentence else b""
    given = {"Content-Length": str(len(body)), **(headers or {})}
    if body:
        given["Content-Type"] = "application/json"
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
