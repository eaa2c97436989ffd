"""The rows of an output, and their files: CSV, JSON Lines, Parquet."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import atomic_file
from prefcast.errors import RowError, UsageError, printable, shown_path
from prefcast.pairs import Pair, clean
from prefcast.pairs.budget import Truncation
from prefcast.pairs.formats.separated import quoted
from prefcast.pairs.formats.shapes import BESIDE

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "ENDINGS",
    "TAIL",
    "Recordable",
    "Rows",
    "Writer",
    "columns_of",
    "opened_writer",
    "output_kind",
    "safe_cell",
    "whole_numbers",
]

# What a record holds after its id and its numbers.
TAIL = ("label", "model_a", "model_b", "characters_kept", "characters", "turns_kept", "turns", "error")
_TEXTS = ("model_a", "model_b", "error")
_TURNS = ("prompt", "response_a", "response_b")


class Rows:
    """Rows of an input, in their order. A row that failed has an error, and its evidence is nan."""

    ids: list[str | int]
    truncations: list[Truncation | None]
    errors: list[RowError | None]
    pairs: list[Pair | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def failed(self) -> int:
        return sum(error is not None for error in self.errors)

    def _numbers(self) -> Mapping[str, list[float | None]]:
        """The numbers of all rows, by name."""
        raise NotImplementedError

    def _known(self, values: NDArray[np.float64]) -> list[float | None]:
        """Values (n,), with None for the rows that failed."""
        return [None if error else value for value, error in zip(values.tolist(), self.errors, strict=True)]

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        """A dict for each row, as the .jsonl and .parquet files hold it. Evidence that does not exist is None."""
        numbers = self._numbers()
        for id, pair, cut, error, *values in zip(
            self.ids, self.pairs, self.truncations, self.errors, *numbers.values(), strict=True
        ):
            record: dict[str, Any] = {
                "id": clean(id) if isinstance(id, str) else id,
                **dict(zip(numbers, values, strict=True)),
                "label": None if pair is None or pair.outcome is None else int(pair.outcome),
                "model_a": pair.model_a if pair else None,
                "model_b": pair.model_b if pair else None,
                "characters_kept": cut.kept if cut else None,
                "characters": cut.total if cut else None,
                "turns_kept": cut.turns_kept if cut else None,
                "turns": cut.turns_total if cut else None,
                "error": str(error) if error else None,
                **dict(pair.own if pair else ()),
            }
            if with_text:
                record |= {name: [*map(clean, getattr(pair, name))] if pair else None for name in _TURNS}
                beside = (None, None) if pair is None else (pair.system or None, pair.reference)
                record |= {
                    name: None if text is None else clean(text) for name, text in zip(BESIDE, beside, strict=True)
                }
            yield record


def columns_of(
    numbers: Sequence[str], *, whole_ids: bool, with_text: bool = False, own: Sequence[str] = ()
) -> pyarrow.Schema:
    """The columns of records with these numbers, and with `own` columns of the input."""
    import pyarrow

    whole, text = pyarrow.int64(), pyarrow.string()
    columns = [("id", whole if whole_ids else text), *((name, pyarrow.float64()) for name in numbers)]
    columns += [(name, text if name in _TEXTS else whole) for name in TAIL]
    if with_text:
        columns += [*((name, pyarrow.list_(text)) for name in _TURNS), *((name, text) for name in BESIDE)]
    columns += [(name, text) for name in own]
    return pyarrow.schema(columns)


# The endings of output files, and what a message says of each.
ENDINGS = {".csv": " (Kaggle submission)", ".jsonl": "", ".parquet": " (everything)"}
_GROUP_ROWS, _GROUP_BYTES = 16_384, 16_000_000


class Recordable(Protocol):
    """Rows of a file: their ids, and a record of each."""

    @property
    def ids(self) -> list[str | int]: ...

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]: ...


class Writer(Protocol):
    """Takes rows in order, in any number of pieces."""

    def write(self, rows: Recordable) -> None: ...


def output_kind(path: str | os.PathLike[str], endings: dict[str, str] = ENDINGS) -> str:
    """The ending of an output file. Raises UsageError if no writer has it."""
    ending = Path(path).suffix.lower()
    if ending not in endings:
        *others, last = (f"{each}{note}" for each, note in endings.items())
        expected = f"{', '.join(others)} or {last}"
        raise UsageError(f"{shown_path(path)}: the ending tells the format of the output: {expected}")
    return ending


@contextmanager
def opened_writer(
    path: str | os.PathLike[str],
    kind: str,
    csv_columns: Sequence[str],
    numbers: Sequence[str] = (),
    *,
    with_text: bool = False,
    own: Sequence[str] = (),
    schema: Callable[[bool], pyarrow.Schema] | None = None,
) -> Iterator[Writer]:
    """A writer of the kind that `output_kind` gave, for records with `numbers` and `own` columns of the input. Records of another
    form have a `schema`, given whether all ids are whole numbers.

    The file appears whole when the block ends without an exception. Otherwise nothing appears.
    """
    with atomic_file(path) as file:
        if kind == ".csv":
            yield _Csv(file, with_text, csv_columns, own)
        elif kind == ".jsonl":
            yield _JsonLines(file, with_text, own)
        else:
            usual = partial(columns_of, numbers, with_text=with_text, own=own)
            with closing(_Parquet(file, with_text, schema or (lambda whole: usual(whole_ids=whole)))) as parquet:
                yield parquet


class _Csv:
    def __init__(self, file: BinaryIO, with_text: bool, names: Sequence[str], own: Sequence[str]) -> None:
        self._file, self._with_text, self._names, self._own = file, with_text, names, own
        file.write((",".join([*names, *map(safe_cell, own)]) + "\n").encode())

    def write(self, rows: Recordable) -> None:
        for record in rows.records(with_text=self._with_text):
            cells = [_cell(record[name]) for name in self._names]
            cells += ["" if (value := record.get(name)) is None else safe_cell(value) for name in self._own]
            self._file.write((",".join(cells) + "\n").encode())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    if value is None:
        return ""
    return quoted(clean(json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)))


def safe_cell(value: object) -> str:
    """A CSV cell of somebody else's text: control characters are escaped, and a text that a spreadsheet would take for a
    formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return repr(value)
    shown = printable(value)
    return quoted(f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown)


