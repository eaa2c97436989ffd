"""Signals that end a run when the piece in flight is scored."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["SIGNALS", "Interrupted", "Stopping", "begin", "stopped", "stopped_by"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How long a piece in flight may take: batch schedulers seldom wait longer than half a minute after SIGTERM.
_TOLD_AFTER, _GRACE = 1.0, 10.0


class Interrupted(SystemExit):
    """A signal ended the run. `name` is the signal's name; the exit status is 128 plus its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


_last = 0


def stopped(number: int) -> None:
    """Note that a signal ends the process, and ignore further ones: cleaning up is not to be interrupted."""
    global _last  # noqa: PLW0603 - a process has one
    _last = number
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def begin() -> None:
    """Forget an earlier signal, where one process runs the program several times."""
    global _last  # noqa: PLW0603
    _last = 0


def stopped_by() -> int:
    """The number of the signal that ends the process; 0 if none does. An import may lose the exception of a signal."""
    return _last


class Stopping:
    """While it is entered, SIGINT, SIGTERM and SIGHUP raise Interrupted: at once, or, within `busy`, at the end of that
    block.

    If the block takes ten seconds longer, or a second signal comes, Interrupted is raised at once. `on_wait` is called if
    the first signal waits for more than a second. Signals that the parent process ignores stay ignored. What is cleaned up
    inside is not interrupted by further signals. At the end the caller's handlers are back, also after Interrupted. For the
    main thread only.
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
        for number, old in self._old.items():
            signal.signal(number, old)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A block that ends before a first signal is obeyed."""
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
        stopped(number)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        raise Interrupted(number)
