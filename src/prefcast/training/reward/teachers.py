"""Teachers: forecasts or scores of larger models, by id, and what can be known of the rows that these models learned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, shown_path
from prefcast.fitting.fitter import LEAST_LABELS
from prefcast.forecasts.fitted_rows import FittedRows, row_key
from prefcast.forecasts.scores import score_blocks, scorer_of
from prefcast.outcomes.models import Davidson
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.pair import group_key
from prefcast.scorers.given import GivenScorer

__all__ = ["Teacher", "learned_before", "lines_of", "taught"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Teacher:
    """A file of forecasts or scores. `prompts` are the keys of the first prompts by id; empty if the file has no prompts."""

    shown: str
    scorer: GivenScorer
    ids: frozenset[str]
    prompts: Mapping[str, int]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Raises FileError."""
        blocks = list(score_blocks(path, with_labels=False))
        prompts: dict[str, int] = {}
        for block in blocks:
            if block.keys is not None:
                prompts |= zip(block.ids, block.keys.tolist(), strict=True)
        ids = frozenset(id for block in blocks for id in block.ids)
        return cls(shown_path(path), scorer_of(blocks, path), ids, prompts)

    def lines(self, pairs: Sequence[Pair]) -> list[str]:
        """What is odd about the file beside the pairs: ids that none of them has, ids with another first prompt."""
        said = []
        if other := len(self.ids - {str(pair.id) for pair in pairs}):
            said.append(f"--teacher {self.shown}: {other:,} of its {len(self.ids):,} ids are of none of the rows")
        known = [(pair, self.prompts.get(str(pair.id))) for pair in pairs] if self.prompts else []
        wrong = [pair for pair, key in known if key is not None and key != group_key(pair.prompt[0])]
        if wrong:
            said.append(
                f"--teacher {self.shown}: {len(wrong):,} of the rows have another first prompt there, the first is id "
                f"{str(wrong[0].id)!r}; the forecasts may be of other pairs"
            )
        return said


def taught(pairs: Sequence[Pair], target: Floats, teachers: Sequence[Teacher]) -> Floats:
    """The teachers' probabilities (n, 3) of n pairs, averaged over those that have a row; nan where none has. `target` (n, 3) are
    shares of outcomes, 0 in a row without a label. Raises UsageError for a teacher of none of the pairs, and for scores without labels
    that they could be read with."""
    total, count = np.zeros((len(pairs), len(Outcome))), np.zeros(len(pairs))
    for teacher in teachers:
        found = teacher.scorer.compute(pairs)
        good = np.isfinite(found.margin) & np.isfinite(found.tie)
        if not good.any():
            raise UsageError(f"--teacher {teacher.shown}: has scores of none of the pairs")
        model = Davidson(1.0, 0.0, 1.0)
        if not teacher.scorer.log_odds:
            # Scores have no scale of their own: one is fitted to the labels.
            use = good & (target.sum(axis=1) > 0)
            if use.sum() < LEAST_LABELS:
                raise UsageError(
                    f"--teacher {teacher.shown}: has scores, whose scale is fitted to labels, and {int(use.sum())} of its rows have "
                    f"labels to learn from; that takes at least {LEAST_LABELS}, or give forecasts"
                )
            model = Davidson.fit(found.margin[use], found.tie[use], target[use].argmax(axis=1))
        total[good] += model.probabilities(found.margin[good], found.tie[good])
        count += good
    return np.divide(total, count[:, None], out=np.full_like(total, np.nan), where=count[:, None] > 0)


def learned_before(
    folders: Sequence[str | os.PathLike[str]], pairs: Sequence[Pair], learned: Mask, held: Mask
) -> list[dict[str, Any]]:
    """For the forecasters in the folders: how many of the rows that are learned, and of those held out, each was fitted on.

    Raises UsageError for a folder that does not say which rows those were, and ForecasterError for a damaged one.
    """
    found = []
    for folder in folders:
        fitted = FittedRows.read(Path(folder))
        if fitted is None:
            raise UsageError(
                f"--teacher-forecaster {shown_path(folder)}: has no fitted-rows.bin, so it is not known which rows it learned"
            )
        in_fit = fitted.rows.holds(np.array([row_key(pair) for pair in pairs], dtype=np.uint64)) == 1
        counts = {"learned": int(in_fit[learned].sum()), "held_out": int(in_fit[held].sum())}
        found.append({"forecaster": shown_path(folder), **counts, "all_rows_known": fitted.rows.exact})
    return found


def lines_of(found: Sequence[dict[str, Any]]) -> list[str]:
    """What `learned_before` found, in lines."""
    said = []
    for each in found:
        name, learned, held = each["forecaster"], each["learned"], each["held_out"]
        known = "" if each["all_rows_known"] else " at least (it knows only a sample of its rows)"
        odd = "; its forecasts of these rows are too good: give out-of-fold forecasts" if learned or held else ""
        said.append(
            f"--teacher-forecaster {name}: was fitted on {learned:,} of the rows to learn from and {held:,} of those held out{known}{odd}"
        )
    return said
