"""Leaderboards as values: what `rank` gives back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.tables import ShownTable, Tables
from prefcast.errors import RowError, UsageError, excerpt
from prefcast.outcomes.statistics.bootstrap import REPEATS, Figure

__all__ = [
    "CENTRE",
    "POINTS",
    "SCALES",
    "Added",
    "Category",
    "Leaderboard",
    "Settings",
    "Shift",
    "Slope",
    "Standing",
    "Style",
    "Together",
]

Floats = NDArray[np.float64]

CENTRE = 1000.0
# Elo's scale: 400 points are a factor of 10 in strength.
POINTS = 400 / math.log(10)
SCALES = ("davidson", "arena")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How models are rated; `rank` says what each means. Raises UsageError for a value that cannot be."""

    anchor: tuple[str, float] | None = None
    min_votes: int = 0
    repeats: int = REPEATS
    seed: int = 0
    scale: str = "davidson"
    prior: float | None = None
    system_error: float | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UsageError(f"repeats is {self.repeats}; expected at least 1 draw")
        if self.min_votes < 0:
            raise UsageError(f"min_votes is {self.min_votes}; expected 0 or more")
        if self.scale not in SCALES:
            raise UsageError(f"unknown scale {excerpt(self.scale)}; there are {', '.join(SCALES)}")
        if self.prior is not None and not 0 < self.prior < math.inf:
            raise UsageError(f"prior is {self.prior:g}; expected a positive number of points")
        if self.system_error is not None and not 0 <= self.system_error < 1:
            raise UsageError(
                f"the error for a whole system is {self.system_error:g}; expected a share of the votes from 0 to 1, like 0.27"
            )

    @property
    def halve(self) -> bool:
        """Whether a tie is half a win of either side."""
        return self.scale == "arena"

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the prior in log strengths."""
        return None if self.prior is None else self.prior / POINTS

    @property
    def precision(self) -> float:
        return 0.0 if self.deviation is None else self.deviation**-2


@dataclass(frozen=True)
class Standing:
    """The place of one model.

    `rating` is in Elo points, 1000 + 400 / ln(10) * log(strength); the mean over the models is 1000. `low` and `high`
    are the ends of its 95 % interval. `rank` is 1 + the number of models with a
    higher rating; `rank_low` (the better one) and `rank_high` are the 2.5 % and 97.5 % quantiles of the rank over the
    draws. `n` is the number of votes or forecasts with the model. `wins`, `losses` and `ties` are counts of votes, or sums of
    probabilities of forecasts where there are no votes. `win_rate` is (wins + ties / 2) / n.
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


@dataclass(frozen=True)
class Together:
    """Votes on `voted` of `rows` rows with forecasts of all of them. `weight` (lambda) is how much the forecasts count, from 0 (not
    at all) to 1. The votes with the forecasts give as narrow intervals as votes on `worth` rows alone. `alone` has what the votes
    alone say of each model, in the order of the standings."""

    rows: int
    voted: int
    weight: float
    worth: int
    alone: tuple[Figure, ...]


@dataclass(frozen=True)
class Slope:
    """What goes together with a difference in style: `points` is the change of the rating that goes with a difference of one
    standard deviation, which is `deviation` in (a - b) / (a + b). None where the answers never differ."""

    name: str
    deviation: float
    points: Figure | None


@dataclass(frozen=True)
class Shift:
    """The rating of a model without style control, and what the control changes."""

    model: str
    raw: Figure
    change: Figure


@dataclass(frozen=True)
class Style:
    """Style control: the slopes, and what it changes for each model in the order of the standings. These are associations: what
    usually comes with a longer answer counts as length, too."""

    slopes: tuple[Slope, ...]
    shifts: tuple[Shift, ...]


@dataclass(frozen=True)
class Added:
    """Models that were rated against the fixed ratings of an earlier board. `uncertainty` says what the intervals of the new
    models cover of the old ratings: `covariance` (all), `intervals` (as if they were independent), or `none`. `ignored` votes are
    between models of the earlier board."""

    models: tuple[str, ...]
    uncertainty: str
    ignored: int


@dataclass(frozen=True)
class Category:
    """A leaderboard of the rows of one category, or why there is none."""

    name: str
    board: Leaderboard | None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Leaderboard(Tables):
    """A leaderboard of k models, the best first.

    `n` is the number of votes or forecasts; `source` says which: votes, forecasts, or both. `nu` is the tie parameter. The intervals
    are over `groups` units; `resampled` says whether these are first prompts, ids or rows. `repeats` draws with `seed` give the
    ranges of ranks, and the intervals where there are only votes or only forecasts.
    `scale` is davidson or arena, `prior` the standard deviation in points that ratings were expected to have, None without one.
    `failed` rows had an error and no forecast, `unlabelled` rows no vote, and `faults` rows could not be read;
    `first_fault` is the first of these. `left_out` are the models with fewer than `min_votes` votes. `unused` forecasts are not used
    because every row has votes. `unmatched` votes of a file of votes have ids that no row has. `system_error` is the standard
    deviation of the forecaster's error for two systems, in win minus loss, where the ratings are of forecasts alone.

    The matrices (k, k) are in the order of `standings`, row against column. `meetings` is the number of votes.
    `observed` is the share of them that the row won, a tie counting as half; it is nan if the two never met.
    `predicted` is the share that the model expects. `observed` and `predicted` are nan on the diagonal. `covariance` is that of the
    ratings, in points squared.
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
    covariance: Floats
    scale: str = "davidson"
    prior: float | None = None
    unused: int = 0
    unmatched: int = 0
    system_error: float | None = None
    together: Together | None = None
    style: Style | None = None
    added: Added | None = None
    categories: tuple[Category, ...] = ()

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
        for name in ("together", "style", "added"):
            plain[name] = None if plain[name] is None else asdict(plain[name])
        plain["categories"] = [
            {"name": each.name, "problem": each.problem, "board": each.board and each.board.to_dict()}
            for each in self.categories
        ]
        for name in ("meetings", "observed", "predicted", "covariance"):
            plain[name] = [[None if math.isnan(value) else value for value in row] for row in plain[name].tolist()]
        return plain
