"""Cascades and promises of agreement against a known truth, by simulation: python benchmarks/cascade.py [--repeats 0.1]

Prints how much of the possible gain the fitted rule reaches, how often the reported curve holds for fresh rows, and how often
the promise of agreement is broken. The seeds are fixed. Nothing is written but --json OUT.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prefcast.fitting.cascade import SHARE, fit_cascade
from prefcast.fitting.promises import HELD_OUT, promised
from prefcast.scorers.cascade.rule import features
from simulated_tiers import KINDS, Floats, draw, evidence, expected_gain, losses

LABELS = 1000
FRESH = 20_000
WANTED, CONFIDENCE = 0.6, 0.95


def seeded(*said: int | str) -> np.random.Generator:
    """Random numbers of their own for each trial."""
    return np.random.default_rng([list(KINDS).index(each) if isinstance(each, str) else each for each in said])


def gain_trial(kind: str, labels: int, seed: int) -> tuple[float, float, float, bool]:
    """At the share 0.3: the gain by the rule, by the margin alone and by the oracle, all of as many rows, and whether a
    fitted rule was taken."""
    random = seeded(1, kind, labels, seed)
    found = fit_cascade(evidence(draw(kind, labels, random)), repeats=0)
    fresh = draw(kind, FRESH // 4, random)
    facts, gain = expected_gain(found, fresh, random)
    picked = found.rule.chosen(facts, SHARE)

    def best(scores: Floats) -> float:
        return float(gain[np.argsort(-scores)[: picked.sum()]].sum() / len(gain))

    fitted = len(found.rule.weights) > 1
    # The rows of the same number with the smallest margins: the rule itself, where it is the margin alone.
    margin = best(-facts["size"]) if fitted else float(gain[picked].sum() / len(gain))
    return float(gain[picked].sum() / len(gain)), margin, best(gain), fitted


def curve_trial(kind: str, labels: int, seed: int) -> tuple[bool, bool, float]:
    """Whether the curves of fresh labelled rows lie in the reported bands, of the log loss and of the gain over the first
    tier; and the width of the band of the log loss at the share 0.3."""
    random = seeded(2, kind, labels, seed)
    found = fit_cascade(evidence(draw(kind, labels, random)), repeats=0, seed=seed)
    fresh = draw(kind, FRESH, random)
    first, both = losses(found, fresh.columns, np.eye(3)[fresh.votes])
    facts = features(*found.alone.log_odds(fresh.columns), fresh.columns)
    inside = [True, True]
    for point in found.curve:
        value = float(np.where(found.rule.chosen(facts, point.share), both, first).mean())
        inside[0] &= point.log_loss.low <= value <= point.log_loss.high
        inside[1] &= point.gain.low - 1e-12 <= first.mean() - value <= point.gain.high + 1e-12
    at = next(point for point in found.curve if point.share == SHARE)
    return inside[0], inside[1], at.log_loss.high - at.log_loss.low


def promise_trial(kind: str, labels: int, seed: int) -> tuple[bool, float, float]:
    """Whether the promise is broken for fresh rows, the share of rows that it is about, and the agreement in them (nan
    without any)."""
    random = seeded(3, kind, labels, seed)
    rest, held = evidence(draw(kind, labels, random)).split(HELD_OUT, seed)
    found = fit_cascade(rest, repeats=0)
    names = rest.place

    def read(rows: Floats) -> Floats:
        return found.probabilities({name: rows[:, place] for name, place in names.items()})

    promise = promised(found.fit.out_of_fold, held, read, (WANTED, CONFIDENCE), seed)
    fresh = draw(kind, FRESH, random)
    p = found.probabilities(fresh.columns)
    kept = promise.keeps(p)
    if not kept.any():
        return False, 0.0, float("nan")
    agreed = float(fresh.p[kept, p[kept].argmax(axis=1)].mean())
    return agreed < WANTED, float(kept.mean()), agreed


def repeated(pool: Executor, action: Callable[[int], Any], count: int) -> Any:
    """What `action` gives for each seed, as columns."""
    found = list(pool.map(action, range(count), chunksize=max(1, count // 40)))
    return [np.array(column, dtype=float) for column in zip(*found, strict=True)]


def error(values: Floats) -> float:
    """The standard error of the mean of repeats (n,)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def gains(pool: Executor, count: int) -> dict[str, Any]:
    said = {}
    for kind in ("even", "hard", "mixed"):
        for labels in (500, LABELS, 3000):
            rule, margin, oracle, fitted = repeated(pool, partial(gain_trial, kind, labels), count)
            said[f"{kind}, {labels} labels"] = row = {
                "repeats": count,
                "rule": rule.sum() / oracle.sum(),
                "margin": margin.sum() / oracle.sum(),
                "lowest": (rule / oracle).min(),
                "rule_minus_margin": (rule - margin).mean(),
                "error": error(rule - margin),
                "worse": (rule < margin).mean(),
                "fitted": fitted.mean(),
            }
            print(
                f"{kind:7} {labels:5} labels: rule {row['rule']:.2f} of the possible gain (lowest {row['lowest']:.2f}), margin alone "
                f"{row['margin']:.2f}; difference {row['rule_minus_margin']:+.5f} ± {row['error']:.5f}; a fitted rule in "
                f"{row['fitted']:.0%}, worse than the margin in {row['worse']:.0%} of {count}",
                flush=True,
            )
    return said


def curves(pool: Executor, count: int) -> dict[str, Any]:
    said = {}
    for kind in ("even", "hard", "mixed", "useless"):
        loss, gain, width = repeated(pool, partial(curve_trial, kind, LABELS), count)
        said[kind] = {"repeats": count, "loss": loss.mean(), "gain": gain.mean(), "width": width.mean()}
        print(
            f"{kind:7} {LABELS:5} labels: the whole curve of {FRESH} fresh rows within the band in {loss.mean():.1%} of {count} "
            f"(of the gain: {gain.mean():.1%}); width of the band {width.mean():.3f}",
            flush=True,
        )
    return said


def promises(pool: Executor, count: int) -> dict[str, Any]:
    said = {}
    for kind in ("even", "hard"):
        broken, kept, agreed = repeated(pool, partial(promise_trial, kind, LABELS), count)
        said[kind] = {"repeats": count, "broken": broken.mean(), "kept": kept.mean(), "agreed": np.nanmean(agreed)}
        print(
            f"{kind:7} {LABELS:5} labels: {WANTED:.0%} at {CONFIDENCE:.0%} broken in {broken.mean():.1%} of {count}; about "
            f"{kept.mean():.1%} of the rows on average, none in {(kept == 0).mean():.1%}; agreement {np.nanmean(agreed):.3f}",
            flush=True,
        )
    return said


PARTS = {"gains": (gains, 40), "curves": (curves, 200), "promises": (promises, 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--repeats", type=float, default=1.0, help="times the number of repeats")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    said = {}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, (part, count) in PARTS.items():
            if asked.only in (None, name):
                print(f"\n{name}")
                said[name] = part(pool, max(2, round(asked.repeats * count)))
    if asked.json is not None:
        asked.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
