"""The kinds of files: CSV, TSV, JSON Lines, a JSON array, Parquet, Arrow. Each is one entry of `CONTAINERS`.

The name's ending tells the container; without an ending (standard input) the first bytes do. This module knows nothing of
pairs.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from prefcast.errors import FileError, RowError, excerpt
from prefcast.pairs.formats.fields import DECODER, json_problem, parsed
from prefcast.pairs.formats.ipc import ARROW, read_ipc
from prefcast.pairs.formats.parquet import read_parquet
from prefcast.pairs.formats.rows import Bounds, Record, Row, size_of
from prefcast.pairs.formats.separated import read_separated
from prefcast.pairs.formats.streams import BOM, Opened, lines, spooled, texts

__all__ = ["CONTAINERS", "EXPECTED", "PARQUET", "Container", "container_of", "named", "peeked"]

PARQUET = b"PAR1"
_ARCHIVES = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    **{b"BZh%d1AY&SY" % level: "compressed with bzip2" for level in range(1, 10)},
    b"\xfd7zXZ": "compressed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"FEA1": "a Feather file of version 1",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed twice",
}
EXPECTED = "CSV, TSV, JSON Lines, a JSON array, Parquet or Arrow, plain, .gz or .zst"
# The first records tell the columns where there is no schema. A later record that lacks a field is a fault of its row.
_OBJECTS = 16
# A file whose first thousand lines hold no JSON object is not a JSON Lines file with a bad row.
_PATIENCE = 1000
# To look for the nearest name among millions would take minutes.
_COLUMNS = 10_000
# What an object is called that holds all rows of a file.
_ROWS = ("data", "examples", "instances", "items", "records", "rows", "test", "train")
# A number or a word that is cut off is no longer than this. An error further from the end of the text is a real error.
_CUT = 32


@dataclass(frozen=True)
class Container:
    """A kind of file. `read` gives its columns and its rows. In a `textual` one every cell is a text; in a `loose` one
    later rows may have columns that the first ones lack; a `seeking` one is not read from beginning to end."""

    title: str
    endings: tuple[str, ...]
    read: Callable[[BinaryIO, str, Bounds], tuple[list[str], Iterator[Row]]]
    textual: bool = False
    loose: bool = False
    seeking: bool = False

    def rows(self, opened: Opened, stack: ExitStack, bounds: Bounds) -> tuple[list[str], Iterator[Row]]:
        """The columns and rows of a file that is open. Raises FileError."""
        stream = spooled(opened, stack, bounds) if self.seeking else opened.stream
        columns, rows = self.read(stream, opened.name, bounds)
        if len(columns) > _COLUMNS:
            raise FileError(opened.name, f"has {len(columns):,} columns; expected at most {_COLUMNS:,}")
        return columns, rows


def named(path: str | os.PathLike[str]) -> Container | None:
    """The container that the name's ending tells, if any."""
    ending = Path(Path(path).name.lower().removesuffix(".gz").removesuffix(".zst")).suffix
    return next((each for each in CONTAINERS.values() if ending in each.endings), None)


def container_of(opened: Opened) -> Container:
    """The container of a file. Raises FileError where its first bytes are of none."""
    name, head = opened.name, opened.head
    if not head:
        raise FileError(name, "the file is empty; expected a header and rows")
    if archive := next((what for magic, what in _ARCHIVES.items() if head.startswith(magic)), None):
        raise FileError(name, f"is {archive}; expected {EXPECTED}")
    begin = head.removeprefix(BOM).lstrip()[:1]
    binary = "parquet" if head.startswith(PARQUET) else "arrow" if head.startswith(ARROW) else None
    sniffed = binary or {b"{": "jsonl", b"[": "json"}.get(begin, "csv")
    found = named(name) or CONTAINERS[sniffed]
    if binary and found is not CONTAINERS[binary]:
        raise FileError(
            name, f"is {CONTAINERS[binary].title} by its content; give it the ending {CONTAINERS[binary].endings[0]}"
        )
    # People use both endings for both kinds; the first character tells them apart.
    if found.loose:
        found = CONTAINERS["json" if begin == b"[" else "jsonl"]
    return found


