"""The service under more load than it can serve, and told to stop in the middle of it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from servers import PAIR, Server, serving

# How long the load lasts in `make test` and in `make test-long`.
SECONDS, LONG_SECONDS = 12, 600
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
        async with asyncio.timeout(120):
            while answered[200] <= 24:
                await asyncio.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), 60)

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
        assert server.ask("GET", "/ready").status == 200


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


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(json.dumps(asyncio.run(load(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))))
