"""Do the intervals of `rank` hold where there are votes on a sample of the rows and forecasts of all?

    python benchmarks/ranking.py [--repeats 500] [--errors 0 1.5 -1.5]

Five systems, 1,000 rows between them, and a forecaster that misjudges whole systems: the first by the error, the last by half of it
in the other direction, on the logit scale. Votes on 50, 100 and 200 rows, drawn uniformly and as `prefcast label` draws them. The
truth is the ratings of 400,000 votes. Writes Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.ranking.boards import Settings
from prefcast.measuring.ranking.cells import FORECAST, GUESS, VOTE, Votes
from prefcast.measuring.ranking.finite import check_finite
from prefcast.measuring.ranking.powered import powered
from prefcast.measuring.ranking.rated import rated
from prefcast.measuring.sampling import draw

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRENGTHS = np.array([0.8, 0.4, 0.0, -0.4, -0.8])
MODELS = tuple("abcde")
ROWS = 1000
NU = 0.8


def shares(strength: Floats) -> Floats:
    """Davidson's probabilities (n, 3) of A, B and a tie, for log odds (n,) of A against B."""
    odds = np.stack([np.exp(strength / 2), np.exp(-strength / 2), np.full(len(strength), NU)], axis=1)
    found: Floats = odds / odds.sum(axis=1, keepdims=True)
    return found


def world(rng: np.random.Generator, rows: int, error: float) -> tuple[Ints, Ints, Ints, Floats]:
    """The models A and B of each row (n,), votes (n,) and forecasts (n, 3)."""
    left, right = np.triu_indices(len(MODELS), 1)
    pair = rng.integers(0, len(left), rows)
    left, right = left[pair], right[pair]
    bias = error * np.array([1, 0, 0, 0, -0.5])
    truth = STRENGTHS[left] - STRENGTHS[right] + rng.standard_normal(rows)
    votes = (rng.random(rows)[:, None] > shares(truth).cumsum(axis=1)[:, :2]).sum(axis=1)
    return left, right, votes, shares(0.6 * truth + rng.standard_normal(rows) + bias[left] - bias[right])


def sums(left: Ints, right: Ints, parts: list[tuple[int, Ints, Floats]]) -> Votes:
    """`parts` are (kind, rows, weights (rows, 3)); each row is a group."""
    keys, groups = [], []
    for kind, rows, _ in parts:
        for which in range(3):
            keys.append(((left[rows] * 8 + right[rows]) * 4 + kind) * 4 + which)
            groups.append(rows)
    weight = np.concatenate([weights[:, which] for _, _, weights in parts for which in range(3)])
    kept = weight > 0
    found, cell = np.unique(np.concatenate(keys)[kept], return_inverse=True)
    left_of, right_of, outcome, kind_of = found >> 7, found >> 4 & 7, found & 3, found >> 2 & 3
    group = np.concatenate(groups)[kept]
    order = np.lexsort((cell, group))
    places, group = np.unique(group[order], return_inverse=True)
    source = "both" if len(parts) > 1 else "votes"
    return Votes(
        models=MODELS,
        left=left_of,
        right=right_of,
        outcome=outcome,
        kind=kind_of,
        group=group,
        cell=cell[order],
        weight=weight[kept][order],
        n=0,
        groups=len(places),
        resampled="rows",
        source=source,
        failed=0,
        unlabelled=0,
        faults=0,
        first_fault=None,
    )


def simulated(repeats: int, errors: Sequence[float] = (0.0, 1.5, -1.5)) -> Iterator[str]:
    """A row for each setting: how often the intervals hold the truth, and their width beside that of votes alone."""
    settings = Settings(repeats=1)
    for error in errors:
        left, right, votes, _ = world(np.random.default_rng(99), 400_000, error)
        every = np.arange(len(left))
        whole = sums(left, right, [(VOTE, every, np.eye(3)[votes])])
        truth = rated(whole, settings).ratings
        for planned in (False, True):
            for n in (50, 100, 200):
                rng = np.random.default_rng(n)
                held, held_alone, width, alone, weight, infinite = 0.0, 0.0, 0.0, 0.0, 0.0, 0
                for seed in range(repeats):
                    left, right, votes, forecasts = world(rng, ROWS, error)
                    sample = draw([str(row) for row in range(ROWS)], forecasts, n, seed=seed, uniform=not planned)
                    rows = np.sort(sample.places)
                    w = 1 / sample.inclusion[rows]
                    w *= len(rows) / w.sum()
                    said = (VOTE, rows, np.eye(3)[votes[rows]] * w[:, None])
                    guess, all_of = (GUESS, rows, forecasts[rows] * w[:, None]), (FORECAST, np.arange(ROWS), forecasts)
                    given = sums(left, right, [said, guess, all_of])
                    try:
                        check_finite(given.of(VOTE), given.of(VOTE), halve=False, prior=False)
                    except Exception:
                        infinite += 1
                        continue
                    found = powered(given, settings)
                    held += ((found.rated.low <= truth) & (truth <= found.rated.high)).mean()
                    held_alone += ((found.alone.low <= truth) & (truth <= found.alone.high)).mean()
                    width += (found.rated.high - found.rated.low).mean()
                    alone += (found.alone.high - found.alone.low).mean()
                    weight += found.weight
                done = repeats - infinite
                yield (
                    f"| {error:+.1f} | {'planned' if planned else 'uniform'} | {n} | {held / done:.1%} | {held_alone / done:.1%} | "
                    f"{width / done:.0f} | {alone / done:.0f} | {weight / done:.2f} | {infinite} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--errors", type=float, nargs="+", default=[0.0, 1.5, -1.5])
    asked = parser.parse_args()
    print(
        "| error | sample | votes | intervals hold | votes alone hold | width | width of votes alone | lambda | no rating |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for line in simulated(asked.repeats, asked.errors):
        print(line, flush=True)


if __name__ == "__main__":
    main()
