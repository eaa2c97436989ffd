"""The rows of a file that a client sends, some at a time: what /v1/rows answers, and the program that reads the file.

`python -m prefcast.service.rows` reads one file from its standard input and writes one answer. The file is untrusted, so this
program has bounds on its memory, its time and its temporary files, and the server can end it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from typing import Any, BinaryIO, Literal, cast

from pydantic import BaseModel, Field

from prefcast.errors import FileError, PrefcastError, RowError
from prefcast.pairs import Outcome
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.fields import Fault, Record, absent, as_number
from prefcast.pairs.formats.labels import WINNERS, Labels, normalised, three_numbers
from prefcast.pairs.formats.records import Records
from prefcast.pairs.formats.shapes import SHAPES
from prefcast.pairs.formats.streams import opened_stream
from prefcast.pairs.formats.table import Table
from prefcast.service.refusals import Refusal
from prefcast.service.schema import ErrorDetail, Interval, Probabilities

__all__ = ["MOST_CHARACTERS", "MOST_ROWS", "FileRow", "FileRows", "read_rows"]

# An answer ends at whichever comes first. A row with more characters than an answer has an error.
MOST_ROWS, MOST_CHARACTERS = 25_000, 8_000_000
# The rows that tell whether the cells are plain text.
_PEEKED = 16
# The most characters of an id that a row with too many characters keeps.
_SHORT = 100
# Bytes of memory and of a temporary file: so many, and so many for each byte of the file.
_ROOM, _SPOOL, _FACTOR = 1_000_000_000, 100_000_000, 20
_NUMBERS = (*WINNERS, "margin", "tie", "label", "error", "model_a", "model_b", "characters_kept", "characters")
_ENDS = tuple(f"{name}_{end}" for name in WINNERS for end in ("low", "high"))

_LABELS = Labels()

Said = Literal["a", "b", "tie"]
_SAID: dict[Outcome, Said] = {Outcome.A: "a", Outcome.B: "b", Outcome.TIE: "tie"}


class FileRow(BaseModel):
    """One row of a file. If `error` is set, what could not be read is null."""

    row: int = Field(description="Counted from 1, without a header.")
    id: str
    prompt: list[str] | None = Field(default=None, description="The texts of all turns, as are those of the responses.")
    response_a: list[str] | None = None
    response_b: list[str] | None = None
    model_a: str | None = None
    model_b: str | None = None
    label: Said | None = None
    probabilities: Probabilities | None = None
    interval: Interval | None = None
    margin: float | None = None
    tie: float | None = None
    truncated: bool | None = None
    error: ErrorDetail | None = None


class FileRows(BaseModel):
    """Some rows of a file, in their order. `next` is the first row of the rest, or null at the end of the file."""

    description: str = Field(description="What the file was taken for, such as Kaggle pairs, CSV.")
    cells: Literal["json", "text"] = Field(description="How the cells of texts were read.")
    texts: bool = Field(description="Whether the file has columns of texts.")
    forecasts: bool = Field(description="Whether the file has columns of forecasts.")
    rows: list[FileRow]
    next: int | None = None


class _Pairs(PairFile):
    """Pairs, with the forecasts that may stand beside their texts."""

    def _find(self) -> None:
        super()._find()
        if self._forecasts:
            self.read_too(*_NUMBERS, *_ENDS)

    def fill(self, shown: FileRow, record: Record) -> None:
        if self.shape.labelled:
            shown.model_a, shown.model_b = (_text(record.get(name)) for name in self.shape.models)
        pair = self._pair(record, shown.id, shown.row)
        if isinstance(pair, RowError):
            raise Fault(pair.field, pair.problem)
        shown.prompt, shown.response_a, shown.response_b = map(list, (pair.prompt, pair.response_a, pair.response_b))
        shown.model_a, shown.model_b = pair.model_a, pair.model_b
        shown.label = None if pair.outcome is None or not self.may_have_labels else _SAID[pair.outcome]
        if self.forecasts:
            _forecast(shown, record)

    @property
    def forecasts(self) -> bool:
        return self._forecasts


class _Numbers(Table):
    """Forecasts without texts."""

    forecasts = True
    description = "forecasts without texts"

    def fill(self, shown: FileRow, record: Record) -> None:
        shown.model_a, shown.model_b = _text(record.get("model_a")), _text(record.get("model_b"))
        outcome = _LABELS.read("label", record.get("label"))
        shown.label = None if outcome is None else _SAID[outcome]
        _forecast(shown, record)


def _text(value: Any) -> str | None:
    return None if absent(value) else str(value)


def _forecast(shown: FileRow, record: Record) -> None:
    if not absent(why := record.get("error")):
        raise Fault("", str(why))
    if (shares := three_numbers(record)) is None:
        raise Fault(",".join(WINNERS), "are empty; expected three probabilities")
    a, b, tie = normalised(shares)
    ends = [_number(record, name) for name in _ENDS]
    shown.probabilities = Probabilities(a=a, b=b, tie=tie)
    shown.margin, shown.tie = _number(record, "margin"), _number(record, "tie")
    kept, whole = _number(record, "characters_kept"), _number(record, "characters")
    shown.truncated = None if kept is None or whole is None else kept < whole
    if None not in ends:
        shown.interval = Interval.model_validate((0.95, *zip(ends[::2], ends[1::2], strict=True)))


def _number(record: Record, name: str) -> float | None:
    value = as_number(record.get(name))
    return value if abs(value) < float("inf") else None


def read_rows(data: bytes, ending: str = "", first: int = 1, cells: str | None = None) -> FileRows:
    """Rows of a file from row `first` on. `ending` is the end of the file's name. Without `cells`, the first rows say whether
    the cells of texts are JSON arrays or plain text. Raises FileError."""

    def opened() -> Any:
        return opened_stream(f"file{ending}", cast(BinaryIO, io.BufferedReader(io.BytesIO(data))))

    with Records(opened()) as records:
        columns = set(records.columns)
    pairs = any(columns.issuperset(shape.needs) for shape in SHAPES.values())
    if not pairs and columns.issuperset(("id", *WINNERS)):
        numbers = _Numbers(opened(), fields=("id", *_NUMBERS, *_ENDS))
        return _answer(numbers, first, "json", texts=False)
    if cells is None:
        with _Pairs(opened()) as file:
            cells = "text" if file.shape.name == "kaggle" and _plain(file) else "json"
    return _answer(_Pairs(opened(), cells=cells), first, cast(Literal["json", "text"], cells), texts=True)


def _plain(file: PairFile) -> bool:
    """Whether no cell of the first rows looks like a JSON array."""
    records = [record for _, record in islice(file.rows(), _PEEKED) if not isinstance(record, RowError)]
    cells = [cell for record in records for name in file.shape.needs if not absent(cell := record.get(name))]
    return bool(cells) and all(isinstance(cell, str) and not cell.lstrip().startswith("[") for cell in cells)


def _answer(file: _Pairs | _Numbers, first: int, cells: Literal["json", "text"], *, texts: bool) -> FileRows:
    with file:
        answer = FileRows(
            description=file.description, cells=cells, texts=texts, forecasts=file.forecasts, rows=[], next=None
        )
        characters = 0
        for shown in _shown(file, first):
            size = _size(shown)
            if size > MOST_CHARACTERS:
                id = shown.id if len(shown.id) <= _SHORT else str(shown.row)
                problem = f"has {size:,} characters; a row may have {MOST_CHARACTERS:,} here"
                shown, size = _failed(FileRow(row=shown.row, id=id), "", problem), 0  # noqa: PLW2901
            if answer.rows and (len(answer.rows) == MOST_ROWS or characters + size > MOST_CHARACTERS):
                answer.next = shown.row
                break
            characters += size
            answer.rows.append(shown)
    if first == 1 and not answer.rows:
        raise FileError(file.name, "has no rows; expected at least one")
    return answer


def _size(shown: FileRow) -> int:
    """The characters of a row, which all come from the file. An empty turn counts as one."""
    words = [shown.id, shown.model_a or "", shown.model_b or "", shown.error.message if shown.error else ""]
    turns = chain.from_iterable(each or () for each in (shown.prompt, shown.response_a, shown.response_b))
    return sum(map(len, words)) + sum(len(turn) or 1 for turn in turns)


def _shown(file: _Pairs | _Numbers, first: int) -> Iterator[FileRow]:
    """The rows from row `first` on. An id that was there before is an error of its row: a page can show the file all the same."""
    rows_of: dict[str, int] = {}
    for row, record in file.rows():
        if isinstance(record, RowError):
            if row >= first:
                yield _failed(FileRow(row=row, id=str(row)), record.field, record.problem)
            continue
        if file.has_id and file.textual and not any(record.values()):
            continue  # Excel leaves rows of bare commas
        id, problem = str(row), ""
        try:
            id = str(file.id_of(record, row))
        except FileError as fault:
            problem = fault.problem
        before = row if problem else rows_of.setdefault(id, row)
        if row >= first:
            shown = FileRow(row=row, id=id)
            yield _filled(file, _failed(shown, "", problem) if problem else shown, record, before)


def _filled(file: _Pairs | _Numbers, shown: FileRow, record: Mapping[str, Any], before: int) -> FileRow:
    try:
        file.fill(shown, record)
    except Fault as fault:
        return _failed(shown, fault.field, fault.problem)
    if before != shown.row:
        return _failed(shown, "id", f"is the same as in row {before}; every row needs an id of its own")
    return shown


def _failed(shown: FileRow, field: str, problem: str) -> FileRow:
    shown.error = shown.error or ErrorDetail(type="invalid", field=field, message=problem)
    return shown


def _bounded(size: int, seconds: int) -> None:
    """Bound this process, which reads a file of `size` bytes."""
    os.nice(10)
    bounds = {"AS": _ROOM + _FACTOR * size, "FSIZE": _SPOOL + _FACTOR * size, "CPU": seconds, "CORE": 0}
    for name, most in bounds.items():
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def main() -> int:
    """Status 0 and an answer, or status 3 and a refusal. Any other end means that a bound was met."""
    ending, first, cells, seconds = sys.argv[1:]
    data = sys.stdin.buffer.read()
    _bounded(len(data), int(seconds))
    try:
        sys.stdout.write(read_rows(data, ending, int(first), cells or None).model_dump_json())
        return 0
    except FileError as error:
        problem = error.problem if error.row is None else f"row {error.row}: {error.problem}"
        refusal = Refusal("invalid", problem)
    except MemoryError:
        refusal = Refusal("too_large", "takes too much memory to read")
    except OSError as error:
        refusal = Refusal("too_large", f"cannot be unpacked: {error.strerror or error}")
    except Exception as error:
        # Whatever a library raises of a file that was made to break it.
        problem = str(error) if isinstance(error, PrefcastError) else f"cannot be read: {type(error).__name__}"
        refusal = Refusal("invalid", problem)
    sys.stdout.write(json.dumps([refusal.type, refusal.message]))
    return 3


if __name__ == "__main__":
    sys.exit(main())
