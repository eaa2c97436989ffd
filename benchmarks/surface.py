"""Speed and memory of the built-in forecasters, as whole processes: make bench DATA=../shared/data

Prints pairs a second of `prefcast predict` over all train files as one file (start-up included) and of each part of the
work, as medians of several runs, and the peak memory for 10,000 and 200,000 rows. Nothing is kept in the evidence store.
Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefcast import load_forecaster, read_pairs
from prefcast.forecasts.predictions import Forecasts, open_writer
from prefcast.pairs.pieces import pieces
from prefcast.runs.jobs import predict_to
from processes import machine, median, prefcast, run
from rows import numbered, real, write


def median_seconds(action: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class _Nowhere:
    def write(self, forecasts: Any) -> None:
        pass


def whole(folder: Path, rows: int, source: Path, runs: int) -> None:
    """`prefcast predict` and `prefcast --help` as processes of their own."""
    for model in ("surface", "length"):
        for ending in (".csv", ".jsonl", ".parquet"):
            command = prefcast("predict", source, "--model", model, "--no-store", "-o", folder / f"o{ending}")
            rate = rows / median([run(command) for _ in range(runs)]).seconds
            print(f"prefcast predict --model {model:8} -o {ending:9} {rate:8.0f} pairs a second, start-up included")
    print(f"prefcast --help: {median([run(prefcast('--help')) for _ in range(11)]).seconds:.2f} s (of 11)", flush=True)


def memory(folder: Path, data: Path, few: int, many: int) -> None:
    """The peak memory of `surface` for a few and for many rows."""
    peaks = {}
    for rows in (few, many):
        write(folder / "rows.csv", numbered(rows, data))
        command = prefcast("predict", folder / "rows.csv", "--model", "surface", "--no-store", "-o", folder / "o.csv")
        peaks[rows] = run(command).memory
        print(f"peak memory for {rows:7} rows: {peaks[rows]:.0f} MB")
    identifiers = 16 * (many - few) / 2**20
    print(f"ratio, without {identifiers:.1f} MB for ids: {(peaks[many] - identifiers) / peaks[few]:.3f}", flush=True)


def parts(folder: Path, source: Path, runs: int) -> None:
    """The parts of the way from a file to a file, in this process."""
    pairs = list(read_pairs(source))
    print(f"{len(pairs)} pairs of {sum(pair.characters for pair in pairs) / len(pairs):.0f} characters on average")
    surface, length = load_forecaster("surface"), load_forecaster("length")
    made = [length.forecast(piece) for piece in pieces(pairs)]
    ways: list[tuple[str, Callable[[], object]]] = [
        ("reading", lambda: sum(1 for _ in read_pairs(source))),
        ("budget, features, evidence, link", lambda: predict_to(_Nowhere(), pairs, surface)),
        ("writing .csv", lambda: write_all(folder / "w.csv", made)),
    ]
    for name, action in ways:
        print(f"{name:42} {len(pairs) / median_seconds(action, runs):8.0f} pairs a second", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/*.csv.gz")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs=2, default=(10_000, 200_000), help="for the peak memory")
    parser.add_argument("--most", type=int, help="take so many rows of the files at most")
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.runs} runs", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "all.csv"
        count = write(source, itertools.islice(real(options.data), options.most))
        whole(folder, count, source, options.runs)
        memory(folder, options.data, *options.rows)
        parts(folder, source, options.runs)


def write_all(path: Path, made: list[Forecasts]) -> None:
    with open_writer(path) as writer:
        for forecasts in made:
            writer.write(forecasts)


if __name__ == "__main__":
    main()
