"""Files and tables of pairs: path -> Pair, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, excerpt
from prefcast.pairs import Outcome, Pair, clean
from prefcast.pairs.formats.containers import PARQUET
from prefcast.pairs.formats.datasets import PAIRS, Dataset, dataset_of
from prefcast.pairs.formats.fields import Fault, Record, absent
from prefcast.pairs.formats.labels import LABEL_FIELDS, WINNERS, Labels, are_forecasts
from prefcast.pairs.formats.shapes import SHAPES, SINGLE, Shape, all_columns, swapped_by, texts_beside
from prefcast.pairs.formats.streams import Opened
from prefcast.pairs.formats.table import Table

__all__ = ["PairFile", "open_pairs", "open_parquet", "read_pairs"]


class PairFile(Table):
    """The pairs of a file or a table: iterate, once, for Pair or, where a row is at fault, RowError.

    `shape` is the shape found, `columns` the names in the file. Iterating raises FileError for a fault of the file, a
    duplicate id among them: at the latest at its end.
    """

    shape: Shape
    # The public dataset that the columns are of, if prefcast knows it.
    dataset: Dataset | None = None
    # The columns that `keep` named.
    kept: tuple[str, ...] = ()

    def __init__(
        self,
        source: Any,
        columns: Mapping[str, str] | None = None,
        cells: str = "json",
        label_values: Mapping[str, str] | None = None,
        *,
        max_row: int = MAX_ROW,
        single: bool = False,
    ) -> None:
        self._takes_single = single
        super().__init__(source, columns, cells, fields=all_columns(single=single), max_row=max_row)
        usual = {} if self.dataset is None else self.dataset.labels
        self._labels = Labels(label_values or usual)

    def _known(self, given: dict[str, str]) -> dict[str, str]:
        found = dataset_of(PAIRS, self.columns, given)
        if found is None:
            return given
        self.dataset, mapping = found
        self.plain = self.plain or bool(self.dataset.title)
        return mapping

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
        if self._takes_single and self.names >= set(SINGLE.needs) and not self._part_of_a_pair:
            # A text of JSON or Parquet says itself that it is one turn.
            self.plain = self.plain or not self.textual
            return SINGLE
        if problem := self._no_pairs():
            raise FileError(self.name, f"{problem} (--columns maps your own names)")
        best = max(SHAPES.values(), key=lambda shape: self.nearness(shape.needs))
        if not self.nearness(best.needs):
            expected = "; or ".join(", ".join(shape.needs) for shape in SHAPES.values())
            problem = f"no pairs found in its columns; {self.found}; expected {expected}"
            raise FileError(self.name, f"{problem} (--columns maps your own names)")
        raise self.missing(next(column for column in best.needs if column not in self.names))

    @property
    def _part_of_a_pair(self) -> bool:
        """Whether there is one answer of a pair, so that a column is missing."""
        return any(name.startswith(("response_", "conversation_")) for name in self.names)

    @property
    def single(self) -> bool:
        """Whether the file holds single answers. Each is read as a pair of the answer with itself."""
        return self.shape is SINGLE

    def _no_pairs(self) -> str:
        """What a file that has answers and no pairs holds, and the verb that reads it."""
        many = next((name for name in ("responses", "answers", "completions") if name in self.names), None)
        one = next(
            (name for name in ("response", "messages", "conversations", "conversation") if name in self.names), None
        )
        expected = "expected two answers, such as response_a and response_b"
        if self._part_of_a_pair:
            return ""
        if many is not None:
            return (
                f"holds several answers to each prompt, in {excerpt(many)}; {expected}; prefcast best reads it as it is"
            )
        if one is not None:
            verbs = "prefcast compare joins it with another system's, prefcast score gives each answer a score"
            return f"holds one answer to each prompt, in {excerpt(one)}; {expected}; {verbs}"
        return ""

    @property
    def description(self) -> str:
        """What was found, in words: "Kaggle pairs (prompt, response_a, response_b), CSV, gzip"."""
        known = None if self.dataset is None else self.dataset.description
        return ", ".join(filter(None, (known or self.shape.title, self.container)))

    def keep(self, *columns: str) -> None:
        """Keep the values of columns, under their names in the file, in `Pair.own`. Raises FileError."""
        for column in columns:
            if column not in self.columns:
                raise FileError(self.name, f"column {excerpt(column)} is missing; {self.found}")
        self.kept = tuple(dict.fromkeys((*self.kept, *columns)))
        self.read_too(*columns)

    def __iter__(self) -> Iterator[Pair | RowError]:
        ours = {theirs: ours for ours, theirs in self._mapping.items()}
        kept = [(name, ours.get(name, name)) for name in self.kept]
        for row, id, record in self.identified():
            item = record if isinstance(record, RowError) else self._pair(record, id, row)
            if kept and isinstance(item, Pair) and not isinstance(record, RowError):
                values = ((name, record.get(place)) for name, place in kept)
                item = replace(
                    item, own=tuple((name, clean(str(value))) for name, value in values if not absent(value))
                )
            yield item

    def _pair(self, record: Record, id: str | int, row: int) -> Pair | RowError:
        shape = self.shape
        try:
            turns, system, tools = shape.read(record, self.plain)
            system, reference = texts_beside(record, system, self.plain)
            outcome = self._labels.of(record, forecasts=self._forecasts) if shape.labelled else Outcome.A
        except Fault as fault:
            return self.row_error(row, fault, id)
        left, right = (_model(record, name) for name in shape.models)
        pair = Pair(turns, id, outcome, left, right, row, system, reference, tools)
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
    single: bool = False,
) -> PairFile:
    """Open pairs and find their shape; see PairFile.

    `source` is a path (`-` is standard input), a folder of files or a list of paths, which are read as one file, a
    pandas or polars data frame, an Arrow table, a datasets.Dataset, or an iterable of dicts. `columns` maps our names to the
    file's: {"prompt": "question"}. `cells` says what a text cell holds: `json`, an array of strings, or `text`, one turn as
    it is. `label_values` says what the file's own labels mean: {"left": "a", "right": "b", "same": "tie"}. `max_row` is the
    most megabytes that a row may have. With `single` a file of single answers (prompt, response) is opened too. Raises
    FileError or UsageError.
    """
    return PairFile(source, columns, cells, label_values, max_row=max_row, single=single)


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
