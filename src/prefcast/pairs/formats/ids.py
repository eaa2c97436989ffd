"""Which ids were seen before, in 16 bytes a row."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["SeenIds"]

_RECENT = 4096
_ROW_BITS = 32


class SeenIds:
    """Finds an id's second occurrence and says where the first was.

    An id is held as 96 bits of its hash and 32 bits of its row number. The newest are in a dict; the others in sorted
    arrays whose sizes double, so each is moved a logarithmic number of times. Ids are compared as text: 1 and "1" are
    the same id, as they are in a CSV.
    """

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, id: str | int, row: int) -> int | None:
        """Remember `id` at `row` (below 2**32); the row where it was seen before, or None.

        The recent ids answer at once; the older ones are looked up a block at a time, in `settle`.
        """
        digest = hashlib.blake2b(str(id).encode("utf-8", "surrogatepass"), digest_size=12).digest()
        first = self._recent.setdefault(digest, row)
        return None if first == row else first

    @property
    def full(self) -> bool:
        """Whether `settle` is due."""
        return len(self._recent) >= _RECENT

    def settle(self) -> tuple[int, int] | None:
        """Compare the recent ids with all older ones and file them; (row, first row) of a duplicate, or None."""
        if not self._recent:
            return None
        digests = np.frombuffer(b"".join(self._recent), dtype=">u4").reshape(-1, 3).astype(np.uint64)
        rows = np.fromiter(self._recent.values(), dtype=np.uint64, count=len(self._recent))
        block = np.empty((len(rows), 2), dtype=np.uint64)
        block[:, 0] = digests[:, 0] << np.uint64(32) | digests[:, 1]
        block[:, 1] = digests[:, 2] << np.uint64(_ROW_BITS) | rows
        self._recent.clear()
        block = block[np.argsort(block[:, 0], kind="stable")]
        for run in self._runs:
            if found := _common(run, block):
                return found
        while self._runs and len(self._runs[-1]) <= len(block):
            older = self._runs.pop()
            merged = np.concatenate([older, block])
            block = merged[np.argsort(merged[:, 0], kind="stable")]
        self._runs.append(block)
        return None


def _common(run: NDArray[np.uint64], block: NDArray[np.uint64]) -> tuple[int, int] | None:
    """The rows of an id that is in both, or None."""
    start = np.searchsorted(run[:, 0], block[:, 0], side="left")
    end = np.searchsorted(run[:, 0], block[:, 0], side="right")
    for index in np.flatnonzero(end > start):
        same = run[start[index] : end[index], 1] >> np.uint64(_ROW_BITS) == block[index, 1] >> np.uint64(_ROW_BITS)
        if same.any():
            first = run[start[index] : end[index], 1][same][0]
            mask = np.uint64((1 << _ROW_BITS) - 1)
            return int(block[index, 1] & mask), int(first & mask)
    return None
