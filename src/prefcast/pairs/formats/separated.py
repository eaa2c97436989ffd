"""CSV and TSV: lines -> rows of cells, and cells -> lines of CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from prefcast.errors import FileError, RowError, printable
from prefcast.pairs.formats.rows import Bounds, Row, no_duplicates, size_of
from prefcast.pairs.formats.streams import lines

__all__ = ["csv_line", "quoted", "read_separated"]

_MUST_QUOTE = re.compile(r'[",\r\n]|^\s|\s$')


def quoted(text: str, delimiter: str = ",") -> str:
    """A CSV cell, in quotes if it needs them. (The csv module leaves a lone carriage return bare.)"""
    return '"' + text.replace('"', '""') + '"' if _MUST_QUOTE.search(text) or delimiter in text else text


def csv_line(cells: Iterable[object], delimiter: str = ",") -> str:
    """A row of a CSV file, with its end."""
    return delimiter.join(quoted(str(cell), delimiter) for cell in cells) + "\n"


def read_separated(
    stream: BinaryIO, name: str, bounds: Bounds, *, delimiter: str = ","
) -> tuple[list[str], Iterator[Row]]:
    """The columns and rows of a CSV, or of a TSV. Raises FileError."""
    # The module's own limit is process-wide; ours is one on the whole row.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    source = _Lines(stream, name, bounds, delimiter)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    try:
        header = next(filter(None, reader), None)
    except csv.Error as error:
        raise _csv_fault(error, name) from None
    except _TooLargeError:
        raise bounds.large(name, "the header has", bounds.row) from None
    if header is None:
        raise FileError(name, "the file is empty; expected a header and rows")
    if any("\0" in column for column in header):
        raise FileError(name, "is not text (a tar archive?); expected CSV or TSV")
    no_duplicates(header, name)
    return header, _separated_rows(reader, source, header, name, bounds)


class _TooLargeError(Exception):
    """A row was too large. The next line is that of the next row."""


class _Lines:
    """The lines for a CSV parser. A row that is too large is skipped and raises _TooLargeError: then the parser begins anew."""

    def __init__(self, stream: BinaryIO, name: str, bounds: Bounds, delimiter: str) -> None:
        self._parts = lines(stream, name, bounds.row + 1)
        self._name, self._bounds = name, bounds
        # Bytes and number of the row that is read; whoever takes the row sets both.
        self.held, self.row = 0, 0
        sign = re.escape(delimiter)
        quoted = r'[^"]*+(?:""[^"]*+)*+'
        self._rest_of_quoted = re.compile(quoted)
        self._whole_cells = re.compile(rf'(?:(?:"{quoted}"(?!")|(?!"))[^{sign}\n]*+{sign})*+')
        self._rest_of_plain = re.compile(rf"[^{sign}\n]*+")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._parts)
        quoted = self.held > 0
        self.held += size_of(line)
        if self.held <= self._bounds.row:
            return line
        self._skip(line, quoted)
        raise _TooLargeError

    def _skip(self, text: str, quoted: bool) -> None:
        """Go past the rest of a row without keeping it. `quoted` says whether the text begins within quotes."""
        at, plain = 0, False
        while True:
            if at == len(text):
                text, at = next(self._parts, ""), 0
                self.held += size_of(text)
                if not text:
                    return
                if self.held > self._bounds.once:
                    raise self._bounds.large(self._name, "has", self._bounds.once, self.row + 1)
            if quoted:
                at = cast(re.Match[str], self._rest_of_quoted.match(text, at)).end()
                if at < len(text):  # a quote that no other follows, unless the next part begins with one
                    at += 1
                    quoted, plain = False, True
                    if at == len(text):
                        text, at = next(self._parts, ""), 0
                        self.held += size_of(text)
                        quoted = text.startswith('"')
                        at += quoted
            elif plain:
                at = cast(re.Match[str], self._rest_of_plain.match(text, at)).end()
                if at < len(text):
                    if text[at] == "\n":
                        return
                    at += 1
                    plain = False
            else:
                at = cast(re.Match[str], self._whole_cells.match(text, at)).end()
                if text.startswith('"', at):
                    at += 1
                    quoted = True
                else:
                    plain = True


def _separated_rows(
    reader: Iterable[list[str]], source: _Lines, header: list[str], name: str, bounds: Bounds
) -> Iterator[Row]:
    number = 0
    rows = filter(None, reader)
    while True:
        source.held, source.row = 0, number
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise _csv_fault(error, name, number + 1) from None
        except _TooLargeError:
            number += 1
            yield number, bounds.large_row(name, number)
            continue
        if cells is None:
            return
        number += 1
        if len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        else:
            problem = f"has {len(cells)} cells where the header has {len(header)}"
            yield number, RowError(name, number, "", f"{problem}; a comma or quote in a text may not be escaped")


def _csv_fault(error: csv.Error, name: str, row: int | None = None) -> FileError:
    found = str(error)
    if "end of data" in found:
        found = "a quoted cell that never ends"
    elif "new-line character" in found:
        found = "a carriage return outside quotes"
    problem = f"not valid CSV: {printable(found)}; nothing after it can be told apart"
    return FileError(name, problem, row)
