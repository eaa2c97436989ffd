"""The pages of a Parquet column, from their headers alone: how many bytes and values each will take.

The footer of a file says so too, but nothing holds the footer to it. Both are Thrift structs in its compact form. They are
read here and not by Arrow, which ends the process where the facts of a column do not fit together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

__all__ = ["Chunk", "Page", "groups_of", "pages_of"]

_LONGEST_HEADER = 1 << 20
_FIRST_READ = 512
_DEPTH = 8
# PageHeader's fields, and those of its three kinds of pages.
_SIZE, _STORED, _DATA, _WORDS, _DATA2 = 2, 3, 5, 7, 8
_VALUES, _ENCODING, _ENCODING2 = 1, 2, 4
# Encodings: the values are numbers of words of the dictionary; a value begins as the one before it.
_INDEXED, _PREFIXED = (2, 8), 7


# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_GROUPS, _COLUMNS, _ROWS, _FACTS = 4, 1, 3, 3
_PATH, _COUNT, _BYTES, _DATA_AT, _WORDS_AT = 3, 5, 7, 9, 11


@dataclass(frozen=True)
class Chunk:
    """A column in a row group: its path, its values, and where its bytes are."""

    path: str
    values: int
    start: int
    stored: int


@dataclass(frozen=True)
class Page:
    """A page: its bytes when unpacked and its values. It is a dictionary (`words`), or has places in one (`indexed`), or
    has values that begin as the one before (`prefixed`), or has its values as they are."""

    size: int
    values: int
    words: bool
    indexed: bool
    prefixed: bool


def groups_of(stream: BinaryIO) -> list[tuple[int, list[Chunk]]]:
    """The rows and the columns of each row group, as the footer says. Raises ValueError for one that is damaged."""
    end = stream.seek(-8, os.SEEK_END)
    size = int.from_bytes(stream.read(4), "little")
    if size > end:
        raise ValueError("a footer longer than the file")
    stream.seek(end - size)
    try:
        footer = _Thrift(stream.read(size)).struct()
        return [(group[_ROWS], [_chunk(each[_FACTS]) for each in group[_COLUMNS]]) for group in footer[_GROUPS]]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("a footer that is damaged") from None


def _chunk(facts: dict[int, Any]) -> Chunk:
    starts = [facts[_DATA_AT], facts.get(_WORDS_AT) or facts[_DATA_AT]]
    path = b".".join(facts[_PATH]).decode("utf-8", "replace")
    return Chunk(path, int(facts[_COUNT]), min(starts), int(facts[_BYTES]))


def pages_of(stream: BinaryIO, chunk: Chunk) -> list[Page]:
    """The pages of a column chunk, as far as its values go. Raises ValueError for headers that are damaged."""
    at, end = chunk.start, chunk.start + chunk.stored
    found: list[Page] = []
    values = 0
    if at < 0:
        raise ValueError("a page before the file")
    while values < chunk.values and at < end:
        length, header = _header(stream, at)
        said: Any = next((header[kind] for kind in (_DATA, _DATA2, _WORDS) if kind in header), {})
        if not isinstance(said, dict):
            raise ValueError("a page header of an unknown form")
        encoding = said.get(_ENCODING2 if _DATA2 in header else _ENCODING)
        size, stored, count = header.get(_SIZE), header.get(_STORED), said.get(_VALUES, 0)
        if type(size) is not int or type(stored) is not int or type(count) is not int or min(size, stored, count) < 0:
            raise ValueError("a page without its size")
        words = _WORDS in header
        found.append(Page(size, count, words, encoding in _INDEXED and not words, encoding == _PREFIXED))
        values += 0 if words else count
        at += length + stored
    return found


def _header(stream: BinaryIO, at: int) -> tuple[int, dict[int, Any]]:
    """The header of the page at a place of the file, and its length."""
    size = _FIRST_READ
    while True:
        stream.seek(at)
        data = stream.read(size)
        thrift = _Thrift(data)
        try:
            header = thrift.struct()
            return thrift.at, header
        except IndexError:
            if len(data) < size or size >= _LONGEST_HEADER:
                raise ValueError("a page header that never ends") from None
            size *= 16


class _Thrift:
    """Structs in Thrift's compact protocol, as mappings from a field's number. IndexError: the data end too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def struct(self, depth: int = _DEPTH) -> dict[int, Any]:
        if not depth:
            raise ValueError("a page header nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while byte := self._byte():
            number = number + (byte >> 4) if byte >> 4 else self._signed()
            fields[number] = self._value(byte & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._past(8)
        if kind == 8:
            return self._past(self._number())
        if kind in (9, 10):
            return list(self._items(depth))
        if kind == 12:
            return self.struct(depth - 1)
        raise ValueError("a page header of an unknown form")

    def _items(self, depth: int) -> Iterator[Any]:
        byte = self._byte()
        count = byte >> 4 if byte >> 4 < 15 else self._number()
        if count > len(self._data):
            raise IndexError
        for _ in range(count):
            # In a list a boolean takes a byte.
            yield self._byte() if byte & 15 in (1, 2) else self._value(byte & 15, depth)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _past(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self._data):
            raise IndexError
        return self._data[self.at - count : self.at]

    def _number(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a page header with a number that never ends")

    def _signed(self) -> int:
        number = self._number()
        return (number >> 1) ^ -(number & 1)
