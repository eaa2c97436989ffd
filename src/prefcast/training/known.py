"""Which pairs of a training its start knows already. They say nothing about new pairs, so they are left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError
from prefcast.forecasts.fitted_rows import FittedRows, hashes_of
from prefcast.training.data import Labelled
from prefcast.training.splits import apart

__all__ = ["Known", "without_known"]


@dataclass(frozen=True)
class Known:
    """The pairs of a training, `labelled`, without those that the start was fitted on, and without those held out whose first prompt
    it knows. `prompt` (n,) marks the pairs that are left although it knows their first prompts. `lines` say how many."""

    labelled: Labelled
    prompt: NDArray[np.bool_]
    lines: tuple[str, ...]
    counts: dict[str, int]


def without_known(labelled: Labelled, fitted: FittedRows | None, name: str) -> Known:
    """The pairs without those that the start was fitted on; `name` is what it is called. A first prompt is known if one of its group
    of near-duplicates is. Raises UsageError if no pair is left to learn from."""
    if fitted is None:
        said = f"{name} does not say which pairs it was fitted on: if yours are among them, the figures are too good"
        return Known(labelled, np.zeros(len(labelled.pairs), dtype=bool), (said,), {})
    rows, prompts = hashes_of(labelled.pairs).T
    row = fitted.rows.holds(rows) == 1
    seen = row if fitted.prompts is None else row | (fitted.prompts.holds(prompts) == 1)
    prompt, held = ~apart(labelled.group, seen), labelled.calibration
    counts = {
        "learned": int((row & ~held).sum()),
        "held_out": int((row & held).sum()),
        "held_out_by_prompt": int((prompt & ~row & held).sum()),
        "learned_by_prompt": int((prompt & ~row & ~held & (labelled.weight > 0)).sum()),
    }
    kept = ~row & ~(held & prompt)
    if not (kept & (labelled.weight > 0)).any():
        raise UsageError(f"{name} was fitted on every one of these pairs already: none is left to learn from")
    least = "" if fitted.rows.exact else "at least "
    lines = []
    if row.any():
        lines.append(
            f"{name} was fitted on {least}{counts['learned']:,} of the pairs to learn from and {counts['held_out']:,} of those held "
            "out; they are left out"
        )
    if counts["held_out_by_prompt"]:
        lines.append(f"{counts['held_out_by_prompt']:,} more held out are left out: {name} knows their first prompts")
    if counts["learned_by_prompt"]:
        lines.append(
            f"{name} knows the first prompts of {counts['learned_by_prompt']:,} more pairs to learn from: they are learned, but they "
            "do not decide how far the weights move"
        )
    if not fitted.rows.exact or (fitted.prompts is not None and not fitted.prompts.exact):
        lines.append(
            f"{name} knows a sample of its pairs and prompts alone: others of yours may be among them, so the figures may be too good"
        )
    return Known(labelled.where(kept), prompt[kept], tuple(lines), counts)
