"""A child process that answers through pipes: it is started, timed and ended here, and its end is put into words.

This module knows nothing of the questions; `frames.py` has the form of questions and answers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

__all__ = ["CRASHED", "TOO_SLOW", "Child", "answering", "runs"]

# These words in a row's error say why a worker did not answer.
CRASHED, TOO_SLOW = "ended its worker process", "took longer than"


class Child:
    """A process that runs `python -m module argument`; questions go to `to`, answers come from `answers`."""

    def __init__(self, module: str, argument: str) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # -P: Python must not take a file in the current folder for a module.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The parent handles Ctrl-C on the terminal.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.to, self.answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._late: float | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @contextmanager
    def within(self, seconds: float | None) -> Iterator[None]:
        """A block that ends the process if the block takes longer; reads from the process then end too."""
        if seconds is None:
            yield
            return

        def stop() -> None:
            self._late = seconds
            self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> str:
        """End the process if it still runs, and say how it ended."""
        self.kill()
        if self._late is not None:
            return f"{TOO_SLOW} {self._late:g} s"
        code = self._process.wait()
        if code < 0:
            try:
                return f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                return f"was killed by signal {-code}"
        return f"ended with status {code}"

    def kill(self) -> None:
        """Let the process end, at the latest after a second. A process that has died keeps its own status."""
        with suppress(OSError):
            self.to.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self.stop()
        with suppress(OSError):
            self.answers.close()

    def stop(self) -> None:
        """End the process at once, even while a thread waits for its answer."""
        self._process.kill()
        self._process.wait()


def answering() -> IO[bytes]:
    """For the child: the stream for its answers, which was standard output. What the child prints goes to standard error.

    The child ignores interrupts, which the parent handles. It ends when its parent is gone.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return answers


def runs(process: object) -> bool:
    """Whether another process of that number is alive."""
    if not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
