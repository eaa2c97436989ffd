"""Signals that end a run at the next good moment. Knows nothing of what is run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["SIGNALS", "Interrupted", "Stopping"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How long a piece in flight may take to end: those who send SIGTERM seldom wait for longer than half a minute.
_TOLD_AFTER, _GRACE = 1.0, 10.0


class Interrupted(SystemExit):
    """A signal ended the run; `name` is its name, the exit status is 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class Stopping:
    """While it is entered, SIGINT, SIGTERM and SIGHUP raise Interrupted: at once, or, within `busy`, at the end of that
    block.

    A block that takes longer than ten seconds more, and a second signal, raise it at once too. `on_wait` is called where
    the first signal waits for more than a second. What the parent process said to ignore stays ignored. For the main
    thread alone.
    """

    def __init__(self, on_wait: Callable[[], None] | None = None) -> None:
        self._on_wait = on_wait
        self._old: dict[int, Any] = {}
        self._busy = False
        self._asked = 0
        self._told = False

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._signal)
        self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._late)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # Cleaning up is not to be interrupted by another one.
        if not isinstance(error, Interrupted):
            for number, old in self._old.items():
                signal.signal(number, old)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A block that a first signal lets end."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._asked:
            self._raise(self._asked)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self._busy:
            self._raise(number)
        self._asked = number
        signal.setitimer(signal.ITIMER_REAL, _TOLD_AFTER, _GRACE - _TOLD_AFTER)

    def _late(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            self._raise(self._asked)
        self._told = True
        if self._on_wait:
            self._on_wait()

    def _raise(self, number: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in self._old:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)
