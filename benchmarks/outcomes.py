"""Fits, intervals and comparisons against a known truth, by simulation: make bench-outcomes

Votes are drawn from Davidson's model, so every figure has a true value. The seeds are fixed. Prints each figure with the
number of repeats and its Monte-Carlo standard error; --repeats 0.1 takes a tenth of them. Nothing is written but --json OUT.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import DRAWS
from prefcast.fitting.selection import Fit, davidson_link, fit_link
from prefcast.forecasts.forecaster import Forecaster
from prefcast.measuring.comparison import compare
from prefcast.measuring.metrics import Figure, row_log_loss
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.outcomes.calibration import BINS
from prefcast.outcomes.models import FITTED_MODELS, Davidson, NotebookRule
from prefcast.outcomes.statistics.bootstrap import paired_difference
from prefcast.pairs import Outcome, Pair
from prefcast.scorers.base import Evidence, Scorer
from simulated_votes import Floats, Ints, Random, evidence, said, truth, voted

STRENGTHS = {"worthless": 0.0, "weak": 0.5, "medium": 1.0, "strong": 1.5}
FRESH = 4000
POPULATION = 2_000_000
# Of the votes' log-odds: what rows of one prompt share and no margin says.
PROMPT_EFFECT, CLUSTER = 0.8, 3
MARGINS = np.array([-1.0, 0.0, 0.5, 2.0])
# The forecast whose figures are taken is too sure of itself and says tie too often.
FORECAST = Davidson(1.6, 0.1, 1.0)

# Systems that are compared: log-odds are quality + prompt, a score adds noise and, in the third case, a taste.
MODELS, LABELS, PROMPTS = 40, 6000, 1000
QUALITY, PER_PROMPT, NOISE, BIAS = 0.6, 0.8, 0.35, 0.1


def error(values: Floats) -> float:
    """The standard error of the mean of repeats (n,)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def repeated(pool: Executor, action: Callable[[int], Any], count: int) -> list[Any]:
    """What `action` gives for each seed."""
    return list(pool.map(action, range(count), chunksize=max(1, count // 40)))


# How near a fit comes to the truth


def margin_trial(strength: float, labels: int, seed: int) -> tuple[str, float, float, float]:
    """The candidate chosen, and the excess over the truth's own log loss of the fit, of the prior and of the notebook."""
    random = np.random.default_rng([1, labels, round(10 * strength), seed])
    margin, fresh = random.standard_normal(labels), random.standard_normal(FRESH)
    outcomes = voted(truth(strength * margin), random)
    found = fit_link(evidence(margin, outcomes, np.arange(labels)), repeats=0)
    tie = (outcomes == Outcome.TIE).mean()
    prior = np.tile([(1 - tie) / 2, (1 - tie) / 2, tie], (FRESH, 1))
    p = truth(strength * fresh)
    fit, blank, notebook = (
        float((p * (np.log(p) - np.log(np.maximum(q, 1e-15)))).sum(axis=1).mean())
        for q in (said(found.link, fresh), prior, NotebookRule().probabilities(fresh))
    )
    return found.chosen, fit, blank, notebook


def margins(pool: Executor, count: int) -> list[dict[str, Any]]:
    """Excess log loss of what `fit_link` chooses."""
    print(f"\nexcess log loss over the truth's, on {FRESH} fresh rows; means of {count} repeats (standard error)")
    print("targets: 200 labels within 0.01 of the truth; 50 labels not over 0.005 worse than the prior\n")
    print(f"{'labels':>6} {'margins':10} {'fit':>15} {'prior':>15} {'fit - prior':>16} {'notebook':>15}  chosen")
    rows = []
    for labels in (50, 200):
        for name, strength in STRENGTHS.items():
            found = repeated(pool, partial(margin_trial, strength, labels), count)
            values = np.array([each[1:] for each in found])
            values = np.column_stack([values, values[:, 0] - values[:, 1]])
            chosen = Counter(each[0] for each in found)
            fit, prior, notebook, worse = ((float(each.mean()), error(each)) for each in values.T)
            cells = " ".join(f"{mean:8.4f} ({wide:.4f})" for mean, wide in (fit, prior, worse, notebook))
            shown = ", ".join(f"{count} {name}" for name, count in chosen.most_common())
            print(f"{labels:6} {name:10} {cells}  {shown}", flush=True)
            row = {"labels": labels, "margins": name, "repeats": count, "chosen": dict(chosen)}
            rows.append({**row, "fit": fit, "prior": prior, "fit_less_prior": worse, "notebook": notebook})
    return rows


# How often intervals hold the true value


def votes(n: int, random: Random, clustered: bool) -> tuple[Floats, Floats, Ints]:
    """Margins (n,), true probabilities (n, 3) and groups (n,)."""
    groups = np.arange(n) // CLUSTER if clustered else np.arange(n)
    shared = random.standard_normal((n, 2))[groups] if clustered else np.zeros((n, 2))
    own = random.standard_normal(n)
    # Margins of a prompt are alike, and so are its votes beyond what margins say.
    margin = (own + shared[:, 0]) / np.sqrt(2) if clustered else own
    return margin, truth(margin + PROMPT_EFFECT * shared[:, 1]), groups


@cache
def population(clustered: bool) -> tuple[dict[str, float], Floats]:
    """The true values of the figures of FORECAST, and the probabilities (m, 3) at MARGINS that a fit tends to."""
    random = np.random.default_rng([2, clustered])
    margin, p, _ = votes(POPULATION, random, clustered)
    q = FORECAST.probabilities(margin)
    best, loss = q.argmax(axis=1), -np.log(q)
    prior = baseline(clustered)
    gaps = []
    for outcome in Outcome:
        order = np.argsort(q[:, outcome])
        difference = (p - q)[order, outcome]
        gaps.append(np.mean([abs(part.mean()) for part in np.array_split(difference, BINS)]))
    # The AUC: of decisive rows by rising P(A), how much of B's weight lies below A's.
    order = np.argsort(margin)
    won, lost = p[order, Outcome.A], p[order, Outcome.B]
    auc = float((won * (lost.cumsum() - lost / 2)).sum() / (won.sum() * lost.sum()))
    true = {
        "log loss": float((p * loss).sum(axis=1).mean()),
        "accuracy": float(p[np.arange(POPULATION), best].mean()),
        "gain over the prior": float((p * (-np.log(prior) - loss)).sum(axis=1).mean()),
        "calibration error": float(np.mean(gaps)),
        "AUC": auc,
    }
    if not clustered:
        return true, truth(MARGINS)
    # What margins leave open bends the curve a little: the limit of the fit is the fit to very many rows.
    some = slice(0, POPULATION // 10)
    limit = davidson_link(evidence(margin[some], voted(p[some], random), np.arange(POPULATION // 10)), repeats=0)
    return true, said(limit, MARGINS)


@cache
def baseline(clustered: bool) -> Floats:
    """The true class prior, (3,)."""
    p = votes(200_000, np.random.default_rng(3), clustered)[1].mean(axis=0)
    side = (p[Outcome.A] + p[Outcome.B]) / 2
    return np.array([side, side, p[Outcome.TIE]])


def covers(figure: Figure | None, value: float) -> tuple[float, float, float]:
    """Whether the interval holds the value, whether it lies above it, and its width."""
    if figure is None:
        return 0.0, 0.0, 0.0
    return float(figure.low <= value <= figure.high), float(figure.low > value), figure.high - figure.low


def figures_trial(n: int, clustered: bool, seed: int) -> list[tuple[float, float, float]]:
    random = np.random.default_rng([4, n, clustered, seed])
    margin, p, groups = votes(n, random, clustered)
    outcomes, q = voted(p, random), FORECAST.probabilities(margin)
    true = population(clustered)[0]
    scores = evaluate_probabilities(q, outcomes, groups.tolist(), seed=seed).scores
    plain = row_log_loss(np.tile(baseline(clustered), (n, 1)), outcomes)
    gain = paired_difference(plain, row_log_loss(q, outcomes), groups.tolist(), seed=seed)
    found = [scores.log_loss, scores.accuracy, gain, scores.expected_calibration_error, scores.auc]
    return [covers(figure, value) for figure, value in zip(found, true.values(), strict=True)]


def link_trial(n: int, clustered: bool, seed: int) -> list[tuple[float, float, float]]:
    """Whether the intervals of forecasts at MARGINS hold the truth: Davidson's (A, B, tie each), then the chosen link's."""
    random = np.random.default_rng([5, n, clustered, seed])
    margin, p, groups = votes(n, random, clustered)
    data = evidence(margin, voted(p, random), groups)
    davidson = davidson_link(data, seed=seed)
    found: Fit = fit_link(data, repeats=0, seed=seed)
    # Where no tie evidence varies, this candidate is Davidson's model: no need to draw twice.
    same = found.chosen in ("davidson", "temperature and tie level")
    chosen = davidson if same else fit_link(data, repeats=DRAWS, seed=seed).link
    true = population(clustered)[1]
    rows: list[tuple[float, float, float]] = []
    for link in (davidson, chosen):
        low, high = link.interval(MARGINS[:, None], np.zeros((len(MARGINS), 1)))
        inside, above = (low <= true) & (true <= high), low > true
        rows += list(zip(inside.ravel() * 1.0, above.ravel() * 1.0, (high - low).ravel(), strict=True))
    return rows


def covered(name: str, n: int, clustered: bool, values: Floats) -> dict[str, Any]:
    """Prints a line of coverage; `values` (repeats, 3) are those of `covers`."""
    share, above, width = values.mean(axis=0)
    wide = float(np.sqrt(share * (1 - share) / len(values)))
    below = max(0.0, 1 - share - above)
    print(
        f"{rows_named(n, clustered):>8} {name:40} {share:7.1%} ({wide:.1%}) {above:6.1%} {below:6.1%} {width:8.4f}"
        f"{_missed(values[:, 0].mean(keepdims=True))}",
        flush=True,
    )
    return {"n": n, "clustered": clustered, "figure": name, "repeats": len(values), "coverage": share, "error": wide}


def rows_named(n: int, clustered: bool) -> str:
    return f"{n // CLUSTER} x {CLUSTER}" if clustered else str(n)


def _missed(shares: Floats) -> str:
    return "" if ((shares >= 0.92) & (shares <= 0.98)).all() else "  MISSED"


def coverage(pool: Executor, count: int) -> list[dict[str, Any]]:
    """Coverage of the 95 % intervals of figures and of single forecasts."""
    print(f"\ncoverage of 95 % intervals, {count} repeats (standard error); target 92 to 98 %")
    print("the interval lay above the truth, or below it; its mean width\n")
    print(f"{'rows':>8} {'figure':40} {'coverage':>14} {'above':>6} {'below':>6} {'width':>8}")
    rows = []
    for clustered in (False, True):
        for n in (200, 588):
            found = np.array(repeated(pool, partial(figures_trial, n, clustered), count))
            for place, (name, value) in enumerate(population(clustered)[0].items()):
                rows.append(covered(f"{name} (truly {value:.4f})", n, clustered, found[:, place]))
    print(f"\n{f'{count} repeats: one forecast of A, of B, of a tie':49} coverage and width of each")
    for n, clustered in ((200, False), (588, False), (588, True)):
        found = np.array(repeated(pool, partial(link_trial, n, clustered), count))
        parts = found.reshape(len(found), 2, len(MARGINS), 3, 3)
        for part, link in enumerate(("Davidson", "chosen link")):
            for place, margin in enumerate(MARGINS):
                each = parts[:, part, place].mean(axis=0)
                name = f"{link} at margin {margin:g}"
                cells = "  ".join(f"{share:6.1%} {width:.3f}" for share, _, width in each)
                print(f"{rows_named(n, clustered):>8} {name:40} {cells}{_missed(each[:, 0])}", flush=True)
                row = {"n": n, "clustered": clustered, "figure": name, "repeats": count}
                rows += [
                    {**row, "outcome": outcome.name, "coverage": share, "width": width}
                    for outcome, (share, _, width) in zip(Outcome, each.tolist(), strict=True)
                ]
    return rows


# How often a comparison of two systems errs


class Written(Scorer):
    """Scores that stand in the answers' texts."""

    name = "written"

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        margin = np.array([float(pair.response_a[-1]) - float(pair.response_b[-1]) for pair in pairs])
        return Evidence(margin, np.zeros(len(pairs)))


@cache
def slope() -> float:
    """How far a score moves the net rate that a fitted forecaster says, on average."""
    random = np.random.default_rng(6)
    log_odds = random.standard_normal(400_000) * np.sqrt(2 * (QUALITY**2 + PER_PROMPT**2))
    margin = log_odds + random.standard_normal(400_000) * NOISE * np.sqrt(2)
    link = davidson_link(evidence(margin, voted(truth(log_odds), random), np.arange(400_000)), repeats=0)
    up, down = (said(link, margin + step) for step in (0.05, -0.05))
    return float(((up - down) @ [1, -1, 0]).mean() / 0.1)


@cache
def planted() -> tuple[float, float]:
    """By how much better RIGHT must be to win 60 % of decided votes, and its true net rate then."""
    noise = np.random.default_rng(7).standard_normal(400_000) * PER_PROMPT * np.sqrt(2)

    def rates(better: float) -> Floats:
        found: Floats = truth(noise - better).mean(axis=0)
        return found

    low, high = 0.0, 3.0
    for _ in range(30):
        middle = (low + high) / 2
        a, b, _ = rates(middle)
        low, high = (middle, high) if b / (a + b) < 0.6 else (low, middle)
    a, b, _ = rates(low)
    return low, float(b - a)


def fitted(taste: Floats, random: Random) -> Forecaster:
    """A forecaster fitted to votes between models that score by their `taste` (m,) too."""
    quality = random.standard_normal(MODELS) * QUALITY
    a = random.integers(0, MODELS, LABELS)
    b = (a + random.integers(1, MODELS, LABELS)) % MODELS
    true = quality[a] - quality[b] + random.standard_normal(LABELS) * PER_PROMPT * np.sqrt(2)
    margin = true + random.standard_normal(LABELS) * NOISE * np.sqrt(2) + taste[a] - taste[b]
    data = LabelledEvidence(1)
    data.add(
        margin[:, None],
        np.zeros((LABELS, 1)),
        np.eye(3)[voted(truth(true), random)],
        np.arange(LABELS, dtype=np.uint64),
        models=[(f"m{left}", f"m{right}") for left, right in zip(a, b, strict=True)],
    )
    found = fit_link(data)
    outcome = FITTED_MODELS[found.link.kind](*found.link.theta.tolist())
    link = found.link.renamed({"margin:0": "margin", "tie:0": "tie"})
    return Forecaster(Written(), outcome, prior_tie=found.shares[2], link=link, calibration=found.calibration)


def comparison_trial(case: str, seed: int) -> list[tuple[str, float, float, float, float]]:
    """Verdict, coverage and place of the net rate, and the measured bias: with the calibration term, and without."""
    random = np.random.default_rng([8, len(case), seed])
    biased = case == "a bias for each model"
    spread = BIAS / slope() if biased else 0.0
    forecaster = fitted(spread * random.standard_normal(MODELS), random)
    better, net = planted() if case == "60 to 40 for RIGHT" else (0.0, 0.0)
    taste = spread * random.standard_normal(2)
    # Each answer carries its score; what the scorer gets wrong stands in it too.
    left, right = random.standard_normal((2, PROMPTS)) * np.hypot(PER_PROMPT, NOISE)
    pairs = [
        Pair.of(f"prompt {row}", repr(a), repr(b), id=row)
        for row, (a, b) in enumerate(zip((left + taste[0]).tolist(), (right + better + taste[1]).tolist(), strict=True))
    ]
    found = []
    for one in (forecaster, replace(forecaster, calibration=None)):
        result = compare(pairs, one, seed=seed)
        bias = 0.0 if one.calibration is None else one.calibration.net
        found.append((result.verdict, *covers(result.net, net)[:2], bias, result.net.value - net))
    return found


def comparisons(pool: Executor, count: int) -> list[dict[str, Any]]:
    """Verdicts of `compare` where the truth is known."""
    print(f"\ncompare, {PROMPTS} prompts, forecasters fitted to {LABELS} votes of {MODELS} models; {count} repeats")
    print(
        "targets: none in 95 % without a difference, right in 95 % of 60 to 40; bias: mean measured sd of the net rate\n"
    )
    print(
        f"{'case':24} {'calibration':12} {'none':>6} {'right':>6} {'left':>6} {'net covered':>15} {'net - truth':>16} {'bias':>6}"
    )
    rows = []
    for case in ("two halves of one system", "60 to 40 for RIGHT", "a bias for each model"):
        found = repeated(pool, partial(comparison_trial, case), count)
        for place, term in enumerate(("with", "without")):
            results = [each[place] for each in found]
            verdicts = Counter(each[0] for each in results)
            inside = np.array([each[1] for each in results])
            off = np.array([each[4] for each in results])
            bias = float(np.mean([each[3] for each in results]))
            shares = {verdict: verdicts[verdict] / count for verdict in ("none", "right", "left")}
            wide = float(np.sqrt(inside.mean() * (1 - inside.mean()) / count))
            print(
                f"{case:24} {term:12} {' '.join(f'{share:6.1%}' for share in shares.values())} "
                f"{inside.mean():8.1%} ({wide:.1%}) {off.mean():+8.4f} ({error(off):.4f}) {bias:6.3f}",
                flush=True,
            )
            row = {"case": case, "calibration": term, "repeats": count, **shares, "covered": float(inside.mean())}
            rows.append({**row, "net_less_truth": (float(off.mean()), error(off)), "bias": bias})
    return rows


PARTS: dict[str, tuple[Callable[[Executor, int], list[dict[str, Any]]], int]] = {
    "margins": (margins, 300),
    "coverage": (coverage, 500),
    "compare": (comparisons, 200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=float, default=1.0, help="how many times the usual number of repeats")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # One thread a process: the arrays are small.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    start, found = time.perf_counter(), {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for name in options.parts:
            part, count = PARTS[name]
            found[name] = part(pool, max(2, round(count * options.repeats)))
            print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
