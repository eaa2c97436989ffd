"""What every application of a server has: bounded bodies, the guard, whether it is ready, and an orderly stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from prefcast.runs.log import Log
from prefcast.service.guard import Bodies, Guard
from prefcast.service.limits import Limits
from prefcast.service.reading import parsed
from prefcast.service.refusals import Refusal

__all__ = ["Application", "as_json"]

# A larger body is parsed on another thread, so that the event loop goes on.
_LARGE = 64_000

T = TypeVar("T")


class Application:
    """The application of one server and its parts. A server runs `app`.

    /v1 and /metrics want `token`, if there is one. `hosts` are the names that a Host header may have besides loopback's. None
    allows every name.
    """

    app: Guard

    def __init__(self, limits: Limits | None, log: Log | None) -> None:
        self.limits, self.log = limits or Limits(), log or Log()
        self.ready = False
        # Why the service can never be ready, or not be ready any more.
        self.broken: str | None = None
        self.answered = 0
        self.bodies = Bodies(self.limits)
        self._parsing = asyncio.Lock()

    def guarded(self, routes: Sequence[Route], *, token: str | None, hosts: Sequence[str] | None) -> Guard:
        """The application that a server runs: these routes behind the guard."""
        router = Router(routes, redirect_slashes=False, lifespan=self.lifespan)
        paths = {route.path for route in routes}
        return Guard(router, token=token, hosts=hosts, routes=paths, seen=self.seen, failed=self.failed)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        self.ready = True
        try:
            yield
        finally:
            self.ready = False

    def stop(self) -> None:
        """Refuse new requests: the server is stopping."""
        self.ready = False
        self.app.stopping = True
        self.bodies.stop()

    @asynccontextmanager
    async def body(self, request: Request, expected: str) -> AsyncIterator[bytes]:
        """The body of a request, whose type must be `expected`. Its bytes count as held during the block. Raises Refusal."""
        # Another web page cannot send these types without permission.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != expected:
            raise Refusal("unsupported_media_type", f"expected the header Content-Type: {expected}")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal("unsupported_media_type", "expected a body without Content-Encoding")
        body, release = await self.bodies.read(request.receive, request.headers.get("content-length"))
        try:
            yield body
        finally:
            release()

    @asynccontextmanager
    async def document(self, request: Request, read: Callable[[dict[str, Any]], T]) -> AsyncIterator[T]:
        """The result of `read` for the JSON object in the body of a request. Raises Refusal."""
        async with self.body(request, "application/json") as body:
            if len(body) <= _LARGE:
                yield read(parsed(body))
            else:
                # One at a time: parsed JSON may take many times the memory of its bytes.
                async with self._parsing:
                    found = await asyncio.to_thread(lambda: read(parsed(body)))
                del body
                yield found

    def failed(self, what: str) -> None:
        self.log.tell("failed", f"a request failed with an unforeseen {what}", exception=what)

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        self.answered += 1
        ms = round(1000 * seconds, 1)
        self.log.tell("request", f"{method} {route} {status} {ms} ms", method=method, route=route, status=status, ms=ms)


def as_json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
