"""What people said of each measured row, and how much the row counts: one label, or several votes, and a weight."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from prefcast.errors import FileError, UsageError
from prefcast.fitting.soft_labels import VOTES, read_vote_counts, read_weights
from prefcast.pairs import Outcome
from prefcast.pairs.formats.fields import Fault, number

__all__ = ["RowLabel", "RowLabels"]


@dataclass(frozen=True)
class RowLabel:
    """The `share` of the votes that said A, B and tie, the number of `votes`, and the `weight` of the row."""

    share: tuple[float, ...]
    votes: float = 1.0
    weight: float = 1.0

    @staticmethod
    def alone(outcome: int) -> RowLabel:
        """One vote."""
        return _ALONE[outcome]

    @property
    def majority(self) -> int:
        """What most of the votes say, as a value of Outcome."""
        return self.share.index(max(self.share))


_ALONE = [RowLabel(tuple(np.eye(len(Outcome))[outcome].tolist())) for outcome in Outcome]


@dataclass
class RowLabels:
    """Where votes and weights come from. `votes` and `weights` are files of them, by id. `columns` are columns of the rows
    themselves: votes_a, votes_b and votes_tie, and `weight`, the name of a column of weights.

    `matched` counts the rows that a file of votes has.
    """

    votes: Mapping[str, tuple[float, ...]] | None = None
    weights: Mapping[str, float] | None = None
    columns: bool = False
    weight: str | None = None
    matched: int = field(default=0, init=False)

    @classmethod
    def read(
        cls, names: Collection[str], votes: str | os.PathLike[str] | None, weights: str | os.PathLike[str] | None
    ) -> RowLabels:
        """From the options: `votes` is a file, `weights` a column of the rows or else a file. `names` are the columns of the
        rows. Raises FileError and UsageError."""
        columns = votes is None and set(VOTES) <= set(names)
        counts = None if votes is None else read_vote_counts(votes)
        if weights is None or os.fspath(weights) in names:
            return cls(counts, None, columns, None if weights is None else os.fspath(weights))
        try:
            return cls(counts, read_weights(weights), columns)
        except FileError as error:
            if os.path.exists(weights):  # noqa: PTH110 - it never raises
                raise
            raise UsageError(f"--weights: there is no column and no file {os.fspath(weights)!r} ({error})") from None

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns of the rows that have to be kept."""
        return (*(VOTES if self.columns else ()), *(() if self.weight is None else (self.weight,)))

    def of(self, id: str | int, outcome: int | None, own: Mapping[str, str]) -> RowLabel | None:
        """The label of a row whose own label is `outcome`; None if nobody said anything. `own` are the row's own columns.

        Raises Fault for votes or weights of the row that are no numbers, UsageError for a row without a weight.
        """
        counts = self._votes(id, own)
        if counts is None:
            if self.votes is not None or self.columns or outcome is None or outcome < 0:
                return None
            label = _ALONE[outcome]
        else:
            total = sum(counts)
            label = RowLabel(tuple(count / total for count in counts), total)
        weight = self._weight(id, own)
        return label if weight is None else RowLabel(label.share, label.votes, weight)

    def _votes(self, id: str | int, own: Mapping[str, str]) -> tuple[float, ...] | None:
        if self.votes is not None:
            counts = self.votes.get(str(id))
            self.matched += counts is not None
            return counts
        if not self.columns or not any(name in own for name in VOTES):
            return None
        found = tuple(number(own, name, 0.0) if name in own else 0.0 for name in VOTES)
        return found if sum(found) else None

    def _weight(self, id: str | int, own: Mapping[str, str]) -> float | None:
        if self.weight is not None:
            if self.weight not in own:
                raise Fault(self.weight, "is empty; expected the weight of the row")
            return number(own, self.weight, 0.0)
        if self.weights is None:
            return None
        weight = self.weights.get(str(id))
        if weight is None:
            raise UsageError(f"--weights: id {str(id)!r} has no weight; every labelled row needs one")
        return weight
