"""Speed and memory of the built-in forecasters, as whole processes: make bench DATA=../shared/data

Prints pairs a second of `prefcast predict` over all train files in one (start-up included) and per part of the way, each as the median of
several runs, and the peak memory for 10,000 and 200,000 rows. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prefcast import load_forecaster, read_pairs
from prefcast.forecasts.predictions import Forecasts, open_writer
from prefcast.pairs.pieces import pieces
from prefcast.runs.jobs import predict_to

csv.field_size_limit(2**31 - 1)
_PEAK = """
import resource, sys, prefcast.cli
sys.argv = ["prefcast", *sys.argv[1:]]
try:
    prefcast.cli.main()
except SystemExit as end:
    assert not end.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def rows_of(folder: Path) -> Iterator[list[str]]:
    """The cells id, prompt, response_a, response_b of every train file, ids made unique."""
    for path in sorted(folder.glob("*.csv.gz")):
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file)):
                yield [f"{path.stem}-{number}", row["prompt"], row["response_a"], row["response_b"]]


def write(path: Path, rows: Iterator[list[str]]) -> int:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b"])
        count = 0
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def repeated(folder: Path, count: int) -> Iterator[list[str]]:
    """The first `count` rows of the train files, read again and again under new ids."""
    endless = itertools.chain.from_iterable(rows_of(folder) for _ in itertools.count())
    return ([str(number), *row[1:]] for number, row in enumerate(itertools.islice(endless, count)))


def median_seconds(action: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def program(*arguments: str | Path) -> str:
    command = [sys.executable, "-c", _PEAK, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class _Nowhere:
    def write(self, forecasts: Forecasts) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs=2, default=(10_000, 200_000))
    options = parser.parse_args()
    train = options.data / "train"
    print(
        f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; medians of {options.runs} runs"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "all.csv"
        count = write(source, rows_of(train))
        characters = sum(pair.characters for pair in read_pairs(source))
        print(f"{count} pairs of {characters / count:.0f} characters on average")
        for model in ("surface", "length"):
            for ending in (".csv", ".jsonl", ".parquet"):
                seconds = median_seconds(
                    lambda m=model, e=ending: program("predict", source, "--model", m, "-o", folder / f"o{e}"),
                    options.runs,
                )
                print(
                    f"prefcast predict --model {model:8} -o {ending:9} {count / seconds:8.0f} pairs a second, start-up included"
                )
        pairs = list(read_pairs(source))
        forecaster = load_forecaster()
        made = [load_forecaster("length").forecast(chunk) for chunk in pieces(pairs)]
        parts: list[tuple[str, Callable[[], object]]] = [
            ("reading", lambda: sum(1 for _ in read_pairs(source))),
            ("budget, features, evidence, link", lambda: predict_to(_Nowhere(), pairs, forecaster)),
            ("writing .csv", lambda: write_all(folder / "w.csv", made)),
        ]
        for name, action in parts:
            print(f"{name:42} {count / median_seconds(action, options.runs):8.0f} pairs a second")
        starts = [median_seconds(lambda: program("--help"), 1) for _ in range(11)]
        print(f"prefcast --help: {statistics.median(starts):.2f} s (of 11)")
        few, many = options.rows
        peaks = {}
        for rows in (few, many):
            write(folder / "rows.csv", repeated(train, rows))
            peaks[rows] = int(program("predict", folder / "rows.csv", "-o", folder / "o.csv").splitlines()[-1]) / 1024
            print(f"peak memory for {rows:7} rows: {peaks[rows]:.0f} MB")
        identifiers = 16 * (many - few) / 2**20
        print(f"ratio, {identifiers:.1f} MB for ids apart: {(peaks[many] - identifiers) / peaks[few]:.3f}")


def write_all(path: Path, made: list[Forecasts]) -> None:
    with open_writer(path) as writer:
        for forecasts in made:
            writer.write(forecasts)


if __name__ == "__main__":
    main()
