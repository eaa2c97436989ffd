"""Evaluation: measures forecasts, made here or read from a file, against labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.resolve import Choice, check_columns, resolve
from prefcast.forecasts.scores import score_blocks
from prefcast.measuring.collected import SWAPPED, Measured, swap_of
from prefcast.measuring.metrics import Evaluation
from prefcast.outcomes.models import MarginSign
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.pairs.formats.saved import SavedForecasts, saved_blocks
from prefcast.pairs.sources import opened_pairs
from prefcast.runs.jobs import forecasts_of
from prefcast.runs.loop import Progress, Tally
from prefcast.runs.ready import Running, ready

__all__ = ["evaluate", "measured_forecasts", "measured_predictions", "measured_scores"]


def measured_forecasts(
    source: Any,
    forecaster: Forecaster,
    *,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    progress: Progress | None = None,
    surprises: int = 0,
    against: tuple[str, SavedForecasts] | None = None,
) -> Measured:
    """Forecast labelled pairs and collect the forecasts, and try the exchange of A and B on some rows."""
    tally = Tally()
    with opened_pairs(source, columns, cells, label_values, max_row) as pairs:
        measured = Measured(surprises=surprises, against=against, by=pairs if isinstance(pairs, PairFile) else None)
        measured.by_margin, measured.judge = isinstance(forecaster.outcome, MarginSign), forecaster.scorer.judge
        if isinstance(pairs, PairFile) and not pairs.may_have_labels:
            raise UsageError(f"{pairs.name}: nothing to evaluate: the file has no label columns ({LABEL_COLUMNS})")
        for forecasts in forecasts_of(pairs, forecaster, tally, progress=progress):
            measured.add(forecasts)
    measured.restored, measured.spent, measured.escalated = tally.restored, tally.spent, tally.escalated
    measured.try_swapped(forecaster)
    return measured


def evaluate(
    source: Any,
    *,
    model: str | None = None,
    forecaster: Forecaster | str | os.PathLike[str] | None = None,
    budget: Budget | str | None = None,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    progress: Progress | None = None,
    preset: str | None = None,
    running: Running | None = None,
) -> Evaluation:
    """Forecast labelled pairs (what `predict` takes) and measure the forecasts against the labels.

    A reward model without an outcome model is measured by its margins: see Evaluation.by_margin. Rows that fail and rows
    without a label are counted and left out. Raises UsageError if no row is left.
    """
    choice = Choice(model, forecaster, budget=budget, preset=preset)
    with ready(resolve(choice, by_margin=True), running) as chosen:
        return measured_forecasts(
            source,
            chosen,
            columns=columns,
            cells=cells,
            label_values=label_values,
            max_row=max_row,
            progress=progress,
        ).evaluation()


def measured_predictions(
    path: str | os.PathLike[str],
    labelled: AbstractContextManager[PairFile] | None = None,
    *,
    surprises: int = 0,
    against: tuple[str, SavedForecasts] | None = None,
    swapped: SavedForecasts | None = None,
    label_values: Mapping[str, str] | None = None,
) -> Measured:
    """Collect the forecasts of a file with the labels of `labelled`, joined by id, or with the labels of the file.

    `swapped` are forecasts of the same rows with A and B exchanged. Raises FileError if a labelled row has no forecast.
    """
    if labelled is None:
        measured = Measured(surprises=surprises, against=against)
        exchanged = []
        for block in saved_blocks(path, label_values=label_values):
            with_label = block.labels >= 0
            used = with_label & ~block.failed
            measured.failed += int((with_label & block.failed).sum())
            measured.unlabelled += int((~with_label).sum())
            measured.add_rows(block, used, block.probabilities[used])
            if swapped is not None:
                exchanged.append((block.probabilities, swapped.rows_of(block.ids)))
        if measured.unlabelled == measured.rows:
            raise UsageError("the file of predictions has no labels; name the file of labelled pairs as well")
        if exchanged:
            measured.swap = swap_of(*map(np.concatenate, zip(*exchanged, strict=True)))
        return measured
    with labelled as file:
        measured = Measured(surprises=surprises, against=against, by=file)
        predictions = SavedForecasts.of(saved_blocks(path, label_values=label_values))
        waiting: list[Pair] = []
        found: list[int] = []

        def collect() -> None:
            cut = None if predictions.truncated is None else predictions.truncated[found].tolist()
            measured.add_pairs(waiting, predictions.probabilities[found], cut)

        for item in file:
            measured.rows += 1
            if isinstance(item, RowError):
                measured.failed += 1
            elif item.outcome is None:
                measured.unlabelled += 1
            elif (index := predictions.find(item.id)) is None:
                raise FileError(
                    file.name,
                    f"id {excerpt(item.id)} is not among the predictions; every labelled row needs one",
                    item.row,
                )
            elif predictions.failed[index]:
                measured.failed += 1
            else:
                waiting.append(item)
                found.append(index)
                if len(waiting) >= SWAPPED:
                    collect()
                    waiting, found = [], []
        collect()
    if swapped is not None:
        measured.swap = swap_of(predictions.probabilities, swapped.rows_of(predictions.ids))
    return measured


def measured_scores(
    path: str | os.PathLike[str],
    forecaster: Forecaster | None,
    *,
    against: tuple[str, SavedForecasts] | None = None,
    label_values: Mapping[str, str] | None = None,
) -> Measured:
    """Forecast from a file of scores with labels, and collect the forecasts. Without a forecaster the sign of the margin
    counts."""
    if forecaster is not None and (not forecaster.scorer.brought or forecaster.scorer.members()):
        raise UsageError("the forecaster needs the texts as well as the scores: name the file of labelled pairs")
    measured = Measured(against=against)
    measured.by_margin = forecaster is None
    outcome = MarginSign() if forecaster is None else forecaster.outcome
    for block in score_blocks(path, label_values=label_values):
        if forecaster is not None:
            check_columns(forecaster.scorer, block.columns, path)
        used = block.scored & (block.labels >= 0)
        measured.failed += int((~block.scored).sum())
        measured.unlabelled += int((block.scored & (block.labels < 0)).sum())
        measured.add_rows(block, used, outcome.probabilities(block.margin[used], block.tie[used]))
    return measured
