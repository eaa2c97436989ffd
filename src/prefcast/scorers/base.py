"""What every scorer gives: two numbers a pair."""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget, Truncation

__all__ = ["Evidence", "Push", "Scorer", "fingerprint", "read_pair"]


@dataclass(frozen=True)
class Evidence:
    """What a scorer says of n pairs.

    `margin` (n,): evidence for A over B; exchanging A and B negates it. `tie` (n,): evidence for a tie; exchanging A
    and B leaves it alone, 0 where the scorer has no view. Both are nan for a pair that failed; `problems` says why, by
    the pair's position. `raw` holds the numbers that the evidence was made of, each (n,), by name.
    """

    margin: NDArray[np.float64]
    tie: NDArray[np.float64]
    problems: Mapping[int, str] = field(default_factory=dict)
    raw: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

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
    # What the scorer itself can read at most, in its own tokens; applied after the forecaster's budget.
    limit: Budget | None = None
    # The names of the evidence's `raw` numbers.
    raw_names: tuple[str, ...] = ()
    # Called with the number of pairs done of those that `evidence` was given.
    on_progress: Callable[[int], None] | None = None
    # How many sequences of tokens it took from earlier runs, and how many it scored itself; 0 where it keeps none.
    reused: int = 0
    computed: int = 0
    # Seconds that it spent on tokenising so far, where it counts them.
    tokenising: float = 0.0

    @abstractmethod
    def evidence(self, pairs: Sequence[Pair]) -> Evidence:
        """The evidence of `pairs`, in their order; an empty sequence gives empty evidence.

        Every pair has at least one turn.
        """

    def use_threads(self, threads: int) -> None:
        """Compute on so many threads of the CPU from now on; where it is not asked, on as many as there are
        processors."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The scorer whose files lie in `folder`.

        Raises ForecasterError.
        """
        return cls()

    def save(self, folder: Path) -> None:
        """Write what `load` needs into `folder`."""

    def identity(self) -> str:
        """What its numbers depend on besides the pair, as a digest: by default that of the files that `save` writes."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            return fingerprint(Path(folder), type(self))

    def close(self) -> None:
        """Give back what the scorer holds: processes, memory of devices."""

    def explain(self, pair: Pair) -> list[Push]:
        """What pushed the evidence of `pair`, the strongest first; empty where the scorer cannot say."""
        return []


def read_pair(pair: Pair, budget: Budget, scorer: Scorer) -> tuple[Pair, Truncation]:
    """The part of `pair` that `budget` and then the scorer's own limit let through, and the report of it."""
    turns, truncation = budget.apply(pair.turns)
    if scorer.limit is not None:
        turns, again = scorer.limit.apply(turns)
        truncation = replace(truncation, kept=min(truncation.kept, again.kept), turns_kept=again.turns_kept)
    return (pair if turns is pair.turns else replace(pair, turns=turns)), truncation


def fingerprint(folder: Path, scorer: type[Scorer]) -> str:
    """SHA-256 over the scorer's files, names and contents."""
    digest = hashlib.sha256()
    for name in scorer.files:
        data = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
