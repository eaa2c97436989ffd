"""Signals that end a run in a process that goes on: the caller's handlers are back afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from prefcast.runs.stopping import SIGNALS, Interrupted, Stopping

_ALL = (*SIGNALS, signal.SIGALRM)


def ours(number: int, frame: object) -> None:
    raise AssertionError("a signal came through")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.signal(number, ours) for number in _ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(number: int, *, busy: bool, done: list[str]) -> None:
    with Stopping() as stopping:
        try:
            if busy:
                with stopping.busy():
                    os.kill(os.getpid(), number)
                    done.append("the piece in flight")
            else:
                os.kill(os.getpid(), number)
        finally:
            # Cleaning up is not interrupted.
            for each in SIGNALS:
                os.kill(os.getpid(), each)
            done.append("cleaned up")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("busy", [True, False])
def test_after_a_signal_the_callers_handlers_are_back(number: signal.Signals, busy: bool) -> None:
    done: list[str] = []
    with pytest.raises(Interrupted) as found:
        interrupted(number, busy=busy, done=done)
    assert found.value.code == 128 + number
    assert done == ["the piece in flight"] * busy + ["cleaned up"]
    assert [signal.getsignal(each) for each in _ALL] == [ours] * 4
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_signal_that_the_parent_process_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(Interrupted) as found:
        interrupted(signal.SIGTERM, busy=False, done=[])
    assert found.value.name == "SIGTERM"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is ours
