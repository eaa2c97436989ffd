"""The checks around every route: token, host, size and time of a request; the security headers; the access log.

A line of the log has the method, the route, the status and the time of a request, and nothing else that a client wrote.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from prefcast.service.limits import Limits
from prefcast.service.refusals import Refusal

__all__ = ["HEADERS", "Bodies", "Guard", "is_loopback", "is_secured", "refusal_response"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Every answer has these.
HEADERS: tuple[tuple[bytes, bytes], ...] = tuple(
    (name.encode(), value.encode())
    for name, value in {
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
    }.items()
)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d*)?")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_STOPPING_SECONDS = 2.0
# A body up to so many times the limit is read and thrown away, so that the client gets to read the answer.
_DRAINED = 4


def is_loopback(name: str) -> bool:
    """Whether a name or an address means this machine itself."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host(header: bytes) -> str:
    """The name in a Host header. Empty if there is none."""
    found = _HOST.fullmatch(header.decode("latin-1").lower())
    return "" if found is None else found[1] or found[2]


class Bodies:
    """Reads the bodies of requests, with bounds on the bytes of each, on the bytes of all together (`held`) and on the time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0
        self._timeouts: set[asyncio.Timeout] = set()
        self._stopping = False

    async def read(self, receive: Receive, declared: str | None) -> tuple[bytes, Callable[[], None]]:
        """A whole body, and a function that releases its bytes. `declared` is the Content-Length. Raises Refusal."""
        parts: list[bytes] = []
        held = size = 0

        def release() -> None:
            nonlocal held
            self.held -= held
            held = 0

        most = self._limits.body_bytes
        # Bodies that never come to their end must not use up the room for small ones.
        share = self._limits.buffered_bytes // self._limits.connections
        # Refused without reading a byte. h11 lets only digits through.
        if declared is not None and int(declared) > _DRAINED * most:
            raise self._too_large()
        try:
            async with asyncio.timeout(_STOPPING_SECONDS if self._stopping else self._limits.body_seconds) as timeout:
                self._timeouts.add(timeout)
                try:
                    more = True
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise Refusal("gone", "the client left")
                        part = message.get("body", b"")
                        more = message.get("more_body", False)
                        size += len(part)
                        if size > most:
                            parts.clear()
                            release()
                            if size > _DRAINED * most:
                                raise self._too_large()
                            continue
                        if self.held + len(part) > self._limits.buffered_bytes and size > share:
                            raise Refusal(
                                "too_busy",
                                "too many large requests at the same time",
                                headers={"Retry-After": "1", **_CLOSE},
                            )
                        held += len(part)
                        self.held += len(part)
                        parts.append(part)
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            release()
            raise Refusal("slow_body", "the body did not arrive in time", headers=_CLOSE) from None
        except BaseException:
            release()
            raise
        if size > most:
            raise self._too_large()
        return b"".join(parts), release

    def _too_large(self) -> Refusal:
        return Refusal("too_large", f"the body has more than {self._limits.body_bytes} bytes", headers=_CLOSE)

    def stop(self) -> None:
        """Give the bodies that are still coming two more seconds."""
        self._stopping = True
        until = asyncio.get_running_loop().time() + _STOPPING_SECONDS
        for timeout in self._timeouts:
            if (when := timeout.when()) is not None and when > until:
                timeout.reschedule(until)


_CLOSE = {"Connection": "close"}
_SECURED = frozenset({"/metrics", "/v1", "/get_reward", "/classify", "/score"})


class Guard:
    """An ASGI application around another one.

    /v1 and /metrics want `token`, if there is one. `hosts` are the names that a Host header may have besides loopback's; None
    allows every name. `seen` is called with the method, route, status and seconds of every request, `failed` with the type of
    every unforeseen exception.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        routes: Collection[str],
        seen: Callable[[str, str, int, float], None],
        failed: Callable[[str], None],
    ) -> None:
        self._app = app
        self._token = None if token is None else _digest(token.encode())
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._routes = routes
        self._seen, self._failed = seen, failed
        # While the server is stopping, every answer closes its connection.
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                if self.stopping and (b"connection", b"close") not in headers:
                    headers.append((b"connection", b"close"))
                message["headers"] = [*headers, *HEADERS]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                raise refusal
            # HEAD is GET without the body, which the server leaves out because of the method in its own scope. With an "app" in
            # the scope Starlette raises what it refuses, instead of answering in another form.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method, "app": self}, receive, answer)
        except Exception as error:
            refusal = _as_refusal(error)
            if refusal is None:
                # The message of the exception may hold what the client wrote.
                self._failed(type(error).__name__)
                refusal = Refusal("internal", "the server failed on this request")
            if not status:
                await _send(refusal, answer)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            self._seen(method, self._route(scope["path"]), status, time.perf_counter() - start)

    def _route(self, path: str) -> str:
        if path in self._routes:
            return path
        return "/static" if path.startswith("/static/") else "other"

    def _refusal(self, scope: Scope) -> Refusal | None:
        given: dict[bytes, bytes] = dict(scope["headers"])
        if b"transfer-encoding" in given and b"content-length" in given:
            # A proxy may see another end of the body, and read the rest as a second request.
            return Refusal("bad_request", "expected Content-Length or Transfer-Encoding, not both", headers=_CLOSE)
        host = _host(given.get(b"host", b""))
        if self._hosts is not None and not is_loopback(host) and host not in self._hosts:
            return Refusal("wrong_host", "this server does not answer to that Host; --allow-host NAME allows one")
        path: str = scope["path"]
        if self._token is None or not is_secured(path):
            return None
        scheme, _, token = given.get(b"authorization", b"").partition(b" ")
        # Digests have one length and are compared in constant time, so that the time says nothing about the token.
        if hmac.compare_digest(_digest(token.strip()), self._token) and scheme.lower() == b"bearer":
            return None
        return Refusal(
            "unauthorized", "expected the header Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"}
        )


def _as_refusal(error: Exception) -> Refusal | None:
    """An exception of a route as an answer; None for an unforeseen one."""
    if isinstance(error, HTTPException):
        kind, problem = {
            404: ("not_found", "there is no such route"),
            405: ("method_not_allowed", "the route does not have this method"),
        }.get(error.status_code, ("bad_request", "the request is not understood"))
        return Refusal(kind, problem, headers=error.headers)
    return error if isinstance(error, Refusal) else None


def is_secured(path: str) -> bool:
    """Whether a server with a token wants it for this path."""
    return path in _SECURED or path.startswith("/v1/")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def refusal_response(refusal: Refusal) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a refusal."""
    body = json.dumps(refusal.document()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    return refusal.status, headers, body


async def _send(refusal: Refusal, send: Send) -> None:
    status, headers, body = refusal_response(refusal)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
