"""Are the probabilities calibrated? The expected calibration error with an interval that may hold 0, and two tests.

The error is a sum of absolute gaps, so noise alone makes it positive, and a bootstrap around it never reaches 0. The interval
is therefore found by inverting a test. For every size of the true gaps, the distribution of the measured error is known: the
gap of each bin is the true gap plus the noise of the labels, which calibrated forecasts tell (Bröcker and Smith, "Increasing
the reliability of reliability diagrams", Weather and Forecasting 22, 2007). The interval holds the sizes that the measured error
does not contradict. Near 0 the two tails are shared unequally, as by Feldman and Cousins ("Unified approach to the classical
statistical analysis of small signals", Physical Review D 57, 1998): 0 is outside if the test of no error rejects at 5 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.statistics.bootstrap import Figure

__all__ = [
    "DRAWN_ROWS",
    "DRAWS",
    "CalibrationTest",
    "Gaps",
    "calibration_error",
    "drawn_labels",
    "drawn_noise",
    "recalibration_test",
]

Floats = NDArray[np.float64]

DRAWS = 1000
# With so many rows or fewer the labels are drawn; with more the sums of a bin are near enough to normal.
DRAWN_ROWS = 2000
_AT_ONCE = 4_000_000
_LEVEL = 0.05
_HALVINGS = 20
# Rounding must not contradict forecasts that are certain and right.
_ROUNDING = 1e-12
# A direction whose information is a smaller share of the largest one has none: the forecasts do not vary in it.
_NO_INFORMATION = 1e-9


@dataclass(frozen=True)
class CalibrationTest:
    """A test whether forecasts are calibrated. Calibrated forecasts get a `p_value` below 0.05 in 5 % of the cases.

    `statistic` has a chi-squared distribution with `degrees` degrees of freedom if they are.
    """

    p_value: float
    statistic: float
    degrees: int


@dataclass(frozen=True)
class Gaps:
    """Rows in k bins of forecasts: the sums over a bin of the weights, `rows` (k,), of the forecasts, `said` (k,), of what
    happened, `happened` (k,), and of the squared weights, `squares` (k,). `noise` (DRAWS, k) are draws of `happened - said`
    for calibrated forecasts."""

    rows: Floats
    said: Floats
    happened: Floats
    squares: Floats
    noise: Floats


def calibration_error(gaps: Gaps) -> tuple[Figure, float]:
    """The expected calibration error with its 95 % interval, and the p value of the hypothesis that it is 0.

    The error is the size of the true gaps at which the measured error is the median, so it is 0 if a calibrated forecast would
    have at least that error in half of the cases. The true gaps are supposed to be spread over the bins as the measured
    ones. Where they are in few bins, a smaller error fits as well: the lower end allows for this.
    """
    there = gaps.rows > 0
    n, said, happened = gaps.rows[there], gaps.said[there], gaps.happened[there]
    gap, mean, noise, squares = (happened - said) / n, said / n, gaps.noise[:, there] / n, gaps.squares[there] / n**2
    variance = noise.var(axis=0)
    found = _Inverted(n / n.sum(), gap, mean, noise, squares)
    p_value = found.p_value
    if found.measured <= _ROUNDING:
        return Figure(0.0, 0.0, found.size(found.too_large)), p_value
    value, low, high = found.size(found.over_median), found.size(found.too_small), found.size(found.too_large)
    # In these shapes the gaps are where they are clearly above their noise.
    fewer = gap * np.divide(gap**2, gap**2 + variance, out=np.zeros_like(gap), where=gap != 0)
    few = _Inverted(n / n.sum(), gap, mean, noise, squares, fewer)
    low = min(low, few.size(few.too_small), value)
    return Figure(value, low, max(high, few.size(few.too_large), value)), p_value


class _Inverted:
    """The measured error, and its draws for true gaps of some `shape` (k,) and size: `share`, `gap` and `mean` (k,) of the bins,
    `noise` (m, k) of the gaps, and the sums of squared weights over those of the weights, squared, `squares` (k,)."""

    def __init__(
        self, share: Floats, gap: Floats, mean: Floats, noise: Floats, squares: Floats, shape: Floats | None = None
    ) -> None:
        self.measured = float(share @ np.abs(gap))
        self._share, self._mean, self._noise, self._squares = share, mean, noise, squares
        # Without any gap the bins are supposed to be wrong to the same extent.
        self._shape = np.ones_like(gap) if not self.measured else gap if shape is None else shape
        self._whole = float(share @ np.abs(self._shape))
        self._variance = noise.var(axis=0)
        self._nothing = self._drawn(0.0)
        self.p_value = self._above(self._nothing)

    def size(self, before: Callable[[Floats], bool]) -> float:
        """The error up to which `before` holds for the draws."""
        low, high = 0.0, 1.0
        if not before(self._nothing):
            return 0.0
        while high * self._whole < 1 and before(self._drawn(high)):
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if before(self._drawn(middle)) else (low, middle)
        return min(1.0, (low + high) / 2 * self._whole)

    def _drawn(self, size: float) -> Floats:
        true = size * self._shape
        now = np.clip(self._mean + true, 0, 1)
        # The labels vary as the true probabilities say.
        variance = self._variance + self._squares * (now * (1 - now) - self._mean * (1 - self._mean))
        ratio = np.divide(variance, self._variance, out=np.ones_like(variance), where=self._variance > 0)
        found: Floats = np.abs(true + self._noise * np.sqrt(np.maximum(ratio, 0.1))) @ self._share
        return found

    def _above(self, drawn: Floats) -> float:
        # The measured error is one of the draws: a p value is never 0.
        return (float((drawn >= self.measured - _ROUNDING).sum()) + 1) / (len(drawn) + 1)

    def _upper_tail(self, drawn: Floats) -> float:
        """The share of the 5 % that lies above: all of it at 0, half of it where the true error is clearly above 0."""
        return _LEVEL / 2 * (1 + min(1.0, 2 * float((self._nothing >= np.median(drawn)).mean())))

    def too_small(self, drawn: Floats) -> bool:
        """Whether the true gaps are too small for what was measured."""
        return self._above(drawn) < self._upper_tail(drawn)

    def too_large(self, drawn: Floats) -> bool:
        """Whether what was measured is not yet too small for the true gaps."""
        return float((drawn <= self.measured + _ROUNDING).mean()) >= _LEVEL - self._upper_tail(drawn)

    def over_median(self, drawn: Floats) -> bool:
        """Whether what was measured is above the median of the draws."""
        return self._above(drawn) < 0.5


def drawn_noise(covariance: Floats, seed: int = 0) -> Floats:
    """Normal draws (DRAWS, k) with this covariance (k, k)."""
    values, vectors = np.linalg.eigh(covariance)
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, len(values)))
    found: Floats = drawn @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return found


def drawn_labels(p: Floats, inside: Floats, columns: NDArray[np.int64], weight: Floats, seed: int = 0) -> Floats:
    """Draws (DRAWS, k) of `happened - said` in k bins, with labels drawn from the forecasts `p` (n, 3).

    `inside` (n, k) is 1 where a row is in a bin, `columns` (k,) the outcome of each bin, `weight` (n,) the rows' weights.
    """
    rng, found = np.random.default_rng(seed), np.empty((DRAWS, inside.shape[1]))
    weighted = inside * weight[:, None]
    said = (weighted * p[:, columns]).sum(axis=0)
    step = max(1, _AT_ONCE // max(1, len(p)))
    ends = p.cumsum(axis=1)
    for start in range(0, DRAWS, step):
        u = rng.random((min(step, DRAWS - start), len(p)))
        happened = (u < ends[:, 0], (u >= ends[:, 0]) & (u < ends[:, 1]), u >= ends[:, 1])
        for outcome in range(3):
            mine = columns == outcome
            found[start : start + len(u), mine] = happened[outcome].astype(np.float64) @ weighted[:, mine]
    found -= said
    return found


def recalibration_test(score: Floats, information: Floats, inflation: Floats) -> CalibrationTest:
    """The score test of the hypothesis that recalibration changes nothing.

    In the family log q = shift + slope log p + constant, with a shift of A and of B and one slope, calibrated forecasts have the
    shifts 0 and the slope 1 (Cox, "Two further applications of a model for binary regression", Biometrika 45, 1958, for three
    outcomes). `score` (3,) is the gradient of the log likelihood at that point, `information` (3, 3) its covariance if the
    forecasts are calibrated. `inflation` (3,) is by how much the variances of the score are larger, as rows of one prompt
    make them.
    """
    from scipy.special import chdtrc

    # The slope of equal chances changes nothing.
    there = np.diag(information) > _NO_INFORMATION * np.diag(information).max()
    score, information, inflation = score[there], information[np.ix_(there, there)], inflation[there]
    scale = np.sqrt(np.diag(information) * inflation)
    values, vectors = np.linalg.eigh(information * np.sqrt(np.outer(inflation, inflation)) / np.outer(scale, scale))
    # The slope of forecasts that are all the same is no direction of its own.
    informed = values > _NO_INFORMATION * max(1.0, float(values.max(initial=0.0)))
    if not informed.any():
        return CalibrationTest(1.0, 0.0, 0)
    along = vectors.T[informed] @ (score / scale)
    statistic = float((along**2 / values[informed]).sum())
    return CalibrationTest(float(chdtrc(int(informed.sum()), statistic)), statistic, int(informed.sum()))
