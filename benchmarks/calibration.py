"""Does the interval of the calibration error hold 0 for calibrated forecasts, and do the two tests have the size that they say?

    python benchmarks/calibration.py --rows 100 500 2000 --repeats 300

Labels are drawn from known probabilities. A line has the share of the repeats in which the interval holds 0, in which it holds the
true error, and in which each test rejects at 5 %. `calibrated`: the forecasts are the probabilities, so a test rejects in 5 %.
`too sure`: the forecasts are 1.6 times too sure of themselves. `ties`: they give too few ties. `votes`: calibrated, three votes on
each pair. `prompts`: calibrated, and five pairs of each prompt have the same label. It needs about 0.05 s a repeat.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.outcomes.models import Davidson

Floats = NDArray[np.float64]

KINDS = ("calibrated", "too sure", "ties", "votes", "prompts")
# How far forecasts are from equal chances: skewed ones are often near 0 or 1.
SPREADS = {"even": 1.0, "skewed": 4.0}


def forecasts_of(truth: Floats, kind: str) -> Floats:
    """What is forecast where these are the probabilities (n, 3)."""
    logs = np.log(truth)
    if kind == "too sure":
        logs = 1.6 * logs
    elif kind == "ties":
        logs = logs - np.array([0.0, 0.0, 0.4])
    odds = np.exp(logs)
    p: Floats = odds / odds.sum(axis=1, keepdims=True)
    return p


def true_error(p: Floats, truth: Floats) -> float:
    """The calibration error of forecasts of very many rows."""
    error = 0.0
    for outcome in range(3):
        order = np.argsort(p[:, outcome])
        error += sum(abs(float((truth - p)[part, outcome].sum())) for part in np.array_split(order, 10))
    return error / p.size


def drawn(rng: np.random.Generator, truth: Floats, kind: str) -> dict[str, Any]:
    """Outcomes, and groups of rows, for forecasts of rows with these probabilities."""
    if kind == "votes":
        return {"outcomes": np.array([rng.multinomial(3, row) for row in truth])}
    groups = np.arange(len(truth)) // (5 if kind == "prompts" else 1)
    u = rng.random(int(groups.max()) + 1)[groups]
    outcomes = (u[:, None] > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return {"outcomes": outcomes, "groups": groups.tolist() if kind == "prompts" else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    head = ("forecasts", "spread", "rows", "true error", "holds 0", "holds the truth", "bins reject", "slope rejects")
    print("  ".join(f"{name:>15}" for name in head))
    for kind in given.kinds:
        for spread, scale in SPREADS.items():
            rng = np.random.default_rng(given.seed)
            every = Davidson(1.0, -0.3).probabilities(rng.normal(size=100_000) * scale)
            truth = true_error(forecasts_of(every, kind), every)
            for n in given.rows:
                counts = np.zeros(4)
                for repeat in range(given.repeats):
                    rows = rng.integers(0, len(every), n)
                    if kind == "prompts":
                        rows = rows[np.arange(n) // 5]
                    said = drawn(rng, every[rows], kind)
                    # Only votes and groups of rows need the bootstrap here.
                    repeats = 200 if kind in ("votes", "prompts") else 10
                    p = forecasts_of(every[rows], kind)
                    scores = evaluate_probabilities(p, repeats=repeats, seed=repeat, **said).scores
                    error, test = scores.expected_calibration_error, scores.calibration_test
                    counts += [
                        error.low == 0,
                        error.low <= truth <= error.high,
                        scores.calibration_p_value < 0.05,
                        test is not None and test.p_value < 0.05,
                    ]
                shares = [f"{share:.3f}" for share in counts / given.repeats]
                print("  ".join(f"{each:>15}" for each in (kind, spread, str(n), f"{truth:.4f}", *shares)), flush=True)


if __name__ == "__main__":
    main()
