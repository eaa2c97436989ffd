"""Best of n with fewer comparisons than every two answers.

It is for models that compare: one with a score for each answer scores each answer once (`scorers.singly`). They compare by
successive elimination, with their own probabilities:

1. The first answer is compared with each of the others.
2. The comparisons so far give each answer a probability to be the best (`outcomes.statistics.coupling`). An answer stays while its
   probability is at least `KEEP` times that of the leader.
3. The leader is compared with those that stay, then these with one another; after each round 2 is done again. It ends when every two
   that stay have been compared.

The best answer is the one among those that stay with the highest strength. The strength is the mean over the others of
P(it wins) + P(tie) / 2; for two answers that were not compared, p_i / (p_i + p_j) takes its place. The order has those that stay first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError
from prefcast.forecasts.answers import AnswerRanking, Choice, pairs_of
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecast
from prefcast.outcomes.statistics.coupling import best_of_n
from prefcast.pairs import Pair
from prefcast.pairs.formats.candidates import Candidates
from prefcast.scorers.base import Meter

__all__ = ["KEEP", "fewer_choices"]

KEEP = 0.9
Two = tuple[int, int]


@dataclass
class _Row:
    """What is known of one row: the probabilities (n, n, 3) of those that were compared, and the answers that are still in."""

    item: Candidates
    probabilities: NDArray[np.float64]
    stay: list[int]
    pairs: dict[Two, Pair] = field(repr=False)
    comparisons: int = 0
    truncated: int = 0
    error: RowError | None = None
    asks: list[Two] = field(default_factory=list)

    @classmethod
    def of(cls, item: Candidates) -> _Row:
        n = len(item.responses)
        pairs = dict(zip(combinations(range(n), 2), pairs_of(item), strict=True))
        return cls(item, np.full((n, n, 3), np.nan), list(range(n)), pairs, asks=[(0, j) for j in range(1, n)])

    def take(self, two: Two, forecast: Forecast) -> None:
        self.comparisons += 1
        self.truncated += forecast.truncation is not None and forecast.truncation.truncated
        if forecast.error is not None:
            self.error = self.error or _of_two(forecast.error, two)
            return
        i, j = two
        a, b, tie = forecast.probabilities
        self.probabilities[i, j], self.probabilities[j, i] = (a, b, tie), (b, a, tie)

    @property
    def preferred(self) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = self.probabilities[:, :, 0] + self.probabilities[:, :, 2] / 2
        return shares

    def next(self) -> None:
        """Decide who stays, and what to compare next; nothing where the row is done."""
        self.asks = []
        if self.error is not None:
            return
        chance = best_of_n(self.preferred)
        leader = int(chance.argmax())
        self.stay = [position for position in self.stay if chance[position] >= KEEP * chance[leader]]
        known = np.isfinite(self.probabilities[:, :, 0])
        of_leader = [_sorted(leader, other) for other in self.stay if other != leader and not known[leader, other]]
        self.asks = of_leader or [two for two in combinations(self.stay, 2) if not known[two]]

    def ranking(self) -> AnswerRanking:
        preferred, chance = self.preferred, best_of_n(self.preferred)
        implied = chance[:, None] / np.maximum(chance[:, None] + chance[None, :], np.finfo(float).tiny)
        shares = np.where(np.isfinite(preferred), preferred, implied)
        np.fill_diagonal(shares, np.nan)
        strengths = np.nanmean(shares, axis=1)
        order = sorted(range(len(strengths)), key=lambda index: (index not in self.stay, -strengths[index]))
        return AnswerRanking(tuple(order), strengths, self.probabilities)

    def choice(self) -> Choice:
        ranking = None if self.error is not None else self.ranking()
        more = {"comparisons": self.comparisons}
        return Choice(self.item.id, self.item, ranking, self.truncated, self.error, more)


def fewer_choices(piece: Sequence[Candidates | RowError], forecaster: Forecaster, meter: Meter) -> Iterator[Choice]:
    """The choice for each prompt. `comparisons` of `Choice.more` counts those that were made."""
    rows = [_Row.of(item) if isinstance(item, Candidates) else item for item in piece]
    there = [row for row in rows if isinstance(row, _Row)]
    while asked := [(row, two) for row in there for two in row.asks]:
        forecasts = forecaster.forecast([row.pairs[two] for row, two in asked], meter)
        for (row, two), forecast in zip(asked, forecasts, strict=True):
            row.take(two, forecast)
        for row in there:
            if row.asks:
                row.next()
    for each in rows:
        yield Choice(each.id, None, None, 0, each) if isinstance(each, RowError) else each.choice()


def _of_two(error: RowError, two: Two) -> RowError:
    """The error of a comparison, with the two answers as its field."""
    return RowError(error.file, error.row, f"responses {two[0] + 1} and {two[1] + 1}", error.problem, error.id)


def _sorted(one: int, other: int) -> Two:
    return (one, other) if one < other else (other, one)
