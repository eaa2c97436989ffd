"""What every scorer gives: two numbers a pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.pairs import Pair

__all__ = ["Evidence", "Push", "Scorer"]


@dataclass(frozen=True)
class Evidence:
    """What a scorer says of n pairs.

    `margin` (n,): evidence for A over B; exchanging A and B negates it. `tie` (n,): evidence for a tie; exchanging A
    and B leaves it alone, 0 where the scorer has no view.
    """

    margin: NDArray[np.float64]
    tie: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.margin)


@dataclass(frozen=True)
class Push:
    """What one kind of feature did to one pair's evidence: the sums of its terms in margin and tie, and the values
    behind them (A, B)."""

    name: str
    margin: float
    tie: float
    values: tuple[tuple[str, float, float], ...] = ()


class Scorer(ABC):
    """Reduces pairs to evidence."""

    name: ClassVar[str]
    # The files that `save` writes: they are what a forecaster folder's fingerprint covers.
    files: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score(self, pairs: Sequence[Pair]) -> Evidence:
        """The evidence of `pairs`, in their order; an empty sequence gives empty evidence.

        Every pair has at least one turn.
        """

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The scorer whose files lie in `folder`.

        Raises ForecasterError.
        """
        return cls()

    def save(self, folder: Path) -> None:
        """Write what `load` needs into `folder`."""

    def explain(self, pair: Pair) -> list[Push]:
        """What pushed the evidence of `pair`, the strongest first; empty where the scorer cannot say."""
        return []
