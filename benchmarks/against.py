"""This checkout beside another one: make bench-against OTHER=DIR, or python benchmarks/against.py DIR

Measures both in one run, in turns, with the same Python and the same rows, without an evidence store: whole processes of
`prefcast predict` (`surface` and `embedded`), `prefcast score` with a random InternLM2 reward model and `prefcast --help`,
and `prefcast serve` at 32 clients. Prints for each figure the median of both, the ratio this/other of the medians, and the
smallest and the largest ratio of a turn. Writes nothing into either checkout. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import service
from checkpoint import Shape, make_checkpoint
from processes import machine, prefcast, run
from rows import made_up, numbered, write

# Whichever of these a command knows: nothing is kept, and nothing is taken from what was kept.
NOTHING_KEPT = ("--no-store", "--no-journal")
# An older one for reward models; other models refuse it.
NO_SCORES_KEPT = "--no-keep-scores"
# About 10 million parameters.
SHAPE = Shape(hidden=384, layers=6, heads=6, keys=2, inner=1152)
HELPS = 5
# What one turn of one part found: the value of each figure.
Figures = dict[str, float]


@dataclass
class Checkout:
    """A folder with prefcast's sources, and how its processes are started: in the folder `room`."""

    folder: Path
    room: Path
    known: dict[str, list[str]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            # Compiled modules go there, not into the checkout; without them every start would compile everything anew.
            "PYTHONPYCACHEPREFIX": str(self.room / "compiled"),
            "PYTHONDONTWRITEBYTECODE": "",
            "XDG_CACHE_HOME": str(self.room / "cache"),
            "PREFCAST_CACHE": str(self.room / "cache"),
        }

    def check(self) -> None:
        """End the benchmark where Python would take prefcast from another folder."""
        code = "import prefcast; print(prefcast.__file__)"
        found = Path(self._said(sys.executable, "-c", code).strip())
        if not found.is_relative_to(self.folder / "src"):
            raise SystemExit(f"{self.folder}: has no src/prefcast; Python takes {found}")

    def nothing_kept(self, verb: str) -> list[str]:
        """The options with which a verb of this checkout keeps nothing."""
        if verb not in self.known:
            text = self._said(*prefcast(verb, "--help"))
            asked = (*NOTHING_KEPT, NO_SCORES_KEPT) if verb == "score" else NOTHING_KEPT
            self.known[verb] = [option for option in asked if re.search(rf"{option}\b", text)]
        return self.known[verb]

    def used(self, *arguments: str | Path | int) -> Figures:
        """What a process of `prefcast` used. A verb keeps nothing."""
        options = [] if str(arguments[0]).startswith("-") else self.nothing_kept(str(arguments[0]))
        found = run(prefcast(*arguments, *options), self.environment, self.room)
        return {"CPU seconds": found.cpu, "seconds": found.seconds}

    def _said(self, *command: str) -> str:
        environment = {**self.environment, "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.room, check=False)
        if done.returncode:
            raise SystemExit(f"{self.folder}: {' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
        return done.stdout


@dataclass(frozen=True)
class Part:
    """Something to measure, in words, and how it is measured for one checkout."""

    name: str
    measure: Callable[[Checkout], Figures]


def predicting(model: str, count: int, folder: Path, data: Path | None) -> Part:
    source = folder / f"{model}.csv"
    write(source, numbered(count, data))
    return Part(
        f"predict --model {model}, {count:,} rows",
        lambda checkout: checkout.used("predict", source, "--model", model, "-o", folder / "out.csv"),
    )


def scoring(count: int, folder: Path, data: Path | None) -> Part:
    source, model = folder / "scored.csv", folder / "random-reward"
    write(source, numbered(count, data))
    model.mkdir()
    make_checkpoint(model, SHAPE)
    return Part(
        f"score, a random reward model, {count:,} rows",
        lambda checkout: checkout.used("score", source, "--model", model, "-o", folder / "scores.csv"),
    )


def serving(model: str, clients: int, seconds: float, folder: Path) -> Part:
    source = made_up(folder / f"{model}.jsonl", 300)

    def measure(checkout: Checkout) -> Figures:
        options = ("--model", model, *checkout.nothing_kept("serve"))
        with service.server(*options, environment=checkout.environment, at=checkout.room) as (port, pid):
            before = service.cpu_seconds(pid)
            rate, _ = service.clients(port, source, clients, seconds)
            cost = (service.cpu_seconds(pid) - before) / service.pairs_served(port)
        return {"pairs a second": rate, "CPU ms a pair": 1000 * cost}

    return Part(f"serve --model {model}, {clients} clients", measure)


def helping() -> Part:
    def measure(checkout: Checkout) -> Figures:
        found = [checkout.used("--help") for _ in range(HELPS)]
        return {name: statistics.median(each[name] for each in found) for name in found[0]}

    return Part(f"--help, {HELPS} times a turn", measure)


def in_turns(part: Part, both: Sequence[Checkout], runs: int) -> tuple[list[Figures], list[Figures]]:
    """What each turn found for both. Who begins changes from turn to turn; a first run of each warms up."""
    found: dict[int, list[Figures]] = {0: [], 1: []}
    for turn in range(-1, runs):
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            figures = part.measure(both[place])
            if turn >= 0:
                found[place].append(figures)
    return found[0], found[1]


def say(part: Part, ours: Sequence[Figures], theirs: Sequence[Figures]) -> None:
    for number, figure in enumerate(ours[0]):
        mine, its = ([each[figure] for each in side] for side in (ours, theirs))
        ratios = [one / another for one, another in zip(mine, its, strict=True)]
        ratio = statistics.median(mine) / statistics.median(its)
        print(
            f"{part.name if not number else '':48}{figure:16}{statistics.median(mine):10.3f}{statistics.median(its):10.3f}"
            f"{ratio:12.3f}{min(ratios):9.3f} to {max(ratios):.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="a folder with src/prefcast")
    parser.add_argument("--this", type=Path, default=Path(__file__).parents[1], help="default: this checkout")
    parser.add_argument("--data", type=Path, help="a folder with train/*.csv.gz [default: the example pairs]")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=20_000, help="rows for surface [default: 20,000]")
    parser.add_argument("--embedded", type=int, default=200, help="rows for embedded [default: 200]")
    parser.add_argument("--scored", type=int, default=100, help="rows for the reward model [default: 100]")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long the clients ask [default: 15]")
    parts = ("help", "surface", "embedded", "score", "serve-surface", "serve-embedded")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="measure these only")
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        both: list[Checkout] = []
        for name, path in (("this", options.this), ("other", options.other)):
            (folder / name).mkdir()
            both.append(Checkout(path.resolve(), folder / name))
            both[-1].check()
            print(f"{name}: {path}")
        print(f"medians of {options.runs} turns; ratio: this over other\n")
        print(f"{'':48}{'':16}{'this':>10}{'other':>10}{'ratio':>12}   each turn")
        ways: dict[str, Callable[[], Part]] = {
            "help": helping,
            "surface": lambda: predicting("surface", options.rows, folder, options.data),
            "embedded": lambda: predicting("embedded", options.embedded, folder, options.data),
            "score": lambda: scoring(options.scored, folder, options.data),
            "serve-surface": lambda: serving("surface", options.clients, options.seconds, folder),
            "serve-embedded": lambda: serving("embedded", options.clients, options.seconds, folder),
        }
        for name in options.parts:
            part = ways[name]()
            say(part, *in_turns(part, both, options.runs))


if __name__ == "__main__":
    main()
