"""Sockets, half-open connections, shutdown: uvicorn with what it lacks for a server that strangers may reach.

A connection that asks nothing, or asks slowly, is closed after a while, and the oldest such one makes room where there are
too many. Once a signal came, what was sent already is answered before the process ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefcast.errors import UsageError, excerpt
from prefcast.service.app import Service
from prefcast.service.guard import HEADERS, is_loopback, refusal_response
from prefcast.service.limits import Limits
from prefcast.service.refusals import Refusal

__all__ = ["bind", "fitted", "serve"]

_LONGEST_HEAD = 16_384
# After a signal, quiet connections get so long: what they sent may be on its way.
_LINGER = 0.25
# Files that a process needs besides connections.
_OTHER_FILES = 64
# What is closed but not read by its client goes after so long.
_ABORT = 5.0


def fitted(limits: Limits) -> Limits:
    """The limits with no more connections than this process may have files open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits if files < 0 else replace(limits, connections=max(16, min(limits.connections, files - _OTHER_FILES)))


def bind(host: str, port: int, *, beyond_loopback: bool) -> socket.socket:
    """A listening socket. UsageError where the name is unknown, the port is taken, or, unless `beyond_loopback`, another machine could reach it."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # noqa: S104
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from None
    except UnicodeError:
        raise UsageError(f"--host {excerpt(host)}: is no name of a machine") from None
    family, kind, protocol, _, address = found[0]
    if not beyond_loopback and not is_loopback(str(address[0])):
        raise UsageError(
            f"--host {host}: other machines could reach that; say who may: --token-file FILE (or PREFCAST_TOKEN), or "
            "--no-token to let everybody"
        )
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise UsageError(f"--host {host} --port {port}: cannot be bound: {error.strerror or error}") from None
    return listening


def serve(service: Service, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve until a signal comes, then finish what was taken. A second signal ends at once (SystemExit)."""
    # Its lines would hold what clients wrote.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    limits = service.limits

    class Protocol(_Protocol):
        pass

    Protocol.limits = limits
    config = uvicorn.Config(
        service.app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(limits.idle_seconds) or 1,
        timeout_graceful_shutdown=int(limits.seconds) + 10,
        h11_max_incomplete_event_size=_LONGEST_HEAD,
    )
    _Server(config, service, started).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._say_started = service, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._say_started()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._service.broken is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop for a signal, and not end by it: to stop is what was asked."""
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handled = [number for name in names if signal.getsignal(number := getattr(signal, name)) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


class _Protocol(H11Protocol):
    """A connection with a bound on how long it may ask nothing."""

    limits: Limits

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self._ending = False
        self.since = self.loop.time()

    @property
    def busy(self) -> bool:
        """Whether a request is there that has no answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def asking(self) -> bool:
        """Whether no whole request is there: nobody waits for an answer."""
        return not self.busy or self.cycle.more_body

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            asking = [
                each for each in self.connections if isinstance(each, _Protocol) and each.asking and each is not self
            ]
            if not asking:
                self._refuse(Refusal("too_busy", "too many connections", headers={"Retry-After": "1"}))
                return
            oldest = min(asking, key=lambda each: each.since)
            self.connections.discard(oldest)
            oldest.transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.busy:
            self._unwatch()
            if self._ending:
                self.cycle.keep_alive = False
        else:
            self._watch()

    def _watch(self) -> None:
        """From now on the head of a request has so long to come, however it trickles."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.busy:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.since = self.loop.time()
        if self.transport.is_closing():
            # Whoever does not read the answer does not hold the connection.
            self.loop.call_later(_ABORT, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(_ABORT, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self._ending = True
        if self.busy:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(_LINGER, self._close_quiet)

    def _close_quiet(self) -> None:
        if not self.busy and not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal("bad_request", "the request is not HTTP/1.1 as it should be"))

    def _refuse(self, refusal: Refusal) -> None:
        status, headers, body = refusal_response(refusal)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=status, headers=[*headers, *HEADERS, (b"connection", b"close")])
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self.loop.call_later(_ABORT, self.transport.abort)