def peeked(rows: Iterator[Row], name: str, what: str = "lines") -> tuple[list[str], Iterator[Row]]:
    """The columns of the first objects, and all rows again. Raises FileError."""
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
        raise FileError(name, "the file is empty; expected JSON objects, one a line, or an array of them")
    if not objects:
        problem = cast(RowError, first[0][1]).problem
        if "found '{'" in problem:
            problem += " (one object over several lines cannot be read)"
        raise FileError(name, f"no JSON object in the first {len(first)} {what}; the first says: {problem}")
    return list(columns), itertools.chain(first, rows)


def _json_lines(stream: BinaryIO, name: str, bounds: Bounds) -> tuple[list[str], Iterator[Row]]:
    first = list(itertools.islice(rows := _line_rows(stream, name, bounds), 2))
    if len(first) == 1 and isinstance(record := first[0][1], dict) and (found := _no_rows(record)):
        raise FileError(name, f"{found}; expected one object a line, or an array of objects")
    return peeked(itertools.chain(first, rows), name)


def _no_rows(record: Record) -> str:
    """What the one object of a file holds where it is not a row: a table by its columns or its rows."""
    keys = [set(value) for value in record.values() if isinstance(value, dict)]
    by_column = len(keys) == len(record) > 1 and all(each == keys[0] for each in keys)
    if by_column or record.keys() >= {"columns", "data"} or record.keys() >= {"schema", "data"}:
        return "is one object with a whole table, as pandas writes it (to_json with orient='records' writes rows)"
    name, value = next(iter(record.items()), ("", None))
    if len(record) == 1 and name in _ROWS and isinstance(value, list):
        return f"is one object with the rows in {excerpt(name)} (the array alone would be right)"
    return ""


def _line_rows(stream: BinaryIO, name: str, bounds: Bounds) -> Iterator[Row]:
    number = 0
    parts = lines(stream, name, bounds.row + 1)
    for line in parts:
        if not line.strip():
            continue
        number += 1
        # The last character of a part that was cut may lack up to three bytes.
        if not line.endswith("\n") and size_of(line) > bounds.row - 3:
            _skip_line(parts, name, number, bounds)
            yield number, bounds.large_row(name, number)
            continue
        try:
            value = parsed(line)
        except (ValueError, RecursionError) as error:
            problem = f"{json_problem(error)}, found {excerpt(line.strip())}; expected one JSON object a line"
            yield number, RowError(name, number, "", problem)
        else:
            yield number, value if type(value) is dict else _no_object(value, name, number)


def _skip_line(parts: Iterator[str], name: str, number: int, bounds: Bounds) -> None:
    skipped = bounds.row
    for part in parts:
        skipped += size_of(part)
        if part.endswith("\n"):
            return
        if skipped > bounds.once:
            raise bounds.large(name, "has", bounds.once, number)


def _no_object(value: Any, name: str, number: int) -> RowError:
    found = "a JSON array" if isinstance(value, list) else excerpt(value)
    return RowError(name, number, "", f"{found} where a JSON object is expected")


def _json_array(stream: BinaryIO, name: str, bounds: Bounds) -> tuple[list[str], Iterator[Row]]:
    return peeked(_Array(stream, name, bounds).rows(), name, "items")


