"""Sockets, half-open connections and shutdown: what uvicorn lacks for a server that strangers can reach.

A connection is closed if its client keeps it waiting: for a whole request, or with an answer that it does not read. If
there are too many connections, the oldest such one is closed at once.
After a signal, the requests that were sent already are answered before the process ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefcast.errors import UsageError, excerpt
from prefcast.service.application import Application
from prefcast.service.guard import HEADERS, is_loopback, refusal_response
from prefcast.service.limits import Limits
from prefcast.service.refusals import Refusal

__all__ = ["bind", "fitted", "serve"]

_LONGEST_HEAD = 16_384
# Seconds that quiet connections stay open after a signal: a request may be on its way.
_LINGER = 0.25
# How many new connections the system holds for us, and how many are taken before others are looked at again: were it
# many, they would take the places of clients whose requests have come.
_QUEUED, _ACCEPTED = 2048, 32
# Files that the process needs besides connections.
_OTHER_FILES = 64
# Seconds after which a closed connection is dropped, even if its client has not read the answer; the second while the
# server stops.
_ABORT, _STOPPING = 5.0, 2.0
# Bytes of answers that the system holds for each client that does not read, and as many wait for it.
_UNSENT = 1 << 15
# SO_LINGER with no time.
_RESET = struct.pack("ii", 1, 0)


def fitted(limits: Limits) -> Limits:
    """The limits, with no more connections than this process may open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits if files < 0 else replace(limits, connections=max(16, min(limits.connections, files - _OTHER_FILES)))


def bind(host: str, port: int, *, beyond_loopback: bool) -> socket.socket:
    """A listening socket. Raises UsageError if the name is unknown, if the port is taken, or if other machines could reach the
    socket and `beyond_loopback` is false."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # noqa: S104
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from None
    except UnicodeError:
        raise UsageError(f"--host {excerpt(host)}: is not the name of a machine") from None
    family, kind, protocol, _, address = found[0]
    if not beyond_loopback and not is_loopback(str(address[0])):
        raise UsageError(
            f"--host {host}: other machines could reach this address; give a token with --token-file FILE (or PREFCAST_TOKEN), "
            "or allow everybody with --no-token"
        )
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_QUEUED)
    except OSError as error:
        listening.close()
        raise UsageError(f"--host {host} --port {port}: cannot be bound: {error.strerror or error}") from None
    return listening


def serve(
    service: Application, listening: socket.socket, started: Callable[[], None], stop: threading.Event | None = None
) -> None:
    """Serve until a signal comes, then answer the requests that were accepted. A second signal ends the process at once.

    With `stop`, the server runs until that event is set and leaves signals alone, so that it can run on any thread.
    """
    # Uvicorn's own lines would hold what clients wrote.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    limits = service.limits
    config = uvicorn.Config(
        service.app,
        http=type("Protocol", (_Protocol,), {"limits": limits}),
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
        backlog=_ACCEPTED,
    )
    _Server(config, service, started, stop).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Application, started: Callable[[], None], stop: threading.Event | None
    ) -> None:
        super().__init__(config)
        self._service, self._say_started, self._stop = service, started, stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(_QUEUED)
        self._say_started()

    async def on_tick(self, counter: int) -> bool:
        stopped = self._stop is not None and self._stop.is_set()
        return await super().on_tick(counter) or stopped or self._service.broken is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal with exit status 0: uvicorn would send the signal to the process again in the end."""
        if self._stop is not None:
            yield
            return
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


class _Lingering:
    """A transport whose close() first lets the client send what it is sending: the system would answer that with a reset,
    and the client would never read why it was refused."""

    def __init__(self, transport: asyncio.Transport, lingers: Callable[[], bool]) -> None:
        self._transport, self._lingers = transport, lingers
        self.lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.lingering:
            return
        self.lingering = not self._transport.is_closing() and self._lingers()
        if self.lingering:
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()


class _Protocol(H11Protocol):
    """A connection with a bound on the time that its client may keep it waiting: for a request, or for reading an answer."""

    limits: Limits

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._ending = self._refused = False
        self.since = self.loop.time()

    @property
    def busy(self) -> bool:
        """Whether a request has come and is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waiting(self) -> bool:
        """Whether the server waits for the client: no whole request has come, or the answer is not read."""
        return not self.busy or self.cycle.more_body or self._unread is not None

    def connection_made(self, transport: Any) -> None:
        # Otherwise megabytes of answers would be made and held for each client that does not read.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT)
        transport.set_write_buffer_limits(high=_UNSENT)
        self._lingering = _Lingering(transport, self._lingers)
        super().connection_made(cast(asyncio.Transport, self._lingering))
        if len(self.connections) > self.limits.connections:
            waiting = [
                each for each in self.connections if isinstance(each, _Protocol) and each.waiting and each is not self
            ]
            if not waiting:
                self._refuse(Refusal("too_busy", "too many connections", headers={"Retry-After": "1"}))
                return
            oldest = min(waiting, key=lambda each: each.since)
            self.connections.discard(oldest)
            oldest.drop()
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._lingering.lingering:
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.busy:
            self._unwatch()
            if self._ending:
                self.cycle.keep_alive = False
        else:
            self._watch()

    def drop(self) -> None:
        """End the connection at once. Otherwise the system would keep what the client does not read, for minutes."""
        held = self.transport.get_extra_info("socket")
        if held is not None and held.fileno() >= 0:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _watch(self) -> None:
        """Give the head of the next request `header_seconds` from now, however slowly it comes."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.busy:
            self.transport.close()
            self._end_within(_ABORT)

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = _STOPPING if self._ending else self.limits.answer_seconds
        self._unread = self._unread or self.loop.call_later(seconds, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _lingers(self) -> bool:
        """Whether the client may still be sending, where this side closes."""
        room = len(self.connections) <= self.limits.connections + _OTHER_FILES // 2
        sending = self._refused or (self.cycle is not None and self.cycle.more_body)
        if sending and room:
            self._end_within(_STOPPING if self._ending else self.limits.body_seconds)
        return sending and room

    def _end_within(self, seconds: float) -> None:
        self.loop.call_later(seconds, self.drop)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.since = self.loop.time()
        if self.transport.is_closing() and not self._lingering.lingering:
            # A client that does not read the answer must not keep the connection open.
            self._end_within(_STOPPING if self._ending else _ABORT)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_within(_ABORT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)
        self.resume_writing()

    def shutdown(self) -> None:
        self._ending = True
        if not self.busy:
            self.loop.call_later(_LINGER, self._close_quiet)
            return
        self.cycle.keep_alive = False
        if self._unread is not None:
            self._end_within(_STOPPING)

    def _close_quiet(self) -> None:
        if self.busy:
            return
        if not self.transport.is_closing():
            super().shutdown()
        self._end_within(_STOPPING)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal("bad_request", "the request is not valid HTTP/1.1"))

    def _refuse(self, refusal: Refusal) -> None:
        status, headers, body = refusal_response(refusal)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=status, headers=[*headers, *HEADERS, (b"connection", b"close")])
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        self.transport.close()
        self._end_within(_ABORT)
