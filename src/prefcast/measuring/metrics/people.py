"""How well people agree, and the best figures that this leaves to any forecast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.statistics.bootstrap import Figure

__all__ = ["PeopleLimit", "people_limit"]

Floats = NDArray[np.float64]

# The jackknife leaves out one of so many parts of the prompts at a time.
_PARTS = 20
_BOUND = 7.0


@dataclass(frozen=True)
class PeopleLimit:
    """The `pairs` with two `votes` or more. `agree` is how often two votes on one pair are the same. `log_loss` and
    `brier_score` are those of a forecast that knows, for each pair, which share of people says what: no forecast of these pairs
    has less. `forecast` is the log loss of the measured forecast on the same pairs."""

    pairs: int
    votes: int
    agree: Figure
    log_loss: Figure
    brier_score: Figure
    forecast: Figure


def people_limit(counts: Floats, keys: NDArray[np.uint64], forecast: Figure) -> PeopleLimit | None:
    """The limit that agreement sets, from votes (n, 3) on n pairs with group keys (n,). None if no pair has two votes.

    The agreement, and with it the Brier score 1 - agreement, has no bias. The entropy of the shares of a few votes is far below
    that of all people's (for two votes it is 0 or log 2), and no estimate without bias exists. Therefore the shares are
    supposed to vary between pairs as a Dirichlet distribution, which is fitted to the counts; its mean entropy is the log
    loss. Intervals are by jackknife over 20 parts of the groups.
    """
    totals = counts.sum(axis=1)
    several = totals >= 2
    if not several.any():
        return None
    counts, totals, part = counts[several], totals[several], keys[several] % np.uint64(_PARTS)
    same = (counts * (counts - 1)).sum(axis=1) / (totals * (totals - 1))
    patterns, which = np.unique(counts, axis=0, return_inverse=True)
    of = np.zeros((_PARTS, len(patterns)))
    np.add.at(of, (part.astype(np.int64), which.reshape(-1)), 1.0)
    every = of.sum(axis=0)
    agreed, pairs = (np.bincount(part.astype(np.int64), each, _PARTS) for each in (same, np.ones(len(same))))
    start = _fitted(patterns, every, np.zeros(3))
    filled = np.flatnonzero(pairs) if (pairs > 0).sum() > 1 else np.zeros(0, dtype=np.int64)
    without = [
        (
            _entropy(_fitted(patterns, every - of[each], start)),
            (agreed.sum() - agreed[each]) / (len(same) - pairs[each]),
        )
        for each in filled
    ]
    entropy = _jackknifed(_entropy(start), [each for each, _ in without], float(np.log(3)))
    agree = _jackknifed(float(same.mean()), [float(each) for _, each in without], 1.0)
    brier = Figure(1 - agree.value, 1 - agree.high, 1 - agree.low)
    return PeopleLimit(len(same), int(totals.sum()), agree, entropy, brier, forecast)


def _jackknifed(value: float, without: list[float], most: float) -> Figure:
    """The value with its 95 % interval, from the values without a part each; both ends are from 0 to `most`."""
    if not without:
        return Figure(value, 0.0, most)
    each = np.array(without)
    error = float(np.sqrt((len(each) - 1) / len(each) * ((each - each.mean()) ** 2).sum()))
    # Student's t with 19 degrees of freedom.
    return Figure(value, max(0.0, value - 2.093 * error), min(most, value + 2.093 * error))


def _fitted(patterns: Floats, times: Floats, start: Floats) -> Floats:
    """The logarithms (3,) of the parameters of the Dirichlet distribution under which the counts are likeliest."""
    from scipy.optimize import minimize
    from scipy.special import gammaln, psi

    totals = patterns.sum(axis=1)

    def lost(logs: Floats) -> tuple[float, Floats]:
        alpha = np.exp(logs)
        whole = alpha.sum()
        likely = gammaln(whole) - gammaln(whole + totals) + (gammaln(alpha + patterns) - gammaln(alpha)).sum(axis=1)
        slope = (psi(whole) - psi(whole + totals))[:, None] + psi(alpha + patterns) - psi(alpha)
        return -float(times @ likely), -(times @ slope) * alpha

    found = minimize(lost, start, jac=True, method="L-BFGS-B", bounds=[(-_BOUND, _BOUND)] * 3)
    logs: Floats = np.asarray(found.x, dtype=np.float64)
    return logs


def _entropy(logs: Floats) -> float:
    """The mean entropy of shares that vary as this Dirichlet distribution."""
    from scipy.special import psi

    alpha = np.exp(logs)
    whole = alpha.sum()
    return float(psi(whole + 1) - (alpha / whole * psi(alpha + 1)).sum())
