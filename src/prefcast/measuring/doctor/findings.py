"""What an examination of labelled pairs found: a line for each kind of finding, and the rows that have it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from prefcast.base.files import atomic_file, checked_ending
from prefcast.errors import printable
from prefcast.pairs import Pair
from prefcast.pairs.formats import PairFile

__all__ = ["Finding", "FoundRow", "Part", "Places", "percent", "rows_kind", "write_rows"]

# A spreadsheet would run a cell that begins so as a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
_BLOCK = 4096


@dataclass(frozen=True)
class FoundRow:
    """A row that has a finding. `row` counts from 1 in its file, `file`. `other` names the row, or the other file's row, that
    the finding is about."""

    finding: str
    file: str
    row: int
    id: str | int
    detail: str = ""
    other_file: str | None = None
    other_row: int | None = None
    other_id: str | int | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of finding: how many of the `of` rows (or votes) have it, said in one line, `text`. `figures` holds all numbers."""

    name: str
    count: int
    of: int
    text: str
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


class Part(Protocol):
    """One part of the examination."""

    def findings(self) -> Iterable[Finding]: ...

    def rows(self, places: Places) -> Iterable[FoundRow]: ...


class Places:
    """Where the rows are: the file, the number in the file and the id of each row that was read.

    Rows are called by `Pair.row`, which counts through all files that are read as one.
    """

    def __init__(self, file: PairFile, *, keep: bool) -> None:
        self._file, self._keep = file, keep and file.has_id
        self._ids: dict[int, str | int] = {}

    def see(self, pair: Pair) -> None:
        """Note the id of a row."""
        if self._keep:
            self._ids[pair.row] = pair.id

    def found(self, finding: str, row: int, detail: str = "", other: int | None = None) -> FoundRow:
        """A row with a finding, perhaps about another row of the same source."""
        file, number = self._file.where(row)
        if other is None:
            return FoundRow(finding, file, number, self._ids.get(row, row), detail)
        other_file, other_number = self._file.where(other)
        ids = self._ids.get(row, row), self._ids.get(other, other)
        return FoundRow(finding, file, number, ids[0], detail, other_file, other_number, ids[1])


def percent(count: float, of: float) -> str:
    """A share as text: `12.5 %`; `0 %` of nothing."""
    return f"{100 * count / of:.1f} %" if of else "0 %"


def rows_kind(path: str | os.PathLike[str]) -> str:
    """The ending of a file of rows. Raises UsageError if it is not supported."""
    return checked_ending(path, "the list of rows with findings", ".csv", ".jsonl")


def write_rows(rows: Iterable[FoundRow], path: str | os.PathLike[str]) -> int:
    """Write the rows with findings as .csv or .jsonl, whole or not at all. Returns how many there are. Raises UsageError."""
    kind, written = rows_kind(path), 0
    with atomic_file(path) as file:
        if kind == ".csv":
            file.write((",".join(each.name for each in fields(FoundRow)) + "\n").encode())
        for block in _blocks(rows):
            file.write(_encoded(block, kind).encode("utf-8", "backslashreplace"))
            written += len(block)
    return written


def _blocks(rows: Iterable[FoundRow]) -> Iterator[list[FoundRow]]:
    block: list[FoundRow] = []
    for row in rows:
        block.append(row)
        if len(block) == _BLOCK:
            yield block
            block = []
    yield block


def _encoded(rows: Sequence[FoundRow], kind: str) -> str:
    out = io.StringIO(newline="")
    if kind == ".csv":
        csv.writer(out, lineterminator="\n").writerows([_cell(each) for each in asdict(row).values()] for row in rows)
    else:
        out.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    return out.getvalue()


def _cell(value: str | int | None) -> str | int:
    """A cell that no spreadsheet runs and that has no control characters: ids and names were written by strangers."""
    if not isinstance(value, str):
        return "" if value is None else value
    shown = printable(value)
    return f"'{shown}" if shown.startswith(_FORMULAS) else shown
