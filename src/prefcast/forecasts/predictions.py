"""Forecasts of rows, and their files: the Kaggle submission (.csv), everything (.jsonl, .parquet)."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import atomic_file
from prefcast.errors import RowError, UsageError, printable, shown_path
from prefcast.outcomes.models import Link
from prefcast.pairs import Outcome, Pair, clean
from prefcast.pairs.budget import Truncation
from prefcast.pairs.formats.labels import WINNERS

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["ENDINGS", "Forecast", "Forecasts", "Writer", "open_writer", "output_kind"]

# The interval of each probability, and how far the members of an ensemble differ.
UNCERTAINTY = (*(f"{name}_{end}" for name in WINNERS for end in ("low", "high")), "member_spread")
ENDINGS = (".csv", ".jsonl", ".parquet")
_SHOWN, _SHOWN_TEXT = 10, 80
_MUST_QUOTE = re.compile(r'[",\r\n]|^\s|\s$')
_GROUP_ROWS, _GROUP_BYTES = 16_384, 16_000_000


@dataclass(frozen=True)
class Forecast:
    """One pair's forecast.

    Where `error` is set, the probabilities are the class prior and the evidence is nan. `interval` has low and high of
    the three probabilities, `spread` by how much an ensemble's members differ.
    """

    id: str | int
    probabilities: tuple[float, float, float]
    margin: float
    tie: float
    truncation: Truncation | None
    error: RowError | None
    outcome: Outcome | None
    interval: tuple[tuple[float, float], ...] | None = None
    spread: float | None = None

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr>{_cell(name)}{_bar(p)}</tr>" for name, p in zip(("A", "B", "tie"), self.probabilities, strict=True)
        )
        error = f"<p>{escape(str(self.error))}</p>" if self.error else ""
        return f"<table><caption>{escape(str(self.id))}</caption>{rows}</table>{error}"


@dataclass(frozen=True, eq=False)
class Forecasts(Sequence[Forecast]):
    """Forecasts of n rows, in their order: `probabilities` (n, 3) in Outcome's order, `margin` and `tie` (n,), nan
    where a row failed.

    `link` with the evidence's `columns` gives the `interval`; `spread` (n,) is by how much the members of an ensemble
    differ in a probability at most.
    """

    ids: list[str | int]
    probabilities: NDArray[np.float64]
    margin: NDArray[np.float64]
    tie: NDArray[np.float64]
    truncations: list[Truncation | None]
    errors: list[RowError | None]
    pairs: list[Pair | None] = field(repr=False)
    link: Link | None = field(default=None, repr=False)
    columns: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(default=None, repr=False)
    spread: NDArray[np.float64] | None = None

    @cached_property
    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Low and high (n, 3): the 95 % interval of each probability under the bootstrap of the fitted link; nan where a
        row failed, None where the forecaster has no draws."""
        if self.link is None or self.columns is None:
            return None
        good = np.isfinite(self.margin)
        low, high = np.full((len(self), 3), np.nan), np.full((len(self), 3), np.nan)
        if good.any():
            low[good], high[good] = self.link.interval(self.columns[0][good], self.columns[1][good])
        return low, high

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, SupportsIndex):
            raise TypeError("Forecasts takes a whole number; slice the arrays instead")
        pair = self.pairs[index]
        a, b, tie = map(float, self.probabilities[index])
        outcome = pair.outcome if pair is not None else None
        return Forecast(
            self.ids[index],
            (a, b, tie),
            float(self.margin[index]),
            float(self.tie[index]),
            self.truncations[index],
            self.errors[index],
            outcome,
            self._interval_of(int(index)),
            None if self.spread is None else float(self.spread[index]),
        )

    def _interval_of(self, index: int) -> tuple[tuple[float, float], ...] | None:
        if self.interval is None:
            return None
        low, high = (part[index].tolist() for part in self.interval)
        return tuple(zip(low, high, strict=True))

    @property
    def failed(self) -> int:
        return sum(error is not None for error in self.errors)

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        """A dict a row, as the .jsonl and .parquet files hold it; evidence that does not exist is None."""
        for index, id in enumerate(self.ids):
            pair, truncation, error = self.pairs[index], self.truncations[index], self.errors[index]
            failed = error is not None
            record: dict[str, Any] = {
                "id": clean(id) if isinstance(id, str) else id,
                **dict(zip(WINNERS, map(float, self.probabilities[index]), strict=True)),
                "margin": None if failed else float(self.margin[index]),
                "tie": None if failed else float(self.tie[index]),
                **self._uncertainty(index, failed),
                "label": None if pair is None or pair.outcome is None else int(pair.outcome),
                "model_a": pair.model_a if pair else None,
                "model_b": pair.model_b if pair else None,
                "characters_kept": truncation.kept if truncation else None,
                "characters": truncation.total if truncation else None,
                "turns_kept": truncation.turns_kept if truncation else None,
                "turns": truncation.turns_total if truncation else None,
                "error": str(error) if failed else None,
            }
            if with_text:
                record |= {name: _texts(pair, name) for name in ("prompt", "response_a", "response_b")}
            yield record

    def _uncertainty(self, index: int, failed: bool) -> dict[str, float | None]:
        values: list[float | None] = [None] * len(UNCERTAINTY)
        if not failed and self.interval is not None:
            low, high = (part[index].tolist() for part in self.interval)
            values[:-1] = [value for pair in zip(low, high, strict=True) for value in pair]
        if not failed and self.spread is not None:
            values[-1] = float(self.spread[index])
        return dict(zip(UNCERTAINTY, values, strict=True))

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame, a row a forecast, with the columns of `records`."""
        import pandas

        return pandas.DataFrame(list(self.records()), columns=_schema(True, with_text=False).names)

    def to_arrow(self) -> pyarrow.Table:
        """An Arrow table, a row a forecast, with the columns of `records`; ids that are not all whole numbers as text."""
        import pyarrow

        whole = _whole(self.ids)
        records = [record if whole else record | {"id": str(record["id"])} for record in self.records()]
        return pyarrow.Table.from_pylist(records, schema=_schema(whole, with_text=False))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("id", "A", "B", "tie", "margin", "prompt", "note"))
        body = "".join(self._html_row(index) for index in range(min(len(self), _SHOWN)))
        more = (
            f"<p>{len(self)} forecasts, {self.failed} failed; the first {_SHOWN} shown</p>"
            if len(self) > _SHOWN
            else ""
        )
        return f"<table><tr>{head}</tr>{body}</table>{more}"

    def _html_row(self, index: int) -> str:
        forecast, pair = self[index], self.pairs[index]
        prompt = "" if pair is None else printable(pair.turns[0].prompt[:_SHOWN_TEXT])
        cut = forecast.truncation is not None and forecast.truncation.truncated
        note = str(forecast.error) if forecast.error else "truncated" if cut else ""
        margin = "" if forecast.error else f"{forecast.margin:+.2f}"
        return f"<tr>{_cell(forecast.id)}{''.join(map(_bar, forecast.probabilities))}{''.join(map(_cell, (margin, prompt, note)))}</tr>"


def _texts(pair: Pair | None, name: str) -> list[str] | None:
    return None if pair is None else [clean(text) for text in getattr(pair, name)]


def _cell(value: object) -> str:
    return f"<td>{escape(str(value))}</td>"


def _bar(probability: float) -> str:
    share = f"{100 * probability:.1f}"
    return f'<td style="min-width:6em;background:linear-gradient(90deg,rgba(90,140,220,.35) {share}%,transparent {share}%)">{share} %</td>'


class Recordable(Protocol):
    """Rows of a file: their ids, and a record each."""

    @property
    def ids(self) -> list[str | int]: ...

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]: ...


# (whole-number ids, with texts) -> the columns of a Parquet file
Schema = Callable[[bool, bool], "pyarrow.Schema"]


class Writer(Protocol):
    """Takes forecasts in order, in as many pieces as come."""

    def write(self, forecasts: Recordable) -> None: ...


class _Submission:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(f"id,{','.join(WINNERS)}\n".encode())

    def write(self, forecasts: Recordable) -> None:
        if isinstance(forecasts, Forecasts):
            rows: Iterable[Sequence[float]] = forecasts.probabilities.tolist()
        else:
            rows = ([record[name] for name in WINNERS] for record in forecasts.records())
        for id, (a, b, tie) in zip(forecasts.ids, rows, strict=True):
            self._file.write(f"{quoted(clean(str(id)))},{a!r},{b!r},{tie!r}\n".encode())


def quoted(text: str) -> str:
    """A CSV cell, in quotes where it needs them. (The csv module leaves a lone carriage return bare.)"""
    return '"' + text.replace('"', '""') + '"' if _MUST_QUOTE.search(text) else text


class JsonLines:
    """Records as lines of JSON."""

    def __init__(self, file: BinaryIO, with_text: bool) -> None:
        self._file = file
        self._with_text = with_text

    def write(self, rows: Recordable) -> None:
        for record in rows.records(with_text=self._with_text):
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")


class Parquet:
    """Row groups of many pieces; whole-number ids stay numbers until one comes that is none."""

    def __init__(self, file: BinaryIO, with_text: bool, schema: Schema) -> None:
        import pyarrow.parquet

        self._pyarrow = pyarrow
        self._file = file
        self._with_text = with_text
        self._schema = schema
        self._whole_ids = True
        self._pending: list[pyarrow.Table] = []
        self._writer = self._open()

    def _open(self) -> pyarrow.parquet.ParquetWriter:
        return self._pyarrow.parquet.ParquetWriter(self._file, self._schema(self._whole_ids, self._with_text))

    def write(self, rows: Recordable) -> None:
        if self._whole_ids and not _whole(rows.ids):
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
        """Turn the ids into text, those already written too."""
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


def _whole(ids: Sequence[str | int]) -> bool:
    """Whether all ids are numbers that fit a column of 64-bit integers."""
    return all(isinstance(id, int) and -(2**63) <= id < 2**63 for id in ids)


def _schema(whole_ids: bool, with_text: bool) -> pyarrow.Schema:
    import pyarrow

    number, whole, text = pyarrow.float64(), pyarrow.int64(), pyarrow.string()
    columns = [
        ("id", whole if whole_ids else text),
        *((name, number) for name in (*WINNERS, "margin", "tie", *UNCERTAINTY)),
        ("label", whole),
    ]
    columns += [(name, text) for name in ("model_a", "model_b")]
    columns += [(name, whole) for name in ("characters_kept", "characters", "turns_kept", "turns")]
    columns += [("error", text)]
    if with_text:
        columns += [(name, pyarrow.list_(text)) for name in ("prompt", "response_a", "response_b")]
    return pyarrow.schema(columns)


def output_kind(path: str | os.PathLike[str]) -> str:
    """The ending of an output file; UsageError if no writer has it."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(
            f"{shown_path(path)}: the ending tells the format of the output: .csv (Kaggle submission), .jsonl or .parquet (everything)"
        )
    return ending


@contextmanager
def open_writer(path: str | os.PathLike[str], *, with_text: bool = False) -> Iterator[Writer]:
    """A writer for `path` by its ending.

    The file appears when the block ends well, and never half. Raises UsageError.
    """
    kind = output_kind(path)
    if with_text and kind == ".csv":
        raise UsageError("a submission (.csv) has no room for texts; write .jsonl or .parquet to keep them")
    with atomic_file(path) as file:
        if kind == ".csv":
            yield _Submission(file)
        elif kind == ".jsonl":
            yield JsonLines(file, with_text)
        else:
            parquet = Parquet(file, with_text, _schema)
            try:
                yield parquet
            finally:
                parquet.close()
