"""The program: its verbs, its signals and its exit status."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from contextlib import suppress

# The verbs add themselves to the program.
from prefcast.cli import (  # noqa: F401
    benchmarking,
    checking,
    choosing,
    filtering,
    fitting,
    forecasts,
    labelling,
    measuring,
    models,
    preferring,
    ranking,
    running,
    serving,
    storing,
    training,
)
from prefcast.cli.shared import app, say
from prefcast.errors import PrefcastError
from prefcast.runs.stopping import SIGNALS, begin, stopped, stopped_by

__all__ = ["app", "run"]

# The verbs that most people need come first; a verb that is not named here comes last.
_ORDER = (
    "predict",
    "explain",
    "check",
    "best",
    "pairs",
    "filter_pairs",
    "fit",
    "evaluate",
    "bench",
    "report",
    "rank",
    "label",
    "compare",
    "score",
)
app.registered_commands.sort(
    key=lambda verb: (*_ORDER, getattr(verb.callback, "__name__", "")).index(getattr(verb.callback, "__name__", ""))
)


def _stop(number: int, frame: object) -> None:
    if stopped_by():
        return  # the program ends already
    stopped(number)
    say(f"stopped by {signal.Signals(number).name}; an output file is written whole or not at all")
    raise SystemExit(128 + number)


class _OneLine(logging.Handler):
    """Warnings of the library, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _forget_output() -> None:
    """Drop what standard output still holds: Python would try to write it once more at the end."""
    # Standard output may be closed, or no file.
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> None:
    """Run the program: a fault that the user can correct is one line and status 2, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.getLogger("prefcast").addHandler(_OneLine(logging.WARNING))
    begin()
    # As an exception a signal lets temporary files be removed.
    for each in SIGNALS:
        # A signal that the parent process ignores (nohup, a job in the background) stays ignored.
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _stop)
    try:
        try:
            app()
        finally:
            # An error at the interpreter's end would not give our exit status.
            if sys.stdout is not None:
                sys.stdout.flush()
    except Exception as error:
        # A signal in the middle of an import may come out of it as any error.
        if number := stopped_by():
            raise SystemExit(128 + number) from None
        if isinstance(error, PrefcastError):
            say("; ".join([str(error), *getattr(error, "__notes__", [])]))
            raise SystemExit(2) from None
        if isinstance(error, OSError):
            _forget_output()
            if isinstance(error, BrokenPipeError):  # the reader of the pipe has gone
                raise SystemExit(1) from None
            say(f"{error.filename or 'writing'}: {error.strerror or error}")
            raise SystemExit(2) from None
        raise
    finally:
        if number := stopped_by():
            # The interpreter's end is not to be interrupted either.
            stopped(number)
