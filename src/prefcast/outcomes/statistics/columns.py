"""A table of numbers that may be larger than memory: beyond 16 MB it is kept in a temporary file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from tempfile import SpooledTemporaryFile
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError

__all__ = ["BLOCK", "Columns"]

Floats = NDArray[np.float64]

BLOCK = 16_384
_HELD_BYTES = 16_000_000


class Columns:
    """A table of float64 that grows by blocks of rows (m, k) and is read by blocks or by columns.

    A column may hold the bits of another 64-bit type (see `ndarray.view`): the table only stores them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._file = SpooledTemporaryFile(max_size=_HELD_BYTES)  # noqa: SIM115 - closed with the table
        finalize(self, self._file.close)
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, block: Floats) -> None:
        """Add rows (m, k). Raises UsageError if the number of columns is wrong."""
        if block.ndim != 2 or block.shape[1] != len(self.names):
            raise UsageError(f"a block must have shape (m, {len(self.names)}); found {block.shape}")
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(block, dtype=np.float64).tobytes())
        self._rows += len(block)

    def blocks(self, rows: int = BLOCK) -> Iterator[Floats]:
        """The rows in order, in blocks (at most `rows`, k)."""
        width = 8 * len(self.names)
        for start in range(0, self._rows, rows):
            self._file.seek(start * width)
            data = self._file.read(min(rows, self._rows - start) * width)
            yield np.frombuffer(data).reshape(-1, len(self.names))

    def column(self, name: str) -> Floats:
        """One column (n,), in memory."""
        index, out, start = self.names.index(name), np.empty(self._rows), 0
        for block in self.blocks():
            out[start : start + len(block)] = block[:, index]
            start += len(block)
        return out
