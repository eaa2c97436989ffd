"""The rows of a source under our names: which columns there are, whose ids, and how far it has been read.

Every reader of rows stands on `Table` and adds only what its rows mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from itertools import islice
from typing import Any
from uuid import UUID

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.pairs import clean
from prefcast.pairs.formats.fields import Fault, Record, cell, present, text_list
from prefcast.pairs.formats.ids import SeenIds
from prefcast.pairs.formats.records import Records

__all__ = ["CELLS", "Table"]

_BLOCK_CHARACTERS = 16_000_000
CELLS = ("json", "text")
# Ids of these types are kept as their text.
_ID_TYPES = (float, Decimal, date, UUID)


class Table(Records):
    """The rows of a source under our names; see `Records` for sources.

    `fields` are the names that a reader knows; `mapping` says what they are called in the file. `columns` are the names
    in the file, `names` those there under our names. `cells` says what a text cell of a CSV holds: `json`, or `text` as
    it is. Raises FileError and UsageError.
    """

    fields: Sequence[str] = ()

    def __init__(
        self,
        source: Any,
        mapping: Mapping[str, str] | None = None,
        cells: str = "json",
        *,
        fields: Sequence[str] | None = None,
        max_row: int = MAX_ROW,
    ) -> None:
        if cells not in CELLS:
            raise UsageError(f"unknown cells {cells!r}; there are {', '.join(CELLS)}")
        self.plain = cells == "text"
        super().__init__(source, max_row)
        try:
            self.fields = fields or self.fields
            self._mapping = self._known(self._checked(mapping or {}))
            self.names = self._renamed(dict.fromkeys(self.columns)).keys()
            self.has_id = "id" in self.names
            self._read = self._needs_id = False
            self.read_too(*(self._mapping.get(field, field) for field in self.fields))
            self.rows_read = 0
            self._find()
        except BaseException:
            self.close()
            raise

    def _known(self, given: dict[str, str]) -> dict[str, str]:
        """The mapping of a dataset that a reader knows by its columns; otherwise the `given` one."""
        return given

    def _find(self) -> None:
        """Check that a reader's columns are there; raises FileError."""

    def read_too(self, *columns: str) -> None:
        """Read these columns of the file; others are not looked at."""
        self.bounds.columns = {*(self.bounds.columns or ()), *columns}

    # Which columns there are

    def _checked(self, mapping: Mapping[str, str]) -> dict[str, str]:
        for ours, theirs in mapping.items():
            if ours not in self.fields:
                near = _nearest(ours, self.fields)
                meant = f"; did you mean {near!r}?" if near else ""
                raise UsageError(f"--columns: there is no field {ours!r}{meant} (fields: {', '.join(self.fields)})")
            if theirs not in self.columns:
                near = _nearest(theirs, self.columns)
                found = f"nearest found: {excerpt(near)}" if near else self.found
                raise FileError(self.name, f"column {excerpt(theirs)}, named for {ours}, is missing; {found}")
        return dict(mapping)

    def _renamed(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record under our names: a mapped column takes the place of one that has our name already."""
        if not self._mapping:
            return record
        theirs = set(self._mapping.values())
        renamed = {name: value for name, value in record.items() if name not in theirs and name not in self._mapping}
        renamed.update((ours, record[other]) for ours, other in self._mapping.items() if other in record)
        return renamed

    @property
    def found(self) -> str:
        """The names in the file, for messages."""
        shown = ", ".join(excerpt(column, 30) for column in self.columns[:12])
        return f"found: {shown}{', ...' if len(self.columns) > 12 else ''}"

    def missing(self, field: str, otherwise: str = "") -> FileError:
        """The error for a missing column. It names the most similar column or, without one, what was expected."""
        if taken := next((ours for ours, theirs in self._mapping.items() if theirs == field), None):
            return FileError(self.name, f"column '{field}' is missing: --columns took it for {taken}")
        near = _nearest(field, [column for column in self.columns if column not in self.fields])
        if near and near.isprintable():
            said = f"nearest found: {excerpt(near)} (--columns {field}={near} would map it)"
        else:
            said = otherwise or self.found
        return FileError(self.name, f"column '{field}' is missing; {said}")

    def need(self, *fields: str, otherwise: str = "") -> None:
        """Raises FileError if one of `fields` is not there."""
        self._needs_id |= "id" in fields
        if (absent := next((field for field in fields if field not in self.names), None)) is not None:
            raise self.missing(absent, otherwise)

    def nearness(self, fields: Sequence[str]) -> float:
        """The share of `fields` that are there, from 0 to 1; a similar name counts as 0.6 of one."""
        marks = (1.0 if field in self.names else 0.6 if _nearest(field, self.names) else 0.0 for field in fields)
        return sum(marks) / len(fields)

    # The rows

    def rows(self) -> Iterator[tuple[int, Record | RowError]]:
        """The rows, once. Raises FileError."""
        if self._read:
            raise UsageError(f"{self.name}: was read already; open it again")
        self._read = True
        mapped = bool(self._mapping)
        for row, record in self.records:
            self.rows_read += 1
            yield row, self._renamed(record) if mapped and not isinstance(record, RowError) else record

    def identified(self, *, runs: bool = False) -> Iterator[tuple[int, str | int, Record | RowError]]:
        """The rows with their ids (row numbers where there is no such column), each only once. With `runs`,
        rows that follow one another may share an id.

        Raises FileError for an id that is missing or occurs twice. The second is found at the end at the latest.
        """
        seen = SeenIds()
        has_id, id_of, add = self.has_id, self.id_of, seen.add
        blank = has_id and self.textual
        empty = self.in_file
        last = ""
        why = "the answers to one prompt must follow one another" if runs else "every row needs an id of its own"
        for row, record in self.rows():
            id: str | int
            if isinstance(record, RowError):
                # A row that could not be read has no id; the id made here cannot be that of another row.
                id = f"unreadable row {row}" if has_id else row
                record = RowError(record.file, record.row, record.field, record.problem, id)  # noqa: PLW2901
            else:
                if blank and not any(record.values()):
                    continue  # Excel leaves rows of bare commas
                id = id_of(record, row)
            empty = False
            if has_id and not (runs and str(id) == last) and (found := add(id, row)):
                raise self._same_id(*found, why, f" {excerpt(id)}" if found[0] == row else "")
            if runs:
                last = str(id)
            yield row, id, record
        if empty:
            raise FileError(self.name, "has no rows; expected at least one")
        if found := seen.settle():
            raise self._same_id(*found, why)

    def _same_id(self, row: int, first: int, why: str, id: str = "") -> FileError:
        (name, _), (other, number) = self.where(row), self.where(first)
        where = "" if name == other else f" of {other}"
        return self.fault(row, f"{self.own_name('id')}{id} is the same as in row {number}{where}; {why}")

    def blocks(self, size: int) -> Iterator[tuple[list[int], list[str], list[Record]]]:
        """As `identified`, some rows at a time and ids as text, for files where a row that cannot be read is a fault of the
        file: (rows, ids, records). A block is shorter where its texts are long."""
        found = self.identified()

        def next_block() -> Iterator[tuple[int, str | int, Record | RowError]]:
            held = 0
            for item in islice(found, size):
                yield item
                record = item[2]
                held += 0 if isinstance(record, RowError) else sum(map(_characters, record.values()))
                if held > _BLOCK_CHARACTERS:
                    return

        while block := list(next_block()):
            rows, ids, records = zip(*block, strict=True)
            if RowError in map(type, records):
                bad = next(record for record in records if isinstance(record, RowError))
                raise FileError(bad.file, bad.problem, bad.row)
            yield list(rows), list(map(str, ids)), list(records)

    def id_of(self, record: Record, row: int) -> str | int:
        """The id of a row. Raises FileError."""
        id = record.get("id")
        if type(id) is str and id and id.isascii() and self.has_id:
            return id
        if not self.has_id:
            if id is None:
                return row
            raise self.fault(row, "has an id where the first rows have none; every row needs one, or none")
        if isinstance(id, str) and id and clean(id) == id:
            return id
        if isinstance(id, int) and not isinstance(id, bool):
            return id
        if isinstance(id, _ID_TYPES) and id == id:  # noqa: PLR0124 - nan, not-a-time
            return str(id)
        found = "is missing" if id is None or id == "" else f"is {excerpt(id)}"
        otherwise = "" if self._needs_id else " (or no such column: row numbers then serve)"
        raise self.fault(row, f"{self.own_name('id')} {found}; expected a text or a number in every row{otherwise}")

    def texts(self, record: Record, field: str) -> list[str]:
        """The turns of a field: a text, or a list of texts. JSON and Parquet say which it is; a CSV's cell is parsed."""
        return text_list(cell(record, field) if self.textual and not self.plain else present(record, field), field)

    # Faults

    def own_name(self, field: str) -> str:
        """What a field, or several with commas between, is called in the file."""
        return ",".join(self._mapping.get(name, name) for name in field.split(","))

    def row_error(self, row: int, fault: Fault, id: str | int | None = None) -> RowError:
        """A fault of one row, with the file that it is in."""
        name, number = self.where(row)
        return RowError(name, number, self.own_name(fault.field), fault.problem, row if id is None else id)

    def fault(self, row: int, problem: str | Fault) -> FileError:
        """A fault of a row that makes the whole file unusable."""
        name, number = self.where(row)
        if isinstance(problem, Fault):
            problem = f"{self.own_name(problem.field)} {problem.problem}".lstrip()
        return FileError(name, problem, number)


def _characters(value: Any) -> int:
    """How long a text is, or the texts of a list."""
    return len(value) if isinstance(value, str) else sum(map(_characters, value)) if isinstance(value, list) else 0


def _nearest(name: str, names: Iterable[str]) -> str | None:
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None
