"""Files of forecasts -> probabilities: submissions and predictions files, read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError
from prefcast.pairs.formats.fields import Fault, Record
from prefcast.pairs.formats.labels import (
    ROUNDING,
    SUM_TOLERANCE,
    WINNERS,
    Labels,
    are_forecasts,
    normalised,
    three_numbers,
)
from prefcast.pairs.formats.table import Table
from prefcast.pairs.pair import group_key

__all__ = ["ROW_FIELDS", "SavedForecasts", "read_saved", "row_blocks", "saved_blocks", "sound_numbers"]

ROW_FIELDS = ("label", "error", "prompt")
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SavedForecasts:
    """Forecasts read back: `probabilities` (n, 3), rows normalised; `labels` (n,) in Outcome's values, -1 where there
    is none; `failed` (n,); `keys` (n,) of the first prompts, None in a file without texts."""

    ids: list[str]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    failed: NDArray[np.bool_]
    keys: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, blocks: Iterable[SavedForecasts]) -> SavedForecasts:
        """The blocks as one."""
        every = list(blocks)
        keys = [block.keys for block in every if block.keys is not None]
        return cls(
            [id for block in every for id in block.ids],
            np.concatenate([block.probabilities for block in every]),
            np.concatenate([block.labels for block in every]),
            np.concatenate([block.failed for block in every]),
            np.concatenate(keys) if len(keys) == len(every) else None,
        )

    @cached_property
    def _where(self) -> dict[str, int]:
        return {id: index for index, id in enumerate(self.ids)}

    def find(self, id: str | int) -> int | None:
        """The row of `id`, as text; None if there is none."""
        return self._where.get(str(id))

    def rows_of(self, ids: Iterable[str | int]) -> NDArray[np.float64]:
        """The probabilities (n, 3) of n ids, nan for those that are not there or failed."""
        found = [self.find(id) for id in ids]
        out = np.full((len(found), len(WINNERS)), np.nan)
        there = [row for row, index in enumerate(found) if index is not None and not self.failed[index]]
        out[there] = self.probabilities[[index for index in (found[row] for row in there) if index is not None]]
        return out


def read_saved(path: Any) -> SavedForecasts:
    """All of `saved_blocks` as one."""
    return SavedForecasts.of(saved_blocks(path))


def saved_blocks(path: Any, *, label_values: Mapping[str, str] | None = None) -> Iterator[SavedForecasts]:
    """Read a submission or predictions file, a block of rows at a time: `id`, three probabilities, perhaps `label` (0, 1,
    2, or what `label_values` names), `error` and `prompt`.

    Probabilities that were rounded (rows summing to 1 within 0.001) are normalised. Anything else raises FileError with its row.
    """
    expected = ("id", *WINNERS)
    with Table(path, (*expected, *ROW_FIELDS)) as table:
        table.need(*expected, otherwise=f"expected {', '.join(expected)} (a predictions file)")
        if not are_forecasts(table.names) and {"prompt", "response_a", "conversation_a"} & table.names:
            raise FileError(table.name, "holds pairs and their labels, not predictions")
        for block in row_blocks(table, Labels(label_values)):
            values = sound_numbers(block.records, WINNERS)
            if values is None:
                values = np.array([_probabilities(table, row, record) for row, record in block])
            else:
                values = values / values.sum(axis=1, keepdims=True)
            yield SavedForecasts(block.ids, values, block.labels, block.failed, block.keys)


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a file of numbers: `labels` (n,), -1 where there is none; `keys` (n,) of the first prompts."""

    rows: list[int]
    ids: list[str]
    records: list[Record]
    labels: NDArray[np.int64]
    failed: NDArray[np.bool_]
    keys: NDArray[np.uint64] | None

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        return zip(self.rows, self.records, strict=True)


def row_blocks(table: Table, labels: Labels | None) -> Iterator[RowBlock]:
    """The rows of a file of numbers, by id, a block at a time; without `labels` its labels are not read."""
    with_errors = table.loose or "error" in table.names
    with_prompts, with_labels = "prompt" in table.names, labels is not None and "label" in table.names
    for rows, ids, records in table.blocks(_BLOCK_ROWS):
        yield RowBlock(
            rows,
            ids,
            records,
            np.array(_labels(table, labels, rows, records) if labels is not None and with_labels else [-1] * len(rows)),
            np.array([record.get("error") not in (None, "") for record in records])
            if with_errors
            else np.zeros(len(rows), bool),
            np.array([_first_prompt_key(record) for record in records], np.uint64) if with_prompts else None,
        )


def _labels(table: Table, labels: Labels, rows: Sequence[int], records: Sequence[Record]) -> list[int]:
    known: dict[str | int | None, int] = {}
    found = []
    for row, record in zip(rows, records, strict=True):
        value = record.get("label")
        if type(value) is str or type(value) is int or value is None:
            if (label := known.get(value)) is None:
                label = known[value] = _label(table, labels, row, value)
        else:
            label = _label(table, labels, row, value)
        found.append(label)
    return found


def _label(table: Table, labels: Labels, row: int, value: Any) -> int:
    try:
        label = labels.read("label", value)
    except Fault as fault:
        raise table.fault(row, fault) from None
    return -1 if label is None else int(label)


def _first_prompt_key(record: Record) -> int:
    prompt = record.get("prompt")
    return group_key(str(prompt[0] if isinstance(prompt, list) and prompt else prompt))


def sound_numbers(records: Sequence[Record], names: Sequence[str]) -> NDArray[np.float64] | None:
    """The columns (n, k) of n rows that all hold finite numbers, or probabilities where `names` are those; None where
    one does not: then each row must be looked at, and the fault named."""
    try:
        columns = [[record[name] for record in records] for name in names]
        if not {kind for column in columns for kind in map(type, column)} <= {str, float, int}:
            return None
        values = np.array([list(map(float, column)) for column in columns]).T
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not np.isfinite(values).all():
        return None
    if tuple(names) != WINNERS:
        return values
    inside = (values >= -ROUNDING).all() and (values <= 1 + ROUNDING).all()
    return values.clip(0.0, 1.0) if inside and (abs(values.sum(axis=1) - 1) <= SUM_TOLERANCE).all() else None


def _probabilities(table: Table, row: int, record: Record) -> tuple[float, ...]:
    try:
        numbers = three_numbers(record)
        if numbers is None:
            raise Fault(",".join(WINNERS), "are empty; expected three probabilities")
        return normalised(numbers)
    except Fault as fault:
        raise table.fault(row, fault) from None
