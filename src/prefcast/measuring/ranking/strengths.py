"""The strengths of models from what they won, lost and tied.

The model is Davidson's (1970, "On extending the Bradley-Terry model to accommodate ties in paired comparison
experiments", JASA 65, 317-328). With strengths p and q of two models and the tie parameter nu >= 0,

    P(first wins) = p / (p + q + nu sqrt(p q)),    P(tie) = nu sqrt(p q) / (p + q + nu sqrt(p q)),

which without ties is Bradley and Terry's. evalica seeks the maximum of the likelihood by Newman's iteration (2023,
"Efficient computation of rankings from pairwise comparisons", JMLR 24, 1-25), where v is nu / 2; Newton's method
makes sure of it, and finds the maxima of data that differ little.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.pairs import Outcome

__all__ = ["Pairs", "expected_shares", "fit_davidson"]

Floats = NDArray[np.float64]

_TOLERANCE, _LIMIT = 1e-10, 10_000
# Newton's method squares its error at each step: after one of this size nothing is left to do.
_NEWTON, _STEP, _ROUNDING = 500, 1e-6, 1e-12
# Where the likelihood grows no more, rounding may leave steps of up to this size: 0.2 points of rating.
_FLAT = 1e-3
# The longest step: in log strengths, further than that the quadratic that Newton's method climbs is not to be trusted.
_STRIDE = 2.0


def fit_davidson(wins: Floats, ties: Floats) -> tuple[Floats, float]:
    """Log strengths (k,), their mean 0, and nu, from `wins` of row over column and symmetric `ties`, both (k, k).

    The graph of wins and ties must be strongly connected, and wins outnumber ties around some circle of it where there
    are ties, or there is no maximum. Raises FitError where the maximum is not reached.
    """
    left, right = np.nonzero(np.triu(wins + wins.T + ties, 1))
    sums = np.stack([wins[left, right], wins[right, left], ties[left, right]])
    return Pairs(left, right, len(wins)).fit(sums, *_evalica(left, right, sums, len(wins)))


def _evalica(left: NDArray[Any], right: NDArray[Any], sums: Floats, k: int) -> tuple[Floats, float]:
    """Log strengths and nu as evalica finds them: nearly always the maximum, but see `Pairs.fit`."""
    import evalica
    import pandas

    winners = [evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw]
    index = pandas.RangeIndex(k)
    found = evalica.newman(
        left.tolist() * 3,
        right.tolist() * 3,
        [winner for winner in winners for _ in left],
        index=index,
        weights=sums.ravel().tolist(),
        v_init=0.5 if sums[Outcome.TIE].any() else 0.0,
        tolerance=_TOLERANCE,
        limit=_LIMIT,
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        strengths: Floats = np.log(found.scores.loc[index].to_numpy(dtype=np.float64))
        strengths -= strengths.mean()
    usable = np.isfinite(strengths).all() and math.isfinite(found.v) and found.v > 0
    return (strengths, 2 * found.v) if usable else (np.zeros(k), 1.0)


class Pairs:
    """The likelihood of k models that met in p pairs, `left` and `right` (p,)."""

    def __init__(self, left: NDArray[Any], right: NDArray[Any], k: int) -> None:
        self._left, self._right, self._k = left, right, k

    def fit(self, sums: Floats, strengths: Floats, nu: float) -> tuple[Floats, float]:
        """The log strengths (k,) and nu that make the most of `sums` (3, p): wins of left, wins of right, ties.

        Newton's method from where it is told to begin, or from equal models where that is likelier. The likelihood is
        concave in the log strengths and log nu, so with steps of bounded length, halved until it grows, this reaches
        the one maximum. evalica alone does not always: it stops when the scores hardly move, which they also do when
        all models are equal while v has yet to begin, and when their scale, which it leaves free, drifts to nothing.
        """
        tied = bool(sums[Outcome.TIE].any())
        played = sums.sum(axis=0)
        starts = [np.append(strengths - strengths.mean(), math.log(nu)), np.zeros(self._k + 1)]
        value, _, theta = max(
            (self._log_likelihood(start, sums, played), -number, start)
            for number, start in enumerate(start if tied else start[:-1] for start in starts)
        )
        stalled = False
        for _ in range(_NEWTON):
            step = self._step(theta, sums, played)
            longest = float(np.abs(step).max())
            if longest < (_FLAT if stalled else _STEP):
                theta = theta + step
                return theta[: self._k] - theta[: self._k].mean(), math.exp(theta[-1]) if tied else 0.0
            scale = min(1.0, _STRIDE / longest)
            # Rounding may make the likelihood fall a little where it is flat, at its maximum.
            least = value - _ROUNDING * played.sum()
            while not (risen := self._log_likelihood(theta + scale * step, sums, played)) >= least:
                scale /= 2
                if scale < _ROUNDING:
                    raise FitError("the ratings do not converge: too few votes join some models")
            stalled = risen - value < _ROUNDING * played.sum()
            theta, value = theta + scale * step, risen
        raise FitError(f"the ratings did not converge in {_NEWTON} steps: too few votes join some models")

    def _logits(self, theta: Floats) -> Floats:
        """Logarithms of what the three outcomes' probabilities are proportional to, (3, p)."""
        half = (theta[self._left] - theta[self._right]) / 2
        nu = theta[self._k] if len(theta) > self._k else -np.inf
        return np.stack([half, -half, np.full(len(half), nu)])

    def _log_likelihood(self, theta: Floats, sums: Floats, played: Floats) -> float:
        logits = self._logits(theta)
        # 0 ties of probability 0 add nothing.
        terms = np.where(sums > 0, sums * np.where(np.isfinite(logits), logits, 0.0), 0.0)
        return float(terms.sum() - (played * np.logaddexp.reduce(logits, axis=0)).sum())

    def _step(self, theta: Floats, sums: Floats, played: Floats) -> Floats:
        """Information inverse times score: the points and the ties that lack, over their covariance."""
        k, left, right = self._k, self._left, self._right
        logits = self._logits(theta)
        won, lost, tie = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
        score, information = np.zeros(len(theta)), np.zeros((len(theta), len(theta)))
        # No 1 - p anywhere: where p is almost 1, all its digits would be lost.
        half = sums[Outcome.TIE] / 2
        lacking = (sums[Outcome.A] + half) * (lost + tie / 2) - (sums[Outcome.B] + half) * (won + tie / 2)
        score[:k] = np.bincount(left, lacking, k) - np.bincount(right, lacking, k)
        spread = played * (won * lost + tie * (won + lost) / 4)
        information[left, right] = information[right, left] = -spread
        information[np.arange(k), np.arange(k)] = np.bincount(left, spread, k) + np.bincount(right, spread, k)
        # Strengths count only relative to one another: this holds their mean and changes nothing else.
        information[:k, :k] += spread.sum() / k**2
        if len(theta) > k:
            shared = played * tie * (lost - won) / 2
            score[k] = (sums[Outcome.TIE] * (won + lost) - (sums[Outcome.A] + sums[Outcome.B]) * tie).sum()
            information[k, :k] = information[:k, k] = np.bincount(left, shared, k) - np.bincount(right, shared, k)
            information[k, k] = (played * tie * (won + lost)).sum()
        try:
            return np.asarray(np.linalg.solve(information, score), np.float64)
        except np.linalg.LinAlgError:
            raise FitError("the ratings do not converge: too few votes join some models") from None


def expected_shares(strengths: Floats, nu: float) -> Floats:
    """What row is expected to win of its votes against column, ties counting half, (k, k)."""
    difference = strengths[:, None] - strengths[None]
    tie = nu / (nu + 2 * np.cosh(difference / 2))
    share: Floats = (1 - tie) / (1 + np.exp(-difference)) + tie / 2
    return share
