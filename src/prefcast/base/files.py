"""Writing so that a reader never sees half a file."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, cast

from prefcast.errors import UsageError, shown_path

__all__ = ["atomic_file", "checked_ending", "umask"]


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write. It takes its name only when the block ends without an error; otherwise it is removed, and an older
    file stays as it was.

    A link is followed. While it is written, the file lies beside its target under a hidden name. Hidden files that killed
    processes left for the same target are removed. Raises UsageError where the folder cannot be written or the name
    belongs to something that is not a file.
    """
    with _said_of(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise ValueError("it is not a regular file")
        start = f".prefcast-{blake2b(target.name.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}-"
        _remove_left(target.parent, start)
    # The name is chosen before the file is made: a signal that comes just then finds the file too.
    part = target.parent / f"{start}{secrets.token_hex(8)}.part"
    try:
        with _said_of(path):
            made = _locked(part)
        with made as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # So far only this process's user could read the file; now it gets the mode that open() would have given it.
            part.chmod(target.stat().st_mode if target.exists() else 0o666 & ~umask())
            # The lock is still held: no other process takes the file for one that was left.
            part.replace(target)
    except BaseException:
        # The first error is reported, not a failure to remove the file.
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def _said_of(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{shown_path(path)}: cannot be written: {reason}") from None


def checked_ending(path: str | os.PathLike[str], what: str, *endings: str) -> str:
    """The ending of `path` in small letters. Raises UsageError if `what` has no format with this ending."""
    ending = Path(path).suffix.lower()
    if ending not in endings:
        *others, last = endings
        known, named = (f"{', '.join(others)} or {last}", "one of these") if others else (last, last)
        raise UsageError(f"{shown_path(path)}: {what} is written as {known}; name a file that ends in {named}")
    return ending


def _locked(part: Path) -> BinaryIO:
    """A new file that this process has locked; the kernel frees the lock when the process ends, however it ends."""
    while True:
        file = cast(BinaryIO, open(part, "x+b", opener=_private))  # noqa: SIM115
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        # Before the lock was taken, another process may have removed the file as a left one.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _remove_left(folder: Path, start: str) -> None:
    """Remove the files of killed processes: those without a lock."""
    for left in folder.glob(f"{start}*.part"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def umask() -> int:
    """The bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
