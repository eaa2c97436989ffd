"""The strengths of models from what they won, lost and tied.

The model is Davidson's (1970, "On extending the Bradley-Terry model to accommodate ties in paired comparison
experiments", JASA 65, 317-328). With strengths p and q of two models and the tie parameter nu >= 0,

    P(first wins) = p / (p + q + nu sqrt(p q)),    P(tie) = nu sqrt(p q) / (p + q + nu sqrt(p q)).

Without ties this is the Bradley-Terry model. With covariates z of a row, log(p / q) grows by their sum, each times its slope. The
likelihood, perhaps times a normal prior of the log strengths, is maximised by Newton's method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.pairs import Outcome

__all__ = ["Fitted", "Pairs", "expected_shares", "fit_strengths", "halved_ties"]

Floats = NDArray[np.float64]

# The error of Newton's method squares at each step, so after a step below _STEP the error is at the level of rounding.
_MOST_STEPS, _STEP, _ROUNDING = 500, 1e-6, 1e-12
# Where the likelihood has stopped growing, rounding may leave steps of up to this size: 0.2 points of rating.
_FLAT = 1e-3
# The longest step, in log strengths. Beyond that distance the quadratic approximation is not reliable.
_STRIDE = 2.0
# No data give log strengths as large as this: there is no maximum.
_FARTHEST = 300.0


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


@dataclass(frozen=True, eq=False)
class Fitted:
    """Log strengths (k,), their mean 0, the slopes (q,) of the covariates, and nu."""

    strengths: Floats
    slopes: Floats
    nu: float

    @property
    def theta(self) -> Floats:
        """Strengths, slopes and, with ties, log nu, in one array."""
        tie = [math.log(self.nu)] if self.nu else []
        return np.concatenate([self.strengths, self.slopes, tie])


class Pairs:
    """The likelihood of k models that met in p pairs, `left` and `right` (p,), times a normal prior of the log strengths with
    this `precision` (1 / variance). With `covariates` (p, q) each of the p is a row of its own."""

    def __init__(
        self,
        left: NDArray[Any],
        right: NDArray[Any],
        k: int,
        precision: float = 0.0,
        covariates: Floats | None = None,
    ) -> None:
        self.left, self.right, self._k, self._precision = left, right, k, precision
        self._covariates = np.zeros((len(left), 0)) if covariates is None else covariates
        self._q = self._covariates.shape[1]
        self._centre: Floats = np.zeros(k)

    def fit(
        self, sums: Floats, start: tuple[Floats, float] | None = None, centre: Floats | None = None
    ) -> tuple[Floats, float]:
        """The strengths and nu that `solve` finds, without slopes."""
        found = self.solve(sums, None if start is None else Fitted(start[0], np.zeros(self._q), start[1]), centre)
        return found.strengths, found.nu

    def solve(
        self, sums: Floats, start: Fitted | None = None, centre: Floats | None = None, *, step: float = _STEP
    ) -> Fitted:
        """The most likely strengths, slopes and nu given `sums` (3, p): wins of left, wins of right, ties.

        `centre` (k,) is the mean of the prior, by default 0. `start` is where to begin, by default equal models. The likelihood is
        concave in the log strengths, the slopes and log nu, so Newton's method reaches its one maximum if the steps have bounded
        length and are halved until the likelihood grows. It ends after a step below `step`. Raises FitError where the maximum is
        not reached.
        """
        # Only differences of strengths matter: with a mean of 0 here, theirs stays 0.
        self._centre = np.zeros(self._k) if centre is None else centre - centre.mean()
        tied = bool(sums[Outcome.TIE].any())
        free = self._k + self._q
        theta = np.zeros(free) if start is None else np.concatenate([start.strengths, start.slopes])
        if tied:
            theta = np.append(theta, 0.0 if start is None else math.log(start.nu or 1.0))
        theta = self._climbed(theta, sums, step)
        strengths = theta[: self._k] - theta[: self._k].mean()
        return Fitted(strengths, theta[self._k : free], math.exp(theta[-1]) if tied else 0.0)

    def added(self, sums: Floats, start: Fitted, free: NDArray[np.bool_], *, step: float = _STEP) -> Floats:
        """The most likely log strengths (k,) where all but the `free` ones (k,), the slopes and nu are those of `start`. The mean of
        the prior is `start`. Raises FitError where the maximum is not reached."""
        self._centre = start.strengths
        moving = np.append(free, np.zeros(len(start.theta) - self._k, bool))
        return self._climbed(start.theta, sums, step, moving)[: self._k]

    def _climbed(self, theta: Floats, sums: Floats, step: float, free: NDArray[np.bool_] | None = None) -> Floats:
        """Where Newton's method ends that begins at `theta`; with `free` only these parameters move."""
        played = sums.sum(axis=0)
        value = self._log_likelihood(theta, sums, played)
        stalled = False
        for _ in range(_MOST_STEPS):
            chances = self.chances(theta)
            score, information = self.score(theta, sums, chances), self.information(theta, played, chances)
            move = np.zeros(len(theta))
            some = np.ones(len(theta), bool) if free is None else free
            if free is None:
                # Only differences of strengths matter. This term fixes their mean and has no other effect.
                information[: self._k, : self._k] += np.trace(information[: self._k, : self._k]) / self._k**2
            try:
                move[some] = np.linalg.solve(information[np.ix_(some, some)], score[some])
            except np.linalg.LinAlgError:
                raise FitError("the ratings do not converge: too few votes join some models") from None
            longest = float(np.abs(move).max())
            if longest < (_FLAT if stalled else step):
                return theta + move
            scale = min(1.0, _STRIDE / longest)
            # At its maximum the likelihood is flat, and rounding may make it fall a little.
            least = value - _ROUNDING * played.sum()
            while not (risen := self._log_likelihood(theta + scale * move, sums, played)) >= least:
                scale /= 2
                if scale < _ROUNDING:
                    raise FitError("the ratings do not converge: too few votes join some models")
            stalled = risen - value < _ROUNDING * played.sum()
            theta, value = theta + scale * move, risen
            if np.abs(theta).max() > _FARTHEST:
                break
        raise FitError(f"the ratings did not converge in {_MOST_STEPS} steps: too few votes join some models")

    def inverse(self, fitted: Fitted, sums: Floats) -> Floats:
        """The inverse of the information, (d, d); of strengths whose mean is fixed."""
        found = self.information(fitted.theta, sums.sum(axis=0))
        found[: self._k, : self._k] += np.trace(found[: self._k, : self._k]) / self._k**2
        return np.asarray(np.linalg.inv(found), np.float64)

    def _logits(self, theta: Floats) -> Floats:
        """Unnormalised log-probabilities of the three outcomes, (3, p)."""
        half = (theta[self.left] - theta[self.right]) / 2
        free = self._k + self._q
        if self._q:
            half = half + self._covariates @ theta[self._k : free] / 2
        nu = theta[free] if len(theta) > free else -np.inf
        return np.stack([half, -half, np.full(len(half), nu)])

    def chances(self, theta: Floats) -> Floats:
        """The probabilities of the three outcomes, (3, p)."""
        logits = self._logits(theta)
        found: Floats = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
        return found

    def _log_likelihood(self, theta: Floats, sums: Floats, played: Floats) -> float:
        logits = self._logits(theta)
        # 0 ties of probability 0 add 0, not nan.
        terms = np.where(sums != 0, sums * np.where(np.isfinite(logits), logits, 0.0), 0.0)
        prior = self._precision / 2 * float(((theta[: self._k] - self._centre) ** 2).sum())
        return float(terms.sum() - (played * np.logaddexp.reduce(logits, axis=0)).sum()) - prior

    def score(self, theta: Floats, sums: Floats, chances: Floats | None = None) -> Floats:
        """The gradient of the log likelihood; `chances` (3, p) are those of `theta`."""
        k, left, right = self._k, self.left, self.right
        won, lost, tie = self.chances(theta) if chances is None else chances
        score = np.zeros(len(theta))
        # 1 - p is never computed: it would lose all digits where p is almost 1.
        half = sums[Outcome.TIE] / 2
        lacking = (sums[Outcome.A] + half) * (lost + tie / 2) - (sums[Outcome.B] + half) * (won + tie / 2)
        score[:k] = np.bincount(left, lacking, k) - np.bincount(right, lacking, k)
        score[k : k + self._q] = lacking @ self._covariates
        if len(theta) > k + self._q:
            score[-1] = (sums[Outcome.TIE] * (won + lost) - (sums[Outcome.A] + sums[Outcome.B]) * tie).sum()
        if self._precision:
            score[:k] -= self._precision * (theta[:k] - self._centre)
        return score

    def information(self, theta: Floats, played: Floats, chances: Floats | None = None) -> Floats:
        """Minus the second derivatives of the log likelihood, given how often each pair `played` (p,)."""
        k, q, left, right, z = self._k, self._q, self.left, self.right, self._covariates
        won, lost, tie = self.chances(theta) if chances is None else chances
        found = np.zeros((len(theta), len(theta)))
        spread = played * (won * lost + tie * (won + lost) / 4)
        across = np.bincount(left * k + right, spread, k * k).reshape(k, k)
        found[:k, :k] = np.diag(np.bincount(left, spread, k) + np.bincount(right, spread, k)) - across - across.T
        for column in range(q):
            part = spread * z[:, column]
            found[:k, k + column] = np.bincount(left, part, k) - np.bincount(right, part, k)
            found[k + column, k : k + q] = part @ z
        found[k : k + q, :k] = found[:k, k : k + q].T
        if self._precision:
            found[np.arange(k), np.arange(k)] += self._precision
        if len(theta) > k + q:
            shared = played * tie * (lost - won) / 2
            found[-1, :k] = found[:k, -1] = np.bincount(left, shared, k) - np.bincount(right, shared, k)
            found[-1, k : k + q] = found[k : k + q, -1] = shared @ z
            found[-1, -1] = (played * tie * (won + lost)).sum()
        return found


def expected_shares(strengths: Floats, nu: float) -> Floats:
    """The expected share of votes that row wins against column, a tie counting as half, (k, k)."""
    difference = strengths[:, None] - strengths[None]
    tie = nu / (nu + 2 * np.cosh(difference / 2))
    share: Floats = (1 - tie) / (1 + np.exp(-difference)) + tie / 2
    return share
