"""Leaderboards: the strengths of models from votes or forecasts of pairs of them.

The strengths are those of Davidson's model, a Bradley-Terry model with ties (see `strengths`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import atomic_file
from prefcast.errors import RowError, UsageError, excerpt, printable, shown_path
from prefcast.forecasts.predictions import quoted
from prefcast.measuring.ranking.strengths import Pairs, expected_shares, fit_davidson
from prefcast.measuring.ranking.votes import Votes, read_board_votes
from prefcast.outcomes.statistics.bootstrap import REPEATS
from prefcast.pairs import Outcome

__all__ = ["Leaderboard", "Standing", "rank", "rank_votes", "standings_kind", "write_matrix", "write_standings"]

Floats = NDArray[np.float64]

CENTRE = 1000.0
# Elo's scale: ten times the strength are 400 points.
POINTS = 400 / math.log(10)
MOST_MODELS = 500
# Ratings that differ by less than this are the same: they differ by rounding alone.
_SAME = 1e-5
_LOW, _HIGH = 0.025, 0.975
_TRIED = (2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
_NAMED = 5


@dataclass(frozen=True)
class Standing:
    """One model's place.

    `rating` is in Elo points, 1000 + 400 / ln(10) * log(strength), where the mean over the models is 1000. `low` and
    `high` are the 2.5 % and 97.5 % quantiles of its bootstrap draws. `rank` is 1 + the number of models with a higher
    rating; `rank_low` and `rank_high` are the 2.5 % and 97.5 % quantiles of the rank over the draws, the best one
    first. `n` rows hold the model; `wins`, `losses` and `ties` are counts for votes and sums of probabilities for
    forecasts. `win_rate` is (wins + ties / 2) / n.
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
class Leaderboard:
    """k models, the best first.

    `n` votes (or forecasts, as `source` says) between them; `nu` is the tie parameter. The intervals resampled
    `groups` units `repeats` times from `seed`: `resampled` says whether those were first prompts or rows. `failed`
    rows had an error instead of a forecast, `unlabelled` rows no vote, `faults` rows could not be used,
    `first_fault` among them; `left_out` are the models with fewer than `min_votes` votes.

    The matrices (k, k) are in the order of `standings`, row against column: `meetings` the number of votes, `observed`
    the share that the row won, ties counting half, nan where the two never met, and `predicted` what the model expects
    of that share; both are nan on the diagonal.
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

    @property
    def models(self) -> tuple[str, ...]:
        """The names, the best first."""
        return tuple(standing.model for standing in self.standings)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: every field, matrices as lists of rows, None where a number does not exist."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["standings"] = [asdict(standing) for standing in self.standings]
        plain["first_fault"] = None if self.first_fault is None else str(self.first_fault)
        plain["left_out"] = list(self.left_out)
        for name in ("meetings", "observed", "predicted"):
            plain[name] = [[None if math.isnan(value) else value for value in row] for row in plain[name].tolist()]
        return plain


def rank(
    source: Any,
    *,
    of: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_values: Mapping[str, str] | None = None,
    min_votes: int = 0,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Leaderboard:
    """A leaderboard of the models in `model_a` and `model_b`.

    `source` is a file, a table, or records in memory (`forecasts.records()`, dicts); see `read_board_votes` for what it needs and
    what `of` ("forecasts" or "votes"), `columns` and `label_values` are. `min_votes`, `repeats` and `seed`: see `rank_votes`.

    Raises FileError, UsageError, FitError.
    """
    _check(min_votes, repeats)
    votes = read_board_votes(source, of=of, columns=columns, label_values=label_values)
    return rank_votes(votes, min_votes=min_votes, repeats=repeats, seed=seed)


def rank_votes(votes: Votes, *, min_votes: int = 0, repeats: int = REPEATS, seed: int = 0) -> Leaderboard:
    """A leaderboard of votes that were read.

    Models with fewer than `min_votes` votes are left out, again and again until all that are left have as many among
    themselves. Intervals come from `repeats` draws of the Bayesian bootstrap over groups (Rubin 1981, "The Bayesian
    bootstrap", Annals of Statistics 9, 130-134: every group weighs an exponential variate). No group ever weighs
    nothing, so every draw has finite ratings where the data have.

    Raises UsageError where a rating would be infinite or there are no two models, FitError where a fit does not
    converge.
    """
    _check(min_votes, repeats)
    whole = votes
    votes = _enough(votes, min_votes)
    if len(votes.models) < 2:
        raise UsageError(f"no two models have {min_votes} votes or more; a leaderboard needs two")
    if len(votes.models) > MOST_MODELS:
        raise UsageError(
            f"{len(votes.models)} models are more than the {MOST_MODELS} that can be ranked; a higher number of least "
            "votes (--min-votes) leaves out rare ones"
        )
    wins, ties = votes.matrices()
    _check_connected(votes, whole)
    strengths, nu = fit_davidson(wins, ties)
    ratings = CENTRE + POINTS * strengths
    draws = _draws(votes, strengths, nu, repeats, seed)
    points = _ranks(ratings[None])[0]
    # The nearest draw from within: a rank is a whole number.
    rank_low = np.quantile(_ranks(draws), _LOW, axis=0, method="inverted_cdf")
    rank_high = np.quantile(_ranks(draws), _HIGH, axis=0, method="inverted_cdf")
    low, high = np.quantile(draws, [_LOW, _HIGH], axis=0)
    # Rounding would otherwise tell of 12.000000000000002 wins.
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
    )


def _draws(votes: Votes, strengths: Floats, nu: float, repeats: int, seed: int) -> Floats:
    """Ratings of bootstrap draws, (repeats, k), each sought from the estimate."""
    k = len(votes.models)
    met, pair = np.unique(votes.left * k + votes.right, return_inverse=True)
    pairs = Pairs(met // k, met % k, k)
    slot = (votes.outcome * len(met) + pair)[votes.cell]
    rng = np.random.default_rng(seed)
    draws = np.empty((repeats, k))
    for draw in draws:
        weights = rng.standard_exponential(votes.groups)[votes.group] * votes.weight
        sums: Floats = np.bincount(slot, weights, 3 * len(met)).astype(np.float64).reshape(3, -1)
        draw[:] = pairs.fit(sums, strengths, nu or 1.0)[0]
    return CENTRE + POINTS * draws


def _ranks(ratings: Floats) -> NDArray[np.int64]:
    """1 + the number of models with a higher rating, for rows of ratings (r, k)."""
    ranks = np.empty(ratings.shape, np.int64)
    for row, out in zip(ratings, ranks, strict=True):
        out[:] = 1 + len(row) - np.searchsorted(np.sort(row), row + _SAME, side="right")
    return ranks


def _check(min_votes: int, repeats: int) -> None:
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}; expected at least 1 draw")
    if min_votes < 0:
        raise UsageError(f"min_votes is {min_votes}; expected 0 or more")


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
    """The strong components of the graph of wins and ties: their numbers (k,), how many, and the graph (k, k)."""
    from scipy.sparse.csgraph import connected_components

    wins, ties = votes.matrices()
    graph = (wins + ties > 0).astype(np.float64)
    count, label = connected_components(graph, connection="strong")
    return label, int(count), graph


def _ties_bounded(votes: Votes) -> bool:
    """Whether nu is finite, given one component: there are no ties, or wins outnumber ties around some circle.

    Otherwise there are shifts of the log strengths with winners at least 2 above losers and ties at most 2 apart: as
    they and log nu grow together, no vote becomes less likely. Such shifts are what circles of that kind rule out.
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


def _check_connected(votes: Votes, whole: Votes) -> None:
    """Raises UsageError unless all ratings are finite: each model can be reached from each by wins and ties (Ford 1957,
    "Solution of a ranking problem from binary comparisons", American Mathematical Monthly 64, 28-33), and nu is."""
    if not (votes.outcome != Outcome.TIE).any():
        raise UsageError("every vote is a tie: nothing tells the models apart")
    label, count, graph = _components(votes)
    if count == 1 and _ties_bounded(votes):
        return
    if count == 1:
        raise UsageError(
            "no finite ratings: wherever one model won, no other vote went against it, only ties; more votes are "
            f"needed{_advice(whole)}"
        )
    # Of the groups that nothing leads into, or out of, the smallest says it most plainly.
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
    one = size == 1
    what = (
        f"never lost or tied{'' if one else ' against the others'}"
        if won
        else f"never won or tied{'' if one else ' against the others'}"
        if lost
        else "never met the others"
    )
    raise UsageError(
        f"no finite rating for {', '.join(names)}{more} (of {len(votes.models)} models): {what}; "
        f"more votes are needed{_advice(whole)}"
    )


def _advice(votes: Votes) -> str:
    """What leaving out rare models would do."""
    for least in _TRIED:
        votes = _enough(votes, least)
        if len(votes.models) < 2:
            break
        if (votes.outcome != Outcome.TIE).any() and _components(votes)[1] == 1 and _ties_bounded(votes):
            return f", or --min-votes {least}, which leaves {len(votes.models)} models and {votes.n} votes"
    return ""


def standings_kind(path: str | os.PathLike[str]) -> str:
    """The ending of a file of standings; UsageError if no writer has it."""
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".jsonl"):
        raise UsageError(f"{shown_path(path)}: the ending tells the format of the leaderboard: .csv or .jsonl")
    return ending


