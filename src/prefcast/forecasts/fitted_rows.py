"""Which rows a forecaster was fitted on: hashes of their texts and of their first prompts, so that figures on the same rows are
known to be in-sample."""

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
from prefcast.pairs.pair import group_key, pair_key, prompt_key

__all__ = ["FITTED_ROWS", "FittedRows", "Hashes", "InSample", "Overlap", "hashes_of", "row_key"]

Keys = NDArray[np.uint64]

FITTED_ROWS = "fitted-rows.bin"
# The first format has no prompts.
_MAGIC = (b"prefcast rows 1\n", b"prefcast rows 2\n")
# Of more rows, and of more prompts, only so many hashes are kept, 800 KB: the smallest, which are a random sample.
_MOST = 100_000


def row_key(pair: Pair) -> int:
    """The hash of a pair's texts, 64 bits. It does not change if A and B are exchanged."""
    return pair_key(pair)[0]


def hashes_of(pairs: Iterable[Pair]) -> Keys:
    """The hashes of n pairs and of their first prompts, (n, 2). Two prompts with the same words have the same hash."""
    both = [(row_key(pair), group_key(prompt_key(pair))) for pair in pairs]
    return np.array(both, dtype=np.uint64).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Hashes:
    """A set of hashes: `keys` (k,), sorted. Of more than 100,000 the smallest are kept; `number` is that of all."""

    keys: Keys
    number: int

    @classmethod
    def of(cls, keys: Iterable[int] | Keys) -> Self:
        every = np.unique(np.fromiter(keys, dtype=np.uint64))
        return cls(every[:_MOST], len(every))

    @property
    def exact(self) -> bool:
        """Whether every hash is known."""
        return self.number == len(self.keys)

    def holds(self, keys: Keys) -> NDArray[np.int64]:
        """For hashes (n,): 1 for one of the set, 0 for another one, -1 where that is not known, (n,)."""
        place = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        found = (self.keys[place] == keys).astype(np.int64) if len(self.keys) else np.zeros(len(keys), dtype=np.int64)
        return found if self.exact else np.where(keys <= self.keys[-1], found, -1)

    def joined(self, other: Self) -> Self:
        """Both sets as one. If a set is a sample, the number is at most so much too large as both have in common."""
        every = np.union1d(self.keys, other.keys)
        number = (
            len(every) if self.exact and other.exact else max(min(self.number + other.number, 2**64 - 1), _MOST + 1)
        )
        return type(self)(every[:_MOST], number)

    def to_bytes(self) -> bytes:
        keys: bytes = self.keys.astype("<u8").tobytes()
        return self.number.to_bytes(8, "little") + keys

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[Self, bytes]:
        """What `to_bytes` wrote, and the bytes after it. Raises ValueError."""
        if len(data) < 8:
            raise ValueError("it is cut off")
        number = int.from_bytes(data[:8], "little")
        size = 8 * min(number, _MOST)
        if len(data) < 8 + size:
            raise ValueError("it has fewer hashes than it says")
        keys = np.frombuffer(data[8 : 8 + size], dtype="<u8").astype(np.uint64)
        if (keys[1:] <= keys[:-1]).any():
            raise ValueError("its hashes are not in order")
        return cls(keys, number), data[8 + size :]


@dataclass(frozen=True, eq=False)
class FittedRows:
    """The `rows` of a fit and their first `prompts`, as hashes. A file of the first format does not know the prompts: None."""

    rows: Hashes
    prompts: Hashes | None

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Self:
        """From all rows of a fit."""
        return cls.of_hashes(hashes_of(pairs))

    @classmethod
    def of_hashes(cls, both: Keys) -> Self:
        """From the hashes (n, 2) of all rows of a fit and of their first prompts."""
        return cls(Hashes.of(both[:, 0]), Hashes.of(both[:, 1]))

    def joined(self, other: FittedRows | None) -> FittedRows:
        """The rows of two fits."""
        if other is None:
            return self
        known = [each.prompts for each in (self, other) if each.prompts is not None]
        prompts = known[0].joined(known[1]) if len(known) == 2 else known[0] if known else None
        return FittedRows(self.rows.joined(other.rows), prompts)

    def write(self, folder: Path) -> None:
        """Write the hashes into the folder of a forecaster."""
        data = self.rows.to_bytes() + (b"" if self.prompts is None else self.prompts.to_bytes())
        (folder / FITTED_ROWS).write_bytes(_MAGIC[self.prompts is not None] + data)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The hashes of a folder, None if it has none. Raises ForecasterError for a file that `write` did not write."""
        path = folder / FITTED_ROWS
        if not path.exists():
            return None
        data = read_whole(path, len(_MAGIC[0]) + 2 * (8 + 8 * _MOST))
        start, data = data[: len(_MAGIC[0])], data[len(_MAGIC[0]) :]
        try:
            if start not in _MAGIC:
                raise ValueError("it is not a list of fitted rows")
            rows, data = Hashes.from_bytes(data)
            prompts = None
            if start == _MAGIC[1]:
                prompts, data = Hashes.from_bytes(data)
            if data:
                raise ValueError("it has more hashes than it says")
        except ValueError as error:
            raise ForecasterError(f"{shown_path(path)}: damaged: {error}") from None
        return cls(rows, prompts)


@dataclass(frozen=True)
class InSample:
    """How many of `rows` were among those that the forecaster was fitted on. `prompts` is how many others have a first prompt of
    the fit; None if the forecaster does not know. `exact` says that all of the fit is known; otherwise the numbers are
    estimated from a sample of it."""

    found: int
    rows: int
    exact: bool
    prompts: int | None = None

    def __str__(self) -> str:
        return (
            f"{self._about}{self.found:,} of these {self.rows:,} rows {'was' if self.found == 1 else 'were'} in the fit"
        )

    @property
    def prompts_said(self) -> str | None:
        """How many rows have a first prompt of the fit, if any."""
        if not self.prompts:
            return None
        one = self.prompts == 1
        of = f"more {'row' if one else 'rows'}" if self.found else f"of these {self.rows:,} rows"
        return f"{self._about}{self.prompts:,} {of} {'has' if one else 'have'} a first prompt of the fit, with other answers"

    @property
    def _about(self) -> str:
        return "" if self.exact else "about "


class Overlap:
    """Counts pairs that a forecaster was fitted on; `fitted` is None if the forecaster does not say."""

    def __init__(self, fitted: FittedRows | None) -> None:
        self._parts = [] if fitted is None else [fitted.rows, *([] if fitted.prompts is None else [fitted.prompts])]
        self._rows = 0
        self._known, self._found = [0, 0], [0, 0]

    def add(self, pairs: Sequence[Pair]) -> None:
        """Count pairs."""
        if self._parts:
            self.add_hashes(hashes_of(pairs))

    def add_hashes(self, both: Keys) -> None:
        """Count pairs by their hashes (n, 2)."""
        if self._parts:
            self._rows += len(both)
        for number, (part, keys) in enumerate(zip(self._parts, both.T, strict=False)):
            held = part.holds(keys)
            self._known[number] += int((held >= 0).sum())
            self._found[number] += int((held == 1).sum())

    @property
    def found(self) -> InSample | None:
        """What was counted; None if the forecaster does not say, or no pair was counted."""
        if not self._rows:
            return None
        rows, *prompts = [
            found if part.exact else round(self._rows * found / max(1, known))
            for part, found, known in zip(self._parts, self._found, self._known, strict=False)
        ]
        # A row of the fit has a first prompt of the fit.
        more = max(0, prompts[0] - rows) if prompts else None
        return InSample(rows, self._rows, all(part.exact for part in self._parts), more)
