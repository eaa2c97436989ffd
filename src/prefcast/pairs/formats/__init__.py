"""Files and tables of pairs: path -> Pair, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError
from prefcast.pairs import Outcome, Pair, clean
from prefcast.pairs.formats.containers import PARQUET
from prefcast.pairs.formats.fields import Fault, Record
from prefcast.pairs.formats.labels import LABEL_FIELDS, WINNERS, Labels, are_forecasts
from prefcast.pairs.formats.shapes import SHAPES, Shape, all_columns, swapped_by, texts_beside
from prefcast.pairs.formats.streams import Opened
from prefcast.pairs.formats.table import Table

__all__ = ["PairFile", "open_pairs", "open_parquet", "read_pairs"]


class PairFile(Table):
    """The pairs of a file or a table: iterate, once, for Pair or, where a row is at fault, RowError.

    `shape` is the shape found, `columns` the names in the file. Iterating raises FileError for a fault of the file, a
    duplicate id among them: at the latest at its end.
    """

    shape: Shape

    def __init__(
        self,
        source: Any,
        columns: Mapping[str, str] | None = None,
        cells: str = "json",
        label_values: Mapping[str, str] | None = None,
        *,
        max_row: int = MAX_ROW,
    ) -> None:
        self._labels = Labels(label_values)
        super().__init__(source, columns, cells, fields=all_columns(), max_row=max_row)

    def _find(self) -> None:
        self.shape = self._shape()
        # Forecasts with their texts are pairs too, and their three columns are no label.
        self._forecasts = are_forecasts(self.names)
        label_fields = ("winner", "label") if self._forecasts else LABEL_FIELDS
        labelled = not self.shape.labelled or bool(self.names & set(label_fields))
        # Records without a schema may have labels in later rows alone.
        self.may_have_labels = labelled or self.loose

    def _shape(self) -> Shape:
        """The first shape whose columns are all there; otherwise FileError about the shape that comes nearest."""
        for shape in SHAPES.values():
            if all(column in self.names for column in shape.needs):
                if self.names & set(WINNERS):
                    self.need(*WINNERS, otherwise="the three winner columns go together")
                return shape
        only = self.columns[0] if len(self.columns) == 1 else ""
        if separator := next((sign for sign in (";", "\t", "|") if sign in only), None):
            raise FileError(
                self.name, f"its cells are separated by {separator!r}; expected commas (or tabs, in a .tsv)"
            )
        best = max(SHAPES.values(), key=lambda shape: self.nearness(shape.needs))
        if not self.nearness(best.needs):
            expected = "; or ".join(", ".join(shape.needs) for shape in SHAPES.values())
            problem = f"no pairs found in its columns; {self.found}; expected {expected}"
            raise FileError(self.name, f"{problem} (--columns maps your own names)")
        raise self.missing(next(column for column in best.needs if column not in self.names))

    @property
    def description(self) -> str:
        """What was found, in words: "Kaggle pairs (prompt, response_a, response_b), CSV, gzip"."""
        return ", ".join(filter(None, (self.shape.title, self.container)))

    def __iter__(self) -> Iterator[Pair | RowError]:
        for row, id, record in self.identified():
            yield record if isinstance(record, RowError) else self._pair(record, id, row)

    def _pair(self, record: Record, id: str | int, row: int) -> Pair | RowError:
        shape = self.shape
        try:
            turns, system = shape.read(record, self.plain)
            system, reference = texts_beside(record, system, self.plain)
            outcome = self._labels.of(record, forecasts=self._forecasts) if shape.labelled else Outcome.A
        except Fault as fault:
            return self.row_error(row, fault, id)
        left, right = (_model(record, name) for name in shape.models)
        pair = Pair(turns, id, outcome, left, right, row, system, reference)
        # The order of chosen and rejected gives the label away.
        return pair if shape.labelled or not swapped_by(id) else pair.swapped()


def _model(record: Record, name: str) -> str | None:
    model = record.get(name)
    return None if model is None else clean(str(model))


def open_pairs(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
) -> PairFile:
    """Open pairs and find their shape; see PairFile.

    `source` is a path (`-` is standard input), a folder of files or a list of paths, which are read as one file, a
    pandas or polars data frame, an Arrow table, a datasets.Dataset, or an iterable of dicts. `columns` maps our names to the
    file's: {"prompt": "question"}. `cells` says what a text cell holds: `json`, an array of strings, or `text`, one turn as
    it is. `label_values` says what the file's own labels mean: {"A>B": "a", "B>A": "b", "A=B": "tie"}. `max_row` is the most
    megabytes that a row may have. Raises FileError or UsageError.
    """
    return PairFile(source, columns, cells, label_values, max_row=max_row)


def open_parquet(
    stream: Any, name: str, *, columns: Mapping[str, str] | None = None, cells: str = "json", max_row: int = MAX_ROW
) -> PairFile:
    """As `open_pairs`, of a Parquet file called `name` that is open already, on whatever filesystem."""
    return PairFile(Opened(name, stream, 0, "", PARQUET, stream), columns, cells, max_row=max_row)


def read_pairs(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
) -> Iterator[Pair]:
    """The pairs of what `open_pairs` opens, one at a time.

    The first row at fault raises its RowError; a fault of the file raises FileError. Use `open_pairs` to go on
    past rows at fault.
    """
    with open_pairs(source, columns=columns, cells=cells, label_values=label_values, max_row=max_row) as file:
        for item in file:
            if isinstance(item, RowError):
                raise item
            yield item
