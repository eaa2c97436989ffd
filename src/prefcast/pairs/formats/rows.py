"""One row of a file: its form, and how much it may take, so that a small file cannot take all memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, excerpt

__all__ = ["Bounds", "Record", "Row", "no_duplicates", "size_of"]

Record = dict[str, Any]
Row = tuple[int, Record | RowError]

_MEGABYTE = 1_000_000
# A page of a Parquet file holds many rows, and a row that is too large is passed over so far; a file that has to be
# unpacked may take more still.
_ROWS_AT_ONCE, _ROWS_IN_FILE = 8, 32


class Bounds:
    """The bounds that follow from `max_row`, the most megabytes of one row; all are in bytes. `columns` are those that are
    read, once that is known: a value in another column is never looked at."""

    def __init__(self, max_row: int = MAX_ROW) -> None:
        if type(max_row) is not int or not 1 <= max_row <= _MEGABYTE:
            raise UsageError(f"--max-row: found {max_row}; expected a whole number of megabytes, at least 1")
        self.max_row = max_row
        self.row = max_row * _MEGABYTE
        self.once = _ROWS_AT_ONCE * self.row
        self.file = _ROWS_IN_FILE * self.row
        self.columns: Collection[str] | None = None

    def large_row(self, name: str, row: int) -> RowError:
        """The error of a row that is too large."""
        return RowError(name, row, "", f"has more than {self.max_row:,} MB; --max-row allows larger rows")

    def large(self, name: str, what: str, size: int, row: int | None = None) -> FileError:
        """The error of a file in which `what` takes more than `size` bytes."""
        return FileError(name, f"{what} more than {size // _MEGABYTE:,} MB; --max-row allows more", row)


def size_of(text: str) -> int:
    """The bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def no_duplicates(columns: list[str], name: str) -> None:
    """Raises FileError if a column appears twice. Columns without a name, which Excel leaves, do not count."""
    seen: set[str] = set()
    for column in columns:
        if column and column in seen:
            raise FileError(name, f"column {excerpt(column)} appears twice; each name must be unique")
        seen.add(column)
