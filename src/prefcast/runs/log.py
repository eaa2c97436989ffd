"""The messages of a run: lines for people, or one JSON object per event; the time of each part of the work; an estimate of
the time that is left.

No text of a pair is ever in an event.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from prefcast.base.processes import CRASHED, TOO_SLOW
from prefcast.errors import RowError, ScoringError, printable

__all__ = ["Log", "Watch", "duration_text", "kind_of"]

PARTS = ("reading", "tokenising", "scoring", "writing")
# A sample of so many seconds is enough for an estimate; a run that ends within the other needs none.
_SAMPLE, _SHORT = 5.0, 60.0
_BYTES_A_ROW = 16  # what is remembered of each id
# The kinds of errors in scoring, by words of their messages.
_KINDS = {CRASHED: "crash", "was killed by": "crash", TOO_SLOW: "time limit", "needs more memory": "memory"}
# Those of judges; their words may hold what a server said.
_KINDS_OF_JUDGES = {"the judge refused": "refusal", "the judge's reply": "verdict", "the judge's server": "server"}

T = TypeVar("T")


class Log:
    """Messages on standard error: lines for people, or with `as_json` one event per line."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """A line of text; with `as_json` an event that holds the text."""
        if self.as_json:
            self.event("message", text=printable(text))
        else:
            _write(f"prefcast: {printable(text)}")

    def event(self, name: str, **fields: Any) -> None:
        """An event, with `as_json`; nothing otherwise."""
        if self.as_json:
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            _write(json.dumps({"event": name, "time": f"{now}Z", **fields}))

    def tell(self, name: str, text: str, **fields: Any) -> None:
        """An event with `as_json`; otherwise the line of text that says the same."""
        if self.as_json:
            self.event(name, **fields)
        else:
            self.say(text)


def _write(line: str) -> None:
    # Nobody may read the messages; the work goes on.
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class Watch:
    """The clock of a run: seconds by part of the work, errors by kind, and one estimate of the time that is left.

    `read` returns how many bytes of how many were read. `share` is the part of the rows that this run scores. `progress` is
    called with the number of rows that are done.
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
        """`rows` were scored by this attempt (None: unchanged), and `all_rows` are done, with those of earlier attempts."""
        if self._show:
            self._show(all_rows)
        # While rows come from the evidence store nothing is known of the time that a new row takes.
        if self._estimated or not rows:
            return
        now = time.perf_counter()
        if self._first is None:
            # The first rows took longer, because the model was loaded.
            self._first = now, rows
        elif now - self._first[0] >= _SAMPLE and rows > self._first[1]:
            self._estimated = True
            self._estimate(all_rows, (now - self._first[0]) / (rows - self._first[1]))

    def _estimate(self, all_rows: int, seconds_a_row: float) -> None:
        read, size = self._read()
        if not read or not size or not self.rows_read:
            return
        total = max(self.rows_read, round(self.rows_read * size / read))
        left = (total - self.rows_read) * self._share + (self.rows_read - self.rows_passed - all_rows)
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
        """The text " of about 20,000"; empty where the number is unknown."""
        read, size = self._read()
        return (
            f" of about {_rounded(round(self.rows_read * size / read)):,}" if read and size and self.rows_read else ""
        )

    def shares(self) -> dict[str, float]:
        """The share of each part of the work in the time, without the parts that took none."""
        total = sum(self.seconds.values())
        return {part: self.seconds[part] / total for part in PARTS if self.seconds[part] > 0} if total else {}


def kind_of(error: RowError) -> str:
    """What kind of error a row has, in a word or two."""
    if not isinstance(error, ScoringError):
        return "reading"
    every = {**_KINDS, **_KINDS_OF_JUDGES}
    return next((kind for words, kind in every.items() if words in error.problem), "scoring")


def peak_memory() -> int:
    """The most that this process has held, in bytes."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def duration_text(seconds: float) -> str:
    """A time in words."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} seconds"


def _rounded(count: int) -> int:
    """The number rounded to two digits, because the estimate is no better."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return round(count / step) * step
