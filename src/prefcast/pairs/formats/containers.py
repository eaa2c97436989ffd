"""A file of any kind -> its records, one at a time: CSV, TSV, JSON Lines, Parquet; plain, .gz or .zst; or standard
input.

Compression is told by the first bytes. The container is told by the name's ending, and by the first bytes where there
is none (standard input). This module knows nothing of pairs.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO, cast

from prefcast.errors import FileError, RowError, excerpt, shown_path

__all__ = ["Records", "no_duplicates", "open_records", "parquet_records"]

Record = dict[str, Any]
Row = tuple[int, Record | RowError]

_GZIP, _ZSTD, _PARQUET, _BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xef\xbb\xbf"
_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_ARCHIVES = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    **{b"BZh%d1AY&SY" % level: "compressed with bzip2" for level in range(1, 10)},
    b"\xfd7zXZ": "compressed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"ARROW1\0\0": "an Arrow file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed twice",
}
_EXPECTED = "CSV, TSV, JSON Lines or Parquet, plain, .gz or .zst"
_HEAD = 16
_PARQUET_ROWS = 256
# A JSON Lines file has the columns of its first objects: one that lacks a field is a fault of its row.
_OBJECTS = 16
# A file whose first thousand lines hold no JSON object is not a JSON Lines file with a bad row.
_PATIENCE = 1000


@dataclass(frozen=True)
class Records:
    """The records of one open file: iterate for (row number from 1, record or RowError).

    `kind` is csv, tsv, jsonl or parquet, `compression` gzip, zstd or empty. `columns` are those of the header, of the
    Parquet schema or of the first JSON object. Close it, or use it in a `with` block.
    """

    name: str
    kind: str
    compression: str
    columns: list[str]
    size: int
    _rows: Iterator[Row]
    _raw: BinaryIO
    _open: ExitStack
    _path: str = ""
    _was: tuple[int, ...] | None = None

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    @property
    def position(self) -> int:
        """Bytes of the file read so far, of `size` (0 where it is not known)."""
        return self._raw.tell() if self.size and not self._raw.closed else 0

    @property
    def changed(self) -> bool:
        """Whether the file was written to or replaced since it was opened; ask before it is closed."""
        if self._was is None or self._raw.closed:
            return False
        with suppress(OSError):
            if _stamp(os.stat(self._path)) != self._was:  # noqa: PTH116 - one like fstat's
                return True
        return _stamp(os.fstat(self._raw.fileno())) != self._was

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_records(path: str | os.PathLike[str]) -> Records:
    """Open `path` (`-` is standard input) and read as far as its columns. Raises FileError."""
    with ExitStack() as stack:
        name, raw, size = _open(path)
        if os.fspath(path) != "-":
            stack.callback(raw.close)
        head, stream = _head(raw, name)
        compression = "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else ""
        if compression:
            head, stream = _head(_decompressed(stream, compression, name), name)
        if not head:
            raise FileError(name, "the file is empty; expected a header and rows")
        begin = head.removeprefix(_BOM).lstrip()[:1]
        sniffed = "parquet" if head.startswith(_PARQUET) else "jsonl" if begin in (b"{", b"[") else "csv"
        kind = _kind_of(path) or sniffed
        if archive := next((what for magic, what in _ARCHIVES.items() if head.startswith(magic)), None):
            raise FileError(name, f"is {archive}; expected {_EXPECTED}")
        if kind != "parquet" and sniffed == "parquet":
            raise FileError(name, "is Parquet by its content; give it the ending .parquet")
        if kind == "jsonl" and begin == b"[":
            remedy = "expected one JSON object a line (jq -c '.[]' FILE makes it so)"
            raise FileError(name, f"one JSON array holds everything; {remedy}")
        if kind == "parquet":
            # Parquet is read by seeking: what cannot seek goes through a temporary file.
            file = stream if size and not compression else _spooled(stream, stack.enter_context(TemporaryFile()))
            columns, rows = _parquet(file, name)
        elif kind == "jsonl":
            columns, rows = _json_lines(stream, name)
        else:
            columns, rows = _separated(stream, name, "\t" if kind == "tsv" else ",")
        was = _stamp(os.fstat(raw.fileno())) if size else None
        records = Records(name, kind, compression, columns, size, rows, raw, stack.pop_all(), os.fspath(path), was)
    return records


def parquet_records(stream: Any, name: str) -> Records:
    """The records of a Parquet file that is open for reading and can seek, wherever it lies; whoever opened it closes it.

    Raises FileError.
    """
    columns, rows = _parquet(stream, name)
    return Records(name, "parquet", "", columns, 0, rows, stream, ExitStack())


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    """What is another once a file has been written to or replaced."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _open(path: str | os.PathLike[str]) -> tuple[str, BinaryIO, int]:
    if os.fspath(path) == "-":
        if sys.stdin is None:
            raise FileError("standard input", "is closed")
        return "standard input", cast(BinaryIO, sys.stdin.buffer), 0
    file = Path(path)
    shown = shown_path(file)
    try:
        raw = file.open("rb")
    except OSError as error:
        raise FileError(shown, f"cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise FileError(shown, "is not a name that a file can have") from None
    size = os.fstat(raw.fileno()).st_size if file.is_file() else 0
    return shown, raw, size


def _kind_of(path: str | os.PathLike[str]) -> str | None:
    name = Path(path).name.lower().removesuffix(".gz").removesuffix(".zst")
    return _ENDINGS.get(Path(name).suffix)


def _head(stream: BinaryIO, name: str) -> tuple[bytes, BinaryIO]:
    """The first bytes, however slowly a pipe gives them, and a stream that still begins with them."""
    try:
        head = stream.read(_HEAD)
    except OSError as error:
        raise FileError(name, f"cannot be read: {error.strerror or error}") from None
    if stream.seekable():
        stream.seek(-len(head), io.SEEK_CUR)
        return head, stream
    return head, cast(BinaryIO, io.BufferedReader(_Prefixed(head, cast(io.BufferedReader, stream)), 1 << 16))


class _Prefixed(io.RawIOBase):
    """Bytes that were read already, then the rest of the stream."""

    def __init__(self, head: bytes, rest: io.BufferedReader) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._head[: len(buffer)]
        if block:
            self._head = self._head[len(block) :]
        else:
            block = self._rest.read1(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _decompressed(raw: BinaryIO, compression: str, name: str) -> BinaryIO:
    file = gzip.GzipFile(fileobj=raw) if compression == "gzip" else _zstd_file(raw)
    return cast(BinaryIO, io.BufferedReader(_Named(file, name), 1 << 16))


def _zstd_file(raw: BinaryIO) -> io.BufferedIOBase:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return cast(io.BufferedIOBase, zstd.ZstdFile(raw))


class _Named(io.RawIOBase):
    """A decompressor whose faults carry the file's name."""

    def __init__(self, inner: io.BufferedIOBase, name: str) -> None:
        self._inner = inner
        self._name = name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._inner.readinto(buffer)
        except EOFError:
            raise FileError(self._name, "the compressed data end too early: the file is truncated") from None
        except (FileError, MemoryError):
            raise
        except Exception as error:  # each decompressor has an exception of its own, with no common root
            raise FileError(self._name, f"the compressed data are damaged: {excerpt(str(error))[1:-1]}") from None


def _spooled(stream: BinaryIO, spool: IO[bytes]) -> BinaryIO:
    shutil.copyfileobj(stream, spool, 1 << 20)
    spool.seek(0)
    return cast(BinaryIO, spool)


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines with their ends, decoded.

    A line feed never lies inside a UTF-8 sequence, so lines can be decoded one by one.
    """
    offset = 0
    for number, line in enumerate(stream, 1):
        raw = line
        if number == 1 and raw.startswith(_BOM):
            offset, raw = len(_BOM), raw[len(_BOM) :]
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            hint = "; it looks like UTF-16" if offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            raise FileError(
                name,
                f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start} (line {number}){hint}; save the file as UTF-8",
            ) from None
        offset += len(raw)


def _separated(stream: BinaryIO, name: str, delimiter: str) -> tuple[list[str], Iterator[Row]]:
    # The module's limit is process-wide; cells of many megabytes are ordinary here.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    reader = csv.reader(_lines(stream, name), delimiter=delimiter, strict=True)
    try:
        header = next((cells for cells in reader if cells), None)
    except csv.Error as error:
        raise FileError(name, f"the header is not valid CSV: {_csv_problem(error)}") from None
    if header is None:
        raise FileError(name, "the file is empty; expected a header and rows")
    if any("\0" in column for column in header):
        raise FileError(name, f"is not text (a tar archive?); expected {_EXPECTED}")
    no_duplicates(header, name)
    return header, _separated_rows(reader, header, name)


def _separated_rows(reader: Iterable[list[str]], header: list[str], name: str) -> Iterator[Row]:
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                yield (
                    number,
                    RowError(
                        name,
                        number,
                        "",
                        f"has {len(cells)} cells where the header has {len(header)}; a comma or quote in a text may not be escaped",
                    ),
                )
    except csv.Error as error:
        raise FileError(
            name, f"not valid CSV: {_csv_problem(error)}; nothing after it can be told apart", number + 1
        ) from None


def _csv_problem(error: csv.Error) -> str:
    text = str(error)
    if "end of data" in text:
        return "a quoted cell that never ends"
    return "a carriage return outside quotes" if "new-line character" in text else text.replace("\t", "\\t")


def no_duplicates(columns: list[str], name: str) -> None:
    """Raises FileError if a column appears twice; columns without a name (Excel leaves some) do not count."""
    seen: set[str] = set()
    for column in columns:
        if column and column in seen:
            raise FileError(name, f"column {excerpt(column)} appears twice; each name must be unique")
        seen.add(column)


def _json_lines(stream: BinaryIO, name: str) -> tuple[list[str], Iterator[Row]]:
    rows = _json_rows(stream, name)
    first: list[Row] = []
    columns: dict[str, None] = {}
    objects = 0
    for item in rows:
        first.append(item)
        if isinstance(item[1], dict):
            objects += 1
            columns |= dict.fromkeys(item[1])
        if objects == _OBJECTS or len(first) == _PATIENCE:
            break
    if not first:
        raise FileError(name, "the file is empty; expected one JSON object a line")
    if not objects:
        problem = cast(RowError, first[0][1]).problem
        raise FileError(name, f"no JSON object in the first {len(first)} lines; the first says: {problem}")
    return list(columns), itertools.chain(first, rows)


def _json_rows(stream: BinaryIO, name: str) -> Iterator[Row]:
    number = 0
    for line in _lines(stream, name):
        if not line.strip():
            continue
        number += 1
        try:
            value = json.loads(line)
        except RecursionError:
            yield number, RowError(name, number, "", "not usable JSON: nested too deeply; expected one JSON object")
            continue
        except ValueError as error:
            yield (
                number,
                RowError(
                    name,
                    number,
                    "",
                    f"not valid JSON: {_json_problem(error)}, found {excerpt(line.strip())}; expected one JSON object a line",
                ),
            )
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            found = "a JSON array" if isinstance(value, list) else excerpt(value)
            yield number, RowError(name, number, "", f"{found} where a JSON object is expected")


def _json_problem(error: ValueError) -> str:
    """What the decoder found and where in the text; never the text itself."""
    return (
        f"{error.msg} at character {error.pos}"
        if isinstance(error, json.JSONDecodeError)
        else "a number too long to read"
    )


def _parquet(stream: BinaryIO, name: str) -> tuple[list[str], Iterator[Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        columns = list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise FileError(name, f"not a readable Parquet file, perhaps truncated: {_first_line(error)}") from None
    no_duplicates(columns, name)

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise FileError(name, f"the Parquet data are damaged after row {number}: {_first_line(error)}") from None

    return columns, rows()


def _first_line(error: BaseException) -> str:
    return excerpt(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)[1:-1]
