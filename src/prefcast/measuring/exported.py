"""The measured rows as a file: what each row's label, probabilities, loss and residuals are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import checked_ending
from prefcast.forecasts.outputs import Writer, opened_writer
from prefcast.measuring.metrics import NAMES, row_accuracy, row_brier, row_log_loss
from prefcast.measuring.metrics.measure import FOLDS
from prefcast.pairs import clean

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ExportedRows", "RowExport", "opened_export"]

Floats = NDArray[np.float64]

_NUMBERS = (
    *NAMES,
    *(f"share_{name}" for name in NAMES),
    "votes",
    "weight",
    "log_loss",
    "brier_score",
    "accuracy",
    *(f"residual_{name}" for name in NAMES),
)
_ENDINGS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, eq=False)
class ExportedRows:
    """n measured rows: probabilities `p` and shares of votes (n, 3), `votes`, `weight`, `keys` of the first prompts (n,), the
    values of the slices, and the log losses of other forecasts (n, k), nan where there is none."""

    ids: list[str | int]
    p: Floats
    share: Floats
    votes: Floats
    weight: Floats
    keys: NDArray[np.uint64]
    slices: Sequence[dict[str, str | None]]
    others: dict[str, Floats]

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        """A dict for each row. `label` is 0 (A), 1 (B) or 2 (tie) where all votes say the same; a residual is the probability of
        an outcome minus the share of the votes for it."""
        figures = (row_log_loss(self.p, self.share), row_brier(self.p, self.share), row_accuracy(self.p, self.share))
        numbers = np.column_stack([self.p, self.share, self.votes, self.weight, *figures, self.p - self.share]).tolist()
        labels = np.where(self.share.max(axis=1) == 1, self.share.argmax(axis=1), -1).tolist()
        known = ([None if math.isnan(loss) else loss for loss in values.tolist()] for values in self.others.values())
        losses = list(zip(*known, strict=True))
        for row, id in enumerate(self.ids):
            key = int(self.keys[row])
            yield {
                "id": clean(id) if isinstance(id, str) else id,
                "label": None if labels[row] < 0 else labels[row],
                **dict(zip(_NUMBERS, numbers[row], strict=True)),
                "group": f"{key:016x}",
                "fold": key % FOLDS,
                **self.slices[row],
                **dict(zip(self.others, losses[row] if losses else (), strict=True)),
            }


class RowExport:
    """Writes measured rows. `slices` are the kinds of slices, `others` the names of the other forecasts."""

    def __init__(self, writer: Writer, slices: Sequence[str], others: Sequence[str]) -> None:
        self._writer, self.slices, self.others = writer, _columns("slice", slices), _columns("log_loss", others)

    def write(self, rows: ExportedRows) -> None:
        self._writer.write(rows)


@contextmanager
def opened_export(path: str | os.PathLike[str], slices: Sequence[str], others: Sequence[str]) -> Iterator[RowExport]:
    """A file of measured rows: .csv, .jsonl or .parquet. It appears whole or not at all. Raises UsageError.

    In a CSV, a text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    kind = checked_ending(path, "the measured rows", *_ENDINGS)
    texts, losses = _columns("slice", slices), _columns("log_loss", others)
    names = ("id", "label", *_NUMBERS, "group", "fold", *texts, *losses)

    def schema(whole_ids: bool) -> pyarrow.Schema:
        import pyarrow

        kinds = dict.fromkeys(names, pyarrow.float64()) | dict.fromkeys(("group", *texts), pyarrow.string())
        kinds |= {
            "id": pyarrow.int64() if whole_ids else pyarrow.string(),
            "label": pyarrow.int8(),
            "fold": pyarrow.int8(),
        }
        return pyarrow.schema(list(kinds.items()))

    with opened_writer(path, kind, (), own=names, schema=schema) as writer:
        yield RowExport(writer, slices, others)


def _columns(what: str, names: Sequence[str]) -> list[str]:
    """The names of columns: `length difference` becomes slice_length_difference."""
    return [f"{what}_{clean(name).replace(' ', '_')}" for name in names]
