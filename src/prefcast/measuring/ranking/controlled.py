"""Style control: ratings of models whose answers would look alike.

By how much A's answer is longer than B's, and has more list items, headings and bold, are covariates of the same likelihood, as in
Arena's style control (Li, Angelopoulos and Chiang 2024, "Does style matter? Disentangling style and substance in Chatbot Arena");
here ties have a probability of their own. The covariates are (a - b) / (a + b), divided by their root mean square.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError, UsageError
from prefcast.measuring.ranking.boards import POINTS, Settings, Shift, Slope, Style
from prefcast.measuring.ranking.looks import COVARIATES, Styles
from prefcast.measuring.ranking.rated import Rated, in_points
from prefcast.measuring.ranking.strengths import Pairs, halved_ties
from prefcast.outcomes.statistics.bootstrap import Figure, figure

__all__ = ["controlled"]

Floats = NDArray[np.float64]

# The fits of draws end after a step below this: 0.02 points.
_STEP = 1e-4


def controlled(rows: Styles, settings: Settings) -> tuple[Rated, Style]:
    """The ratings with style control, and what it changes; the shifts are in the order of `rows.models`.

    Intervals are by the Bayesian bootstrap over groups; both ratings of a draw have the same weights. Raises UsageError where the
    ratings would not be finite.
    """
    deviation = np.sqrt((rows.look**2).mean(axis=0)) if len(rows.look) else np.zeros(len(COVARIATES))
    used = deviation > 1e-9
    k = len(rows.models)
    met, pair = np.unique(rows.left * k + rows.right, return_inverse=True)
    plain = Pairs(met // k, met % k, k, settings.precision)
    styled = Pairs(rows.left, rows.right, k, settings.precision, rows.look[:, used] / deviation[used])
    sums = halved_ties(rows.sums) if settings.halve else rows.sums

    def by_pair(of: Floats) -> Floats:
        return np.stack([np.bincount(pair, each, len(met)) for each in of])

    try:
        raw, found = plain.solve(by_pair(sums)), styled.solve(sums)
        groups, group = np.unique(rows.group, return_inverse=True)
        rng = np.random.default_rng(settings.seed)
        raws, draws = np.empty((settings.repeats, k)), np.empty((settings.repeats, k))
        slopes = np.empty((settings.repeats, int(used.sum())))
        for draw in range(settings.repeats):
            weighted = sums * rng.standard_exponential(len(groups))[group]
            centre = None if settings.deviation is None else settings.deviation * rng.standard_normal(k)
            raws[draw] = plain.solve(by_pair(weighted), raw, centre, step=_STEP).strengths
            each = styled.solve(weighted, found, centre, step=_STEP)
            draws[draw], slopes[draw] = each.strengths, each.slopes
    except FitError as error:
        raise UsageError(
            f"style control: {error}; more votes are needed, --min-votes leaves out models with few, and --prior 400 pulls ratings "
            "towards their mean"
        ) from None
    points, drawn = (in_points(each, rows.models, settings) for each in (found.strengths, draws))
    raw_points, raw_drawn = (in_points(each, rows.models, settings) for each in (raw.strengths, raws))
    shifts = [
        Shift(
            model,
            figure(float(raw_points[place]), raw_drawn[:, place]),
            figure(float(points[place] - raw_points[place]), drawn[:, place] - raw_drawn[:, place]),
        )
        for place, model in enumerate(rows.models)
    ]
    in_use = iter(zip(found.slopes.tolist(), slopes.T, strict=True))
    found_slopes: list[Slope] = []
    for name, width, use in zip(COVARIATES, deviation.tolist(), used.tolist(), strict=True):
        points_of: Figure | None = None
        if use:
            value, every = next(in_use)
            points_of = figure(POINTS * value, POINTS * every)
        found_slopes.append(Slope(name, width, points_of))
    rated = Rated.of_draws(found.strengths, found.nu, points, drawn)
    return rated, Style(tuple(found_slopes), tuple(shifts))
