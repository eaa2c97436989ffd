"""Writing so that a reader never sees half a file."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from prefcast.errors import UsageError, shown_path

__all__ = ["atomic_file", "checked_ending", "read_whole", "umask"]


_START = ".prefcast-"
# A forecaster folder has no larger file.
_MOST = 1 << 28


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write. It takes its name only when the block ends without an error; otherwise it is removed, and an older
    file stays as it was.

    A link is followed. While it is written, the file has no name where the disk can do that (O_TMPFILE): then even a killed
    process leaves nothing. Elsewhere it lies beside its target under a hidden name; hidden files that killed processes left
    in the same folder are removed. Raises UsageError where the folder cannot be written or the name
    belongs to something that is not a file.
    """
    with _said_of(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise ValueError("it is not a regular file")
        _remove_left(target.parent)
    # The name is chosen before the file is made: a signal that comes just then finds the file too.
    part = target.parent / f"{_START}{secrets.token_hex(8)}.part"
    try:
        with _said_of(path):
            made = _nameless(target.parent)
            nameless = made is not None
            made = made or _locked(part)
        with made as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # So far only this process's user could read the file; now it gets the mode that open() would have given it.
            os.fchmod(file.fileno(), target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~umask())
            # The lock is still held: no other process takes the file for one that was left.
            if nameless:
                _name(file, target, part)
            else:
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


def read_whole(path: str | os.PathLike[str], most: int = _MOST) -> bytes:
    """The bytes of a file that may come from a stranger. Raises OSError where it is no regular file (a pipe would never
    end) or has more than `most` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"has more than {most:,} bytes", os.fspath(path))
        return file.read(found.st_size)


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


def _nameless(folder: Path) -> BinaryIO | None:
    """A new file in a folder that has no name yet, locked; None where the disk or the system has no such files."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        return None
    try:
        file = os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600), "w+b")
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _name(file: BinaryIO, target: Path, part: Path) -> None:
    """Give a file without a name the name of its target. A link cannot replace a file: then it has a hidden name for a
    moment."""
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        # With a folder as argument Python follows the link under /proc, which is what names the file.
        def link(name: Path) -> None:
            os.link(f"/proc/self/fd/{file.fileno()}", name, src_dir_fd=folder, follow_symlinks=True)

        try:
            link(target)
        except FileExistsError:
            link(part)
            part.replace(target)
        except OSError:  # a disk that has such files and cannot name them
            file.seek(0)
            with _locked(part) as named:
                shutil.copyfileobj(file, named)
                named.flush()
                os.fsync(named.fileno())
                os.fchmod(named.fileno(), os.fstat(file.fileno()).st_mode & 0o7777)
                part.replace(target)
    finally:
        os.close(folder)


def _remove_left(folder: Path) -> None:
    """Remove the files of killed processes: those without a lock."""
    for left in folder.glob(f"{_START}*.part"):
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
