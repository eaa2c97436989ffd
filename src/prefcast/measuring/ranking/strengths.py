"""The strengths of models from what they won, lost and tied.

The model is Davidson's (1970, "On extending the Bradley-Terry model to accommodate ties in paired comparison
experiments", JASA 65, 317-328). With strengths p and q of two models and the tie parameter nu >= 0,

    P(first wins) = p / (p + q + nu sqrt(p q)),    P(tie) = nu sqrt(p q) / (p + q + nu sqrt(p q)).

Without ties this is the Bradley-Terry model. The likelihood, perhaps times a normal prior of the log strengths, is maximised
by Newton's method.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.pairs import Outcome

__all__ = ["Pairs", "expected_shares", "fit_strengths", "halved_ties"]

Floats = NDArray[np.float64]

# The error of Newton's method squares at each step, so after a step below _STEP the error is at the level of rounding.
_MOST_STEPS, _STEP, _ROUNDING = 500, 1e-6, 1e-12
# Where the likelihood has stopped growing, rounding may leave steps of up to this size: 0.2 points of rating.
_FLAT = 1e-3
# The longest step, in log strengths. Beyond that distance the quadratic approximation is not reliable.
_STRIDE = 2.0


def halved_ties(sums: Floats) -> Floats:
    """`sums` (3, ...) with half of each tie as a win of either side, as Arena's leaderboard counts ties."""
    half = sums[Outcome.TIE] / 2
    return np.stack([sums[Outcome.A] + half, sums[Outcome.B] + half, np.zeros_like(half)])


def fit_strengths(wins: Floats, ties: Floats, *, precision: float = 0.0, halve: bool = False) -> tuple[Floats, float]:
    """Log strengths (k,), their mean 0, and nu. `wins` (k, k) are of row over column, `ties` (k, k) are symmetric.
    `precision` is that of a normal prior of the log strengths. With `halve` a tie is half a win of either side.

    A maximum exists where the graph of wins and ties is strongly connected and, if there are ties, wins outnumber ties
    around some circle of it. Raises FitError where the maximum is not reached.
    """
    left, right = np.nonzero(np.triu(wins + wins.T + ties, 1))
    sums = np.stack([wins[left, right], wins[right, left], ties[left, right]])
    return Pairs(left, right, len(wins), precision).fit(halved_ties(sums) if halve else sums)


class Pairs:
    """The likelihood of k models that met in p pairs, `left` and `right` (p,), times a normal prior of the log strengths with
    this `precision` (1 / variance)."""

    def __init__(self, left: NDArray[Any], right: NDArray[Any], k: int, precision: float = 0.0) -> None:
        self._left, self._right, self._k, self._precision = left, right, k, precision
        self._centre: Floats = np.zeros(k)

    def fit(
        self, sums: Floats, start: tuple[Floats, float] | None = None, centre: Floats | None = None
    ) -> tuple[Floats, float]:
        """The most likely log strengths (k,) and nu given `sums` (3, p): wins of left, wins of right, ties.

        `centre` (k,) is the mean of the prior, by default 0. `start` is where to begin, by default equal models. The likelihood is concave in the log strengths and log nu,
        so Newton's method reaches its one maximum if the steps have bounded length and are halved until the likelihood
        grows. Raises FitError where the maximum is not reached.
        """
        # Only differences of strengths matter: with a mean of 0 here, theirs stays 0.
        self._centre = np.zeros(self._k) if centre is None else centre - centre.mean()
        tied = bool(sums[Outcome.TIE].any())
        played = sums.sum(axis=0)
        theta = np.zeros(self._k + 1) if start is None else np.append(start[0], math.log(start[1] or 1.0))
        theta = theta if tied else theta[:-1]
        value = self._log_likelihood(theta, sums, played)
        stalled = False
        for _ in range(_MOST_STEPS):
            step = self._step(theta, sums, played)
            longest = float(np.abs(step).max())
            if longest < (_FLAT if stalled else _STEP):
                theta = theta + step
                return theta[: self._k] - theta[: self._k].mean(), math.exp(theta[-1]) if tied else 0.0
            scale = min(1.0, _STRIDE / longest)
            # At its maximum the likelihood is flat, and rounding may make it fall a little.
            least = value - _ROUNDING * played.sum()
            while not (risen := self._log_likelihood(theta + scale * step, sums, played)) >= least:
                scale /= 2
                if scale < _ROUNDING:
                    raise FitError("the ratings do not converge: too few votes join some models")
            stalled = risen - value < _ROUNDING * played.sum()
            theta, value = theta + scale * step, risen
        raise FitError(f"the ratings did not converge in {_MOST_STEPS} steps: too few votes join some models")

    def _logits(self, theta: Floats) -> Floats:
        """Unnormalised log-probabilities of the three outcomes, (3, p)."""
        half = (theta[self._left] - theta[self._right]) / 2
        nu = theta[self._k] if len(theta) > self._k else -np.inf
        return np.stack([half, -half, np.full(len(half), nu)])

    def _log_likelihood(self, theta: Floats, sums: Floats, played: Floats) -> float:
        logits = self._logits(theta)
        # 0 ties of probability 0 add 0, not nan.
        terms = np.where(sums > 0, sums * np.where(np.isfinite(logits), logits, 0.0), 0.0)
        prior = self._precision / 2 * float(((theta[: self._k] - self._centre) ** 2).sum())
        return float(terms.sum() - (played * np.logaddexp.reduce(logits, axis=0)).sum()) - prior

    def _step(self, theta: Floats, sums: Floats, played: Floats) -> Floats:
        """The Newton step: the inverse of the information matrix times the score."""
        k, left, right = self._k, self._left, self._right
        logits = self._logits(theta)
        won, lost, tie = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
        score, information = np.zeros(len(theta)), np.zeros((len(theta), len(theta)))
        # 1 - p is never computed: it would lose all digits where p is almost 1.
        half = sums[Outcome.TIE] / 2
        lacking = (sums[Outcome.A] + half) * (lost + tie / 2) - (sums[Outcome.B] + half) * (won + tie / 2)
        score[:k] = np.bincount(left, lacking, k) - np.bincount(right, lacking, k)
        spread = played * (won * lost + tie * (won + lost) / 4)
        information[left, right] = information[right, left] = -spread
        information[np.arange(k), np.arange(k)] = np.bincount(left, spread, k) + np.bincount(right, spread, k)
        if self._precision:
            score[:k] -= self._precision * (theta[:k] - self._centre)
            information[np.arange(k), np.arange(k)] += self._precision
        # Only differences of strengths matter. This term fixes their mean and has no other effect.
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
    """The expected share of votes that row wins against column, a tie counting as half, (k, k)."""
    difference = strengths[:, None] - strengths[None]
    tie = nu / (nu + 2 * np.cosh(difference / 2))
    share: Floats = (1 - tie) / (1 + np.exp(-difference)) + tie / 2
    return share
