"""Writing so that a reader never sees half a file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from prefcast.errors import UsageError, shown_path

__all__ = ["atomic_file", "umask"]


@contextmanager
def atomic_file(path: str | os.PathLike[str], room: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when the block ends well; otherwise nothing is left and an older file
    stays as it was.

    A link is followed. Until then it lies in `room`, a folder on the same disk: by default the target's own. Raises UsageError where the folder cannot be written or the name is taken by something that is
    not a file.
    """
    shown = shown_path(path)
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise UsageError(f"{shown}: cannot be written: it is not a regular file")
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    # Named before it is made: a signal that comes just as it is made finds it too.
    part = (room or target.parent) / f".prefcast-{secrets.token_hex(8)}.part"
    try:
        try:
            made = open(part, "x+b", opener=_private)  # noqa: SIM115
        except (OSError, ValueError) as error:
            raise UsageError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
        with made as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        # Until now it was for nobody else; a new file should have what open() would have given it.
        part.chmod(target.stat().st_mode if target.exists() else 0o666 & ~umask())
        part.replace(target)
    except BaseException:
        # What went wrong is said, not that there was nothing to remove, or that nothing can be.
        with suppress(OSError):
            part.unlink()
        raise


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def umask() -> int:
    """The bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
