"""Files of forecasts -> probabilities: submissions and predictions files, read back."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError, RowError, excerpt, shown_path
from prefcast.pairs.formats.containers import open_records
from prefcast.pairs.formats.ids import SeenIds
from prefcast.pairs.pair import group_key

__all__ = [
    "PROBABILITIES",
    "Predictions",
    "checked_row",
    "prediction_blocks",
    "read_label",
    "read_predictions",
    "same_id",
    "sound_numbers",
]

PROBABILITIES = ("winner_model_a", "winner_model_b", "winner_tie")
_SUM_TOLERANCE = 1e-3
_ROUNDING = 1e-9
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Predictions:
    """Forecasts read back: `probabilities` (n, 3), rows normalised; `labels` (n,) in Outcome's values, -1 where there
    is none; `failed` (n,); `keys` (n,) of the first prompts, None in a file without texts."""

    ids: list[str]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    failed: NDArray[np.bool_]
    keys: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, blocks: Iterable[Predictions]) -> Predictions:
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
        out = np.full((len(found), len(PROBABILITIES)), np.nan)
        there = [row for row, index in enumerate(found) if index is not None and not self.failed[index]]
        out[there] = self.probabilities[[index for index in (found[row] for row in there) if index is not None]]
        return out


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """All of `prediction_blocks` as one."""
    return Predictions.of(prediction_blocks(path))


def prediction_blocks(path: str | os.PathLike[str]) -> Iterator[Predictions]:
    """Read a submission or predictions file, a block of rows at a time: `id`, three probabilities, perhaps `label` (0, 1,
    2), `error` and `prompt`.

    Probabilities that were rounded (rows summing to 1 within 0.001) are normalised. Anything else raises FileError with its row.
    """
    seen = SeenIds()
    empty = True
    with open_records(path) as records:
        missing = [name for name in ("id", *PROBABILITIES) if name not in records.columns]
        if missing:
            raise FileError(
                records.name,
                f"column '{missing[0]}' is missing; expected {', '.join(('id', *PROBABILITIES))} (a predictions file)",
            )
        if "margin" not in records.columns and {"prompt", "response_a", "conversation_a"} & set(records.columns):
            raise FileError(records.name, "holds pairs and their labels, not predictions")
        with_prompts = "prompt" in records.columns
        rows = iter(records)
        while block := list(islice(rows, _BLOCK_ROWS)):
            empty = False
            ids, p, labels, failed, keys = [], [], [], [], []
            sound = sound_numbers(block, PROBABILITIES)
            for row, record in block:
                if isinstance(record, RowError):
                    raise FileError(records.name, record.problem, row)
                if record.get("id") in (None, ""):
                    raise FileError(records.name, "id is missing; every row needs one", row)
                id = str(record["id"])
                if (first := seen.add(id, row)) is not None:
                    raise same_id(records.name, row, first, id)
                ids.append(id)
                if sound is None:
                    p.append(_probabilities(record, records.name, row))
                labels.append(read_label(record.get("label"), records.name, row))
                failed.append(record.get("error") not in (None, ""))
                if with_prompts:
                    prompt = record.get("prompt")
                    keys.append(group_key(str(prompt[0] if isinstance(prompt, list) and prompt else prompt)))
            if found := seen.settle():
                raise same_id(records.name, *found)
            values = np.array(p) if sound is None else sound
            yield Predictions(
                ids,
                values / values.sum(axis=1, keepdims=True),
                np.array(labels),
                np.array(failed),
                np.array(keys, dtype=np.uint64) if with_prompts else None,
            )
    if empty:
        raise FileError(shown_path(path), "has no rows; expected at least one")


def same_id(name: str, row: int, first: int, id: str | None = None) -> FileError:
    named = "" if id is None else f" {excerpt(id)}"
    return FileError(name, f"id{named} is the same as in row {first}; every row needs an id of its own", row)


def sound_numbers(
    block: Sequence[tuple[int, Mapping[str, Any] | RowError]], names: Sequence[str]
) -> NDArray[np.float64] | None:
    """The columns (n, k) of n rows that all hold finite numbers, or probabilities where `names` are those; None where
    one does not: then each row must be looked at, and the fault named."""
    try:
        columns = [[record[name] for _, record in block] for name in names]  # type: ignore[index]
        if not {kind for column in columns for kind in map(type, column)} <= {str, float, int}:
            return None
        values = np.array([list(map(float, column)) for column in columns]).T
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not np.isfinite(values).all():
        return None
    if tuple(names) != PROBABILITIES:
        return values
    inside = (values >= -_ROUNDING).all() and (values <= 1 + _ROUNDING).all()
    return values.clip(0.0, 1.0) if inside and (abs(values.sum(axis=1) - 1) <= _SUM_TOLERANCE).all() else None


def _probabilities(record: Mapping[str, Any], name: str, row: int) -> tuple[float, ...]:
    values = []
    for column in PROBABILITIES:
        try:
            value = float(record[column])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise FileError(name, f"{column} is {excerpt(record.get(column))}; expected a probability", row) from None
        values.append(value)
    return checked_row(values, name, row)


def checked_row(values: Sequence[float], name: str, row: int) -> tuple[float, ...]:
    """The three probabilities of a row; FileError if they are none or do not sum to 1 but for rounding."""
    for column, value in zip(PROBABILITIES, values, strict=True):
        if not -_ROUNDING <= value <= 1 + _ROUNDING:
            raise FileError(name, f"{column} is {value}; expected a probability from 0 to 1", row)
    if not math.isclose(sum(values), 1.0, rel_tol=0, abs_tol=_SUM_TOLERANCE):
        raise FileError(name, f"the probabilities sum to {sum(values):.6g}; expected 1 (within {_SUM_TOLERANCE})", row)
    return tuple(min(max(value, 0.0), 1.0) for value in values)


def read_label(value: Any, name: str, row: int) -> int:
    if value is None or value == "":
        return -1
    text = str(value).removesuffix(".0")
    if text not in ("0", "1", "2"):
        raise FileError(name, f"label is {excerpt(value)}; expected 0 (A), 1 (B) or 2 (tie)", row)
    return int(text)
