"""Ratings with intervals: from votes, or from forecasts with the forecaster's own error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, excerpt
from prefcast.measuring.ranking.boards import CENTRE, POINTS, Settings
from prefcast.measuring.ranking.cells import Votes
from prefcast.measuring.ranking.finite import NAMED
from prefcast.measuring.ranking.strengths import Pairs, fit_strengths, halved_ties
from prefcast.pairs import Outcome

__all__ = ["Rated", "in_points", "place_of", "quantiles", "rank_ranges", "ranks", "rated"]

Floats = NDArray[np.float64]

# Ratings that differ by less than this count as equal: the difference is rounding.
_SAME = 1e-5
_LOW, _HIGH = 0.025, 0.975
# The largest win minus loss, as a share of the votes that are no ties, that an error of the forecaster can lead to.
_CLEAREST = 0.98
# The error of a forecaster differs between sets of prompts and systems: it has the tails of Student's t with so many degrees
# of freedom.
_FREEDOM = 4


@dataclass(frozen=True, eq=False)
class Rated:
    """The ratings of k models: `strengths` and `ratings` (k,), the ends of their intervals `low` and `high` (k,), draws of the ratings
    (repeats, k), their `covariance` (k, k), and nu."""

    strengths: Floats
    nu: float
    ratings: Floats
    low: Floats
    high: Floats
    draws: Floats
    covariance: Floats

    @classmethod
    def of_draws(cls, strengths: Floats, nu: float, ratings: Floats, draws: Floats) -> Rated:
        """The intervals are the quantiles of the draws."""
        low, high = quantiles(draws)
        spread = draws - draws.mean(axis=0)
        return cls(strengths, nu, ratings, low, high, draws, spread.T @ spread / max(1, len(draws) - 1))


def quantiles(draws: Floats) -> Floats:
    """The ends of the 95 % intervals (2, k) of draws (repeats, k)."""
    found: Floats = np.quantile(draws, [_LOW, _HIGH], axis=0)
    return found


def place_of(anchor: str, models: tuple[str, ...]) -> int:
    """The place of the anchor among the models. Raises UsageError where it is not there."""
    if anchor in models:
        return models.index(anchor)
    named = f"{', '.join(map(excerpt, models[:NAMED]))}{', ...' if len(models) > NAMED else ''}"
    raise UsageError(f"the anchor {excerpt(anchor)} is not among the ranked models; they are {named}")


def in_points(strengths: Floats, models: tuple[str, ...], settings: Settings) -> Floats:
    """Log strengths (..., k), their mean 0, as ratings: the anchor has its rating, or the mean is 1000."""
    points = CENTRE + POINTS * strengths
    if settings.anchor is None:
        return points
    place = place_of(settings.anchor[0], models)
    return points + (settings.anchor[1] - points[..., [place]])


def rated(votes: Votes, settings: Settings) -> Rated:
    """The ratings of votes, or of forecasts, with intervals by the Bayesian bootstrap over groups.

    With a prior each draw has a prior mean of its own, drawn from the prior. With a `system_error` the win minus loss of each model
    has in each draw an error of its own. Raises FitError where a fit does not converge.
    """
    wins, ties = votes.matrices()
    strengths, nu = fit_strengths(wins, ties, precision=settings.precision, halve=settings.halve)
    k = len(votes.models)
    met, pair = np.unique(votes.left * k + votes.right, return_inverse=True)
    left, right = met // k, met % k
    pairs = Pairs(left, right, k, settings.precision)
    slot = votes.outcome * len(met) + pair
    # The error of two systems is the difference of two errors, which has twice the variance.
    wide = (settings.system_error or 0.0) / np.sqrt(2)
    rng = np.random.default_rng(settings.seed)
    draws = np.empty((settings.repeats, k))
    for draw in draws:
        weights = rng.standard_exponential(votes.groups)[votes.group] * votes.weight
        sums = np.bincount(slot[votes.cell], weights, 3 * len(met)).astype(np.float64).reshape(3, -1)
        if wide:
            error = wide * rng.standard_t(_FREEDOM, k)
            sums = _moved(sums, error[left] - error[right])
        centre = None if settings.deviation is None else settings.deviation * rng.standard_normal(k)
        draw[:] = pairs.fit(halved_ties(sums) if settings.halve else sums, (strengths, nu), centre)[0]
    points = in_points(np.vstack([strengths, draws]), votes.models, settings)
    return Rated.of_draws(strengths, nu, points[0], points[1:])


def _moved(sums: Floats, by: Floats) -> Floats:
    """Sums (3, p) whose win minus loss is greater by the shares `by` (p,) of all; the ties stay, and neither side wins less than
    one in a hundred of the other votes."""
    both = sums[Outcome.A] + sums[Outcome.B]
    net = sums[Outcome.A] - sums[Outcome.B] + by * (both + sums[Outcome.TIE])
    net = np.clip(net, -_CLEAREST * both, _CLEAREST * both)
    return np.stack([(both + net) / 2, (both - net) / 2, sums[Outcome.TIE]])


def ranks(ratings: Floats) -> NDArray[np.int64]:
    """1 + the number of models with a higher rating, for each row of `ratings` (r, k)."""
    found = np.empty(ratings.shape, np.int64)
    for row, out in zip(ratings, found, strict=True):
        out[:] = 1 + len(row) - np.searchsorted(np.sort(row), row + _SAME, side="right")
    return found


def rank_ranges(draws: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ends of the ranges of ranks (k,) and (k,)."""
    found = ranks(draws)
    # This method gives whole numbers, as ranks are.
    low, high = np.quantile(found, [_LOW, _HIGH], axis=0, method="inverted_cdf").astype(np.int64)
    return low, high
