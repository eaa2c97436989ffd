"""The loop of every run: rows in pieces, each scored once, what is done kept, all of it given in the order of the input.

Knows nothing of files: rows come from an iterable, pieces go to whoever takes them. A scorer that works elsewhere and out
of order fits too: pieces have numbers, and the journal takes them in any order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from prefcast.errors import JournalError, RowError, UsageError
from prefcast.outcomes.models import Link
from prefcast.pairs import Pair
from prefcast.pairs.pieces import pieces
from prefcast.runs.journal import Entry, Journal
from prefcast.runs.log import Watch
from prefcast.runs.packed import Items, Piece, digest_of, pack, unpack
from prefcast.runs.stopping import Stopping
from prefcast.scorers import Scorer

__all__ = ["ON_ERROR", "Job", "Progress", "RunReport", "Tally", "Whole", "run_to", "scored_pieces"]

ON_ERROR = ("keep", "stop")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class RunReport:
    """What a run did: rows written, failed and truncated, the first failure, and the wall-clock seconds it took.

    `restored` of the rows were scored by an earlier attempt; `errors` counts the failures by kind, `shares` tells where
    the time went.
    """

    rows: int
    failed: int
    truncated: int
    first_error: RowError | None
    seconds: float
    restored: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Rows that this attempt scored, a second."""
        return (self.rows - self.restored) / self.seconds if self.seconds else 0.0


def check_on_error(on_error: str) -> None:
    """UsageError if there is no such way."""
    if on_error not in ON_ERROR:
        raise UsageError(f"unknown on_error {on_error!r}; there are {', '.join(ON_ERROR)}")


class Tally:
    """Counts what went by."""

    def __init__(self) -> None:
        self.rows = self.failed = self.truncated = self.restored = 0
        self.first: RowError | None = None

    def add(self, piece: Piece, on_error: str, restored: bool = False) -> None:
        """Count a piece; with `on_error="stop"` its first error is raised."""
        first = next(filter(None, piece.errors), None)
        if on_error == "stop" and first is not None:
            raise first
        self.rows += len(piece)
        self.restored += len(piece) if restored else 0
        self.failed += piece.failed
        self.truncated += sum(truncation is not None and truncation.truncated for truncation in piece.truncations)
        self.first = self.first or first

    def report(self, seconds: float, watch: Watch | None = None) -> RunReport:
        errors, shares = (watch.errors, watch.shares()) if watch else ({}, {})
        return RunReport(
            self.rows, self.failed, self.truncated, self.first, seconds, self.restored, dict(errors), shares
        )


@dataclass(frozen=True)
class Job:
    """What is done with each piece: `score` gives Forecasts or RawScores of its items, with `scorer`.

    `header` says, in words, all that the results depend on besides the input.
    """

    score: Callable[[Items], Piece]
    scorer: Scorer
    header: Mapping[str, Any] = field(default_factory=dict)
    link: Link | None = None


class Part(Protocol):
    """Which of the pieces are this run's."""

    def __contains__(self, number: int) -> bool: ...


class Whole:
    """All of them."""

    def __contains__(self, number: int) -> bool:
        return True


class Sink(Protocol):
    """Takes pieces in order."""

    def write(self, piece: Any) -> None: ...


def scored_pieces(
    items: Iterable[Pair | RowError],
    job: Job,
    tally: Tally,
    *,
    on_error: str = "keep",
    watch: Watch | None = None,
    journal: Journal | None = None,
    part: Part | None = None,
    stopping: Stopping | None = None,
    with_text: bool = False,
) -> Iterator[Piece]:
    """The results of `items` in their order: what the journal has is taken from there, the rest is scored and put there.

    With `on_error="stop"` the first row that fails raises its RowError. Raises JournalError where the rows of a piece
    are not those that the journal knows.
    """
    check_on_error(on_error)
    watch, part = watch or Watch(), part or Whole()
    name = getattr(items, "name", "input")
    number, whole = -1, blake2b(digest_size=16)
    for number, chunk in enumerate(watch.reading(pieces(items))):
        before = watch.rows_read
        watch.rows_read += len(chunk)
        if journal is not None:
            with watch.timing("reading"):
                digest = digest_of(chunk)
                whole.update(digest)
        if number not in part:
            watch.rows_passed += len(chunk)
            continue
        entry = None if journal is None else journal.get(number)
        if entry is not None:
            if entry.digest != digest:
                raise JournalError(f"{name}: {_rows(chunk, before)} changed since the run began; --fresh starts over")
            piece = unpack(entry.payload, chunk, job.link)
            watch.rows_passed += len(chunk)
        else:
            done = tally.rows - tally.restored
            job.scorer.on_progress = _follower(watch, done, tally.rows)
            with stopping.busy() if stopping else nullcontext():
                start, told = time.perf_counter(), job.scorer.tokenising
                piece = job.score(chunk)
                seconds = time.perf_counter() - start
                tokenising = job.scorer.tokenising - told
                watch.spent("scoring", seconds - tokenising)
                watch.spent("tokenising", tokenising)
                # What stops the run is for its author to mend: the row will not be the same.
                if journal is not None and not (on_error == "stop" and piece.failed):
                    with watch.timing("writing"):
                        packed = pack(piece, with_text=with_text)
                        journal.put(Entry(number, before + 1, len(chunk), digest, packed))
                watch.log.event(
                    "chunk",
                    number=number,
                    first_row=before + 1,
                    rows=len(chunk),
                    failed=piece.failed,
                    seconds=round(seconds, 6),
                )
        watch.row_errors(piece.errors)
        tally.add(piece, on_error, restored=entry is not None)
        yield piece
        watch.done(None if entry else tally.rows - tally.restored, tally.rows)
    if journal is not None:
        if (more := journal.after(number + 1)) is not None:
            raise JournalError(
                f"{name}: ends after {watch.rows_read} rows, but row {more.first} was scored since the run began; "
                "--fresh starts over"
            )
        journal.note(pieces=number + 1, rows=watch.rows_read, digest=whole.hexdigest())


def _follower(watch: Watch, scored: int, rows: int) -> Progress:
    """Tells the watch of rows within a piece."""
    return lambda within: watch.done(scored + within, rows + within)


def _rows(chunk: Sequence[Pair | RowError], before: int) -> str:
    first, last = (getattr(item, "row", 0) for item in (chunk[0], chunk[-1]))
    return f"rows {first or before + 1} to {last or before + len(chunk)}"


def run_to(
    writer: Sink | None,
    items: Iterable[Pair | RowError],
    job: Job,
    *,
    on_error: str = "keep",
    watch: Watch | None = None,
    journal: Journal | None = None,
    part: Part | None = None,
    stopping: Stopping | None = None,
    with_text: bool = False,
) -> RunReport:
    """Do `job` for all `items` into `writer` (None: the journal is the result), a piece at a time; as `scored_pieces`."""
    start, tally, watch = time.perf_counter(), Tally(), watch or Watch()
    for piece in scored_pieces(
        items,
        job,
        tally,
        on_error=on_error,
        watch=watch,
        journal=journal,
        part=part,
        stopping=stopping,
        with_text=with_text,
    ):
        if writer is not None:
            with watch.timing("writing"):
                writer.write(piece)
    return tally.report(time.perf_counter() - start, watch)