class _Array:
    """The items of one JSON array. Of its text no more is held than the item at hand and what was read with it."""

    _SPACE = re.compile(r"[ \t\n\r]*")
    # A quote, or a run of brackets.
    _MARK = re.compile(r'"|[\[{]++|[\]}]++')
    # Texts, and brackets with none within, that are closed again.
    _WHOLE = re.compile(
        r"""(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"|\[[^"\[\]{}]*+\]|\{[^"\[\]{}]*+\})*+""", re.DOTALL
    )
    _QUOTED = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

    def __init__(self, stream: BinaryIO, name: str, bounds: Bounds) -> None:
        self._texts = texts(stream, name)
        self._name, self._bounds = name, bounds
        self._text, self._at, self._ended = "", 0, False

    def _more(self, least: int = 1) -> bool:
        """Read `least` further characters, if there are any."""
        parts, size = [self._text[self._at :]], 0
        while size < least and not self._ended:
            part = next(self._texts, "")
            self._ended = not part
            parts.append(part)
            size += len(part)
        self._text, self._at = "".join(parts), 0
        return size > 0

    def _next(self) -> str:
        """The next character that is no white space, not taken; empty at the end."""
        while True:
            self._at = cast(re.Match[str], self._SPACE.match(self._text, self._at)).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def rows(self) -> Iterator[Row]:
        self._next()
        self._at += 1  # the bracket that told the container
        number = 0
        if self._next() != "]":
            while True:
                number += 1
                yield number, self._item(number)
                sign = self._next()
                if sign == "]":
                    break
                if sign != ",":
                    raise self._ends(number, f"found {excerpt(sign)} after an item" if sign else "the array never ends")
                self._at += 1
        self._at += 1
        if self._next():
            raise self._ends(number, "there is more after the array")

    def _ends(self, number: int, problem: str) -> FileError:
        return FileError(self._name, f"not valid JSON: {problem}; expected one array of objects", number)

    def _item(self, number: int) -> Record | RowError:
        if not self._next():
            raise self._ends(number, "the array never ends")
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _CUT
                held = len(self._text) - self._at
                if cut and held > self._bounds.row:
                    self._skip(number)
                    return self._bounds.large_row(self._name, number)
                if cut and self._more(min(held, self._bounds.row + 1 - held)):
                    continue
                found = excerpt(self._text[self._at : self._at + 80])
                raise self._ends(number, f"{error.msg}, found {found}; nothing after it can be told apart") from None
            except (ValueError, RecursionError) as error:
                self._skip(number)
                return RowError(self._name, number, "", f"{json_problem(error)}; expected one JSON object")
            # The text may end in the middle of a number.
            if end == len(self._text) and self._more():
                continue
            large = end - self._at > self._bounds.row // 4 and size_of(self._text[self._at : end]) > self._bounds.row
            self._at = end
            if large:
                return self._bounds.large_row(self._name, number)
            return value if isinstance(value, dict) else _no_object(value, self._name, number)

    def _skip(self, number: int) -> None:
        """Go past an item without parsing it."""
        if self._text[self._at] not in '"[{':
            raise self._ends(number, "a number too long to read")
        depth, quoted, skipped = 0, False, 0
        while True:
            if quoted:
                self._at = cast(re.Match[str], self._QUOTED.match(self._text, self._at)).end()
                if quoted := not self._text.startswith('"', self._at):
                    # The next part may complete an escape.
                    skipped += self._refilled(number, skipped)
                    continue
                self._at += 1
                if not depth:
                    return
            if depth:
                self._at = cast(re.Match[str], self._WHOLE.match(self._text, self._at)).end()
            if (found := self._MARK.search(self._text, self._at)) is None:
                self._at = len(self._text)
                skipped += self._refilled(number, skipped)
            elif found[0] == '"':
                self._at, quoted = found.end(), True
            elif found[0][0] in "[{":
                self._at, depth = found.end(), depth + len(found[0])
            else:
                closed = min(depth, len(found[0]))
                self._at, depth = found.start() + closed, depth - closed
                if not depth:
                    return

    def _refilled(self, number: int, skipped: int) -> int:
        """Read on within an item that is skipped; returns how much was read."""
        if not self._more():
            raise self._ends(number, "the array never ends")
        if skipped > self._bounds.once:
            raise self._bounds.large(self._name, "has", self._bounds.once, number)
        return len(self._text)


CONTAINERS = {
    "csv": Container("CSV", (".csv",), read_separated, textual=True),
    "tsv": Container("TSV", (".tsv",), partial(read_separated, delimiter="\t"), textual=True),
    "jsonl": Container("JSON Lines", (".jsonl", ".ndjson"), _json_lines, loose=True),
    "json": Container("JSON array", (".json",), _json_array, loose=True),
    "parquet": Container("Parquet", (".parquet",), read_parquet, seeking=True),
    "arrow": Container("Arrow", (".arrow", ".feather", ".ipc"), read_ipc, seeking=True),
}
