"""Checks a file before it is forecast: its contents, its faults, and the time that a forecast would take."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefcast.errors import RowError
from prefcast.forecasts.forecaster import load_forecaster
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import PairFile
from prefcast.scorers.registry import DEFAULT

__all__ = ["FaultKind", "Inspection", "inspect"]

_SAMPLE = 256
# So many kinds of faults are told apart, and so many rows of each are named.
_KINDS, _ROWS = 50, 6
# What differs between faults of one kind: quoted texts and numbers.
_VARIES = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")


@dataclass(frozen=True)
class FaultKind:
    """Faults of one kind: the first of them, how many there are, and the first rows that have one."""

    first: RowError
    count: int
    rows: tuple[int, ...]

    def with_row(self, error: RowError) -> FaultKind:
        rows = self.rows if len(self.rows) == _ROWS else (*self.rows, error.row)
        return FaultKind(self.first, self.count + 1, rows)


class _Faults:
    """Gathers faults by their kind, which is the field and the problem without what differs from row to row."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], FaultKind] = {}

    def add(self, error: RowError) -> None:
        kind = error.file, error.field, _VARIES.sub("", error.problem)
        if kind not in self._kinds and len(self._kinds) == _KINDS:
            kind = "", "", ""  # the rest, which is not told apart
        found = self._kinds.get(kind, FaultKind(error, 0, ()))
        self._kinds[kind] = found.with_row(error)

    @property
    def found(self) -> tuple[FaultKind, ...]:
        """The kinds in the order in which they came."""
        return tuple(self._kinds.values())


@dataclass(frozen=True)
class Inspection:
    """The contents of a file.

    `turns` counts pairs by number of turns, `labels` by outcome (None: no label). `truncated` counts the pairs that the default
    budget would cut. `faults` are those of rows, by kind. `seconds` is an estimate of the time to read and forecast the file on this machine with the default model.
    It is made from `rate`, the pairs per second of a sample.
    """

    name: str
    description: str
    note: str
    has_id: bool
    rows: int
    failed: int
    turns: dict[int, int]
    labels: dict[Outcome | None, int]
    characters_median: float
    characters_longest: int
    budget: str
    truncated: int
    model: str
    rate: float
    seconds: float
    faults: tuple[FaultKind, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        plain = dict(vars(self))
        plain["turns"] = {str(number): count for number, count in self.turns.items()}
        plain["labels"] = {
            "none" if outcome is None else outcome.name.lower(): count for outcome, count in self.labels.items()
        }
        plain["faults"] = [
            {"first": str(kind.first), "count": kind.count, "rows": list(kind.rows)} for kind in self.faults
        ]
        return plain


def inspect(
    file: PairFile, *, progress: Callable[[int], None] | None = None, each: Callable[[Pair], None] | None = None
) -> Inspection:
    """Read all of `file`; `each` gets every pair. Raises FileError for a fault of the file."""
    forecaster = load_forecaster()
    rows = failed = truncated = 0
    turns: Counter[int] = Counter()
    labels: Counter[Outcome | None] = Counter()
    # Counts of lengths in bins of 1 %: this gives the median to 1 % in constant memory.
    bins: Counter[int] = Counter()
    longest = 0
    sample: list[Pair] = []
    faults = _Faults()
    start = time.perf_counter()
    examining = 0.0
    for item in file:
        rows += 1
        if progress and rows % _SAMPLE == 0:
            progress(rows)
        if isinstance(item, RowError):
            failed += 1
            faults.add(item)
            continue
        characters = item.characters
        turns[len(item.turns)] += 1
        labels[item.outcome] += 1
        bins[round(np.log1p(characters) * 100)] += 1
        longest = max(longest, characters)
        truncated += characters > forecaster.budget.limit
        if len(sample) < _SAMPLE:
            sample.append(forecaster.read(item)[0])
        if each is not None:
            begun = time.perf_counter()
            each(item)
            examining += time.perf_counter() - begun
    reading = time.perf_counter() - start - examining
    rate, seconds = 0.0, reading
    if sample:
        forecaster.forecast(sample[:8])  # the first call takes longer
        start = time.perf_counter()
        forecaster.forecast(sample)
        rate = len(sample) / (time.perf_counter() - start)
        seconds += (rows - failed) / rate
    return Inspection(
        name=file.name,
        description=file.description,
        note=file.shape.note,
        has_id=file.has_id,
        rows=rows,
        failed=failed,
        turns=dict(sorted(turns.items())),
        labels=dict(labels),
        characters_median=_median(bins),
        characters_longest=longest,
        budget=str(forecaster.budget),
        truncated=truncated,
        model=DEFAULT,
        rate=rate,
        seconds=seconds,
        faults=faults.found,
    )


def _median(bins: Counter[int]) -> float:
    half, count = sum(bins.values()) / 2, 0
    for position in sorted(bins):
        count += bins[position]
        if count >= half:
            return float(np.expm1(position / 100))
    return 0.0
