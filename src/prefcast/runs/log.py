"""What a run says of itself: lines for people, or one JSON object an event; where its time goes; how long it will take.

Knows nothing of the texts: none is ever in an event.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prefcast.base.processes import CRASHED, TOO_SLOW
from prefcast.errors import RowError, ScoringError, printable

__all__ = ["Log", "Watch", "duration_text", "kind_of"]

PARTS = ("reading", "tokenising", "scoring", "writing")
# A sample of so many seconds is enough for an estimate; a run that ends within the other needs none.
_SAMPLE, _SHORT = 5.0, 60.0
_BYTES_A_ROW = 16  # what is remembered of each id
# What is wrong with the scoring of a row, by the words that its error has.
_KINDS = {CRASHED: "crash", "was killed by": "crash", TOO_SLOW: "time limit", "needs more memory": "memory"}

T = TypeVar("T")


class Log:
    """Standard error: lines for people, or, with `as_json`, an event a line."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """A line of its own, whatever the form."""
        if self.as_json:
            self.event("message", text=printable(text))
        else:
            print(f"prefcast: {printable(text)}", file=sys.stderr, flush=True)

    def event(self, name: str, **fields: Any) -> None:
        """What happened, for programs; nothing where people read."""
        if self.as_json:
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            print(json.dumps({"event": name, "time": f"{now}Z", **fields}), file=sys.stderr, flush=True)

    def tell(self, name: str, text: str, **fields: Any) -> None:
        """An event, or the line that says the same."""
        if self.as_json:
            self.event(name, **fields)
        else:
            self.say(text)


class Watch:
    """The clock of a run: seconds by part, errors by kind, and once an estimate of the whole.

    `read` says how many bytes of how many were read, `share` what part of the rows is this run's; `progress` is told of
    the rows that are done.
    """

    def __init__(
        self,
        log: Log | None = None,
        progress: Callable[[int], None] | None = None,
        read: Callable[[], tuple[int, int]] = lambda: (0, 0),
        share: float = 1.0,
    ) -> None:
        self.log = log or Log()
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.errors: Counter[str] = Counter()
        self._show, self._read, self._share = progress, read, share
        self._first: tuple[float, int] | None = None
        self._estimated = log is None
        # Pieces and rows that were read, rows that are another shard's, rows that have their evidence.
        self.pieces_read = self.rows_read = self.rows_passed = self.rows_scored = 0
        # What is called when the first row was computed here; only a run with an evidence store has it.
        self.on_first: Callable[[], None] | None = None

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent(part, time.perf_counter() - start)

    def spent(self, part: str, seconds: float) -> None:
        self.seconds[part] += seconds

    def reading(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that they take counts as reading."""
        rest = iter(items)
        while True:
            with self.timing("reading"):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item

    def scored(self, kept: int, rows: int) -> None:
        """`rows` more have their evidence, `kept` of them from the evidence store."""
        before, self.rows_scored = self.rows_scored, self.rows_scored + rows
        if kept < rows and self.on_first is not None:
            self.on_first()
            self.on_first = None
            if before + kept:
                # People read it in the closing lines.
                self.log.event("resumed", rows=before + kept)

    def row_errors(self, errors: Iterable[RowError | None]) -> None:
        """Count the errors of a piece, and tell of each."""
        for error in errors:
            if error is not None:
                kind = kind_of(error)
                self.errors[kind] += 1
                # Other problems may quote a text.
                why = {"problem": printable(error.problem)} if kind in _KINDS.values() else {}
                self.log.event("row_failed", row=error.row, field=printable(error.field), kind=kind, **why)

    def done(self, rows: int | None, all_rows: int) -> None:
        """So many rows are scored (None: no more than before), and so many are done, earlier attempts' included."""
        if self._show:
            self._show(all_rows)
        if self._estimated or rows is None:
            return
        now = time.perf_counter()
        if self._first is None:
            # What only the first rows pay, loading a model above all, is over.
            self._first = now, rows
        elif now - self._first[0] >= _SAMPLE and rows > self._first[1]:
            self._estimated = True
            self._estimate(rows, (now - self._first[0]) / (rows - self._first[1]))

    def _estimate(self, rows: int, seconds_a_row: float) -> None:
        read, size = self._read()
        if not read or not size or not self.rows_read:
            return
        total = max(self.rows_read, round(self.rows_read * size / read))
        left = (total - self.rows_read) * self._share + (self.rows_read - self.rows_passed - rows)
        seconds = left * seconds_a_row
        if seconds + _SAMPLE > _SHORT:
            memory = peak_memory() + _BYTES_A_ROW * (total - self.rows_read)
            self.log.tell(
                "estimate",
                f"about {duration_text(seconds)} more for about {_rounded(total):,} rows, in {memory / 1e6:,.0f} MB",
                seconds=round(seconds),
                rows=total,
                bytes=memory,
            )

    def of_rows(self) -> str:
        """ " of about 20,000", where that is known."""
        read, size = self._read()
        return (
            f" of about {_rounded(round(self.rows_read * size / read)):,}" if read and size and self.rows_read else ""
        )

    def shares(self) -> dict[str, float]:
        """The share of each part in the time, those that took some."""
        total = sum(self.seconds.values())
        return {part: self.seconds[part] / total for part in PARTS if self.seconds[part] > 0} if total else {}


def kind_of(error: RowError) -> str:
    """What kind of error a row has, in a word or two."""
    if not isinstance(error, ScoringError):
        return "reading"
    return next((kind for words, kind in _KINDS.items() if words in error.problem), "scoring")


def peak_memory() -> int:
    """The most that this process has held, in bytes."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def duration_text(seconds: float) -> str:
    """A time as people say it."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} seconds"


def _rounded(count: int) -> int:
    """Two digits of it: more is not known."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return round(count / step) * step
