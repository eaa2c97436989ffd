"""Scores that a person brings: evidence looked up by id, no model of ours run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError
from prefcast.pairs import Pair
from prefcast.scorers.base import Evidence, Scorer

__all__ = ["GivenScorer"]


class GivenScorer(Scorer):
    """Evidence of a table: `where` gives an id's row in `margin` and `tie`, (n,) each.

    `log_odds` says whether they are a forecast's log-odds already. A forecaster that was fitted to such scores is saved without them; each use brings its own.
    """

    name: ClassVar[str] = "scores"

    def __init__(
        self,
        where: Mapping[str, int] | None = None,
        margin: NDArray[np.float64] | None = None,
        tie: NDArray[np.float64] | None = None,
        source: str = "",
        log_odds: bool = False,
    ) -> None:
        self._where, self._margin, self._tie = where, margin, tie
        self._source = source
        self.log_odds = log_odds

    def evidence(self, pairs: Sequence[Pair]) -> Evidence:
        if self._where is None or self._margin is None or self._tie is None:
            raise UsageError(
                "this forecaster was fitted to scores that were brought: bring those of these pairs with --scores"
            )
        margin, tie, problems = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan), {}
        for index, pair in enumerate(pairs):
            row = self._where.get(str(pair.id))
            if row is None:
                problems[index] = f"its id has no scores in {self._source}"
            elif np.isfinite(self._margin[row]):
                margin[index], tie[index] = self._margin[row], self._tie[row]
            else:
                problems[index] = f"its scores in {self._source} are missing"
        return Evidence(margin, tie, problems)
