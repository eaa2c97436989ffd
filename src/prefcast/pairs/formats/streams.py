"""A path or standard input -> its bytes, decompressed, and the texts in them.

Compression is told by the first bytes. Nothing here knows what the texts hold.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from prefcast.errors import FileError, excerpt, shown_path
from prefcast.pairs.formats.rows import Bounds

__all__ = ["BOM", "Opened", "lines", "open_bytes", "opened_stream", "spooled", "texts"]

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
    name, size = shown_path(path), 0
    if os.fspath(path) == "-":
        name = "standard input"
        if sys.stdin is None:
            raise FileError(name, "is closed")
        raw = cast(BinaryIO, sys.stdin.buffer)
    else:
        try:
            raw = stack.enter_context(Path(path).open("rb"))  # noqa: SIM115
        except OSError as error:
            raise FileError(name, f"cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise FileError(name, "is not a name that a file can have") from None
        found = os.fstat(raw.fileno())
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return opened_stream(name, raw, size)


def opened_stream(name: str, raw: BinaryIO, size: int = 0) -> Opened:
    """As `open_bytes`, of a file called `name` that is open already. Raises FileError."""
    head, stream = _begun(raw, name)
    compression = "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else ""
    if compression:
        head, stream = _begun(gzip.GzipFile(fileobj=stream) if compression == "gzip" else _zstd_file(stream), name)
    return Opened(name, raw, size, compression, head, stream)


def _zstd_file(raw: BinaryIO) -> io.BufferedIOBase:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return cast(io.BufferedIOBase, zstd.ZstdFile(raw))


def _begun(inner: Any, name: str) -> tuple[bytes, BinaryIO]:
    """The first bytes, however slowly a pipe gives them, and a stream that still begins with them."""
    stream = _Bytes(inner, name)
    if isinstance(inner, io.BufferedReader) and inner.seekable():
        inner.seek(-len(stream.head), io.SEEK_CUR)
        return stream.head, cast(BinaryIO, inner)
    return stream.head, cast(BinaryIO, io.BufferedReader(stream, _CHUNK))


class _Bytes(io.RawIOBase):
    """The bytes of a pipe or a decompressor. Its first bytes were looked at already; its faults carry the file's name."""

    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name, self._ahead = inner, name, b""
        self.head = self._ahead = self._faultless(inner.read, _HEAD)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._ahead[: len(buffer)] or self._faultless(self._inner.read1, len(buffer))
        self._ahead = self._ahead[len(block) :]
        buffer[: len(block)] = block
        return len(block)

    def _faultless(self, read: Any, size: int) -> bytes:
        try:
            return cast(bytes, read(size))
        except EOFError:
            raise FileError(self._name, "the compressed data end too early: the file is truncated") from None
        except (FileError, MemoryError):
            raise
        except Exception as error:  # each decompressor has an exception of its own, with no common root
            reason = getattr(error, "strerror", None)
            what = (
                f"cannot be read: {reason}"
                if reason
                else f"the compressed data are damaged: {excerpt(str(error))[1:-1]}"
            )
            raise FileError(self._name, what) from None


def spooled(opened: Opened, stack: ExitStack, bounds: Bounds) -> BinaryIO:
    """The bytes as a stream that can seek. What cannot seek goes through a temporary file. Raises FileError."""
    if opened.stream.seekable():
        return opened.stream
    spool = stack.enter_context(TemporaryFile())  # noqa: SIM115 - the stack closes it
    while block := opened.stream.read(1 << 20):
        if spool.tell() + len(block) > bounds.file:
            what = "unpacked it takes" if opened.compression else "read from a pipe it takes"
            raise bounds.large(opened.name, what, bounds.file)
        spool.write(block)
    spool.seek(0)
    return cast(BinaryIO, spool)


def lines(stream: BinaryIO, name: str, most: int) -> Iterator[str]:
    """The lines with their ends, decoded. A line of more than `most` bytes comes in several parts."""
    return _decoded(iter(lambda: stream.readline(most), b""), name, " (line {})")


def texts(stream: BinaryIO, name: str) -> Iterator[str]:
    """The text in pieces of about 64 thousand characters, wherever lines end."""
    return _decoded(iter(lambda: stream.read(_CHUNK), b""), name, "")


def _decoded(pieces: Iterator[bytes], name: str, where: str) -> Iterator[str]:
    first = next(pieces, b"")
    raw = first.removeprefix(BOM)
    offset, rest = len(first) - len(raw), b""
    number = 1
    for piece in chain((raw,), pieces):
        raw, rest = (rest + piece, b"") if rest else (piece, rest)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            fault = _not_utf8(name, error, offset, where.format(number))
            if not error.reason.startswith("unexpected end"):
                raise fault from None
            # The next piece may complete the last character.
            text, rest = raw[: error.start].decode(), raw[error.start :]
            offset -= len(rest)
        offset += len(raw)
        number += text.endswith("\n")
        yield text
    if rest:
        raise fault


def _not_utf8(name: str, error: UnicodeDecodeError, offset: int, where: str) -> FileError:
    hint = "; it looks like UTF-16" if offset == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    found = f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start}{where}{hint}"
    return FileError(name, f"{found}; save the file as UTF-8")
