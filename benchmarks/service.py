"""What the service costs: python benchmarks/service.py [--data train.csv.gz]

Prints pairs a second of `prefcast predict` and, in turns with it, of `prefcast serve` at 1, 8 and 32 clients. Each client
asks for a pair, waits for the answer and asks again; the clients are a process of their own and keep their connections
open. The server runs in three ways: with batching across clients, without the wait for more pairs (--wait 0), and without
batching (--batch 1). Neither side uses the evidence store. Prints also the median and the 99th percentile of the latencies,
and the server's CPU seconds a pair, which count where other work shares the machine. The rows are made up, 2,200
characters on average, unless --data names real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from prefcast import Pair, open_pairs
from processes import machine, prefcast
from rows import made_up

WAYS = {"batched": (), "no wait": ("--wait", "0"), "alone": ("--batch", "1", "--wait", "0")}


def offline(model: str, rows: Path, folder: Path) -> tuple[float, float]:
    """Pairs a second of predict, start-up not counted, and CPU seconds a pair, start-up counted."""
    before = os.times()
    command = prefcast("predict", rows, "--model", model, "-o", folder / "out.jsonl", "--no-store", "--log", "json")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    used = os.times()
    finished = json.loads(done.stderr.splitlines()[-1])
    cpu = used.children_user - before.children_user + used.children_system - before.children_system
    return finished["pairs_a_second"], cpu / finished["rows"]


@contextmanager
def server(
    *options: str, environment: Mapping[str, str] | None = None, at: Path | None = None
) -> Iterator[tuple[int, int]]:
    """A server of its own, started in the folder `at`: its port and process id."""
    command = prefcast("serve", "--port", 0, *options)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=at)
    line = process.stderr.readline() if process.stderr else ""
    found = re.search(r":(\d+) ", line)
    if found is None:
        raise SystemExit(line)
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # noqa: S607
    try:
        yield int(found[1]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        drain.wait()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pairs_served(port: int) -> float:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(r"^prefcast_items_total{.*} (\S+)$", text, re.MULTILINE))


async def ask(port: int, bodies: list[bytes], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Pairs a second, and the latencies, of clients that ask and wait in turn; the first part of the time is not counted."""
    start = time.perf_counter()
    begin, end = start + seconds / 5, start + seconds
    latencies: list[float] = []
    turn = iter(range(10**9))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (sent := time.perf_counter()) < end:
            body = bodies[next(turn) % len(bodies)]
            writer.write(
                b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % len(body)
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            await reader.readexactly(length)
            if begin < (now := time.perf_counter()) <= end:
                latencies.append(now - sent)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(latencies) / (end - begin), latencies


def clients(port: int, rows: Path, count: int, seconds: float) -> tuple[float, list[float]]:
    """`ask` from a process of its own."""
    command = [sys.executable, __file__, "--ask", str(port), str(rows), str(count), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rate, latencies = json.loads(done.stdout)
    return rate, latencies


def bodies_of(path: Path) -> list[bytes]:
    with open_pairs(path) as file:
        pairs = [pair for pair in file if isinstance(pair, Pair)]
    names = ("prompt", "response_a", "response_b")
    return [json.dumps({name: list(getattr(pair, name)) for name in names}).encode() for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--ask", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        port, rows, count, seconds = arguments.ask
        print(json.dumps(asyncio.run(ask(int(port), bodies_of(Path(rows)), int(count), float(seconds)))))
        return
    print(f"{machine()}; {arguments.model}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = arguments.data or made_up(folder / "rows.jsonl", arguments.rows)
        bases = [offline(arguments.model, rows, folder)]
        found: dict[tuple[int, str], list[tuple[float, float, float, list[float]]]] = {}
        for _ in range(arguments.rounds):
            for count in arguments.clients:
                for way in arguments.ways:
                    with server("--model", arguments.model, "--no-store", *WAYS[way]) as (port, pid):
                        before = cpu_seconds(pid)
                        rate, latencies = clients(port, rows, count, arguments.seconds)
                        cost = (cpu_seconds(pid) - before) / pairs_served(port)
                    # What else the machine does changes: the runs before and after are what it could have done.
                    bases.append(offline(arguments.model, rows, folder))
                    share = rate / statistics.mean(base for base, _ in bases[-2:])
                    found.setdefault((count, way), []).append((rate, share, cost, latencies))
    rate, cost = (statistics.median(part) for part in zip(*bases, strict=True))
    print(
        f"predict: {rate:.1f} pairs a second, {1000 * cost:.1f} ms of CPU a pair, start-up included (n = {len(bases)})"
    )
    print("clients  batching   pairs/s  of predict  CPU ms/pair   p50 ms   p99 ms")
    for (count, way), runs in found.items():
        rate, share, cost = (statistics.median(column) for column in zip(*(run[:3] for run in runs), strict=True))
        ordered = sorted(latency for run in runs for latency in run[3])
        middle, most = (1000 * ordered[int(part * (len(ordered) - 1))] for part in (0.5, 0.99))
        print(f"{count:7}  {way:8}  {rate:8.1f}  {share:9.0%}  {1000 * cost:11.1f}  {middle:7.0f}  {most:7.0f}")
    shares = [round(run[1], 2) for run in next(reversed(found.values()))]
    print(f"of predict, each round of the last line: {shares}")


if __name__ == "__main__":
    main()
