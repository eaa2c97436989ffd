"""Rehearsals: a run on the competition's stub forecasts labelled rows instead, and measures the forecasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from prefcast.base.limits import MAX_ROW
from prefcast.errors import RowError, UsageError
from prefcast.forecasts.predictions import Forecasts
from prefcast.measuring.collected import Measured
from prefcast.pairs import Pair
from prefcast.pairs.formats import PairFile, open_pairs
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.runs.loop import Sink

__all__ = ["Rehearsal", "rehearsal_rows"]

_STUB_ROWS, _REHEARSED_ROWS = 3, 1000


class RehearsedRows:
    """The first 1,000 rows of a file, and how far they have been read, in rows."""

    def __init__(self, file: PairFile) -> None:
        self._file, self._read, self._ended = file, 0, False

    def __iter__(self) -> Iterator[Pair | RowError]:
        with self._file as file:
            for item in islice(file, _REHEARSED_ROWS):
                self._read += 1
                yield item
        self._ended = True

    @property
    def progress(self) -> tuple[int, int]:
        """How many rows were read, of how many."""
        if self._ended:
            return self._read, self._read
        read, size = self._file.progress
        rows = _REHEARSED_ROWS if not read else min(_REHEARSED_ROWS, max(self._read, round(self._read * size / read)))
        return self._read, rows

    @property
    def rows_read(self) -> int:
        return self._read


class Rehearsal(Measured):
    """A writer that passes forecasts on and collects them to measure them."""

    def __init__(self, writer: Sink) -> None:
        super().__init__()
        self._writer = writer

    def write(self, forecasts: Forecasts) -> None:
        self._writer.write(forecasts)
        self.add(forecasts)


def rehearsal_rows(
    stub: str,
    train: str,
    columns: Mapping[str, str] | None,
    cells: str,
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
) -> RehearsedRows | None:
    """The first 1,000 rows of `train` if `stub` has exactly three rows, as the competition's public test file has;
    otherwise None.

    Raises UsageError if `train` has no label columns or `stub` is standard input, which can be read only once.
    """
    if stub == "-":
        raise UsageError("--rehearse reads the input twice, and standard input can be read only once; name a file")
    labelled = open_pairs(train, columns=columns, cells=cells, label_values=label_values, max_row=max_row)
    if not labelled.may_have_labels:
        labelled.close()
        raise UsageError(f"{labelled.name}: a rehearsal needs labels ({LABEL_COLUMNS})")
    with open_pairs(stub, columns=columns, cells=cells, max_row=max_row) as file:
        rows = sum(1 for _ in islice(file, _STUB_ROWS + 1))
    if rows != _STUB_ROWS:
        labelled.close()
        return None

    return RehearsedRows(labelled)
