"""A path or standard input -> its bytes, decompressed, and the texts in them.

Compression is told by the first bytes. Nothing here knows what the texts hold.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from prefcast.errors import FileError, excerpt, shown_path

__all__ = ["BOM", "Opened", "lines", "open_bytes", "spooled", "texts"]

_GZIP, _ZSTD, BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"
_HEAD = 16
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Opened:
    """A file as it is read: `stream` gives its bytes, decompressed, and begins with `head`. `size` counts the bytes of
    `raw`, the file itself (0: not known)."""

    name: str
    raw: BinaryIO
    size: int
    compression: str
    head: bytes
    stream: BinaryIO


def open_bytes(path: str | os.PathLike[str], stack: ExitStack) -> Opened:
    """Open `path` (`-` is standard input); `stack` closes it. Raises FileError."""
    name, raw, size = _open(path)
    if os.fspath(path) != "-":
        stack.callback(raw.close)
    head, stream = _head(raw, name)
    compression = "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else ""
    if compression:
        head, stream = _head(_decompressed(stream, compression, name), name)
    return Opened(name, raw, size, compression, head, stream)


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


def _head(stream: BinaryIO, name: str) -> tuple[bytes, BinaryIO]:
    """The first bytes, however slowly a pipe gives them, and a stream that still begins with them."""
    try:
        head = stream.read(_HEAD)
    except OSError as error:
        raise FileError(name, f"cannot be read: {error.strerror or error}") from None
    if stream.seekable():
        stream.seek(-len(head), io.SEEK_CUR)
        return head, stream
    return head, cast(BinaryIO, io.BufferedReader(_Prefixed(head, cast(io.BufferedReader, stream)), _CHUNK))


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
    return cast(BinaryIO, io.BufferedReader(_Named(file, name), _CHUNK))


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


def spooled(opened: Opened, stack: ExitStack) -> BinaryIO:
    """The bytes as a stream that can seek: what cannot goes through a temporary file."""
    if opened.size and not opened.compression:
        return opened.stream
    spool = stack.enter_context(TemporaryFile())  # noqa: SIM115 - the stack closes it
    shutil.copyfileobj(opened.stream, spool, 1 << 20)
    spool.seek(0)
    return cast(BinaryIO, spool)


def lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines with their ends, decoded.

    A line feed never lies inside a UTF-8 sequence, so lines can be decoded one by one.
    """
    offset = 0
    for number, line in enumerate(stream, 1):
        raw = line
        if number == 1 and raw.startswith(BOM):
            offset, raw = len(BOM), raw[len(BOM) :]
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(name, error, raw, offset, f" (line {number})") from None
        offset += len(raw)


def texts(stream: BinaryIO, name: str) -> Iterator[str]:
    """The text in pieces of about 64 thousand characters, wherever lines end."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        raw = stream.read(_CHUNK)
        kept = len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, error, error.object, offset - kept, "") from None
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(raw)
        if text:
            yield text
        if not raw:
            return


def _not_utf8(name: str, error: UnicodeDecodeError, raw: bytes, offset: int, line: str) -> FileError:
    hint = "; it looks like UTF-16" if offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    found = f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start}{line}{hint}"
    return FileError(name, f"{found}; save the file as UTF-8")
