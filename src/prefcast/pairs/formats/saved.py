"""Files of forecasts -> probabilities: submissions and predictions files, read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError, excerpt
from prefcast.pairs import clean
from prefcast.pairs.formats.fields import Fault, Record, absent, as_number, number
from prefcast.pairs.formats.labels import (
    SUM_TOLERANCE,
    WINNERS,
    Labels,
    are_forecasts,
    normalised,
    three_numbers,
)
from prefcast.pairs.formats.table import Table
from prefcast.pairs.pair import group_key

__all__ = ["ROW_FIELDS", "SavedForecasts", "numbers", "read_saved", "row_blocks", "saved_blocks"]

ROW_FIELDS = ("label", "error", "prompt")
# What was read of a pair, and how much there was.
_READ = (("characters_kept", "characters"), ("turns_kept", "turns"))
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SavedForecasts:
    """Forecasts read back: `probabilities` (n, 3), rows normalised; `labels` (n,) in Outcome's values, -1 where there
    is none; `failed` (n,); `keys` (n,) of the first prompts, None in a file without texts; `truncated` (n,), whether only
    a part of the pair was read, None in a file that does not say; `own` (n,) the values of further columns that were asked for."""

    ids: list[str]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    failed: NDArray[np.bool_]
    keys: NDArray[np.uint64] | None = None
    truncated: NDArray[np.bool_] | None = None
    own: Mapping[str, list[str | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, blocks: Iterable[SavedForecasts]) -> SavedForecasts:
        """The blocks as one."""
        every = list(blocks)
        keys = [block.keys for block in every if block.keys is not None]
        truncated = [block.truncated for block in every if block.truncated is not None]
        return cls(
            [id for block in every for id in block.ids],
            np.concatenate([block.probabilities for block in every]),
            np.concatenate([block.labels for block in every]),
            np.concatenate([block.failed for block in every]),
            np.concatenate(keys) if len(keys) == len(every) else None,
            np.concatenate(truncated) if len(truncated) == len(every) else None,
            {name: [value for block in every for value in block.own[name]] for name in (every[0].own if every else ())},
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
    """All blocks of `saved_blocks` as one."""
    return SavedForecasts.of(saved_blocks(path))


def saved_blocks(
    path: Any,
    *,
    label_values: Mapping[str, str] | None = None,
    own: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> Iterator[SavedForecasts]:
    """Read a submission or predictions file, a block of rows at a time: `id`, three probabilities, perhaps `label` (0, 1,
    2, or what `label_values` names), `error` and `prompt`. `own` is given the file's columns and names those of them to keep.

    Probabilities that were rounded (rows summing to 1 within 0.001) are normalised. Anything else raises FileError with its row.
    """
    expected = ("id", *WINNERS)
    with Table(path, fields=(*expected, *ROW_FIELDS, *chain.from_iterable(_READ))) as table:
        told = all(name in table.names for name in _READ[0])
        table.need(*expected, otherwise=f"expected {', '.join(expected)} (a predictions file)")
        if not are_forecasts(table.names) and {"prompt", "response_a", "conversation_a"} & table.names:
            raise FileError(table.name, "holds pairs and their labels, not predictions")
        kept = () if own is None else own(table.columns)
        table.read_too(*kept)
        if missing := next((name for name in kept if name not in table.columns and not table.loose), None):
            raise FileError(table.name, f"column {excerpt(missing)} is missing; {table.found}")
        for block in row_blocks(table, Labels(label_values)):
            values = numbers(table, block, WINNERS, gaps=False)
            cut = np.array([*map(_truncated, block.records)], bool) if told else None
            values_of = {name: [_own(record.get(name)) for record in block.records] for name in kept}
            yield SavedForecasts(block.ids, values, block.labels, block.failed, block.keys, cut, values_of)


def _own(value: Any) -> str | None:
    return None if absent(value) else clean(str(value))


def _truncated(record: Record) -> bool:
    return any(as_number(record.get(kept)) < as_number(record.get(there)) for kept, there in _READ)


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a file of numbers: `labels` (n,), -1 where there is none; `keys` (n,) of the first prompts."""

    rows: list[int]
    ids: list[str]
    records: list[Record]
    labels: NDArray[np.int64]
    failed: NDArray[np.bool_]
    keys: NDArray[np.uint64] | None


def row_blocks(table: Table, labels: Labels | None) -> Iterator[RowBlock]:
    """The rows of a file of numbers, by id, a block at a time; without `labels` its labels are not read."""
    with_errors = table.loose or "error" in table.names
    if "label" not in table.names:
        labels = None
    for rows, ids, records in table.blocks(_BLOCK_ROWS):
        yield RowBlock(
            rows,
            ids,
            records,
            np.array([-1] * len(rows) if labels is None else _labels(table, labels, rows, records)),
            np.array([with_errors and not absent(record.get("error")) for record in records], bool),
            np.array([_first_prompt_key(each) for each in records], np.uint64) if "prompt" in table.names else None,
        )


def _labels(table: Table, labels: Labels, rows: Sequence[int], records: Sequence[Record]) -> list[int]:
    found = []
    for row, record in zip(rows, records, strict=True):
        try:
            label = labels.read("label", record.get("label"))
        except Fault as fault:
            raise table.fault(row, fault) from None
        found.append(-1 if label is None else int(label))
    return found


def _first_prompt_key(record: Record) -> int:
    prompt = record.get("prompt")
    return group_key(str(prompt[0] if isinstance(prompt, list) and prompt else prompt))


def numbers(table: Table, block: RowBlock, names: Sequence[str], *, gaps: bool) -> NDArray[np.float64]:
    """The columns (n, k) of a block: finite numbers, or probabilities with a sum of 1 where `names` are those.

    With `gaps`, a row that failed or is empty has nan. Raises FileError for any other row without the numbers.
    """
    found = None if gaps and block.failed.any() else _all_sound(block.records, names)
    return (
        np.array([_numbers(table, *each, names, gaps) for each in zip(block.rows, block.records, strict=True)])
        if found is None
        else found
    )


def _numbers(table: Table, row: int, record: Record, names: Sequence[str], gaps: bool) -> Sequence[float]:
    if gaps and (not absent(record.get("error")) or all(absent(record.get(name)) for name in names)):
        return [np.nan] * len(names)
    try:
        if tuple(names) != WINNERS:
            return [number(record, name) for name in names]
        if (shares := three_numbers(record)) is None:
            raise Fault(",".join(WINNERS), "are empty; expected three probabilities")
        return normalised(shares)
    except Fault as fault:
        raise table.fault(row, fault) from None


def _all_sound(records: Sequence[Record], names: Sequence[str]) -> NDArray[np.float64] | None:
    """The numbers of rows that all have them, without a look at each; None if one row may lack them."""
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
    sums = values.sum(axis=1, keepdims=True)
    inside = (values >= 0).all() and (values <= 1).all() and (abs(sums - 1) <= SUM_TOLERANCE).all()
    return values / sums if inside else None
