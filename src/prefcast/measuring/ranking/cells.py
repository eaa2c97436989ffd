"""Who beat whom, as sums over (group, pair of models, outcome): of votes, of forecasts, or of both.

Rows are never kept. What stays in memory are 24 bytes for each sum: at most one for each row of a file of votes, three
for each row of forecasts, six more where such a row has votes, and far fewer where prompts repeat.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError
from prefcast.pairs import Outcome

__all__ = ["FORECAST", "FURTHER", "GUESS", "VOTE", "Sums", "Votes", "in_order"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# What a sum is of: the votes of rows (each row counts once, however many voted), the forecasts of the same rows, the forecasts
# of all rows, and the votes of a row beyond one.
VOTE, GUESS, FORECAST, FURTHER = range(4)
_SETTLE = 1 << 18
# A model's number takes this many bits of a cell's key.
_BITS = 28


@dataclass(frozen=True, eq=False)
class Votes:
    """Sums of votes and of forecast probabilities between k models.

    A cell is a pair of models, an outcome and a kind: `left`, `right`, `outcome` and `kind` (c,) with left < right as
    positions in `models` (sorted by name) and the outcome seen from the left one. `group`, `cell` and `weight` (m,) are the
    sums: the first two count from 0. `n` votes or forecasts are in them, of `groups` groups, which `resampled` names: prompts,
    ids or rows. `source` is what they are: votes, forecasts or both. `unused` forecasts are not in them, because every row has votes. `failed` rows had an error of their own, `unlabelled` no vote, and `faults` could not be used,
    `first_fault` among them. `unmatched` votes of a file of votes have ids that no row has.
    """

    models: tuple[str, ...]
    left: Ints
    right: Ints
    outcome: Ints
    kind: Ints
    group: Ints
    cell: Ints
    weight: Floats
    n: int
    groups: int
    resampled: str
    source: str
    failed: int
    unlabelled: int
    faults: int
    first_fault: RowError | None
    unused: int = 0
    unmatched: int = 0

    @property
    def counted(self) -> tuple[int, ...]:
        """The kinds that `n` counts."""
        return (FORECAST,) if self.source == "forecasts" else (VOTE, FURTHER)

    def totals(self, *kinds: int) -> Floats:
        """The sum of each cell (c,); with `kinds` cells of other kinds are 0."""
        found: Floats = np.bincount(self.cell, self.weight, len(self.left)).astype(np.float64)
        return found * np.isin(self.kind, kinds) if kinds else found

    def matrices(self) -> tuple[Floats, Floats]:
        """Wins of row over column and ties of row with column, both (k, k); ties stand on both sides."""
        k = len(self.models)
        wins, ties = np.zeros((k, k)), np.zeros((k, k))
        sums = self.totals()
        for matrix, which, rows, columns in (
            (wins, Outcome.A, self.left, self.right),
            (wins, Outcome.B, self.right, self.left),
            (ties, Outcome.TIE, self.left, self.right),
            (ties, Outcome.TIE, self.right, self.left),
        ):
            chosen = self.outcome == which
            np.add.at(matrix, (rows[chosen], columns[chosen]), sums[chosen])
        return wins, ties

    def only(self, kept: NDArray[np.bool_]) -> Votes:
        """The sums between the models that are `kept` (k,)."""
        place = np.cumsum(kept) - 1
        found = self._cells(kept[self.left] & kept[self.right])
        models = tuple(model for model, keep in zip(self.models, kept, strict=True) if keep)
        return replace(found, models=models, left=place[found.left], right=place[found.right])

    def of(self, *kinds: int) -> Votes:
        """The sums of these kinds."""
        return self._cells(np.isin(self.kind, kinds))

    def _cells(self, kept: NDArray[np.bool_]) -> Votes:
        """The sums of the cells that are `kept` (c,)."""
        entries = kept[self.cell]
        groups, group = np.unique(self.group[entries], return_inverse=True)
        weight = self.weight[entries]
        counted = np.isin(self.kind[self.cell[entries]], self.counted)
        return replace(
            self,
            left=self.left[kept],
            right=self.right[kept],
            outcome=self.outcome[kept],
            kind=self.kind[kept],
            group=group.astype(np.int64),
            cell=(np.cumsum(kept) - 1)[self.cell[entries]],
            weight=weight,
            n=round(float(weight[counted].sum())),
            groups=len(groups),
        )


def in_order(numbers: dict[str, int]) -> tuple[tuple[str, ...], Ints]:
    """The names of models in order, and the place of each number among them."""
    names = sorted(numbers)
    place = np.empty(len(names), np.int64)
    place[[numbers[model] for model in names]] = np.arange(len(names))
    return tuple(names), place


def _key(left: Any, right: Any, kind: Any, outcome: Any) -> Any:
    return (left << _BITS | right) << 4 | kind << 2 | outcome


def _models_of(keys: Ints) -> tuple[Ints, Ints]:
    return keys >> (4 + _BITS), keys >> 4 & ((1 << _BITS) - 1)


class Sums:
    """Sums of weights by (group, cell), settled now and then so that they take little memory."""

    def __init__(self) -> None:
        self._keys: NDArray[np.uint64] = np.zeros((0, 2), np.uint64)
        self._weights: Floats = np.zeros(0)
        self._new_keys, self._new_weights = array("Q"), array("d")

    def add(self, group: int, left: int, right: int, outcome: int, weight: float, kind: int = VOTE) -> None:
        self._new_keys.extend((group, _key(left, right, kind, outcome)))
        self._new_weights.append(weight)
        # The sums settle when the new weights are as many as the old: the cost of a row stays small.
        if len(self._new_weights) >= max(_SETTLE, len(self._weights)):
            self.settle()

    def add_row(self, group: int, left: int, right: int, shares: tuple[float, ...], weight: float, kind: int) -> None:
        """Add the shares of (A, B, tie) of a row times a weight; `left` and `right` are the models of A and B."""
        for outcome, share in zip(Outcome, shares, strict=True):
            if share:
                turned = outcome if left < right else outcome.swapped
                self.add(group, min(left, right), max(left, right), turned, share * weight, kind)

    def settle(self) -> tuple[NDArray[np.uint64], Floats]:
        """Keys (m, 2), sorted and each once, and their weights (m,)."""
        fresh = np.frombuffer(self._new_keys, np.uint64).reshape(-1, 2) if self._new_keys else self._keys[:0]
        keys = np.concatenate([self._keys, fresh])
        weights = np.concatenate([self._weights, np.array(self._new_weights)])
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys, weights = keys[order], weights[order]
        first = np.ones(len(keys), bool)
        first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        self._keys = keys[first]
        self._weights = np.add.reduceat(weights, np.flatnonzero(first)) if len(keys) else weights
        self._new_keys, self._new_weights = array("Q"), array("d")
        return self._keys, self._weights

    def votes(self, numbers: dict[str, int], scale: float = 1.0, **said: Any) -> Votes:
        """The sums as they are used, those of votes times `scale`. `numbers` are those of the models, `said` the fields of `Votes`
        that the sums do not tell."""
        keys, totals = self.settle()
        names, place = in_order(numbers)
        sums_of = keys[:, 1].astype(np.int64)
        totals = np.where(sums_of >> 2 & 3 == FORECAST, totals, totals * scale)
        left_of, right_of = (place[each] for each in _models_of(sums_of))
        swapped = np.array([int(each.swapped) for each in Outcome])
        outcome_of = np.where(left_of > right_of, swapped[sums_of & 3], sums_of & 3)
        low, high = np.minimum(left_of, right_of), np.maximum(left_of, right_of)
        # Cells are in the order of the models' names: the order of the rows, and who was A, do not affect the result.
        cells, cell = np.unique(_key(low, high, sums_of >> 2 & 3, outcome_of), return_inverse=True)
        groups, group_of = np.unique(keys[:, 0], return_inverse=True)
        order = np.lexsort((cell, group_of))
        left, right = _models_of(cells)
        return Votes(
            models=names,
            left=left,
            right=right,
            outcome=cells & 3,
            kind=cells >> 2 & 3,
            group=group_of[order],
            cell=cell[order],
            weight=totals[order],
            n=0,
            groups=len(groups),
            **said,
        ).only(np.isin(np.arange(len(names)), (left, right)))
