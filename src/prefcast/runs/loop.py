"""The loop of every run: rows are put into pieces, each piece is scored, and the results come in the order of the input.

This module knows nothing of files: rows come from an iterable, results go to a writer. The scorer itself looks up what was
scored before, in the evidence store.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np

from prefcast.errors import PrefcastError, RowError, UsageError
from prefcast.forecasts.predictions import Forecasts
from prefcast.forecasts.scores import RawScores
from prefcast.pairs import Pair
from prefcast.pairs.pieces import pieces
from prefcast.runs.log import Watch
from prefcast.runs.stopping import Stopping
from prefcast.scorers.base import Meter, Spent

__all__ = ["ON_ERROR", "Job", "Piece", "Progress", "RunReport", "Tally", "run_to", "scored_pieces"]

ON_ERROR = ("keep", "stop")

Progress = Callable[[int], None]
Piece = Forecasts | RawScores
Items = list[Pair | RowError]


@dataclass(frozen=True)
class RunReport:
    """What a run did: rows written, failed and truncated, the first failure, and the wall-clock seconds.
    `literal` counts the rows of `Truncation.literal`.

    `restored` rows were in the evidence store. `errors` counts the failures by kind. `shares` is the share of each part of
    the work in the time. `spent` is what a model that is paid for took.
    """

    rows: int
    failed: int
    truncated: int
    first_error: RowError | None
    seconds: float
    restored: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    literal: int = 0
    spent: Spent = field(default_factory=Spent)
    escalated: int | None = None

    @property
    def rate(self) -> float:
        """Rows a second that were scored here."""
        return (self.rows - self.restored) / self.seconds if self.seconds else 0.0


class Tally:
    """Counts the rows that were written."""

    def __init__(self) -> None:
        self.rows = self.failed = self.truncated = self.restored = self.literal = 0
        self.first: RowError | None = None
        self.spent = Spent()
        # Rows that the second tier of a cascade scored; None without a cascade.
        self.escalated: int | None = None

    def add(self, piece: Piece, on_error: str = "keep", restored: int = 0) -> None:
        """Count a piece, `restored` rows of which were in the store; with `on_error="stop"` its first error is raised."""
        first = next(filter(None, piece.errors), None)
        if on_error == "stop" and first is not None:
            raise first
        self.rows += len(piece)
        self.restored += restored
        self.failed += piece.failed
        self.truncated += sum(truncation is not None and truncation.truncated for truncation in piece.truncations)
        self.literal += sum(truncation is not None and truncation.literal for truncation in piece.truncations)
        self.first = self.first or first
        tiers = piece.escalated if isinstance(piece, Forecasts) else piece.columns.get("escalated")
        if tiers is not None:
            self.escalated = (self.escalated or 0) + int(np.nansum(tiers))

    def report(self, seconds: float, watch: Watch | None = None) -> RunReport:
        """What was counted, as a report."""
        errors, shares = (watch.errors, watch.shares()) if watch else ({}, {})
        return RunReport(
            self.rows,
            self.failed,
            self.truncated,
            self.first,
            seconds,
            self.restored,
            dict(errors),
            shares,
            self.literal,
            self.spent,
            self.escalated,
        )


@dataclass(frozen=True)
class Job:
    """What is done with each piece: `score` gives the forecasts or raw scores of its rows and tells a meter how far it is.

    `header` holds, in words, all that the results depend on besides the input. `ahead` pieces are scored at a time.
    """

    score: Callable[[Items, Meter], Piece]
    header: Mapping[str, Any] = field(default_factory=dict)
    ahead: int = 1


class Sink(Protocol):
    """Takes pieces in order."""

    def write(self, piece: Any) -> None: ...


@dataclass
class _Scored:
    """A piece on its way: its number, first row and rows, its result, and what it took."""

    number: int
    first: int
    rows: int
    result: Piece
    spent: Spent
    seconds: float


def scored_pieces(
    items: Iterable[Pair | RowError],
    job: Job,
    tally: Tally,
    *,
    on_error: str = "keep",
    watch: Watch | None = None,
    part: Container[int] | None = None,
    stopping: Stopping | None = None,
) -> Iterator[Piece]:
    """The result of each piece of `items`, in order; with `part`, of the pieces whose numbers are in `part`.

    With `on_error="stop"` the first row that fails raises its RowError.
    """
    if on_error not in ON_ERROR:
        raise UsageError(f"unknown on_error {on_error!r}; there are {', '.join(ON_ERROR)}")
    watch = watch or Watch()
    for scored in _scored(items, job, tally, watch, part, stopping):
        kept = min(scored.spent.kept, scored.rows)
        watch.spent("tokenising", scored.spent.tokenising)
        watch.spent("scoring", max(0.0, scored.seconds - scored.spent.tokenising))
        watch.scored(kept, scored.rows)
        watch.log.event(
            "piece",
            number=scored.number,
            first_row=scored.first,
            rows=scored.rows,
            failed=scored.result.failed,
            kept=kept,
            seconds=round(scored.seconds, 6),
        )
        watch.row_errors(scored.result.errors)
        spent = scored.spent
        tally.spent.paid(spent.requests, spent.tokens_read, spent.tokens_written, spent.money)
        tally.add(scored.result, on_error, kept)
        yield scored.result
        watch.done(tally.rows - tally.restored, tally.rows)


def _scored(
    items: Iterable[Pair | RowError],
    job: Job,
    tally: Tally,
    watch: Watch,
    part: Container[int] | None,
    stopping: Stopping | None,
) -> Iterator[_Scored]:
    """The pieces that are this run's, scored, in order; `job.ahead` of them are under way at a time."""

    def score(number: int, first: int, piece: Items) -> _Scored:
        spent, start = Spent(), time.perf_counter()
        meter = Meter(lambda pairs: follow(number, pairs), spent)
        try:
            result = job.score(piece, meter)
        except PrefcastError:
            # What the piece has by now is in the evidence store.
            with lock:
                watch.rows_scored += meter.pairs
            raise
        return _Scored(number, first, len(piece), result, spent, time.perf_counter() - start)

    # How many pairs are done of each piece that is under way; the tally counts the others.
    within: dict[int, int] = {}
    lock = Lock()

    def follow(number: int, pairs: int) -> None:
        with lock:
            within[number] = pairs
            inside = sum(within.values())
            watch.done(tally.rows - tally.restored + inside, tally.rows + inside)

    def ended(scored: _Scored) -> _Scored:
        with lock:
            within.pop(scored.number, None)
        return scored

    def mine() -> Iterator[tuple[int, int, Items]]:
        for number, piece in enumerate(watch.reading(pieces(items))):
            first = watch.rows_read + 1
            watch.rows_read += len(piece)
            watch.pieces_read += 1
            if part is None or number in part:
                yield number, first, piece
            else:
                watch.rows_passed += len(piece)

    busy = stopping.busy if stopping else nullcontext
    if job.ahead == 1:
        for each in mine():
            with busy():
                found = score(*each)
            yield ended(found)
        return
    threads = ThreadPoolExecutor(job.ahead, thread_name_prefix="prefcast-piece")
    under_way: deque[Future[_Scored]] = deque()

    def next_one() -> _Scored:
        with busy():
            return ended(under_way.popleft().result())

    try:
        for each in mine():
            under_way.append(threads.submit(score, *each))
            if len(under_way) >= job.ahead:
                yield next_one()
        while under_way:
            yield next_one()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def run_to(
    writer: Sink,
    items: Iterable[Pair | RowError],
    job: Job,
    *,
    on_error: str = "keep",
    watch: Watch | None = None,
    part: Container[int] | None = None,
    stopping: Stopping | None = None,
) -> RunReport:
    """Do `job` for `items` into `writer`, a piece at a time; as `scored_pieces`."""
    start, tally, watch = time.perf_counter(), Tally(), watch or Watch()
    for piece in scored_pieces(items, job, tally, on_error=on_error, watch=watch, part=part, stopping=stopping):
        with watch.timing("writing"):
            writer.write(piece)
    return tally.report(time.perf_counter() - start, watch)
