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
    """A file to write that takes its name only when the block ends well; otherwise nothing is left and an older file
    stays as it was.

    A link is followed. Until then the file lies beside its target under a hidden name, and what a killed process left
    there for the same target is removed. Raises UsageError where the folder cannot be written or the name is taken by
    something that is not a file.
    """
    shown = shown_path(path)
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise UsageError(f"{shown}: cannot be written: it is not a regular file")
        start = f".prefcast-{blake2b(target.name.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}-"
        _remove_left(target.parent, start)
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    # Named before it is made: a signal that comes just as it is made finds it too.
    part = target.parent / f"{start}{secrets.token_hex(8)}.part"
    try:
        try:
            made = _locked(part)
        except (OSError, ValueError) as error:
            raise UsageError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
        with made as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Until now it was for nobody else; a new file should have what open() would have given it.
            part.chmod(target.stat().st_mode if target.exists() else 0o666 & ~umask())
            # Under the lock: nobody takes it for one that was left.
            part.replace(target)
    except BaseException:
        # What went wrong is said, not that there was nothing to remove, or that nothing can be.
        with suppress(OSError):
            part.unlink()
        raise


def checked_ending(path: str | os.PathLike[str], what: str, *endings: str) -> str:
    """The ending of `path` in small letters. Raises UsageError if `what` has no format with this ending."""
    ending = Path(path).suffix.lower()
    if ending not in endings:
        *others, last = endings
        known, named = (f"{', '.join(others)} or {last}", "one of these") if others else (last, last)
        raise UsageError(f"{shown_path(path)}: {what} is written as {known}; name a file that ends in {named}")
    return ending


def _locked(part: Path) -> BinaryIO:
    """A new file that this process holds; the kernel lets go of it when the process ends, however it ends."""
    while True:
        file = cast(BinaryIO, open(part, "x+b", opener=_private))  # noqa: SIM115
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        # Between the two another process may have taken it for one that was left.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _remove_left(folder: Path, start: str) -> None:
    """Remove the files of killed processes: those that nobody holds."""
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
