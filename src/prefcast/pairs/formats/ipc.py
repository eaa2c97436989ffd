"""Arrow's own files (IPC), in the file form and in the stream form: Feather, and what the library datasets saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from prefcast.errors import FileError, excerpt

__all__ = ["ARROW", "read_ipc"]

# How the two forms begin.
_FILE, _STREAM = b"ARROW1\0\0", b"\xff\xff\xff\xff"
ARROW = (_FILE, _STREAM)
_ROWS = 256


def read_ipc(stream: BinaryIO, name: str) -> tuple[list[str], Iterator[tuple[int, Any]]]:
    """The columns and the numbered rows of a file. Raises FileError."""
    import pyarrow

    faults = (pyarrow.ArrowException, OSError, ValueError)
    try:
        columns, batches = _opened(stream)
    except faults as error:
        raise FileError(name, f"not a readable Arrow file, perhaps truncated: {_said(error)}") from None

    def rows() -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            for batch in batches():
                for start in range(0, batch.num_rows, _ROWS):
                    for record in batch.slice(start, _ROWS).to_pylist():
                        number += 1
                        yield number, record
        except faults as error:
            raise FileError(name, f"the Arrow data are damaged after row {number}: {_said(error)}") from None

    return columns, rows()


def _opened(stream: BinaryIO) -> tuple[list[str], Callable[[], Iterable[Any]]]:
    import pyarrow.ipc

    head = stream.read(len(_FILE))
    stream.seek(0)
    if head == _FILE:
        file = pyarrow.ipc.open_file(stream)
        return list(file.schema.names), lambda: map(file.get_batch, range(file.num_record_batches))
    reader = pyarrow.ipc.open_stream(stream)
    return list(reader.schema.names), lambda: reader


def _said(error: BaseException) -> str:
    return excerpt(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)[1:-1]
