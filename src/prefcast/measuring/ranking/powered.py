"""Ratings from votes on a sample of the rows, with forecasts of all rows to help.

The likelihood of a rating is linear in who won, so the votes may be replaced by the prediction-powered sums

    sum_sample w (y - lambda (f - F)) / sum_sample w,    w = weight / inclusion probability,

where y are votes, f forecasts of the same rows and F is the mean of the forecasts over all rows (PPI++: Angelopoulos, Duchi and
Zrnic, "PPI++: efficient prediction-powered inference", 2023; see `outcomes/statistics/sampled.py`). The ratings that solve the
score equations of these sums are those of people whatever the forecasts are worth, if the sample is random. Lambda makes the sum of
the variances of the ratings smallest; each fold of the sample takes it from the other folds, so that it is independent of
the fold's votes.

Intervals are by the sandwich of the scores of groups (Liang and Zeger 1986, "Longitudinal data analysis using generalized linear
models", Biometrika 73, 13-22), times groups / (groups - 1), with quantiles of Student's t.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.measuring.ranking.boards import POINTS, Settings
from prefcast.measuring.ranking.cells import FORECAST, GUESS, VOTE, Votes
from prefcast.measuring.ranking.rated import Rated, in_points, place_of
from prefcast.measuring.ranking.strengths import Fitted, Pairs, halved_ties
from prefcast.pairs import Outcome

__all__ = ["Powered", "powered"]

Floats = NDArray[np.float64]

_FOLDS = 5
# With fewer groups lambda is not tuned, and the forecasts are not used.
_FEWEST = 10
# The ratings at which lambda is tuned have at least this prior, in points. It only affects how well lambda is tuned.
_TUNING_PRIOR = 400.0
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Powered:
    """The ratings with forecasts, those of the votes alone, the mean lambda, and the ratio of the variances."""

    rated: Rated
    alone: Rated
    weight: float
    gain: float


def powered(votes: Votes, settings: Settings) -> Powered:
    """Ratings of `votes` of the source `both`. Raises FitError where the votes alone do not converge."""
    problem = _Problem(votes, settings)
    nothing = np.zeros(_FOLDS)
    alone, variance = problem.rated(nothing)
    tuned = problem.tuned()
    weight = float(problem.folds @ tuned)
    try:
        found, with_forecasts = problem.rated(tuned) if weight else (alone, variance)
    except FitError:
        # The forecasts of few rows can move the sums beyond what any ratings give.
        return Powered(alone, alone, 0.0, 1.0)
    # Forecasts that widen the intervals are left out, as lambda = 0 would.
    if with_forecasts >= variance:
        return Powered(alone, alone, 0.0, 1.0)
    return Powered(found, alone, weight, variance / with_forecasts)


class _Problem:
    """The sums and the scores of groups."""

    def __init__(self, votes: Votes, settings: Settings) -> None:
        self._votes, self._settings = votes, settings
        self._k = len(votes.models)
        met, pair = np.unique(votes.left * self._k + votes.right, return_inverse=True)
        self._pair, self._p = pair, len(met)
        self._pairs = Pairs(met // self._k, met % self._k, self._k, settings.precision)
        self._kind = votes.kind[votes.cell]
        # Where nobody says tie, the forecast of a tie is half a win of either side: nu = 0 has no derivative.
        self._halve = settings.halve or not (votes.totals(VOTE) * (votes.outcome == Outcome.TIE)).any()
        self._fold = np.arange(votes.groups) % _FOLDS
        # By group: the weight of the rows with votes, and of all rows.
        self._sampled, self._all = (
            np.bincount(votes.group, votes.weight * (self._kind == kind), votes.groups) for kind in (VOTE, FORECAST)
        )
        self._w, self._n = float(self._sampled.sum()), float(self._all.sum())
        self._voted = int((self._sampled > 0).sum())
        self.folds = np.bincount(self._fold, self._sampled, _FOLDS) / self._w
        self._votes_of = self._sums(self._kind == VOTE) / self._w
        self._mean = self._sums(self._kind == FORECAST) / self._n
        self._guesses = np.stack(
            [self._sums((self._kind == GUESS) & (self._fold[votes.group] == fold)) / self._w for fold in range(_FOLDS)]
        )

    def _sums(self, of: NDArray[np.bool_]) -> Floats:
        """The sums (3, p) of the entries `of` (m,)."""
        slot = (self._votes.outcome * self._p + self._pair)[self._votes.cell]
        found = np.bincount(slot, self._votes.weight * of, 3 * self._p).astype(np.float64).reshape(3, -1)
        return halved_ties(found) if self._halve else found

    def _targets(self, tuned: Floats) -> Floats:
        """The prediction-powered sums (3, p), of as many votes as there are."""
        found: Floats = self._votes_of - np.tensordot(tuned, self._guesses, 1) + (self.folds @ tuned) * self._mean
        return self._w * found

    def _scores(self, fitted: Fitted, values: Floats) -> Iterator[tuple[slice, Floats]]:
        """The sums over entries of `values` (m,) times the score of a vote like the entry, by group: blocks of groups and
        (groups, d)."""
        votes, k, theta = self._votes, self._k, fitted.theta
        won, lost, tie = self._pairs.chances(theta)
        net = np.select([votes.outcome == Outcome.A, votes.outcome == Outcome.B], [0.5, -0.5], 0.0)
        net = net - ((won - lost) / 2)[self._pair]
        level = (votes.outcome == Outcome.TIE) - tie[self._pair]
        step = max(1, _BLOCK // len(theta))
        for start in range(0, votes.groups, step):
            stop = min(start + step, votes.groups)
            part = slice(*np.searchsorted(votes.group, [start, stop]))
            cell, group = votes.cell[part], votes.group[part] - start
            scores = np.zeros((stop - start, len(theta)))
            moved = values[part] * net[cell]
            np.add.at(scores, (group, votes.left[cell]), moved)
            np.add.at(scores, (group, votes.right[cell]), -moved)
            if len(theta) > k:
                np.add.at(scores[:, k], group, values[part] * level[cell])
            yield slice(start, stop), scores

    def _total(self, fitted: Fitted, values: Floats) -> Floats:
        """The scores of all groups together, (d,)."""
        found: Floats = np.sum([scores.sum(axis=0) for _, scores in self._scores(fitted, values)], axis=0)
        return found

    def tuned(self) -> Floats:
        """Lambda of each fold (folds,), from the other folds."""
        if self._voted < _FEWEST:
            return np.zeros(_FOLDS)
        weight = self._votes.weight
        least = (POINTS / _TUNING_PRIOR) ** 2
        pairs = Pairs(self._pairs.left, self._pairs.right, self._k, max(self._settings.precision, least))
        sums = self._w * self._votes_of
        fitted = pairs.solve(sums)
        inverse = pairs.inverse(fitted, sums)[:, : self._k]
        # What lambda multiplies: by group, the forecasts of the rows with votes less those of all rows.
        ratio = self._w / self._n
        of_votes = np.where(self._kind == VOTE, weight, 0.0)
        of_forecasts = np.select([self._kind == GUESS, self._kind == FORECAST], [weight, -ratio * weight])
        y_mean = self._total(fitted, of_votes) / self._w
        f_mean = self._total(fitted, np.where(self._kind == FORECAST, weight, 0.0)) / self._n
        together, spread = np.zeros(_FOLDS), np.zeros(_FOLDS)
        both = zip(self._scores(fitted, of_votes), self._scores(fitted, of_forecasts), strict=True)
        for (rows, said), (_, forecast) in both:
            sampled, every = self._sampled[rows, None], self._all[rows, None]
            y = (said - sampled * y_mean) @ inverse
            f = (forecast - (sampled - ratio * every) * f_mean) @ inverse
            fold = self._fold[rows]
            together += np.bincount(fold, (y * f).sum(axis=1), _FOLDS)
            spread += np.bincount(fold, (f * f).sum(axis=1), _FOLDS)
        above, below = together.sum() - together, spread.sum() - spread
        found: Floats = np.clip(np.divide(above, below, out=np.zeros(_FOLDS), where=below > 0), 0.0, 1.0)
        return found

    def rated(self, tuned: Floats) -> tuple[Rated, float]:
        """The ratings with these lambdas, and the sum of their variances."""
        settings, k = self._settings, self._k
        targets = self._targets(tuned)
        fitted = self._pairs.solve(targets)
        inverse = self._pairs.inverse(fitted, targets)[:, :k]
        lam, mean_lam = tuned[self._fold], float(self.folds @ tuned)
        entry = self._votes.group
        values = (
            np.select(
                [self._kind == VOTE, self._kind == GUESS, self._kind == FORECAST],
                [1.0, -lam[entry], mean_lam * self._w / self._n],
            )
            * self._votes.weight
        )
        mean_f = self._total(fitted, np.where(self._kind == FORECAST, self._votes.weight, 0.0)) / self._n
        # A prior lets the mean score be another number than 0.
        mean = (self._total(fitted, values) / self._w)[None]
        meat = np.zeros((len(fitted.theta),) * 2)
        for rows, scores in self._scores(fitted, values):
            sampled, every = self._sampled[rows, None], self._all[rows, None]
            shifted = lam[rows, None] * sampled - mean_lam * self._w / self._n * every
            each = scores + shifted * mean_f - sampled * mean
            meat += each.T @ each
        meat *= self._voted / max(1, self._voted - 1)
        meat[np.arange(k), np.arange(k)] += settings.precision
        covariance = POINTS**2 * inverse.T @ meat @ inverse
        covariance -= covariance.mean(axis=0)
        covariance -= covariance.mean(axis=1)[:, None]
        variance = float(np.trace(covariance))
        return self._with_intervals(fitted, covariance), variance

    def _with_intervals(self, fitted: Fitted, covariance: Floats) -> Rated:
        from scipy.special import stdtrit

        settings, models = self._settings, self._votes.models
        ratings = in_points(fitted.strengths, models, settings)
        if settings.anchor is not None:
            place = place_of(settings.anchor[0], models)
            covariance = covariance - covariance[place]
            covariance = covariance - covariance[:, [place]]
        freedom = max(1, self._voted - 1)
        half = float(stdtrit(freedom, 0.975)) * np.sqrt(np.maximum(np.diag(covariance), 0.0))
        rng = np.random.default_rng(settings.seed)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        normal = rng.standard_normal((settings.repeats, self._k)) @ root.T
        scale = np.sqrt(freedom / rng.chisquare(freedom, settings.repeats))
        draws = ratings + normal * scale[:, None]
        return Rated(fitted.strengths, fitted.nu, ratings, ratings - half, ratings + half, draws, covariance)
