"""The service under more load than it can serve, and told to stop in the middle of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import wait_for
from prefcast.forecasts.forecaster import load_forecaster
from prefcast.service.app import Service
from prefcast.service.limits import Limits
from servers import PAIR, Server, in_process, serving

# How long the load lasts in `make test` and in `make test-long`.
SECONDS, LONG_SECONDS = 6, 600
CLIENTS = 64


def bodies(count: int, words: int) -> list[bytes]:
    generator = random.Random(count)
    vocabulary = [
        "the",
        "a",
        "model",
        "answers",
        "people",
        "what",
        "they",
        "ask",
        "and",
        "says",
        "why",
        "in",
        "lines",
        "or",
        "code",
        "with",
        "a",
        "list",
        "of",
        "reasons",
    ]

    def text(most: int) -> str:
        return " ".join(generator.choices(vocabulary, k=generator.randrange(1, most)))

    return [
        json.dumps({"prompt": text(words // 4), "response_a": text(words), "response_b": text(words)}).encode()
        for _ in range(count)
    ]


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """One request on an open connection. Raises OSError or IncompleteReadError where no whole answer comes."""
    head = (
        b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    writer.write(head % len(body) + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def load(port: int, seconds: float, clients: int) -> Counter[str]:
    """What `clients`, that never wait, are answered in so many seconds; all connections kept."""
    end = time.monotonic() + seconds
    found: Counter[str] = Counter()
    texts = bodies(50, 300)

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while time.monotonic() < end:
            turn += 1
            status, headers, body = await post(reader, writer, texts[turn % len(texts)])
            found[str(status)] += 1
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= 60
                assert json.loads(body)["error"]["type"] == "too_busy"
                # Without this one process of the test would do nothing but be refused.
                await asyncio.sleep(0.02)
            else:
                assert status == 200
                assert abs(sum(json.loads(body)["probabilities"].values()) - 1) < 1e-9
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return found


def check_load(seconds: float) -> None:
    # Room for a quarter of the clients: three of four are refused at any time.
    options = ("--model", "embedded", "--queue", str(CLIENTS // 4), "--max-pairs", "8", "--max-responses", "4")
    with serving(*options) as server:
        memory: list[float] = []
        totals: Counter[str] = Counter()
        # The first part fills what is kept; after that nothing may grow.
        for _ in range(6):
            command = [sys.executable, __file__, str(server.port), str(seconds / 6), str(CLIENTS)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            part = Counter(json.loads(done.stdout))
            # It keeps serving, and refuses what it has no room for.
            assert part["200"] > 0
            assert part["429"] > 0
            assert set(part) == {"200", "429"}
            totals += part
            memory.append(server.metric("process_resident_memory_bytes"))
        assert max(memory[2:]) <= 1.1 * memory[1], memory
        assert server.metric("prefcast_waiting_items") == 0
        assert server.metric("prefcast_items_total") == totals["200"]
        reply = server.ask("POST", "/v1/forecast", PAIR)
        assert reply.status == 200


def test_overload_is_refused_at_once_and_memory_stays_flat() -> None:
    check_load(SECONDS)


@pytest.mark.long
def test_overload_for_ten_minutes() -> None:
    check_load(LONG_SECONDS)


@pytest.mark.parametrize("keep", [True, False], ids=["kept connections", "new connections"])
def test_whatever_was_accepted_is_answered_before_it_stops(keep: bool) -> None:
    texts = bodies(20, 200)
    answered: Counter[int] = Counter()
    cut: list[bytes] = []

    async def client(port: int, number: int) -> None:
        reader, writer = None, None
        turn = number
        while True:
            turn += 1
            if writer is None or reader is None:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    return
            try:
                status, headers, _ = await post(reader, writer, texts[turn % len(texts)])
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    cut.append(error.partial)
                return
            except OSError:
                return
            answered[status] += 1
            if not keep or headers.get("connection") == "close":
                writer.close()
                writer = None

    async def run(server: Server) -> None:
        clients = [asyncio.create_task(client(server.port, number)) for number in range(24)]
        # Each client is in the middle of a request, and most have had an answer.
        async with asyncio.timeout(300):
            while answered[200] <= 24:
                await asyncio.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), 300)

    with serving("--model", "embedded", "--log", "json") as server:
        asyncio.run(run(server))
        server.process.wait(30)
    # No answer was cut off, and as many came as the server says that it took.
    assert cut == []
    events = [json.loads(line) for line in server.lines]
    taken = [event for event in events if event["event"] == "request"]
    assert {event["status"] for event in taken} <= {200, 503}
    assert Counter(event["status"] for event in taken) == answered
    assert answered[200] > 24, answered
    assert events[-1]["event"] == "stopped"
    assert events[-1]["answered"] == len(taken)


def test_a_request_that_takes_too_long_ends_with_504() -> None:
    pairs = [json.loads(body) for body in bodies(200, 400)]
    with serving("--model", "embedded", "--time-limit", "0.5") as server:
        reply = server.loaded().ask("POST", "/v1/forecast", {"pairs": pairs})
        assert reply.status == 504
        assert reply.error["type"] == "time_limit"
        # What it left behind is not worked on.
        assert server.metric("prefcast_waiting_items") <= 32
        wait_for(lambda: server.ask("GET", "/ready").status == 200)


def test_a_client_that_leaves_takes_its_work_along() -> None:
    pairs = [json.loads(body) for body in bodies(200, 400)]
    body = json.dumps({"pairs": pairs}).encode()
    with serving("--model", "embedded") as server:

        async def leave() -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            while server.metric("prefcast_waiting_items") == 0:
                await asyncio.sleep(0.01)
            writer.close()

        asyncio.run(leave())
        while server.metric("prefcast_waiting_items") > 32:
            time.sleep(0.01)
        assert server.metric("prefcast_scoring_seconds_total") < 20
        assert server.ask("POST", "/v1/forecast", PAIR).status == 200
    assert any(re.search(r"/v1/forecast 499", line) for line in server.lines)


# Clients that stall, and those that must not notice it


class Stalling:
    """Connections of every kind that keeps a server waiting. Those that it closes are opened again."""

    def __init__(self, port: int, each: int, *kinds: str) -> None:
        body = json.dumps(PAIR).encode()
        head = b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        length = b"Content-Length: %d\r\n\r\n"
        # What each says at once, and what it says a byte at a time from then on.
        self._kinds = {
            "slow heads": (head[:30], head[30:] + b"X-More: " + b"x" * 4000),
            "slow bodies": (head + length % len(body) + body[:9], body[9:]),
            "large bodies": (head + length % 15_000_000 + b" " * 60_000, b" " * 4000),
            "unread answers": (b"GET /docs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1200, b""),
            "idle": (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b""),
        }
        self._port = port
        self.kinds = kinds or tuple(self._kinds)
        self._open = [(kind, self._made(kind), 0) for _ in range(each) for kind in self.kinds]
        self.closed: Counter[str] = Counter()

    def _made(self, kind: str) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        made.settimeout(10)
        made.connect(("127.0.0.1", self._port))
        made.setblocking(False)
        with suppress(BlockingIOError):
            made.send(self._kinds[kind][0])
        return made

    def step(self) -> None:
        """A further byte on each connection, and new ones for those that are closed."""
        for place, (kind, connection, sent) in enumerate(self._open):
            more = self._kinds[kind][1][sent : sent + 1]
            try:
                if more:
                    connection.send(more)
                if kind != "unread answers" and connection.recv(1 << 16) == b"":
                    raise ConnectionResetError
                if kind == "unread answers" and connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\1":
                    raise ConnectionResetError
            except BlockingIOError:
                self._open[place] = (kind, connection, sent + 1)
            except OSError:
                connection.close()
                self.closed[kind] += 1
                with suppress(OSError):
                    self._open[place] = (kind, self._made(kind), 0)

    def close(self) -> None:
        for _, connection, _ in self._open:
            connection.close()


def honest(server: Server, over: threading.Event, kept: bool, seconds: list[float]) -> None:
    """Asks again and again, on a connection that it keeps or on new ones; `seconds` receives those of each request."""
    body = json.dumps(PAIR).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    while not over.is_set():
        start = time.monotonic()
        connection.request("POST", "/v1/forecast", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 200
        seconds.append(time.monotonic() - start)
        if not kept:
            connection.close()
        time.sleep(0.01)
    connection.close()


def check_stalling(
    server: Server, stalling: Stalling, lasting: float, memory: Callable[[], float], slowest: float | None
) -> None:
    """Eight clients are answered while connections stall: 99 of 100 answers within `slowest` seconds; memory stays flat.

    It lasts at least `lasting` seconds, until each client has had its answers and places ran out for every kind that stalls.
    """
    try:
        begun, before = time.monotonic(), 0.0
        seconds: list[float] = []
        over = threading.Event()
        with ThreadPoolExecutor(8) as clients:
            asked = [clients.submit(honest, server, over, bool(number % 2), seconds) for number in range(8)]
            try:
                while (
                    len(seconds) < 40
                    or time.monotonic() < begun + lasting
                    or stalling.closed.keys() < set(stalling.kinds)
                ):
                    assert time.monotonic() < begun + lasting + 120, (len(seconds), stalling.closed)
                    assert not any(client.done() for client in asked), [
                        client.result() for client in asked if client.done()
                    ]
                    stalling.step()
                    # The first part fills what is kept.
                    before = before or (memory() if time.monotonic() > begun + lasting / 2 else 0.0)
                    time.sleep(0.1)
            finally:
                over.set()
        for client in asked:
            client.result()
        seconds.sort()
        assert slowest is None or seconds[int(0.99 * len(seconds))] < slowest
        assert memory() <= 1.1 * before
    except BaseException:
        stalling.close()
        raise


def test_clients_that_stall_do_not_lock_out_others() -> None:
    service = Service(load_forecaster("surface"), limits=Limits(connections=200, answer_seconds=1))
    with in_process(service) as server:
        stalling = Stalling(server.port, 60)
        check_stalling(server, stalling, 0, lambda: 1.0, None)
        begun = time.monotonic()
    # At most 5 on a machine with nothing else to do: the long test checks that.
    assert time.monotonic() - begun <= 30
    stalling.close()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["slow heads", "slow bodies", "large bodies", "unread answers", "idle"])
def test_600_clients_of_each_kind_that_stall(kind: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    try:
        with serving("--model", "surface") as server:
            stalling = Stalling(server.port, 600, kind)
            check_stalling(server, stalling, 30, lambda: server.metric("process_resident_memory_bytes"), 2)
            server.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            server.process.wait(30)
            assert time.monotonic() - begun <= 5
            stalling.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_clients_that_stall_do_not_keep_a_server_from_stopping() -> None:
    service = Service(
        load_forecaster("surface"), limits=Limits(answer_seconds=600, header_seconds=600, idle_seconds=600)
    )
    with in_process(service) as server:
        stalling = Stalling(server.port, 2)
        time.sleep(0.5)
        begun = time.monotonic()
    # At most 5 on a machine with nothing else to do: the long test checks that.
    assert time.monotonic() - begun <= 30
    stalling.close()


def test_an_answer_that_is_not_read_closes_its_connection() -> None:
    service = Service(load_forecaster("surface"), limits=Limits(answer_seconds=0.5))
    with in_process(service) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", server.port))
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.send(b"GET /docs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 500)
        begun = time.monotonic()
        wait_for(lambda: client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\1")
        assert 0.4 < time.monotonic() - begun < 10


def test_large_bodies_that_never_end_leave_room_for_small_ones() -> None:
    service = Service(load_forecaster("surface"), limits=Limits(buffered_bytes=4_000_000, connections=100))
    with in_process(service) as server:
        head = b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        others = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for other in others:
            other.sendall(head + b"Content-Length: 2000000\r\n\r\n" + b" " * 999_000)
        wait_for(lambda: service.bodies.held >= 4 * 990_000)
        assert server.ask("POST", "/v1/forecast", PAIR).status == 200
        assert server.ask("POST", "/v1/forecast", PAIR | {"prompt": "x" * 100_000}).status == 429
        for other in others:
            other.close()


@pytest.mark.parametrize("size", [1_000_000, 14_000_000])
def test_too_many_large_bodies_are_refused_with_an_answer(size: int) -> None:
    """And never with a reset, though their clients read nothing before all is sent."""
    service = Service(load_forecaster("surface"), limits=Limits(buffered_bytes=1_500_000, connections=64))
    body = json.dumps(PAIR).encode() + b" " * size

    def asked(number: int) -> int:
        return server.ask("POST", "/v1/forecast", body).status

    with in_process(service) as server, ThreadPoolExecutor(12) as clients:
        found = Counter(clients.map(asked, range(24)))
    assert set(found) <= {200, 429}
    assert found[429] > 0


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/nothing", {}, 404),
        ("/health", {}, 405),
        ("/v1/forecast", {"Content-Type": "text/plain"}, 415),
        ("/v1/forecast", {"Host": "elsewhere"}, 421),
    ],
)
def test_a_refusal_reaches_a_client_that_still_sends(path: str, headers: dict[str, str], status: int) -> None:
    with in_process(Service(load_forecaster("surface"))) as server:
        for _ in range(4):
            assert server.ask("POST", path, b" " * 12_000_000, headers).status == status


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(json.dumps(asyncio.run(load(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))))
