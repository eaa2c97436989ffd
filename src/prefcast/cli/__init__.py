"""The command line: one short function a verb.

Exit status 0: done; 2: a fault of the call, the file or the machine, nothing written; 3: done, but rows failed; 128 and
the signal's number (130, 143, 129): stopped by it.

Importing the program takes a while. So this module imports little: Ctrl-C is obeyed in that time too.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def _stop(number: int, frame: object) -> None:
    # Nothing has been begun, and an exception might end inside an import that goes on.
    try:
        os.write(2, f"prefcast: stopped by {signal.Signals(number).name}\n".encode())
    finally:
        os._exit(128 + number)


def _obey() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def _open_streams() -> None:
    """A stream that is closed (`>&-`) becomes the null device: otherwise an output file would get its number, and what is
    printed would land there. Standard input stays None: its reader says that it is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def main() -> None:
    """The entry point."""
    _obey()
    _open_streams()
    from prefcast.cli.program import run

    run()


# `python -m prefcast.cli` imports this package first, and main() a little later.
if sys.argv[:1] == ["-m"]:
    _obey()
