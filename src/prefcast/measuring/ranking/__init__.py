"""Leaderboards: ratings of models from votes on pairs of their answers, from forecasts of such votes, or from both together.

The ratings are strengths of Davidson's model, a Bradley-Terry model with ties (see `strengths`); on Arena's scale, those of the
Bradley-Terry model with a tie as half a win of either side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.limits import MAX_ROW
from prefcast.errors import UsageError
from prefcast.measuring.ranking.boards import (
    Added,
    Category,
    Leaderboard,
    Settings,
    Shift,
    Slope,
    Standing,
    Style,
    Together,
)
from prefcast.measuring.ranking.cells import FORECAST, FURTHER, VOTE, Votes
from prefcast.measuring.ranking.controlled import controlled
from prefcast.measuring.ranking.finite import check_finite, with_enough
from prefcast.measuring.ranking.given import beside
from prefcast.measuring.ranking.onto import Board, added_to, read_board
from prefcast.measuring.ranking.powered import powered
from prefcast.measuring.ranking.rated import Rated, place_of, rank_ranges, ranks, rated
from prefcast.measuring.ranking.reading import Asked, Found, read_board_votes
from prefcast.measuring.ranking.strengths import expected_shares
from prefcast.measuring.ranking.writing import matrix_kind, standings_kind, write_matrix, write_standings
from prefcast.outcomes.statistics.bootstrap import REPEATS, Figure

__all__ = [
    "Added",
    "Category",
    "Leaderboard",
    "Shift",
    "Slope",
    "Standing",
    "Style",
    "Together",
    "matrix_kind",
    "rank",
    "standings_kind",
    "write_matrix",
    "write_standings",
]

Floats = NDArray[np.float64]
_Path = str | os.PathLike[str]


def rank(
    source: Any,
    *,
    of: str | None = None,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    where: Mapping[str, str] | None = None,
    by: str | None = None,
    votes: _Path | None = None,
    weights: _Path | None = None,
    anchor: tuple[str, float] | None = None,
    min_votes: int = 0,
    repeats: int = REPEATS,
    seed: int = 0,
    scale: str = "davidson",
    prior: float | None = None,
    system_error: float | None = None,
    style: bool = False,
    onto: _Path | None = None,
) -> Leaderboard:
    """A leaderboard of the models that `model_a` and `model_b` name.

    `source` is a file, a table or a sequence of records (dicts, or `forecasts.records()`). `read_board_votes` describes the columns
    that it needs, `columns`, `label_values` and `where`. `of` is what ratings are made of: "votes", "forecasts" or "both"; without it,
    the votes where every row has one or there are no forecasts, the forecasts where there are no votes, and otherwise both
    (`powered`). `votes` is a file of votes by id, in the place of the labels, and `weights` one of weights (`beside`).

    The ratings of forecasts alone need `system_error`: the standard deviation of the forecaster's error for two systems, in win
    minus loss (`Forecaster.calibration.net`). Their intervals cover it.

    `anchor` is a model and its rating: all ratings are moved so that it has that rating in every draw. Without it their mean is
    1000. Models with fewer than `min_votes` votes are left out; this is repeated until all remaining models have that many
    votes among themselves. The intervals are from `repeats` draws of the Bayesian bootstrap over groups (Rubin 1981,
    "The Bayesian bootstrap", Annals of Statistics 9, 130-134: the weight of a group is an exponential variate). No
    weight is 0, so the ratings of every draw are finite if those of the data are. Those of votes and forecasts together are described
    in `powered`.

    `scale` is `davidson`, or `arena`: a tie counts as half a win of either side, as in Arena's leaderboard, and ratings lie
    closer together. `prior` pulls ratings towards their mean: a normal prior with this standard deviation in points. With it a
    model that never lost has a rating, whose interval is wide: each draw has a prior mean of its own, drawn from the prior
    (randomised maximum a posteriori; Gu and Oliver 2007).

    `by` names a column: each of its values has a leaderboard of its own in `categories`. `style` controls for the style of the
    answers (`controlled`), which needs their texts. `onto` is the JSON file of an earlier leaderboard: its ratings stay, and
    the models that it does not have are rated against them (`added_to`); scale and nu are those of that leaderboard.

    Raises FileError, UsageError (also if a rating would be infinite or fewer than two models remain), and FitError if a
    fit does not converge.
    """
    settings = Settings(
        anchor=anchor,
        min_votes=min_votes,
        repeats=repeats,
        seed=seed,
        scale=scale,
        prior=prior,
        system_error=system_error,
    )
    if style and of in ("forecasts", "both"):
        raise UsageError("style control is of votes; leave out the forecasts (--from votes)")
    board = None if onto is None else _board(onto, settings, by=by, style=style)
    asked = Asked(
        of="votes" if style else of,
        columns=columns,
        cells=cells,
        label_values=label_values,
        max_row=max_row,
        where=where,
        by=by,
        styled=style,
    )
    found = read_board_votes(source, asked, beside(votes, weights))
    if board is not None:
        return _onto(board, found.votes, settings)
    categories = [_category(name, part, settings) for name, part in found.categories.items()]
    return replace(_ranked(found, settings), categories=tuple(categories))


def _category(name: str, found: Found | None, settings: Settings) -> Category:
    if found is None:
        return Category(name, None, "no row has what is ranked")
    try:
        return Category(name, _ranked(found, settings))
    except UsageError as error:
        return Category(name, None, str(error))


def _ranked(found: Found, settings: Settings) -> Leaderboard:
    """The leaderboard of what was read."""
    whole = found.votes
    if whole.source == "forecasts" and settings.system_error is None:
        raise UsageError(
            "these are forecasts without votes, and how far the forecaster is off for a whole system is not known: an interval would "
            "promise too much. Add votes on some of the rows (a column label, or --votes FILE); or rank the pairs themselves with "
            "--model or --forecaster, which know their error; or give the error with --system-error 0.27 (compare prints it)"
        )
    votes = with_enough(whole, settings.min_votes)
    if settings.anchor is not None:
        place_of(settings.anchor[0], votes.models)
    counted = votes.of(*votes.counted)
    try:
        check_finite(counted, whole.of(*whole.counted), halve=settings.halve, prior=settings.prior is not None)
    except UsageError as error:
        if votes.source != "both":
            raise
        raise UsageError(f"{error}; --from forecasts ranks by the forecasts alone, with wide intervals") from None
    more: dict[str, Any] = {}
    alone: list[Figure] = []
    if votes.source == "both":
        both = powered(votes, settings)
        points = both.rated
        alone = [
            Figure(*map(float, each)) for each in zip(both.alone.ratings, both.alone.low, both.alone.high, strict=True)
        ]
        voted = round(float(votes.totals(VOTE).sum()))
        rows = round(float(votes.totals(FORECAST).sum()))
        more["together"] = Together(rows, voted, both.weight, round(voted * both.gain), ())
    elif found.styles is not None:
        points, more["style"] = controlled(found.styles.only(votes.models), settings)
    else:
        points = rated(counted, settings if votes.source == "forecasts" else replace(settings, system_error=None))
        more["system_error"] = settings.system_error if votes.source == "forecasts" else None
    made = _leaderboard(counted, votes.models, points, settings, **more)
    place = {model: index for index, model in enumerate(votes.models)}
    order = [place[model] for model in made.models]
    if made.together is not None:
        made = replace(made, together=replace(made.together, alone=tuple(alone[index] for index in order)))
    if made.style is not None:
        made = replace(made, style=replace(made.style, shifts=tuple(made.style.shifts[index] for index in order)))
    return replace(made, left_out=tuple(model for model in whole.models if model not in place))


def _leaderboard(votes: Votes, models: tuple[str, ...], points: Rated, settings: Settings, **more: Any) -> Leaderboard:
    """The board of `models` with these ratings, and with the counts of `votes` between some of them."""
    place = [models.index(model) for model in votes.models]
    k = len(models)
    wins, ties = np.zeros((k, k)), np.zeros((k, k))
    wins[np.ix_(place, place)], ties[np.ix_(place, place)] = votes.matrices()
    # Without rounding there would be 12.000000000000002 wins.
    won, lost, tied = (np.round(total, 9) for total in (wins.sum(axis=1), wins.sum(axis=0), ties.sum(axis=1)))
    meetings = np.round(wins + wins.T + ties)
    with np.errstate(invalid="ignore"):
        observed = (wins + ties / 2) / (wins + wins.T + ties)
        win_rate = (won + tied / 2) / (won + lost + tied)
    predicted = expected_shares(points.strengths, points.nu)
    np.fill_diagonal(observed, np.nan)
    np.fill_diagonal(predicted, np.nan)
    rank_of = ranks(points.ratings[None])[0]
    rank_low, rank_high = rank_ranges(points.draws)
    order = sorted(range(k), key=lambda i: (rank_of[i], models[i]))
    square = np.ix_(order, order)
    return Leaderboard(
        standings=tuple(
            Standing(
                model=models[i],
                rating=float(points.ratings[i]),
                low=float(points.low[i]),
                high=float(points.high[i]),
                rank=int(rank_of[i]),
                rank_low=int(rank_low[i]),
                rank_high=int(rank_high[i]),
                n=int(meetings[i].sum()) if votes.source == "votes" else round(float(won[i] + lost[i] + tied[i])),
                wins=float(won[i]),
                losses=float(lost[i]),
                ties=float(tied[i]),
                win_rate=float(win_rate[i]),
            )
            for i in order
        ),
        nu=points.nu,
        n=votes.n,
        groups=votes.groups,
        resampled=votes.resampled,
        repeats=settings.repeats,
        seed=settings.seed,
        source=votes.source,
        failed=votes.failed,
        unlabelled=votes.unlabelled,
        faults=votes.faults,
        first_fault=votes.first_fault,
        min_votes=settings.min_votes,
        left_out=(),
        meetings=meetings[square],
        observed=observed[square],
        predicted=predicted[square],
        covariance=points.covariance[square],
        scale=settings.scale,
        prior=settings.prior,
        unused=votes.unused,
        unmatched=votes.unmatched,
        **more,
    )


def _board(path: _Path, settings: Settings, *, by: str | None, style: bool) -> Board:
    """The board that new models are added to. Raises UsageError for settings that do not go with one."""
    for given, name in (
        (settings.anchor is not None, "--anchor"),
        (settings.min_votes, "--min-votes"),
        (by is not None, "--by"),
        (style, "--style"),
    ):
        if given:
            raise UsageError(f"{name} does not go with --onto: the ratings of the earlier board stay as they are")
    return read_board(path)


def _onto(board: Board, votes: Votes, settings: Settings) -> Leaderboard:
    """The board with the new models of `votes`; what it says of its own models stays."""
    if votes.source == "forecasts":
        raise UsageError("--onto rates new models by votes; these rows have forecasts alone")
    counted = votes.of(VOTE, FURTHER)
    settings = replace(settings, scale=board.scale)
    models, points, added = added_to(board, counted, settings)
    made = _leaderboard(counted, models, points, settings, added=added)
    before = {each.model: each for each in board.standings}
    standings = []
    for each in made.standings:
        old = before.get(each.model)
        counts = (
            {} if old is None else {name: getattr(old, name) for name in ("n", "wins", "losses", "ties", "win_rate")}
        )
        standings.append(replace(each, **counts))
    return replace(made, standings=tuple(standings), source="votes")
