"""A `prefcast serve` in a process of its own, and requests to it with nothing in between."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefcast.service.app import Service
from prefcast.service.server import bind, serve

__all__ = ["PAIR", "Reply", "Server", "in_process", "serving"]

PAIR = {
    "prompt": "Why is the sky blue?",
    "response_a": "Because air scatters short waves more: Rayleigh scattering.",
    "response_b": "No idea.",
}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error of a refusal, which has the one form that all have."""
        error = self.json["error"]
        assert set(self.json) == {"error"}
        assert set(error) == {"type", "field", "message"}
        assert all(isinstance(value, str) for value in error.values())
        assert error["message"]
        return error


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    lines: list[str] = field(default_factory=list)
    token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request on a connection of its own; a body that is not bytes goes as JSON."""
        sent = {} if body is None else {"Content-Type": "application/json"}
        sent |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            found = connection.getresponse()
            return Reply(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()

    def forecast(self, **document: Any) -> Any:
        reply = self.ask("POST", "/v1/forecast", document)
        assert reply.status == 200, reply.body
        return reply.json

    def loaded(self) -> Server:
        """The same server, once its forecaster is loaded."""
        end = time.monotonic() + 300
        while self.ask("GET", "/ready").status != 200:
            assert time.monotonic() < end, self.lines[-5:]
            time.sleep(0.05)
        return self

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = self.ask("GET", "/metrics").body.decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@contextmanager
def serving(
    *options: str,
    token: str | None = None,
    ending: int = 0,
    verb: tuple[str, ...] = ("serve",),
    port: int = 0,
    **environment: str,
) -> Iterator[Server]:
    """A server on a free port (or `port`), stopped by SIGTERM; it must end with status `ending`. `verb` is what serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prefcast.cli", *verb, "--port", str(port), *options],
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    first = []
    for line in process.stderr:
        first.append(line)
        if found := re.search(r"http://\S+:(\d+)", line):
            break
    else:
        process.wait(60)
        process.stderr.close()
        raise AssertionError("".join(first))
    server = Server(process, int(found[1]), first, token)
    reading = threading.Thread(target=lambda: server.lines.extend(process.stderr or ()), daemon=True)
    reading.start()
    try:
        yield server
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.returncode == ending, server.lines[-5:]
    finally:
        process.kill()
        process.wait()
        reading.join(10)
        process.stderr.close()


@contextmanager
def in_process(service: Service) -> Iterator[Server]:
    """The service on a thread of this process, for limits that no option sets."""
    up, stop = threading.Event(), threading.Event()
    with bind("127.0.0.1", 0, beyond_loopback=False) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=serve, args=(service, listening, up.set, stop))
        thread.start()
        try:
            assert up.wait(60)
            yield Server(None, port)  # type: ignore[arg-type]
        finally:
            stop.set()
            thread.join(60)
    assert not thread.is_alive()
