"""The scorer `scores`: evidence from scores that a person brings, found by the pair's id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError, UsageError
from prefcast.pairs import Outcome, Pair
from prefcast.scorers.base import Cost, Evidence, Scorer
from prefcast.scorers.info import ScorerInfo

__all__ = ["CHOSEN", "GivenScorer"]

# Scores of the preferred answer and of the other one: the label of a pair says which is A.
CHOSEN = ("score_chosen", "score_rejected")

_FILE = "scores.json"
_FORMAT = 1
_SIDES = {Outcome.A: 1.0, Outcome.B: -1.0}


class GivenScorer(Scorer):
    """Evidence from a table: `where` gives the row of an id in `margin` and `tie`, (n,) each.

    `columns` are the names of the columns of scores. A saved forecaster keeps these names, not the scores: whoever uses it
    brings scores with the same columns.
    """

    name: ClassVar[str] = "scores"
    files: ClassVar[tuple[str, ...]] = (_FILE,)
    cost = Cost.INSTANT
    portable = False

    def __init__(
        self,
        columns: Sequence[str],
        where: Mapping[str, int] | None = None,
        margin: NDArray[np.float64] | None = None,
        tie: NDArray[np.float64] | None = None,
        source: str = "",
    ) -> None:
        self.brought = tuple(columns)
        # Three columns are probabilities or logits of the outcomes: the evidence is in log-odds already.
        self.log_odds = len(self.brought) == 3
        self._where, self._margin, self._tie = where, margin, tie
        self._source = source

    def save(self, folder: Path) -> None:
        text = json.dumps({"format": _FORMAT, "columns": self.brought})
        (folder / _FILE).write_text(text + "\n", encoding="utf-8")

    def identity(self) -> str:
        digest = hashlib.sha256(json.dumps([self.brought, self._where]).encode())
        for values in (self._margin, self._tie):
            digest.update(b"" if values is None else values.tobytes())
        return digest.hexdigest()

    def with_scores(self, scores: Scorer) -> Scorer:
        return scores

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        cls._check_unmoved(folder, moved)
        data = json.loads(read_whole(folder / _FILE).decode())
        if data["format"] != _FORMAT:
            raise ForecasterError(f"{folder / _FILE}: format {data['format']!r} is not one that this version reads")
        return cls([str(column) for column in data["columns"]])

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        if self._where is None or self._margin is None or self._tie is None:
            raise UsageError("this forecaster was fitted to scores of a file: bring those of these pairs with --scores")
        margin, tie, problems = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan), {}
        for index, pair in enumerate(pairs):
            row = self._where.get(str(pair.id))
            if row is None:
                problems[index] = f"its id has no scores in {self._source}"
            elif not np.isfinite(self._margin[row]):
                problems[index] = f"its scores in {self._source} are missing"
            elif self.brought == CHOSEN and pair.outcome not in _SIDES:
                problems[index] = (
                    f"has no label that says which answer was chosen; {self._source} has {' and '.join(CHOSEN)}"
                )
            else:
                side = _SIDES[pair.outcome] if self.brought == CHOSEN and pair.outcome is not None else 1.0
                margin[index], tie[index] = side * self._margin[row], self._tie[row]
        return Evidence(margin, tie, problems)


SCORER = ScorerInfo(GivenScorer.name, f"{__name__}:GivenScorer", files=GivenScorer.files, listed=False)
