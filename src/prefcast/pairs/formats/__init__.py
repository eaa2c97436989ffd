"""Files and tables of pairs: path -> Pair, one at a time."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.pairs import Pair, clean
from prefcast.pairs.formats.containers import Records, no_duplicates, open_records, parquet_records
from prefcast.pairs.formats.fields import Fault
from prefcast.pairs.formats.ids import SeenIds
from prefcast.pairs.formats.shapes import SHAPES, Shape, all_columns

__all__ = ["CELLS", "PairFile", "open_pairs", "open_parquet", "pairs_of_records", "read_pairs"]

CELLS = ("json", "text")
# Ids of these types are kept as their text.
_ID_TYPES = (float, Decimal, date, UUID)
_CONTAINERS = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON Lines", "parquet": "Parquet"}


class PairFile:
    """The pairs of one file, or of records from memory: iterate, once, for Pair or, where a row is at fault, RowError.

    `shape` is the shape found, `columns` the names in the file. Iterating raises FileError for a fault of the file, a
    duplicate id among them: at the latest at its end.
    """

    def __init__(
        self,
        records: Iterable[tuple[int, Mapping[str, Any] | RowError]],
        name: str,
        columns: list[str],
        mapping: Mapping[str, str],
        cells: str,
    ) -> None:
        if cells not in CELLS:
            raise UsageError(f"unknown cells {cells!r}; there are {', '.join(CELLS)}")
        self.name = name
        self.columns = columns
        self.plain = cells == "text"
        self._mapping = _checked(mapping, columns, name)
        self.shape = _shape_of(columns, self._mapping, name)
        known = _renamed(dict.fromkeys(columns), self._mapping)
        self.has_id = "id" in known
        self._records = records
        self._consumed = False
        self._file = records if isinstance(records, Records) else None
        self._is_separated = self._file is not None and self._file.kind in ("csv", "tsv")
        labelled = self.shape.name == "preference" or bool(known.keys() & set(self.shape.optional))
        # A JSON Lines file may have labels in later rows alone.
        self.may_have_labels = labelled or (self._file is not None and self._file.kind == "jsonl")

    @property
    def description(self) -> str:
        """What was found, in words: "Kaggle pairs (prompt, response_a, response_b), CSV, gzip"."""
        parts = [self.shape.title]
        if self._file is not None:
            parts.append(_CONTAINERS[self._file.kind])
            parts += [self._file.compression] if self._file.compression else []
        return ", ".join(parts)

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes read, of how many; (0, 0) where that is not known."""
        return (self._file.position, self._file.size) if self._file is not None else (0, 0)

    @property
    def changed(self) -> bool:
        """Whether the file was written to or replaced since it was opened; ask before it is closed."""
        return self._file is not None and self._file.changed

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> PairFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Pair | RowError]:
        if self._consumed:
            raise UsageError(f"{self.name}: its pairs were read already; open it again")
        self._consumed = True
        seen, empty = SeenIds(), True
        for row, record in self._records:
            id: str | int
            if isinstance(record, RowError):
                # A row that could not be read has no id of its own; this one cannot be taken for another's.
                id = f"unreadable row {row}" if self.has_id else row
            else:
                fields = _renamed(record, self._mapping)
                if self.has_id and self._is_separated and not any(fields.values()):
                    continue  # the rows of bare commas that Excel leaves
                id = self._id(fields, row)
            empty = False
            if self.has_id:
                if (first := seen.add(id, row)) is not None:
                    raise self._duplicate(row, first, id)
                if seen.full and (found := seen.settle()):
                    raise self._duplicate(*found)
            if isinstance(record, RowError):
                yield RowError(self.name, row, record.field, record.problem, id)
            else:
                yield self._pair(fields, id, row)
        if empty and self._file is not None:
            raise FileError(self.name, "has no rows; expected at least one")
        if found := seen.settle():
            raise self._duplicate(*found)

    def _pair(self, fields: Mapping[str, Any], id: str | int, row: int) -> Pair | RowError:
        try:
            turns, outcome, swapped = self.shape.read(fields, id, self.plain)
        except Fault as fault:
            field = ",".join(self._own_name(name) for name in fault.field.split(","))
            return RowError(self.name, row, field, fault.problem, id)
        left, right = (_model(fields, name) for name in self.shape.models)
        if swapped:
            left, right = right, left
        return Pair(turns, id=id, outcome=outcome, model_a=left, model_b=right, row=row)

    def _id(self, fields: Mapping[str, Any], row: int) -> str | int:
        id = fields.get("id")
        if not self.has_id:
            if id is None:
                return row
            raise FileError(self.name, "has an id where the first rows have none; every row needs one, or none", row)
        if isinstance(id, str) and id and clean(id) == id:
            return id
        if isinstance(id, int) and not isinstance(id, bool):
            return id
        if isinstance(id, _ID_TYPES) and id == id:  # noqa: PLR0124 - nan, not-a-time
            return str(id)
        found = "is missing" if id is None or id == "" else f"is {excerpt(id)}"
        instead = "expected a text or a number in every row (or no such column: row numbers then serve)"
        raise FileError(self.name, f"{self._own_name('id')} {found}; {instead}", row)

    def _own_name(self, field: str) -> str:
        return self._mapping.get(field, field)

    def _duplicate(self, row: int, first: int, id: str | int | None = None) -> FileError:
        named = "" if id is None else f" {excerpt(id)}"
        return FileError(
            self.name,
            f"{self._own_name('id')}{named} is the same as in row {first}; every row needs an id of its own",
            row,
        )


