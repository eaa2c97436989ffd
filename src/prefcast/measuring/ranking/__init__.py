"""Leaderboards: ratings of models from votes on pairs of their answers, or from forecasts of such votes.

The ratings are strengths of Davidson's model, a Bradley-Terry model with ties (see `strengths`); on Arena's scale, those of the
Bradley-Terry model with a tie as half a win of either side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.limits import MAX_ROW
from prefcast.base.tables import ShownTable, Tables
from prefcast.errors import RowError, UsageError, excerpt
from prefcast.measuring.ranking.strengths import Pairs, expected_shares, fit_strengths, halved_ties
from prefcast.measuring.ranking.votes import Votes, read_board_votes
from prefcast.measuring.ranking.writing import matrix_kind, standings_kind, write_matrix, write_standings
from prefcast.outcomes.statistics.bootstrap import REPEATS
from prefcast.pairs import Outcome

__all__ = ["Leaderboard", "Standing", "matrix_kind", "rank", "standings_kind", "write_matrix", "write_standings"]

Floats = NDArray[np.float64]

CENTRE = 1000.0
# Elo's scale: 400 points are a factor of 10 in strength.
POINTS = 400 / math.log(10)
MOST_MODELS = 500
SCALES = ("davidson", "arena")
# Ratings that differ by less than this count as equal: the difference is rounding.
_SAME = 1e-5
_LOW, _HIGH = 0.025, 0.975
_TRIED = (2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
_NAMED = 5


@dataclass(frozen=True)
class Standing:
    """The place of one model.

    `rating` is in Elo points, 1000 + 400 / ln(10) * log(strength); the mean over the models is 1000. `low` and `high`
    are the 2.5 % and 97.5 % quantiles of the bootstrap draws of the rating. `rank` is 1 + the number of models with a
    higher rating; `rank_low` (the better one) and `rank_high` are the 2.5 % and 97.5 % quantiles of the rank over the
    draws. `n` is the number of rows with the model. `wins`, `losses` and `ties` are counts of votes, or sums of
    probabilities of forecasts. `win_rate` is (wins + ties / 2) / n.
    """

    model: str
    rating: float
    low: float
    high: float
    rank: int
    rank_low: int
    rank_high: int
    n: int
    wins: float
    losses: float
    ties: float
    win_rate: float


@dataclass(frozen=True, eq=False)
class Leaderboard(Tables):
    """A leaderboard of k models, the best first.

    `n` is the number of votes or forecasts; `source` says which. `nu` is the tie parameter. The intervals are from
    resampling `groups` units `repeats` times with `seed`; `resampled` says whether these are first prompts or rows.
    `scale` is davidson or arena, `prior` the standard deviation in points that ratings were expected to have, None without one.
    `failed` rows had an error and no forecast, `unlabelled` rows no vote, and `faults` rows could not be read;
    `first_fault` is the first of these. `left_out` are the models with fewer than `min_votes` votes.

    The matrices (k, k) are in the order of `standings`, row against column. `meetings` is the number of votes.
    `observed` is the share of them that the row won, a tie counting as half; it is nan if the two never met.
    `predicted` is the share that the model expects. `observed` and `predicted` are nan on the diagonal.
    """

    standings: tuple[Standing, ...]
    nu: float
    n: int
    groups: int
    resampled: str
    repeats: int
    seed: int
    source: str
    failed: int
    unlabelled: int
    faults: int
    first_fault: RowError | None
    min_votes: int
    left_out: tuple[str, ...]
    meetings: Floats
    observed: Floats
    predicted: Floats
    scale: str = "davidson"
    prior: float | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The names, the best first."""
        return tuple(standing.model for standing in self.standings)

    def tables(self) -> list[ShownTable]:
        """The standings, the best first."""
        return [
            ShownTable(
                f"{self.n} {self.source} between {len(self.standings)} models",
                tuple(each.name for each in fields(Standing)),
                [tuple(vars(standing).values()) for standing in self.standings],
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types: matrices are lists of rows, and nan is None."""
        plain = vars(self) | {"standings": [asdict(standing) for standing in self.standings]}
        plain |= {"first_fault": self.first_fault and str(self.first_fault), "left_out": list(self.left_out)}
        for name in ("meetings", "observed", "predicted"):
            plain[name] = [[None if math.isnan(value) else value for value in row] for row in plain[name].tolist()]
        return plain


def rank(
    source: Any,
    *,
    of: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    where: Mapping[str, str] | None = None,
    anchor: tuple[str, float] | None = None,
    min_votes: int = 0,
    repeats: int = REPEATS,
    seed: int = 0,
    scale: str = "davidson",
    prior: float | None = None,
) -> Leaderboard:
    """A leaderboard of the models that `model_a` and `model_b` name.

    `source` is a file, a table or a sequence of records (dicts, or `forecasts.records()`). `read_board_votes` describes the columns
    that it needs, `of` ("forecasts" or "votes"), `columns`, `label_values` and `where`.

    `anchor` is a model and its rating: all ratings are moved so that it has that rating in every draw. Without it their mean is
    1000. Models with fewer than `min_votes` votes are left out; this is repeated until all remaining models have that many
    votes among themselves. The intervals are from `repeats` draws of the Bayesian bootstrap over groups (Rubin 1981,
    "The Bayesian bootstrap", Annals of Statistics 9, 130-134: the weight of a group is an exponential variate). No
    weight is 0, so the ratings of every draw are finite if those of the data are.

    `scale` is `davidson`, or `arena`: a tie counts as half a win of either side, as in Arena's leaderboard, and ratings lie
    closer together. `prior` pulls ratings towards their mean: a normal prior with this standard deviation in points. With it a
    model that never lost has a rating, whose interval is wide: each draw has a prior mean of its own, drawn from the prior
    (randomised maximum a posteriori; Gu and Oliver 2007).

    Raises FileError, UsageError (also if a rating would be infinite or fewer than two models remain), and FitError if a
    fit does not converge.
    """
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}; expected at least 1 draw")
    if min_votes < 0:
        raise UsageError(f"min_votes is {min_votes}; expected 0 or more")
    if scale not in SCALES:
        raise UsageError(f"unknown scale {excerpt(scale)}; there are {', '.join(SCALES)}")
    if prior is not None and not 0 < prior < math.inf:
        raise UsageError(f"prior is {prior:g}; expected a positive number of points")
    whole = read_board_votes(source, of=of, columns=columns, label_values=label_values, where=where, max_row=max_row)
    votes = _enough(whole, min_votes)
    if len(votes.models) < 2:
        raise UsageError(f"fewer than two models have {min_votes} votes or more; a leaderboard needs two")
    if len(votes.models) > MOST_MODELS:
        raise UsageError(
            f"there are {len(votes.models)} models; at most {MOST_MODELS} can be ranked; a higher --min-votes leaves out "
            "models with few votes"
        )
    wins, ties = votes.matrices()
    _check_connected(votes, whole, halve=scale == "arena", prior=prior is not None)
    deviation = None if prior is None else prior / POINTS
    precision = 0.0 if deviation is None else deviation**-2
    strengths, nu = fit_strengths(wins, ties, precision=precision, halve=scale == "arena")
    ratings = CENTRE + POINTS * strengths
    draws = _draws(votes, (strengths, nu), repeats, seed, halve=scale == "arena", deviation=deviation)
    if anchor is not None:
        model, rating = anchor
        if model not in votes.models:
            more = ", ..." if len(votes.models) > _NAMED else ""
            named = f"{', '.join(map(excerpt, votes.models[:_NAMED]))}{more}"
            raise UsageError(f"the anchor {excerpt(model)} is not among the ranked models; they are {named}")
        place = votes.models.index(model)
        ratings = ratings + (rating - ratings[place])
        draws = draws + (rating - draws[:, [place]])
    points = _ranks(ratings[None])[0]
    # This method gives whole numbers, as ranks are.
    rank_low = np.quantile(_ranks(draws), _LOW, axis=0, method="inverted_cdf")
    rank_high = np.quantile(_ranks(draws), _HIGH, axis=0, method="inverted_cdf")
    low, high = np.quantile(draws, [_LOW, _HIGH], axis=0)
    # Without rounding there would be 12.000000000000002 wins.
    won, lost, tied = (np.round(total, 9) for total in (wins.sum(axis=1), wins.sum(axis=0), ties.sum(axis=1)))
    meetings = np.round(wins + wins.T + ties)
    with np.errstate(invalid="ignore"):
        observed = (wins + ties / 2) / (wins + wins.T + ties)
    predicted = expected_shares(strengths, nu)
    np.fill_diagonal(observed, np.nan)
    np.fill_diagonal(predicted, np.nan)
    order = sorted(range(len(votes.models)), key=lambda i: (points[i], votes.models[i]))
    return Leaderboard(
        standings=tuple(
            Standing(
                model=votes.models[i],
                rating=float(ratings[i]),
                low=float(low[i]),
                high=float(high[i]),
                rank=int(points[i]),
                rank_low=int(rank_low[i]),
                rank_high=int(rank_high[i]),
                n=int(meetings[i].sum()) if votes.source == "votes" else round(float(won[i] + lost[i] + tied[i])),
                wins=float(won[i]),
                losses=float(lost[i]),
                ties=float(tied[i]),
                win_rate=float((won[i] + tied[i] / 2) / (won[i] + lost[i] + tied[i])),
            )
            for i in order
        ),
        nu=nu,
        n=votes.n,
        groups=votes.groups,
        resampled=votes.resampled,
        repeats=repeats,
        seed=seed,
        source=votes.source,
        failed=votes.failed,
        unlabelled=votes.unlabelled,
        faults=votes.faults,
        first_fault=votes.first_fault,
        min_votes=min_votes,
        left_out=tuple(model for model in whole.models if model not in set(votes.models)),
        meetings=meetings[np.ix_(order, order)],
        observed=observed[np.ix_(order, order)],
        predicted=predicted[np.ix_(order, order)],
        scale=scale,
        prior=prior,
    )


def _draws(
    votes: Votes, start: tuple[Floats, float], repeats: int, seed: int, *, halve: bool, deviation: float | None
) -> Floats:
    """The ratings of the bootstrap draws, (repeats, k); each fit starts at the estimate. `deviation` is that of the prior."""
    k = len(votes.models)
    met, pair = np.unique(votes.left * k + votes.right, return_inverse=True)
    pairs = Pairs(met // k, met % k, k, 0.0 if deviation is None else deviation**-2)
    slot = (votes.outcome * len(met) + pair)[votes.cell]
    rng = np.random.default_rng(seed)
    draws = np.empty((repeats, k))
    for draw in draws:
        weights = rng.standard_exponential(votes.groups)[votes.group] * votes.weight
        sums: Floats = np.bincount(slot, weights, 3 * len(met)).astype(np.float64).reshape(3, -1)
        centre = None if deviation is None else deviation * rng.standard_normal(k)
        draw[:] = pairs.fit(halved_ties(sums) if halve else sums, start, centre)[0]
    return CENTRE + POINTS * draws


def _ranks(ratings: Floats) -> NDArray[np.int64]:
    """1 + the number of models with a higher rating, for each row of `ratings` (r, k)."""
    ranks = np.empty(ratings.shape, np.int64)
    for row, out in zip(ratings, ranks, strict=True):
        out[:] = 1 + len(row) - np.searchsorted(np.sort(row), row + _SAME, side="right")
    return ranks


def _enough(votes: Votes, least: int) -> Votes:
    while True:
        cells = np.bincount(votes.cell, votes.weight, len(votes.left))
        k = len(votes.models)
        counts = np.bincount(votes.left, cells, k) + np.bincount(votes.right, cells, k)
        enough = np.round(counts, 6) >= max(least, _SAME)
        if enough.all():
            return votes
        votes = votes.only(enough)


def _components(votes: Votes) -> tuple[NDArray[np.int64], int, Floats]:
    """The strong components of the graph of wins and ties: the component of each model (k,), their count, and the graph
    (k, k)."""
    from scipy.sparse.csgraph import connected_components

    wins, ties = votes.matrices()
    graph = (wins + ties > 0).astype(np.float64)
    count, label = connected_components(graph, connection="strong")
    return label, int(count), graph


def _ties_bounded(votes: Votes) -> bool:
    """Whether nu is finite, given one component. It is if there are no ties, or if wins outnumber ties around some
    circle of the graph.

    Otherwise the log strengths can be shifted so that every winner moves at least 2 above the loser and models that tied
    move at most 2 apart. If these shifts and log nu grow in proportion, no vote becomes less likely, so there is no
    maximum. A circle with more wins than ties makes such shifts impossible.
    """
    from scipy.sparse.csgraph import NegativeCycleError, bellman_ford, connected_components

    wins, ties = votes.matrices()
    if not ties.any() or connected_components(wins > 0, connection="strong")[0] < len(wins):
        return True
    try:
        bellman_ford(np.where(wins > 0, -1.0, (ties > 0).astype(np.float64)), indices=0)
    except NegativeCycleError:
        return True
    return False


def _check_connected(votes: Votes, whole: Votes, *, halve: bool, prior: bool) -> None:
    """Raises UsageError unless all ratings and nu are finite. With a `prior` they are, if there is a win; where ties are half
    wins (`halve`) there is no nu.

    The ratings are finite if every model can be reached from every other by wins and ties (Ford 1957, "Solution of a
    ranking problem from binary comparisons", American Mathematical Monthly 64, 28-33).
    """
    if not (votes.outcome != Outcome.TIE).any():
        raise UsageError("every vote is a tie: the models cannot be ranked")
    if prior:
        return
    label, count, graph = _components(votes)
    if count == 1 and (halve or _ties_bounded(votes)):
        return
    if count == 1:
        raise UsageError(
            f"no finite ratings: no win contradicts the other wins, only ties do; more votes are needed{_advice(whole)}"
        )
    # Of the groups without a win or tie into them, or out of them, the smallest gives the clearest message.
    between = graph * (label[:, None] != label[None])
    closed = [
        (int((label == each).sum()), each)
        for each in range(count)
        if not between[label == each].any() or not between[:, label == each].any()
    ]
    size, each = min(closed)
    inside = label == each
    won, lost = between[inside].any(), between[:, inside].any()
    names = [excerpt(votes.models[i], 40) for i in np.flatnonzero(inside)[:_NAMED]]
    more = f" and {size - _NAMED} more" if size > _NAMED else ""
    against = "" if size == 1 else " against the others"
    what = f"never {'lost' if won else 'won'} or tied{against}" if won or lost else "never met the others"
    raise UsageError(
        f"no finite rating for {', '.join(names)}{more} (of {len(votes.models)} models): {what}; "
        f"more votes are needed{_advice(whole)}; --prior 400 ranks them too, with wide intervals"
    )


def _advice(votes: Votes) -> str:
    """The effect of leaving out models with few votes, as the end of a message."""
    for least in _TRIED:
        votes = _enough(votes, least)
        if len(votes.models) < 2:
            break
        if (votes.outcome != Outcome.TIE).any() and _components(votes)[1] == 1 and _ties_bounded(votes):
            return f", or --min-votes {least}, which leaves {len(votes.models)} models and {votes.n} votes"
    return ""
