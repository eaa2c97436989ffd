"""New models beside the fixed ratings of an earlier leaderboard."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError, FitError, UsageError, excerpt, shown_path
from prefcast.measuring.ranking.boards import CENTRE, POINTS, SCALES, Added, Settings, Standing
from prefcast.measuring.ranking.cells import Votes
from prefcast.measuring.ranking.finite import MOST_MODELS, NAMED
from prefcast.measuring.ranking.rated import Rated
from prefcast.measuring.ranking.strengths import Fitted, Pairs, halved_ties
from prefcast.pairs import Outcome
from prefcast.pairs.formats.fields import as_number, json_problem, parsed

__all__ = ["Board", "added_to", "read_board"]

Floats = NDArray[np.float64]

_MOST_BYTES = 256_000_000
# No rating is farther from 1000 than this, in points.
_FARTHEST = 1e5
_Z = 1.959964


@dataclass(frozen=True, eq=False)
class Board:
    """An earlier leaderboard: its `standings`, the `covariance` (k, k) of its ratings, where it is known, and what that covers:
    `covariance`, `intervals` or `none`."""

    name: str
    standings: tuple[Standing, ...]
    scale: str
    nu: float
    covariance: Floats
    uncertainty: str


def read_board(path: str | os.PathLike[str]) -> Board:
    """A leaderboard that `rank --json` wrote. The file is not trusted: whatever is used of it is checked. Raises FileError."""
    name = shown_path(path)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path of any kind
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FileError(name, f"cannot be read: {error.strerror or error}") from None
    if len(text) > _MOST_BYTES:
        raise FileError(
            name, f"is larger than {_MOST_BYTES // 1_000_000} MB; expected a leaderboard, as rank --json writes it"
        )
    try:
        said = parsed(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        problem = "not UTF-8" if isinstance(error, UnicodeDecodeError) else json_problem(error)
        raise FileError(name, f"is {problem}; expected a leaderboard, as rank --json writes it") from None
    try:
        return _board(name, said)
    except _Unfit as problem:
        raise FileError(name, f"{problem}; expected a leaderboard, as rank --json writes it") from None


class _Unfit(Exception):  # noqa: N818 - it never leaves this module
    pass


def _board(name: str, said: Any) -> Board:
    if not isinstance(said, dict) or not isinstance(said.get("standings"), list):
        raise _Unfit("has no list standings")
    if said.get("style"):
        raise _Unfit("has ratings with style control, beside which votes alone cannot be put")
    if said.get("scale", "davidson") not in SCALES:
        raise _Unfit(f"has the scale {excerpt(said['scale'])}, where davidson or arena is known")
    nu = as_number(said.get("nu"))
    if not 0 <= nu < 1e6 or (nu and said.get("scale") == "arena"):
        raise _Unfit(f"has the tie parameter nu {excerpt(said.get('nu'))}")
    standings = tuple(_standing(each, place) for place, each in enumerate(said["standings"], 1))
    if not 2 <= len(standings) <= MOST_MODELS:
        raise _Unfit(f"has {len(standings)} standings, where 2 to {MOST_MODELS} are possible")
    if len({each.model for each in standings}) < len(standings):
        raise _Unfit("names a model twice")
    covariance = _covariance(said.get("covariance"), len(standings))
    if covariance is not None:
        return Board(name, standings, str(said.get("scale", "davidson")), nu, covariance, "covariance")
    widths = np.array([each.high - each.low for each in standings])
    known = bool(np.isfinite(widths).all() and (widths >= 0).all())
    covariance = np.diag((widths / (2 * _Z)) ** 2) if known else np.zeros((len(standings),) * 2)
    return Board(name, standings, str(said.get("scale", "davidson")), nu, covariance, "intervals" if known else "none")


def _standing(said: Any, place: int) -> Standing:
    if not isinstance(said, dict) or not isinstance(said.get("model"), str) or not said["model"].strip():
        raise _Unfit(f"standing {place} names no model")
    rating = as_number(said.get("rating"))
    if not abs(rating - CENTRE) < _FARTHEST:
        raise _Unfit(f"the rating of {excerpt(said['model'])} is {excerpt(said.get('rating'))}")
    values: dict[str, Any] = {each.name: as_number(said.get(each.name)) for each in fields(Standing)}
    for name in ("n", "wins", "losses", "ties", "win_rate"):
        if not 0 <= values[name] < 1e15:
            values[name] = 0.0
    for name in ("low", "high"):
        if not abs(values[name] - CENTRE) < _FARTHEST:
            values[name] = math.nan
    whole = {
        name: int(values[name]) if 0 <= values[name] < 1e15 else 0 for name in ("rank", "rank_low", "rank_high", "n")
    }
    return Standing(**{**values, **whole, "model": said["model"]})


def _covariance(said: Any, k: int) -> Floats | None:
    """The covariance of k ratings; None where there is none. Raises _Unfit for what is no covariance."""
    if said is None:
        return None
    rows = said if isinstance(said, list) else []
    if len(rows) != k or any(not isinstance(row, list) or len(row) != k for row in rows):
        raise _Unfit(f"the covariance is not a table of {k} by {k} numbers")
    found = np.array([[as_number(value) for value in row] for row in rows])
    bounded = np.isfinite(found).all() and np.abs(found).max() < _FARTHEST**2
    if not bounded or not np.allclose(found, found.T, atol=1e-6 * max(1.0, np.abs(found).max())):
        raise _Unfit("the covariance is not a symmetric table of finite numbers")
    if np.linalg.eigvalsh(found).min() < -1e-6 * max(1.0, np.abs(found).max()):
        raise _Unfit("the covariance is that of no numbers: it has a negative eigenvalue")
    return found


def added_to(board: Board, votes: Votes, settings: Settings) -> tuple[tuple[str, ...], Rated, Added]:
    """The models of the board and the new ones of `votes`, their ratings, and what was added.

    The ratings of the board and nu stay. Each draw of the bootstrap has ratings of the board drawn from their covariance. Raises
    UsageError where no model is new, or a new one would have no finite rating.
    """
    old = tuple(each.model for each in board.standings)
    new = tuple(model for model in votes.models if model not in set(old))
    if not new:
        raise UsageError(
            f"{board.name}: has every model of these votes; rank them without --onto, or give votes on a new model"
        )
    if not set(old) & set(votes.models):
        raise UsageError(
            f"{board.name}: has none of the models of these votes; a new model needs votes against one of them"
        )
    models = (*old, *new)
    if len(models) > MOST_MODELS:
        raise UsageError(f"there are {len(models)} models with those of the board; at most {MOST_MODELS} can be ranked")
    place = np.array([models.index(model) for model in votes.models])
    left, right = place[votes.left], place[votes.right]
    k, before = len(models), len(old)
    counted = (left >= before) | (right >= before)
    totals = votes.totals()
    if settings.prior is None:
        _check_joined(models, before, (left, right, votes.outcome, np.where(counted, totals, 0.0)))
    met, pair = np.unique(left * k + right, return_inverse=True)
    slot = votes.outcome * len(met) + pair
    pairs = Pairs(met // k, met % k, k, settings.precision)
    ratings = np.array([each.rating for each in board.standings])
    level = ratings.mean()
    start = Fitted(np.append((ratings - level) / POINTS, np.zeros(len(new))), np.zeros(0), board.nu)
    free = np.arange(k) >= before

    def strengths(weights: Floats, start: Fitted) -> Floats:
        # The votes between models of the board tell nothing of the new ones.
        sums = np.bincount(slot, np.where(counted, weights, 0.0), 3 * len(met)).astype(np.float64).reshape(3, -1)
        return pairs.added(halved_ties(sums) if settings.halve else sums, start, free)

    try:
        found = strengths(totals, start)
        values, vectors = np.linalg.eigh(board.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        rng = np.random.default_rng(settings.seed)
        draws = np.empty((settings.repeats, k))
        for draw in draws:
            weights = rng.standard_exponential(votes.groups)[votes.group] * votes.weight
            moved = root @ rng.standard_normal(before) / POINTS
            theirs = np.append(start.strengths[:before] + moved, found[before:])
            if settings.deviation is not None:
                theirs[before:] = settings.deviation * rng.standard_normal(len(new))
            drawn = np.bincount(votes.cell, weights, len(left)).astype(np.float64)
            draw[:] = strengths(drawn, Fitted(theirs, start.slopes, start.nu))
    except FitError as error:
        raise UsageError(f"{error}; a new model needs more votes against models of the board") from None
    rated = Rated.of_draws(found, board.nu, level + POINTS * found, level + POINTS * draws)
    # What the board says of its own models stays.
    low, high = rated.low.copy(), rated.high.copy()
    low[:before], high[:before] = ([getattr(each, end) for each in board.standings] for end in ("low", "high"))
    unknown = ~np.isfinite(low) | ~np.isfinite(high)
    low, high = np.where(unknown, rated.ratings, low), np.where(unknown, rated.ratings, high)
    ignored = round(float(totals[~counted].sum()))
    kept = Rated(rated.strengths, rated.nu, rated.ratings, low, high, rated.draws, rated.covariance)
    return models, kept, Added(new, board.uncertainty, ignored)


def _check_joined(
    models: tuple[str, ...], before: int, cells: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Floats]
) -> None:
    """Raises UsageError unless wins and ties lead from the board, whose models are the first `before`, to every new one and back."""
    from scipy.sparse.csgraph import connected_components

    left, right, outcome, totals = cells
    left, right = (np.maximum(side - before + 1, 0) for side in (left, right))
    new = len(models) - before
    graph = np.zeros((new + 1, new + 1))
    for one, other, lost in ((left, right, Outcome.B), (right, left, Outcome.A)):
        np.add.at(graph, (one, other), np.where(outcome == lost, 0.0, totals))
    _, label = connected_components(graph > 0, connection="strong")
    apart = [excerpt(models[before + place], 40) for place in np.flatnonzero(label[1:] != label[0])]
    if apart:
        more = f" and {len(apart) - NAMED} more" if len(apart) > NAMED else ""
        raise UsageError(
            f"no finite rating for {', '.join(apart[:NAMED])}{more} beside the models of the board: never lost, never won, or never met "
            "them; more votes are needed, or --prior 400, which gives a wide interval"
        )