def write_standings(board: Leaderboard, path: str | os.PathLike[str]) -> None:
    """A line a model, the best first, with the fields of Standing: .csv or .jsonl. Raises UsageError."""
    kind = standings_kind(path)
    records = [asdict(standing) for standing in board.standings]
    if kind == ".csv":
        lines = [",".join(each.name for each in fields(Standing))]
        lines += [",".join(map(_cell, record.values())) for record in records]
    else:
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    _write(lines, path)


def write_matrix(board: Leaderboard, path: str | os.PathLike[str]) -> None:
    """Every model against every other as CSV: `model`, `opponent`, `votes` between them, and the share of them that
    the model won, ties counting half: `observed` (empty where they never met) and `predicted`. Raises UsageError."""
    if Path(path).suffix.lower() != ".csv":
        raise UsageError(f"{shown_path(path)}: the matrix of win rates is written as .csv")
    lines = ["model,opponent,votes,observed,predicted"]
    for i, model in enumerate(board.models):
        for j, opponent in enumerate(board.models):
            if i != j:
                votes, observed, predicted = board.meetings[i, j], board.observed[i, j], board.predicted[i, j]
                cells = (model, opponent, int(votes), "" if math.isnan(observed) else float(observed), float(predicted))
                lines.append(",".join(map(_cell, cells)))
    _write(lines, path)


def _cell(value: object) -> str:
    """A CSV cell. Names come from strangers: what a terminal would obey is escaped, and what a spreadsheet would run gets
    an apostrophe before it."""
    if not isinstance(value, str):
        return repr(value)
    shown = printable(value)
    return quoted(f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown)


def _write(lines: list[str], path: str | os.PathLike[str]) -> None:
    with atomic_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode("utf-8"))
