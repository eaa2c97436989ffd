"""Arrow's own files (IPC), in the file form and in the stream form: Feather, and what the library datasets saves."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from prefcast.errors import FileError
from prefcast.pairs.formats.arrow import faults, file_rows, said
from prefcast.pairs.formats.rows import Bounds, Row, no_duplicates

__all__ = ["ARROW", "read_ipc"]

# How the two forms begin. The file form is the stream form between this mark and an index.
_FILE, _STREAM = b"ARROW1\0\0", b"\xff\xff\xff\xff"
ARROW = (_FILE, _STREAM)
_ROWS = 256
# The kinds of messages that hold values, as the format numbers them.
_DICTIONARY, _RECORDS = 2, 3


def read_ipc(stream: BinaryIO, name: str, bounds: Bounds) -> tuple[list[str], Iterator[Row]]:
    """The columns and the numbered rows of a file. Raises FileError."""
    import pyarrow
    import pyarrow.ipc

    start = len(_FILE) if stream.read(len(_FILE)) == _FILE else 0
    try:
        if start and _end(stream) != _FILE.rstrip(b"\0"):
            raise ValueError("it ends without its index")
        stream.seek(start)
        columns = list(pyarrow.ipc.open_stream(stream).schema.names)
        stream.seek(start)
        for message in pyarrow.ipc.MessageReader.open_stream(stream):
            if (size := _unpacked(message)) > bounds.once:
                raise bounds.large(name, f"a batch of rows has {size // 1_000_000:,} MB,", bounds.once)
    except faults() as error:
        raise FileError(name, f"not a readable Arrow file, perhaps truncated: {said(error)}") from None
    no_duplicates(columns, name)

    def batches() -> Iterator[Any]:
        stream.seek(start)
        used = [each for each in columns if bounds.columns is None or each in bounds.columns]
        for batch in pyarrow.ipc.open_stream(stream):
            # A damaged batch may point anywhere.
            batch.validate(full=True)
            for first in range(0, batch.num_rows, _ROWS):
                yield batch.slice(first, _ROWS).select(used)

    return columns, file_rows(batches(), name, bounds, "Arrow")


def _end(stream: BinaryIO) -> bytes:
    stream.seek(-len(_FILE.rstrip(b"\0")), os.SEEK_END)
    return stream.read()


def _unpacked(message: Any) -> int:
    """How many bytes the values of a message take once they are unpacked.

    A compressed buffer begins with its unpacked size. Where the buffers lie is in the message's metadata, a FlatBuffers
    table (Arrow's Message.fbs).
    """
    metadata, body = memoryview(message.metadata), memoryview(message.body or b"")
    (root,) = struct.unpack_from("<I", metadata)
    kind = _field(metadata, root, 1)
    header = _field(metadata, root, 2)
    if kind is None or header is None or metadata[kind] not in (_DICTIONARY, _RECORDS):
        return 0
    batch = _followed(metadata, header)
    if metadata[kind] == _DICTIONARY:
        batch = _followed(metadata, _field(metadata, batch, 1) or 0)
    place = _field(metadata, batch, 2)
    if place is None or _field(metadata, batch, 3) is None:
        return len(body)
    vector = _followed(metadata, place)
    (count,) = struct.unpack_from("<I", metadata, vector)
    size = 0
    for index in range(count):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * index)
        if length >= 8:
            (whole,) = struct.unpack_from("<q", body, offset)
            # -1: this buffer is not compressed.
            size += length if whole < 0 else whole
    return size


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Where a field of a FlatBuffers table lies; None for one that is left out."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", data, table - back + 4 + 2 * number)
    return table + offset if offset else None


def _followed(data: memoryview, place: int) -> int:
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)
