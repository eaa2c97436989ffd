"""One process a run. Knows nothing of what the run does."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from prefcast.errors import JournalError, printable, shown_path

__all__ = ["Lock"]

_MOST = 4096


class Lock:
    """A file that one process holds; the kernel lets go of it when that process ends, however it ends.

    Raises JournalError, naming the holder, where another process has it, and OSError where the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._file, _MOST, 0)
                os.close(self._file)
                raise JournalError(f"{shown_path(path.parent)}: {_said(holder)}") from None
            except OSError as error:
                os.close(self._file)
                raise JournalError(
                    f"{shown_path(path.parent)}: cannot be locked: {error.strerror}; --no-journal does without"
                ) from None
            # Whoever held it may have removed the file in the meantime.
            if os.fstat(self._file).st_nlink:
                break
            os.close(self._file)
        said = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(said).encode(), 0)

    def remove(self) -> None:
        """Delete the file and let go."""
        self._path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let go; the file stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _said(holder: bytes) -> str:
    """Who holds it, as the file says."""
    try:
        said = json.loads(holder)
        who = f"process {int(said['pid'])} on {printable(str(said['host']))}, since {printable(str(said['since']))}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"{who}, is at work on this run; wait for it, or write to another file"
