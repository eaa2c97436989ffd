"""Rehearsals: a run on the competition's stub forecasts labelled rows instead, and measures the forecasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from prefcast.base.limits import MAX_ROW
from prefcast.errors import RowError, UsageError
from prefcast.forecasts.predictions import Forecasts
from prefcast.measuring.collected import Measured
from prefcast.pairs import Pair
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.runs.loop import Sink

__all__ = ["Rehearsal", "rehearsal_rows"]

_STUB_ROWS, _REHEARSED_ROWS = 3, 1000


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
) -> Iterable[Pair | RowError] | None:
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

    def rows_of() -> Iterator[Pair | RowError]:
        with labelled as file:
            yield from islice(file, _REHEARSED_ROWS)

    return rows_of()
