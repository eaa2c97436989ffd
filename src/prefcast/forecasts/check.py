"""Checks a file before it is forecast: its contents, its faults, and the time that a forecast would take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prefcast.errors import RowError
from prefcast.forecasts.forecaster import load_forecaster
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import PairFile
from prefcast.scorers.registry import DEFAULT

__all__ = ["Inspection", "inspect"]

_SAMPLE = 256


@dataclass(frozen=True)
class Inspection:
    """The contents of a file.

    `turns` counts pairs by number of turns, `labels` by outcome (None: no label). `truncated` counts the pairs that the default
    budget would cut. `seconds` is an estimate of the time to read and forecast the file on this machine with the default model.
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


def inspect(
    file: PairFile, *, on_fault: Callable[[RowError], None], progress: Callable[[int], None] | None = None
) -> Inspection:
    """Read all of `file`, and call `on_fault` with each row at fault.

    Raises FileError for a fault of the file.
    """
    forecaster = load_forecaster()
    rows = failed = truncated = 0
    turns: Counter[int] = Counter()
    labels: Counter[Outcome | None] = Counter()
    # Counts of lengths in bins of 1 %: this gives the median to 1 % in constant memory.
    bins: Counter[int] = Counter()
    longest = 0
    sample: list[Pair] = []
    start = time.perf_counter()
    for item in file:
        rows += 1
        if progress and rows % _SAMPLE == 0:
            progress(rows)
        if isinstance(item, RowError):
            failed += 1
            on_fault(item)
            continue
        characters = item.characters
        turns[len(item.turns)] += 1
        labels[item.outcome] += 1
        bins[round(np.log1p(characters) * 100)] += 1
        longest = max(longest, characters)
        truncated += characters > forecaster.budget.limit
        if len(sample) < _SAMPLE:
            sample.append(forecaster.read(item)[0])
    reading = time.perf_counter() - start
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
    )


def _median(bins: Counter[int]) -> float:
    half, count = sum(bins.values()) / 2, 0
    for position in sorted(bins):
        count += bins[position]
        if count >= half:
            return float(np.expm1(position / 100))
    return 0.0
