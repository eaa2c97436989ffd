"""Calibration of a simulated judge: python benchmarks/judges.py [--repeats 100].

A judge of known habits (it trusts itself too much, prefers what it reads first and what is longer, and hardly ever calls a
tie) stands behind the strict fake of OpenAI's API. People's probabilities are known too, so that the best possible log loss
is known. Each repeat draws people's labels of 300 pairs, fits a forecaster with `fit`, and measures it on fresh pairs
against the true probabilities.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast import Outcome, Pair, Running, fit
from prefcast.outcomes.models import Davidson
from prefcast.runs.ready import ready
from prefcast.scorers.judge import Options
from prefcast.testing.judges import FakeJudge, SimulatedJudge

Floats = NDArray[np.float64]

LABELS, POOL, FRESH = 300, 1500, 3000
# People: log-odds for A, and a tie's weight beside the geometric mean of A and B.
SCALE, LENGTH, TIE = 1.2, 0.15, -0.4


def quality(text: str) -> float:
    """The quality of a made answer stands at its beginning."""
    return float(text.split(" ", 1)[0])


JUDGE = SimulatedJudge(quality, scale=2.5, position=0.8, length=0.6, tie=-2.0, tie_slope=0.2, other=0.01)


def made_pairs(n: int, rng: np.random.Generator, start: int) -> list[Pair]:
    """Pairs of answers of chance quality and length."""

    def answer() -> str:
        return f"{rng.normal():+.3f} " + "word " * int(1 + 20 * rng.lognormal(0.0, 0.7))

    return [Pair.of(f"Question {start + number}?", answer(), answer(), id=start + number) for number in range(n)]


def truth(pairs: list[Pair]) -> Floats:
    """People's probabilities (n, 3)."""
    rows = []
    for pair in pairs:
        a, b = pair.response_a[0], pair.response_b[0]
        rows.append(SCALE * (quality(a) - quality(b)) + LENGTH * math.log((1 + len(a)) / (1 + len(b))))
    s = np.array(rows)
    return Davidson(1.0, TIE, 0.0).probabilities(s, np.zeros(len(s)))


def said(margin_a: Floats, margin_b: Floats, tie: Floats) -> Floats:
    """The judge's own probabilities (n, 3), the mean of both orders, as if people meant what it says."""
    parts = [np.stack([side / 2, -side / 2, tie], axis=1) for side in (margin_a, margin_b)]
    probabilities: Floats = sum(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in parts) / 2
    return probabilities


def loss(p: Floats, q: Floats) -> float:
    """The expected log loss of the forecasts q where p is true."""
    return float(-(p * np.log(q)).sum(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(17)
    pool, fresh = made_pairs(POOL, rng, 0), made_pairs(FRESH, rng, POOL)
    true_pool, true = truth(pool), truth(fresh)
    best = loss(true, true)
    after, chosen = [], dict[str, int]()
    with tempfile.TemporaryDirectory() as room, FakeJudge(JUDGE) as fake:
        os.environ["OPENAI_API_KEY"] = fake.key
        running = Running(Path(room) / "store.sqlite")
        name, options = f"judge:{fake.url}#{fake.model}", Options(concurrency=4)
        before = math.nan
        for repeat in range(repeats):
            labelled = [
                replace(pool[index], outcome=Outcome(rng.choice(3, p=true_pool[index])))
                for index in rng.choice(POOL, LABELS, replace=False)
            ]
            fitted = fit(labelled, model=name, options=options, running=running)
            chosen[fitted.fit.chosen] = chosen.get(fitted.fit.chosen, 0) + 1
            with ready(fitted.forecaster, running) as forecaster:
                found = forecaster.forecast(fresh)
            after.append(loss(true, found.probabilities) - best)
            if repeat == 0 and found.evidence is not None:
                raw = {
                    each: found.evidence[each] for each in found.evidence if not each.startswith(("margin:", "tie:"))
                }
                if "margin_a" in raw:
                    before = loss(true, said(raw["margin_a"], raw["margin_b"], found.tie))
                    print(f"position {raw['position'].mean():+.3f}, uncovered {raw['uncovered'].mean():.3f}")
        requests, read, written = fake.answered, fake.read, fake.written
    excess = np.array(after)
    error = excess.std(ddof=1) / math.sqrt(len(excess)) if len(excess) > 1 else math.nan
    prior = np.tile(true.mean(axis=0), (len(true), 1))
    print(f"{LABELS} labels, {repeats} repeats, {FRESH} fresh pairs; {requests} requests, {read} + {written} tokens")
    print(f"class prior {loss(true, prior):.4f}")
    print(f"before the fit {before:.4f}")
    print(f"after the fit {best + excess.mean():.4f}, best possible {best:.4f}")
    print(f"excess {excess.mean():.4f} [{excess.mean() - 1.96 * error:.4f}, {excess.mean() + 1.96 * error:.4f}]")
    print(f"repeats within 0.01: {(excess <= 0.01).mean():.0%}; largest {excess.max():.4f}")
    print(f"chosen: {chosen}")


if __name__ == "__main__":
    main()
