"""Rewards and length, and what rewards cost: python benchmarks/rewards.py [--data DIR].

Three parts. Simulated trainings: how often the warning about length comes, by the correlation that was planted. Simulated
corrections: what residualising takes out and what it leaves. On labelled pairs (DIR/*.csv, otherwise the example pairs): how
far people's votes and the shipped forecasters follow the length of answers, each pair as a group of two; and the seconds of one
step of 8 prompts with 8 answers each.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast import Outcome, Pair, load_forecaster, read_pairs, rewards
from prefcast.service.rewards.lengths import LOOKS, Sums, doublings, looks_of
from prefcast.service.rewards.monitor import Monitor

Floats = NDArray[np.float64]
EXAMPLES = Path(__file__).parent.parent / "examples" / "pairs.csv"
# The standard deviation of log2(length) within a group.
SPREAD, SIZE, REPEATS = 0.6, 8, 20
# What a person's vote says of A, and of B.
SAID = {Outcome.A: (1.0, 0.0), Outcome.B: (0.0, 1.0), Outcome.TIE: (0.5, 0.5)}


class Simulated:
    """Steps of a training: the reward is the quality and a bias for length, which is independent of the quality."""

    def __init__(self, correlation: float, groups: int, steps: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shape = (steps, groups, SIZE)
        length = rng.normal(size=(steps, groups, 1)) + SPREAD * rng.normal(size=shape)
        self.texts = [["a" * round(1000 * 2**each) for each in row] for row in length.reshape(steps, -1)]
        self.length: Floats = np.array([[doublings(len(text)) for text in row] for row in self.texts]).reshape(shape)
        self.quality: Floats = rng.normal(size=shape)
        self.rewards: Floats = self.quality + correlation / np.sqrt(1 - correlation**2) / SPREAD * self.length

    def through(self, monitor: Monitor) -> tuple[Floats, int | None]:
        """The rewards that the monitor returns, and the step of its first warning."""
        heard: list[int] = []
        handler = logging.Handler()
        handler.emit = lambda record: heard.append(len(monitor.steps))  # type: ignore[method-assign]
        log = logging.getLogger("prefcast")
        log.addHandler(handler)
        steps, groups, _ = self.length.shape
        keys = [[f"{step} {group}".encode() for group in range(groups) for _ in range(SIZE)] for step in range(steps)]
        rows = zip(keys, self.texts, self.rewards.reshape(steps, -1).tolist(), strict=True)
        out = np.array([monitor.step(*row) for row in rows]).reshape(self.length.shape)
        log.removeHandler(handler)
        return out, heard[0] if heard else None


def within(values: Floats) -> Floats:
    centred: Floats = values - values.mean(axis=-1, keepdims=True)
    return centred.ravel()


def warnings(groups: int) -> None:
    for correlation in (0.0, 0.3, 0.5, 0.6, 0.7, 0.9):
        steps = 100 if correlation < 0.5 else 20
        found = [Simulated(correlation, groups, steps, seed).through(Monitor("m"))[1] for seed in range(REPEATS)]
        at = sorted(step for step in found if step is not None)
        span = f", at step {at[0]} to {at[-1]}" if at else ""
        print(f"  correlation {correlation}: a warning in {len(at)} of {REPEATS} trainings of {steps} steps{span}")


def corrections(groups: int) -> None:
    for correlation in (0.0, 0.5, 0.7, 0.9):
        rows = []
        for seed in range(REPEATS):
            made = Simulated(correlation, groups, 20, seed)
            after = within(made.through(Monitor("m", residualise=True))[0])
            length, quality, before = map(within, (made.length, made.quality, made.rewards))
            rows.append(
                (
                    np.corrcoef(length, before)[0, 1],
                    np.corrcoef(length, after)[0, 1],
                    after @ quality / (quality @ quality),
                    np.corrcoef(quality, before)[0, 1],
                    np.corrcoef(quality, after)[0, 1],
                )
            )
        mean, low, high = np.mean(rows, axis=0), np.min(rows, axis=0), np.max(rows, axis=0)
        print(
            f"  planted {correlation}: correlation with length {mean[0]:.2f} -> {mean[1]:.3f} [{low[1]:.3f}, {high[1]:.3f}]; coefficient of "
            f"quality {mean[2]:.3f} [{low[2]:.3f}, {high[2]:.3f}]; correlation with quality {mean[3]:.2f} -> {mean[4]:.3f} (least {low[4]:.3f})"
        )


def on_pairs(pairs: list[Pair]) -> None:
    groups = [number for number in range(len(pairs)) for _ in range(2)]
    answers = [text for pair in pairs for text in ("\n\n".join(pair.response_a), "\n\n".join(pair.response_b))]
    looks = np.array([looks_of(answer) for answer in answers])
    told: dict[str, Any] = {"people's votes": [SAID[pair.outcome] for pair in pairs if pair.outcome is not None]}
    for name in ("embedded", "surface"):
        p = load_forecaster(name).forecast(pairs).probabilities
        told[name] = np.column_stack([p[:, 0] + p[:, 2] / 2, p[:, 1] + p[:, 2] / 2])
    for name, both in told.items():
        sums = Sums.of(groups, looks, np.array(both).ravel())
        found = [sums.correlation(place) for place in range(len(LOOKS))]
        shown = ", ".join(
            f"{look} {each.value:.2f} [{each.low:.2f}, {each.high:.2f}]"
            for look, each in zip(LOOKS, found, strict=True)
        )
        slope = sums.slope()
        print(
            f"  {name}, {len(pairs)} pairs: {shown}; a doubling is worth {slope.value:.3f} [{slope.low:.3f}, {slope.high:.3f}]"
        )


def cost(pairs: list[Pair], repeats: int) -> None:
    single = [pair for pair in pairs if len(pair.turns) == 1]
    rng = np.random.default_rng(0)
    prompts = [single[place].prompt[0] for place in range(SIZE) for _ in range(SIZE)]
    for name in ("surface", "embedded"):
        function, seconds, characters = rewards.trl(name), [], []
        for _ in range(repeats + 1):
            completions = [single[place].response_a[0] for place in rng.integers(0, len(single), SIZE * SIZE)]
            start = time.perf_counter()
            function(prompts=prompts, completions=completions)
            seconds.append(time.perf_counter() - start)
            characters.append(float(np.mean([len(text) for text in completions])))
        # The first step loads the model.
        print(
            f"  {name}: a step of 64 samples of {np.mean(characters):.0f} characters, 224 pairs, takes {np.median(seconds[1:]):.2f} s "
            f"({min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}; {repeats} steps)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder of labelled pairs, *.csv")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps")
    args = parser.parse_args()
    logging.getLogger("prefcast").propagate = False
    for groups in (8, 2, 1):
        print(f"{groups} group(s) of {SIZE} a step")
        warnings(groups)
        corrections(groups)
    paths = [EXAMPLES] if args.data is None else sorted(Path(args.data).glob("*.csv"))
    pairs = [pair for path in paths for pair in read_pairs(path)]
    print("votes and shipped forecasters")
    on_pairs(pairs)
    print("cost of a step")
    cost(pairs, args.repeats)


if __name__ == "__main__":
    main()
