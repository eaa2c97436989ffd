"""Writing so that a reader never sees half a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
        handle, name = tempfile.mkstemp(prefix=".prefcast-", suffix=".part", dir=room or target.parent)
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    part = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives 0600; a new file should have what open() would have given it.
        part.chmod(target.stat().st_mode if target.exists() else 0o666 & ~umask())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def umask() -> int:
    """The bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
