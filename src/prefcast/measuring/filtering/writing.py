"""Writes the rows that stay, their weights, and a report of the rows that go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefcast.base.files import atomic_file, checked_ending
from prefcast.errors import FileError, RowError, RunError
from prefcast.forecasts.outputs import safe_cell
from prefcast.measuring.filtering.verdicts import REASONS, UNREADABLE, Verdicts
from prefcast.pairs import clean
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.copying import opened_copy
from prefcast.pairs.formats.fields import absent
from prefcast.pairs.formats.records import Records
from prefcast.pairs.formats.separated import csv_line, quoted

__all__ = ["Filtered", "check_tables", "write_filtered"]

_EXAMPLES = 3
# A smaller weight is written as 0: read_weights takes none below this.
_LEAST_WEIGHT = 1e-9
_REPORT = ("row", "id", "reason", "probability", "detail", "file")
Line = Callable[[Sequence[object]], None]


@dataclass
class Filtered:
    """What was written: of `rows`, `kept` stay; `gone` counts the others by reason, `examples` has the first ids of each."""

    rows: int = 0
    kept: int = 0
    gone: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str | int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""
        gone = {reason: self.gone[reason] for reason in REASONS[1:]}
        return {"rows": self.rows, "kept": self.kept, "gone": gone, "examples": self.examples}


def check_tables(report: str | os.PathLike[str] | None, weights: str | os.PathLike[str] | None) -> None:
    """Raise UsageError if the report or the weights cannot be written as files of these names."""
    for path, what in ((report, "the report"), (weights, "the weights")):
        if path is not None:
            checked_ending(path, what, ".csv")


def write_filtered(
    file: PairFile,
    source: Any,
    output: str | os.PathLike[str],
    verdicts: Verdicts,
    *,
    report: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Filtered:
    """Read `source` (a path or several), which was judged as `file`, again, and write the rows that stay as they were read.

    Without ids, the weights are those of the numbers that the rows have in `output`. Each file appears whole or not at all. Raises
    FileError and UsageError, and RunError if the source has changed.
    """
    counts, details = Filtered(), verdicts.details
    id_column = file.own_name("id") if file.has_id else None
    with ExitStack() as stack:
        records = stack.enter_context(Records(source, file.bounds.max_row))
        put = stack.enter_context(opened_copy(output, records, source))
        say = stack.enter_context(_lines(report, _REPORT, safe_cell))
        # These ids are read again and must be those of the rows, to the letter.
        weigh = stack.enter_context(_lines(weights, ("id", "weight"), str))
        place = 0
        for row, record in records.records:
            known = place < len(verdicts.row) and verdicts.row[place] == row
            if not known and not isinstance(record, RowError) and records.textual and not any(record.values()):
                continue  # a row of bare commas, as the reader of pairs leaves it out
            reason, probability = UNREADABLE, np.nan
            if known:
                reason, probability = int(verdicts.reason[place]), float(verdicts.probability[place])
                place += 1
            counts.rows += 1
            id = _id(record, id_column, row)
            if reason:
                name, number = records.where(row)
                p = "" if np.isnan(probability) else repr(probability)
                say((number, id, REASONS[reason], p, details.get(row, ""), name))
                counts.gone[REASONS[reason]] += 1
                held = counts.examples.setdefault(REASONS[reason], [])
                if len(held) < _EXAMPLES:
                    held.append(id)
                continue
            if isinstance(record, RowError):
                raise FileError(record.file, f"cannot be written as it was read: {record.problem}", record.row)
            put(record)
            counts.kept += 1
            weigh((id if id_column is not None else counts.kept, _weight(probability)))
        if place != len(verdicts.row) or file.changed:
            raise RunError(f"{records.name}: was changed while it was filtered; give the command again")
    return counts


def _id(record: Mapping[str, Any] | RowError, column: str | None, row: int) -> str | int:
    if column is None or isinstance(record, RowError) or absent(record.get(column)):
        return row
    found = record[column]
    return found if isinstance(found, int) and not isinstance(found, bool) else clean(str(found))


def _weight(probability: float) -> str:
    """The probability of the label; 1 for a row without a label."""
    if np.isnan(probability):
        return "1.0"
    return repr(probability) if probability >= _LEAST_WEIGHT else "0"


@contextmanager
def _lines(path: str | os.PathLike[str] | None, head: Sequence[str], shown: Callable[[object], str]) -> Iterator[Line]:
    """A function that adds a line to a CSV file, its cells as `shown` gives them; it does nothing without a path."""
    if path is None:
        yield lambda cells: None
        return
    with atomic_file(path) as file:
        file.write(csv_line(head).encode())

        def add(cells: Sequence[object]) -> None:
            written = (quoted(str(cell)) if shown is str else shown(cell) for cell in cells)
            file.write((",".join(written) + "\n").encode())

        yield add
