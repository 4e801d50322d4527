"""Access middleware: keys, size and rate limits, checked before an upload is read.

A server without a key refuses requests that a page of another site makes through its visitor's
browser: those name another origin, or (after the site's name was pointed here) another host.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnirouter.config import Access, Limits
from omnirouter.serve.http.prometheus import Metrics
from omnirouter.serve.http.schemas import RETRY, ApiError, too_large

GONE = 499  # nginx's number for that
CLOSED = ("/v1/", "/metrics")  # what a key locks; the page and the description are open
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class AccessMiddleware:
    """Lets requests in, counts them, and limits the time of their uploads.

    Args:
        app: what is behind it.
        access: who may come in.
        limits: how many, and how long an upload may take.
        measures: is told of every request.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, measures: Metrics) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._measures = measures
        self._inside = 0
        measures.gauge("omnirouter_requests_inside", "Requests at work.", lambda: self._inside)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        socket = scope["type"] == "websocket"
        work = socket or scope["method"] == "POST"
        problem = self._refusal(Headers(scope=scope), scope["path"])
        if problem is None and work and self._inside >= self._limits.max_requests:
            problem = ApiError(429, "too many requests at a time; try again later", headers=RETRY)
        if problem is None and _declared(scope) > self._limits.body_bytes:
            problem = too_large(self._limits)
        answer = _Answer(send)
        start = time.monotonic()
        self._inside += work
        try:
            if problem is None:
                upload = receive if socket else _Upload(receive, self._limits)
                await self._app(scope, upload, answer)
            else:
                refusal = problem.response()
                if socket:  # whose callers get this status, whatever the reason
                    refusal.status_code = 403
                await refusal(scope, receive, answer)
        except asyncio.CancelledError:  # at the end of the grace
            if socket or answer.status != GONE:
                raise
            await ApiError(503, "the server is shutting down").response()(scope, receive, answer)
        finally:
            self._inside -= work
            self._measures.request(_route(scope), answer.status, time.monotonic() - start)

    def _refusal(self, headers: Headers, path: str) -> ApiError | None:
        if not self._access.api_key:
            return self._foreign(headers)
        if not path.startswith(CLOSED):
            return None
        given = headers.get("authorization", "").encode("utf-8", "surrogateescape")
        given = given or _key_among_protocols(headers)
        wanted = f"Bearer {self._access.api_key}".encode()
        if hmac.compare_digest(given, wanted):
            return None
        message = "this server wants its key, as Authorization: Bearer KEY"
        return ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})

    def _foreign(self, headers: Headers) -> ApiError | None:
        host = _host_of(f"//{headers.get('host', '')}")
        if self._access.hosts and host not in self._access.hosts:
            message = "this server does not go by that host name; see --host-names"
            return ApiError(403, message, code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host:
            message = "a server without a key serves no pages of other sites"
            return ApiError(403, message, code="wrong_origin")
        return None


def _key_among_protocols(headers: Headers) -> bytes:
    """`Bearer KEY` of a browser's WebSocket, which offers `bearer.` and the key in base64url."""
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        kind, _, key = offered.strip().partition(".")
        if kind == "bearer":
            with suppress(ValueError):
                return b"Bearer " + base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
    return b""


class _Answer:
    """Passes an answer on, with headers that every answer has, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = GONE  # if the caller has gone before there was any

    async def __call__(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers[name] = value
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "websocket.close" and self.status == GONE:
            self.status = 403
        await self._send(message)


class _Upload:
    """Passes a request's body on, as long as it comes in time and is not too large.

    Starlette has a limit of size, but its answer to a large Content-Length is plain text.
    """

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._end = asyncio.get_running_loop().time() + limits.upload_timeout
        self._read = 0
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:  # whoever still listens waits for the caller to go
            return await self._receive()
        try:
            left = self._end - asyncio.get_running_loop().time()
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError as error:
            reason = f"the upload took longer than {self._limits.upload_timeout:g} seconds"
            raise ApiError(408, reason) from error
        self._read += len(message.get("body", b""))
        if self._read > self._limits.body_bytes:
            raise too_large(self._limits)
        self._whole = not message.get("more_body", False)
        return message


def _declared(scope: Scope) -> int:
    """Bytes of a request's body, if it says; uvicorn lets no other than a number pass."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() else 0


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _route(scope: Scope) -> str:
    """The route's pattern: one word for all addresses that nobody has."""
    route = scope.get("route")
    return str(getattr(route, "path", "")) or "other"
