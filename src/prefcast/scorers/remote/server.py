"""Asks one server for scores: a request that is refused is halved down to the row that is at fault."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from threading import Event, Lock, Semaphore
from typing import Any
from weakref import finalize

from prefcast.base.http import Answer, Connection, Retrying, Transport, read_key
from prefcast.errors import ServiceError, excerpt, printable
from prefcast.scorers.remote import Options
from prefcast.scorers.remote.protocols import Item, Protocol, Reply, UnreadableError, protocol_of

__all__ = ["RefusedError", "Server"]

# Statuses after which the same request may well succeed.
_AGAIN = (429, 500, 502, 503, 504)
# Statuses of a proxy whose server is away.
_AWAY = (502, 503, 504)
_SHOWN = 200
_PAUSE = 1.0


class RefusedError(Exception):
    """The server does not take a request; `said` is what it said."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


class Server:
    """The server at `url`. Several threads may ask it. Nothing is sent before the first question."""

    def __init__(self, url: str, options: Options, transport: Transport | None = None) -> None:
        self.protocol: Protocol = protocol_of(options.protocol, options.served_name)
        # Of a server whose other forms lie under /v1, the one that is asked lies beside it.
        self.url = url.rstrip("/").removesuffix("/v1")
        self._wait = options.wait
        self._key = read_key(options.key_env, options.key_file)
        self._retrying = Retrying(options.retries, options.wait, options.timeout, _AGAIN)
        self._connections, self._transport = options.concurrency + 1, transport
        self._connection: Connection | None = None
        self._stopped, self._slots = Event(), Semaphore(options.concurrency)
        self._introduced, self._lock, self._opening = False, Lock(), Lock()
        # What is no address is told now.
        self._open()

    def close(self) -> None:
        """Close the connections, and let nobody wait for the server any more. The next question opens them again."""
        with self._opening:
            self._stopped.set()
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> Connection:
        with self._opening:
            if self._connection is None:
                self._stopped = Event()
                headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
                self._connection = Connection(
                    self.url,
                    headers,
                    self._retrying,
                    connections=self._connections,
                    proxies=True,
                    transport=self._transport,
                    sleep=partial(_pause, self._slots, self._stopped),
                )
                # Whoever forgets to close it leaves no open sockets.
                finalize(self, self._connection.close)
            return self._connection

    @property
    def shown(self) -> str:
        """The address for messages."""
        return printable(self.url)[:_SHOWN]

    def introduced(self) -> Protocol:
        """The protocol, once the server has said what it serves. Raises PrefcastError."""
        with self._lock:
            if not self._introduced:
                try:
                    self.protocol.introduce(self.get)
                except UnreadableError as error:
                    raise self._strange(str(error)) from None
                self._introduced = True
        return self.protocol

    def reply(self, items: Sequence[Item], *, raw: bool = True) -> Reply:
        """The answer to one request. Raises RefusedError for a request that the server does not take, and PrefcastError."""
        protocol = self.introduced()
        path, body = protocol.request(items, raw)
        answer = self._sent("POST", path, json.dumps(body).encode())
        if answer.status != 200:
            self._refuse(answer, path)
        try:
            found = protocol.read(_parsed(answer), answer.headers, items)
        except UnreadableError as error:
            raise self._strange(str(error)) from None
        return found

    def _sent(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """The answer, once a server that is away behind a proxy has been waited for."""
        end: float | None = None
        with self._slots:
            while True:
                answer = self._open().ask(method, path, body)
                if answer.status not in _AWAY or not self._wait:
                    return answer
                end = end or time.monotonic() + self._wait
                if time.monotonic() >= end:
                    return answer
                _pause(self._slots, self._stopped, _PAUSE)

    def get(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON at a path; None where the server has no such path. Raises PrefcastError."""
        answer = self._sent(method, path, None if body is None else json.dumps(body).encode())
        if answer.status in (404, 405):
            return None
        if answer.status != 200:
            try:
                self._refuse(answer, path)
            except RefusedError as error:
                raise self._strange(f"{path}: {error.said}") from None
        try:
            return _parsed(answer)
        except UnreadableError as error:
            raise self._strange(f"{path}: {error}") from None

    def _refuse(self, answer: Answer, path: str) -> None:
        said = self._said(answer)
        status = answer.status
        if status in (401, 403):
            raise ServiceError(
                f"{self.shown}: refuses the request ({status}: {said}); name its key with --key-env VARIABLE or --key-file FILE",
                status,
            )
        if status in (404, 405):
            raise ServiceError(
                f"{self.shown}: has no {path} or not this model ({status}: {said}); is it a server of the kind "
                f"{self.protocol.name}, started as {self.protocol.start}?",
                status,
            )
        if status in (429, *_AWAY) or 300 <= status < 400:
            raise ServiceError(f"{self.shown}: gives no score ({status}: {said})", status)
        raise RefusedError(f"{status}: {said}")

    def _strange(self, problem: str) -> ServiceError:
        problem = self._hidden(printable(problem)[:_SHOWN])
        return ServiceError(
            f"{self.shown}: the answer is not that of a server of the kind {self.protocol.name}: {problem}", 200
        )

    def _said(self, answer: Answer) -> str:
        """What an error says, short and printable, without the key."""
        try:
            data = json.loads(answer.body[:100_000])
        except (ValueError, RecursionError):
            data = answer.body[:1000].decode("utf-8", "replace")
        for name in ("error", "message", "detail"):
            while isinstance(data, Mapping) and name in data:
                data = data[name]
        text = data if isinstance(data, str) else excerpt(data, _SHOWN)
        text = self._hidden(" ".join(printable(text).split()))
        return text[:_SHOWN] or "no reason given"

    def _hidden(self, text: str) -> str:
        # A server may repeat the key that it does not like.
        return text if self._key is None else text.replace(self._key, "***")


def _pause(slots: Semaphore, stopped: Event, seconds: float) -> None:
    """Wait before a request is sent again. Another request has the place meanwhile."""
    slots.release()
    try:
        if stopped.wait(seconds):
            raise ServiceError("the server is not asked any more: the run was stopped")
    finally:
        slots.acquire()


def _parsed(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise UnreadableError(f"no JSON: {excerpt(answer.body[:80].decode('utf-8', 'replace'))}") from None
