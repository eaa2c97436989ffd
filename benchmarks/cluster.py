"""How much faster two Ray actors are than one, for `embedded` with one thread each: python benchmarks/cluster.py

In turns, the same made-up rows go through `prefcast predict --engine ray` with one and with two actors. The rate is that of the
steady state: the clock starts when as many pieces as there are actors have come, and stops before the last of each. So neither
the start of cluster and actors nor loading the model counts. Prints each turn and the medians. Run it with nothing else
running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from processes import machine, prefcast
from rows import made_up


def rate(pairs: Path, output: Path, actors: int) -> tuple[float, float]:
    """Pairs a second in the steady state, and seconds in all."""
    command = prefcast("predict", pairs, "-o", output, "--model", "embedded", "--no-store", "--log", "json")
    command += ["--engine", "ray", "--actors", str(actors), "--cpus-per-actor", "1"]
    start = time.perf_counter()
    came: list[tuple[float, int]] = []
    last = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # noqa: S101 - for the type checker
        for line in process.stderr:
            last = line
            # Ray writes lines of its own.
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "piece":
                came.append((time.perf_counter(), event["rows"]))
    if process.returncode:
        raise SystemExit(f"prefcast ended with status {process.returncode}: {last.strip()}")
    # From when each actor has given its first piece, to when one may have no more to do.
    begin, end = actors, len(came) - actors
    if end <= begin:
        raise SystemExit("too few rows for a steady state: --rows")
    rows = sum(count for _, count in came[begin:end])
    return rows / (came[end - 1][0] - came[begin - 1][0]), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}; {options.rows} rows", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        pairs = made_up(Path(scratch) / "pairs.jsonl", options.rows)
        found: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(options.turns):
            for actors, rates in found.items():
                steady, seconds = rate(pairs, Path(scratch) / "out.csv", actors)
                rates.append(steady)
                print(
                    f"turn {turn + 1}, {actors} actors: {steady:6.1f} pairs a second, {seconds:.0f} s in all",
                    flush=True,
                )
        one, two = (statistics.median(found[actors]) for actors in (1, 2))
        print(
            f"medians of {options.turns}: 1 actor {one:.1f}, 2 actors {two:.1f} pairs a second: {two / one:.2f} times"
        )


if __name__ == "__main__":
    main()
