"""What a scorer reports while it computes: how far it is, and what it spent."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

__all__ = ["SILENT", "Meter", "Spent"]


class Spent:
    """What a scorer spent: pairs that were computed, pairs that the evidence store had, seconds of tokenising; and for a
    model that is paid for: requests, the tokens that it read and wrote, and money."""

    def __init__(self) -> None:
        self.computed = self.kept = self.requests = self.tokens_read = self.tokens_written = 0
        self.tokenising = self.money = 0.0
        self._lock = Lock()

    def paid(self, requests: int, read: int, written: int, money: float) -> None:
        """Add to what was paid for. Several threads may call this."""
        with self._lock:
            self.requests += requests
            self.tokens_read += read
            self.tokens_written += written
            self.money += money


class Meter:
    """How far a scorer is, for whoever called it. `done` is called with the pairs that are finished of this call; `spent`
    sums over calls."""

    def __init__(self, done: Callable[[int], None] | None = None, spent: Spent | None = None) -> None:
        self._done, self.spent = done, spent or Spent()
        self.pairs = 0

    def advance(self, pairs: int, *, kept: bool = False) -> None:
        """`pairs` more are finished; `kept`: the evidence store had them."""
        self.pairs += pairs
        if kept:
            self.spent.kept += pairs
        else:
            self.spent.computed += pairs
        if self._done:
            self._done(self.pairs)

    def tokenised(self, seconds: float) -> None:
        """So many seconds went into tokenising."""
        self.spent.tokenising += seconds

    def paid(self, requests: int, *, read: int = 0, written: int = 0, money: float = 0.0) -> None:
        """So many requests were sent, with so many tokens read and written, for so much money."""
        self.spent.paid(requests, read, written, money)

    def aside(self) -> Meter:
        """A meter for a part of the work whose pairs are not to be counted again."""
        return _Aside(self)


class _Aside(Meter):
    def __init__(self, whole: Meter) -> None:
        super().__init__()
        self._whole = whole

    def tokenised(self, seconds: float) -> None:
        self._whole.tokenised(seconds)

    def paid(self, requests: int, *, read: int = 0, written: int = 0, money: float = 0.0) -> None:
        self._whole.paid(requests, read=read, written=written, money=money)


# For callers that need no meter: nobody reads what it counts.
SILENT = Meter()
