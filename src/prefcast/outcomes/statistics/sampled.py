"""Means over all rows, from votes on a sample of the rows and from forecasts of every row. The estimate does not depend on
how good the forecasts are; only its interval does.

The estimate is the mean of the forecasts plus the weighted mean of what the votes say beyond them,

    mean = lambda * mean(f) + sum_sample w (y - lambda f) / sum_sample w,   w = 1 / inclusion probability,

the tuned prediction-powered estimate (Angelopoulos, Duchi and Zrnic, "PPI++: efficient prediction-powered inference",
2023), which survey statisticians know as the difference or regression estimator (Särndal, Swensson and Wretman, "Model
assisted survey sampling", 1992, chapter 6). With lambda = 0 it is the mean of the votes.

Confidence sequences, which hold at every moment, are by betting (Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", JRSS B 86, 2024, with their form for sampling without replacement).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.statistics.bootstrap import Figure

__all__ = ["Sampled", "anytime", "sampled_means"]

Floats = NDArray[np.float64]
# Candidates for the mean, when the mean is looked for by betting.
_GRID = 2001
# A bet is at most this share of what could be lost.
_BOLD = 0.75
# Lambda starts at 1, which is best for a calibrated forecast, as firmly as this many votes would say it.
_PRIOR = 20


@dataclass(frozen=True)
class Sampled:
    """Means of k quantities over all rows. `values` (k,) are the estimates, `replicates` (g, k) those without one group of
    the sample each, from which standard errors of any function of the means follow. `weights` (k,) are the lambdas."""

    values: Floats
    centre: Floats
    replicates: Floats
    weights: Floats

    def interval(self, of: Floats, level: float = 0.95) -> Figure:
        """The sum of means, each times its number in `of` (k,), with its interval at `level`."""
        from scipy.special import stdtrit

        drawn, value = self.replicates @ of, float(self.values @ of)
        half = float(stdtrit(len(drawn) - 1, (1 + level) / 2)) * self.error(of)
        centre = float(self.centre @ of)
        return Figure(value, min(value, centre - half), max(value, centre + half))

    def error(self, of: Floats) -> float:
        """The standard error of the same sum, by the jackknife over groups."""
        drawn = self.replicates @ of
        groups = len(drawn)
        return float(np.sqrt((groups - 1) / groups * ((drawn - drawn.mean()) ** 2).sum()))


def sampled_means(
    y: Floats,
    f: Floats,
    mean_f: Floats,
    inclusion: Floats,
    groups: NDArray[np.int64],
    *,
    ends: Floats | None = None,
    use: bool = True,
) -> Sampled:
    """The means of k quantities over all rows, from the sample.

    `y` (n, k): the votes of the n sampled rows, each between -1 and 1. `f` (n, k): their forecasts. `mean_f` (k,): the means
    of the forecasts over all rows. `inclusion` (n,): with which probability each row came into the sample. `groups` (n,):
    rows of one group (of one prompt) are not independent. Without `use` the forecasts are not used.

    Intervals count one vote of each kind more than there are, those in `ends` (m, k), by default 1 and -1, as Agresti and Min
    do ("Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005): a sample
    in which all agree does not prove that all people do.
    """
    k = y.shape[1]
    w = 1 / inclusion
    values = np.empty(k)
    tuned = np.zeros(k)
    for column in range(k):
        values[column], tuned[column] = _mean(
            _terms(y[:, column], f[:, column], w).sum(axis=1), mean_f[column], use=use
        )
    ends = np.array([[1.0] * k, [-1.0] * k]) if ends is None else ends
    y, f = np.vstack([y, ends]), np.vstack([f, np.tile(mean_f, (len(ends), 1))])
    w = np.append(w, [w.mean()] * len(ends))
    _, place = np.unique(groups, return_inverse=True)
    place = np.append(place, place.max() + 1 + np.arange(len(ends)))
    centre, replicates = np.empty(k), np.empty((int(place.max()) + 1, k))
    for column in range(k):
        every = _terms(y[:, column], f[:, column], w)
        whole = every.sum(axis=1)
        by_group = np.stack([np.bincount(place, each) for each in every])
        centre[column] = _mean(whole, mean_f[column], use=use)[0]
        left = whole[:, None] - by_group
        replicates[:, column] = [_mean(sums, mean_f[column], use=use)[0] for sums in left.T]
    return Sampled(values, centre, replicates, tuned)


def _terms(y: Floats, f: Floats, w: Floats) -> Floats:
    """What the estimate is made of, (8, n): sums over rows are enough."""
    square = w * w
    return np.stack([w, w * y, w * f, square, square * y, square * f, square * y * f, square * f * f])


def _mean(sums: Floats, mean_f: float, *, use: bool) -> tuple[float, float]:
    """The estimate and its lambda: the one that makes the variance of the estimate smallest, drawn towards 1 while the votes
    are few; never below 0."""
    w, wy, wf, v, vy, vf, vyf, vff = sums.tolist()
    y, f = wy / w, wf / w
    spread = vff - 2 * f * vf + f * f * v
    if not use or spread <= 1e-12 * max(1.0, vff):
        return y, 0.0
    best = (vyf - f * vy - y * vf + y * f * v) / spread
    votes = w * w / v
    tuned = max(0.0, (votes * best + _PRIOR) / (votes + _PRIOR))
    return y + tuned * (mean_f - f), tuned


def anytime(y: Floats, f: Floats, mean_f: float, rows: int, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """Lower and upper ends (n, 2 arrays (n,)) of a mean over all `rows`, after each of n votes; together they hold at every moment with
    probability `level`.

    `y` (n,) between -1 and 1 are votes on rows that were drawn one after the other, uniformly and without replacement,
    `f` (n,) their forecasts. Lambda and the bets come from the votes before.
    """
    n = len(y)
    grid = np.linspace(-1, 1, _GRID)
    up, down = np.zeros(_GRID), np.zeros(_GRID)
    low, high = np.empty(n), np.empty(n)
    alive = np.ones(_GRID, dtype=bool)
    total, tuned, mean, variance = 0.0, 0.0, 0.0, 1.0
    reach = float(np.abs(f - mean_f).max(initial=0.0))
    limit = np.log(2 / (1 - level))
    for t in range(n):
        z = y[t] - tuned * (f[t] - mean_f)
        # The mean of the rows that are left, if the mean of all of them is a number of the grid.
        left = (rows * grid - total) / max(1, rows - t)
        most = 1 + tuned * reach + np.abs(np.clip(left, -1, 1))
        bet = np.sqrt(2 * limit / (variance * (t + 1) * np.log(t + 2)))
        bets = np.minimum(bet, _BOLD / most)
        possible = np.abs(left) <= 1 + tuned * reach
        with np.errstate(invalid="ignore", divide="ignore"):
            up += np.log1p(bets * np.where(possible, z - left, 0))
            down += np.log1p(-bets * np.where(possible, z - left, 0))
        alive &= possible & (np.maximum(up, down) < limit)
        found = grid[alive]
        low[t], high[t] = (found[0], found[-1]) if len(found) else (low[t - 1], high[t - 1])
        total += z
        seen = y[: t + 1], f[: t + 1]
        tuned = _careful(*seen)
        residual = seen[0] - tuned * (seen[1] - mean_f)
        mean = float(residual.sum() / (t + 2))
        variance = float((1 + ((residual - mean) ** 2).sum()) / (t + 2))
    return low, high


def _careful(y: Floats, f: Floats) -> float:
    """Lambda from the votes so far, shrunk towards 0 while they are few, and at most 1."""
    if len(y) < 10:
        return 0.0
    spread = float(((f - f.mean()) ** 2).sum())
    if spread < 1e-9:
        return 0.0
    tuned = float(((y - y.mean()) * (f - f.mean())).sum()) / spread
    return float(np.clip(tuned * len(y) / (len(y) + 20), 0.0, 1.0))
