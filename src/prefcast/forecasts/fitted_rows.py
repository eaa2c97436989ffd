"""Which rows a forecaster was fitted on: hashes of their texts, so that figures on the same rows are known to be in-sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError, shown_path
from prefcast.pairs import Pair
from prefcast.pairs.pair import pair_key

__all__ = ["FITTED_ROWS", "FittedRows", "InSample", "Overlap", "row_key"]

FITTED_ROWS = "fitted-rows.bin"
_MAGIC = b"prefcast rows 1\n"
# Of more rows only so many hashes are kept, 800 KB: the smallest, which are a random sample.
_MOST = 100_000


def row_key(pair: Pair) -> int:
    """The hash of a pair's texts, 64 bits. It does not change if A and B are exchanged."""
    return pair_key(pair)[0]


@dataclass(frozen=True, eq=False)
class FittedRows:
    """The hashes of the rows of a fit, `keys` (k,), sorted. Of more than 100,000 different rows, the smallest hashes are kept;
    `rows` is the number of different rows."""

    keys: NDArray[np.uint64]
    rows: int

    @classmethod
    def of(cls, keys: Iterable[int] | NDArray[np.uint64]) -> Self:
        """From the hashes of all rows of a fit."""
        every = np.unique(np.fromiter(keys, dtype=np.uint64))
        return cls(every[:_MOST], len(every))

    @property
    def exact(self) -> bool:
        """Whether every row is known."""
        return self.rows == len(self.keys)

    def holds(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """For hashes (n,): 1 for a row of the fit, 0 for another one, -1 where that is not known, (n,)."""
        place = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        found = (self.keys[place] == keys).astype(np.int64) if len(self.keys) else np.zeros(len(keys), dtype=np.int64)
        return found if self.exact else np.where(keys <= self.keys[-1], found, -1)

    def write(self, folder: Path) -> None:
        """Write the hashes into the folder of a forecaster."""
        data = _MAGIC + np.uint64(self.rows).astype("<u8").tobytes() + self.keys.astype("<u8").tobytes()
        (folder / FITTED_ROWS).write_bytes(data)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The hashes of a folder, None if it has none. Raises ForecasterError for a file that `write` did not write."""
        path = folder / FITTED_ROWS
        if not path.exists():
            return None
        data = read_whole(path, len(_MAGIC) + 8 + 8 * _MOST)
        if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + 8 or (len(data) - len(_MAGIC)) % 8:
            raise ForecasterError(f"{shown_path(path)}: damaged: it is not a list of fitted rows")
        numbers = np.frombuffer(data[len(_MAGIC) :], dtype="<u8").astype(np.uint64)
        found = cls(numbers[1:], int(numbers[0]))
        fits = found.rows >= len(found.keys) and (found.exact or len(found.keys) == _MOST)
        if not fits or (found.keys[1:] <= found.keys[:-1]).any():
            raise ForecasterError(f"{shown_path(path)}: damaged: its hashes are not in order, or their number is wrong")
        return found


@dataclass(frozen=True)
class InSample:
    """How many of `rows` were among those that the forecaster was fitted on. `exact` says that every fitted row is known;
    otherwise the number is estimated from a sample of them."""

    found: int
    rows: int
    exact: bool

    def __str__(self) -> str:
        return f"{'' if self.exact else 'about '}{self.found:,} of these {self.rows:,} rows were in the fit"


class Overlap:
    """Counts pairs that a forecaster was fitted on; `fitted` is None if the forecaster does not say."""

    def __init__(self, fitted: FittedRows | None) -> None:
        self._fitted = fitted
        self._rows = self._known = self._found = 0

    def add(self, keys: NDArray[np.uint64]) -> None:
        """Count pairs by their keys (`row_key`)."""
        if self._fitted is not None:
            held = self._fitted.holds(keys)
            self._rows += len(keys)
            self._known += int((held >= 0).sum())
            self._found += int((held == 1).sum())

    def add_pairs(self, pairs: Sequence[Pair]) -> None:
        """Count pairs."""
        if self._fitted is not None:
            self.add(np.array([row_key(pair) for pair in pairs], dtype=np.uint64))

    @property
    def found(self) -> InSample | None:
        """What was counted; None if the forecaster does not say, or no pair was counted."""
        if self._fitted is None or not self._rows:
            return None
        found = self._found if self._fitted.exact else round(self._rows * self._found / max(1, self._known))
        return InSample(found, self._rows, self._fitted.exact)
