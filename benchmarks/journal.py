"""What a journal costs: python benchmarks/journal.py --rows 1000000

Prints the commit of a piece as SQLite and as Parquet parts, CPU and wall-clock seconds of `prefcast predict` with and
without a journal, in turns, and the peak memory for a few and for all rows. CPU seconds count where other work shares the
machine. The rows are made up: 2,200 characters on average, as real pairs have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
from prefcast.runs.journal import Entry, Journal
from prefcast.runs.packed import digest_of, pack

from prefcast import load_forecaster, open_pairs
from prefcast.runs.jobs import forecasting

_PROGRAM = """
import json, resource, sys, time, prefcast.cli
sys.argv = ["prefcast", *sys.argv[1:]]
start = time.perf_counter()
try:
    prefcast.cli.main()
except SystemExit as end:
    assert not end.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def write(path: Path, rows: int) -> Path:
    generator = random.Random(1)  # noqa: S311
    words = ["the", "a", "model", "answers", "people", "what", "they", "ask", "and", "says", "why,", "in", "lines."]
    text = " ".join(generator.choices(words, k=200_000))
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            texts = []
            for size in (200, 1000, 1000):
                begin = generator.randrange(len(text) - 2 * size)
                texts.append([text[begin : begin + generator.randrange(2 * size)]])
            row = {"id": number, **dict(zip(("prompt", "response_a", "response_b"), texts, strict=True))}
            file.write(json.dumps(row) + "\n")
    return path


def program(*arguments: str | Path) -> tuple[float, float, float]:
    """Wall-clock seconds, CPU seconds and peak MB of a `prefcast` process."""
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wall, cpu, peak = json.loads(out.splitlines()[-1])
    return wall, cpu, peak


def commits(folder: Path, source: Path, pieces: int) -> None:
    """Milliseconds of CPU and bytes a piece, either way."""
    job = forecasting(load_forecaster("surface"))
    with open_pairs(source) as file:
        chunk = next(pieces(file))
    packed, digest = pack(job.score(chunk)), digest_of(chunk)
    room = folder / "parts"
    room.mkdir()
    journal = Journal(folder / "j", {})

    def sqlite(number: int) -> None:
        journal.put(Entry(number, 1, len(chunk), digest, packed))

    def parquet(number: int) -> None:
        table = pyarrow.table({"digest": [digest], "payload": [packed]})
        pyarrow.parquet.write_table(table, room / "part", compression="none")
        (room / "part").rename(room / f"{number}.parquet")

    def packing(number: int) -> None:
        digest_of(chunk)
        pack(piece)

    piece = job.score(chunk)
    for name, action in (("SQLite, WAL", sqlite), ("Parquet parts", parquet), ("digest and packing", packing)):
        start, begin = time.process_time(), time.perf_counter()
        for number in range(pieces):
            action(number)
        cpu, wall = time.process_time() - start, time.perf_counter() - begin
        print(f"{name:20} {1000 * cpu / pieces:6.2f} ms of CPU, {1000 * wall / pieces:6.2f} ms a piece of {len(chunk)}")
    print(f"{len(packed)} bytes a piece; {pieces} Parquet parts are {pieces} files")
    journal.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        few, many = write(folder / "few.jsonl", options.few), write(folder / "many.jsonl", options.rows)
        commits(folder, few, 2000)
        found: dict[str, list[tuple[float, float, float]]] = {"--journal": [], "--no-journal": []}
        for _ in range(options.runs):
            for way, results in found.items():
                results.append(program("predict", many, "--model", "surface", "-o", folder / "o.csv", way))
        for way, results in found.items():
            wall, cpu, peak = (statistics.median(column) for column in zip(*results, strict=True))
            print(
                f"{way:13} {options.rows} rows: {wall:8.1f} s, {cpu:8.1f} s of CPU, {peak:.0f} MB (medians of {options.runs})"
            )
        print("CPU with a journal over CPU without, turn by turn:", end=" ")
        pairs = zip(found["--journal"], found["--no-journal"], strict=True)
        print(", ".join(f"{with_[1] / without[1]:.3f}" for with_, without in pairs))
        peak = program("predict", few, "--model", "surface", "-o", folder / "o.csv")[2]
        identifiers = 16 * (options.rows - options.few) / 2**20
        most = max(result[2] for result in found["--journal"])
        print(
            f"peak memory: {peak:.0f} MB for {options.few} rows, {most:.0f} MB for {options.rows} ({identifiers:.0f} MB of it ids)"
        )


if __name__ == "__main__":
    main()