def _model(fields: Mapping[str, Any], name: str) -> str | None:
    model = fields.get(name)
    return None if model is None else clean(str(model))


def _renamed(record: Mapping[str, Any], mapping: Mapping[str, str]) -> Mapping[str, Any]:
    """The record under our names: a mapped column takes the place of one that has our name already."""
    if not mapping:
        return record
    sources = set(mapping.values())
    renamed = {name: value for name, value in record.items() if name not in sources and name not in mapping}
    renamed.update((ours, record[theirs]) for ours, theirs in mapping.items() if theirs in record)
    return renamed


def _nearest(name: str, names: Iterable[str]) -> str | None:
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def _checked(mapping: Mapping[str, str], columns: list[str], name: str) -> dict[str, str]:
    known = all_columns()
    for ours, theirs in mapping.items():
        if ours not in known:
            near = _nearest(ours, known)
            raise UsageError(
                f"--columns: there is no field {ours!r}{f'; did you mean {near!r}?' if near else ''} (fields: {', '.join(known)})"
            )
        if theirs not in columns:
            near = _nearest(theirs, columns)
            raise FileError(
                name,
                f"column {excerpt(theirs)}, named for {ours}, is missing; {f'nearest found: {excerpt(near)}' if near else _found(columns)}",
            )
    return dict(mapping)


def _found(columns: list[str]) -> str:
    shown = ", ".join(excerpt(column, 30) for column in columns[:12])
    return f"found: {shown}{', ...' if len(columns) > 12 else ''}"


def _shape_of(columns: list[str], mapping: Mapping[str, str], name: str) -> Shape:
    """The first shape whose columns are all there; otherwise FileError about the shape that comes nearest."""
    names = list(_renamed(dict.fromkeys(columns), mapping))
    for shape in SHAPES.values():
        if all(column in names for column in shape.needs):
            _complete_labels(names, name)
            return shape
    separator = next((sign for sign in (";", "\t", "|") if len(columns) == 1 and sign in columns[0]), None)
    if separator:
        raise FileError(name, f"its cells are separated by {separator!r}; expected commas (or tabs, in a .tsv)")

    def nearness(shape: Shape) -> float:
        marks = (1.0 if column in names else 0.6 if _nearest(column, names) else 0.0 for column in shape.needs)
        return sum(marks) / len(shape.needs)

    best = max(SHAPES.values(), key=nearness)
    if not nearness(best):
        expected = "; or ".join(", ".join(shape.needs) for shape in SHAPES.values())
        problem = (
            f"no pairs found in its columns; {_found(columns)}; expected {expected} (--columns maps your own names)"
        )
        raise FileError(name, problem)
    missing = next(column for column in best.needs if column not in names)
    if taken := next((ours for ours, theirs in mapping.items() if theirs == missing), None):
        raise FileError(name, f"column '{missing}' is missing: --columns took it for {taken}")
    near = _nearest(missing, [column for column in names if column not in best.needs])
    if near and near.isprintable():
        raise FileError(
            name,
            f"column '{missing}' is missing; nearest found: {excerpt(near)} (--columns {missing}={near} would map it)",
        )
    raise FileError(name, f"column '{missing}' is missing; {_found(columns)}")


def _complete_labels(names: list[str], name: str) -> None:
    labels = ("winner_model_a", "winner_model_b", "winner_tie")
    present = [label for label in labels if label in names]
    if present and len(present) < len(labels):
        missing = next(label for label in labels if label not in names)
        near = _nearest(missing, [column for column in names if column not in labels])
        hint = f"nearest found: {excerpt(near)}" if near else "the three winner columns go together"
        raise FileError(name, f"column '{missing}' is missing; {hint}")


def open_pairs(
    path: str | os.PathLike[str], *, columns: Mapping[str, str] | None = None, cells: str = "json"
) -> PairFile:
    """Open a file of pairs (`-` is standard input) and find its shape; see PairFile.

    `columns` maps our names to the file's: {"prompt": "question"}. `cells` says what a text cell holds: `json`, an
    array of strings, or `text`, one turn as it is. Raises FileError or UsageError.
    """
    records = open_records(path)
    try:
        return PairFile(records, records.name, records.columns, columns or {}, cells)
    except BaseException:
        records.close()
        raise


def open_parquet(stream: Any, name: str, *, columns: Mapping[str, str] | None = None, cells: str = "json") -> PairFile:
    """As `open_pairs`, of a Parquet file called `name` that is open already, on whatever filesystem."""
    records = parquet_records(stream, name)
    return PairFile(records, name, records.columns, columns or {}, cells)


def pairs_of_records(
    records: Iterable[Mapping[str, Any]],
    columns: list[str],
    *,
    name: str = "table",
    mapping: Mapping[str, str] | None = None,
    cells: str = "json",
) -> PairFile:
    """The pairs of records in memory (a table's rows, perhaps none), as `open_pairs` gives those of a file."""
    no_duplicates(columns, name)
    return PairFile(enumerate(records, 1), name, columns, mapping or {}, cells)


def read_pairs(
    path: str | os.PathLike[str], *, columns: Mapping[str, str] | None = None, cells: str = "json"
) -> Iterator[Pair]:
    """The pairs of a file, one at a time.

    The first row at fault raises its RowError; a fault of the file raises FileError. Use `open_pairs` to go on
    past rows at fault.
    """
    with open_pairs(path, columns=columns, cells=cells) as file:
        for item in file:
            if isinstance(item, RowError):
                raise item
            yield item