class _JsonLines:
    def __init__(self, file: BinaryIO, with_text: bool, own: Sequence[str]) -> None:
        self._file, self._with_text, self._own = file, with_text, own

    def write(self, rows: Recordable) -> None:
        for record in rows.records(with_text=self._with_text):
            if self._own:
                # The columns come in one order, also in a row that could not be read.
                values = {name: record.pop(name, None) for name in self._own}
                record |= values  # noqa: PLW2901
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")


class _Parquet:
    """Joins pieces into row groups. The column of ids holds numbers until an id comes that is not a whole number; then it holds
    texts, also for the rows that were written before."""

    def __init__(self, file: BinaryIO, with_text: bool, schema: Callable[[bool], pyarrow.Schema]) -> None:
        import pyarrow.parquet

        self._pyarrow = pyarrow
        self._file, self._with_text, self._schema = file, with_text, schema
        self._whole_ids = True
        self._pending: list[pyarrow.Table] = []
        self._writer = self._open()

    def _open(self) -> pyarrow.parquet.ParquetWriter:
        return self._pyarrow.parquet.ParquetWriter(self._file, self._schema(self._whole_ids))

    def write(self, rows: Recordable) -> None:
        if self._whole_ids and not whole_numbers(rows.ids):
            self._widen()
        records = list(rows.records(with_text=self._with_text))
        if not self._whole_ids:
            for record in records:
                record["id"] = str(record["id"])
        self._pending.append(self._pyarrow.Table.from_pylist(records, schema=self._writer.schema))
        if (
            sum(table.num_rows for table in self._pending) >= _GROUP_ROWS
            or sum(table.nbytes for table in self._pending) >= _GROUP_BYTES
        ):
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(self._pyarrow.concat_tables(self._pending))
            self._pending.clear()

    def _widen(self) -> None:
        self._flush()
        self._writer.close()
        self._whole_ids = False
        with tempfile.TemporaryFile() as written:
            self._file.seek(0)
            shutil.copyfileobj(self._file, written)
            self._file.seek(0)
            self._file.truncate()
            self._writer = self._open()
            for batch in self._pyarrow.parquet.ParquetFile(written).iter_batches():
                self._writer.write_table(self._pyarrow.Table.from_batches([batch]).cast(self._writer.schema))

    def close(self) -> None:
        self._flush()
        self._writer.close()


def whole_numbers(ids: Sequence[str | int]) -> bool:
    """Whether all ids are numbers that fit a column of 64-bit integers."""
    return all(isinstance(id, int) and -(2**63) <= id < 2**63 for id in ids)
