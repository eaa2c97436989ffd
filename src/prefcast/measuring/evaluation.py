"""Evaluation: measures forecasts, made here or read from a file, against labels."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, excerpt, shown_path
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.resolve import Choice, check_columns, resolve
from prefcast.forecasts.scores import GivenScores, score_blocks
from prefcast.measuring.collected import SWAPPED, Measured, swap_of
from prefcast.measuring.exported import RowExport
from prefcast.measuring.metrics import Evaluation
from prefcast.measuring.row_labels import RowLabel, RowLabels
from prefcast.outcomes.models import MarginSign
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.fields import Fault
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.pairs.formats.saved import SavedForecasts, read_saved, saved_blocks
from prefcast.pairs.sources import opened_pairs
from prefcast.runs.jobs import forecasts_of
from prefcast.runs.loop import Progress, Tally
from prefcast.runs.ready import Running, ready

__all__ = ["Wanted", "evaluate", "measured_forecasts", "measured_predictions", "measured_scores", "read_others"]


@dataclass(frozen=True)
class Wanted:
    """What is measured besides the forecasts and the labels of the rows.

    `surprises` is the number of rows with the largest log loss to keep. `against` are other forecasts of the same rows. `by` is
    a column whose values are kinds of rows. `votes` is a file of vote counts, `weights` a column of weights or a file of
    them. `export` gets the measured rows.
    """

    surprises: int = 0
    against: Sequence[tuple[str, SavedForecasts]] = ()
    by: str | None = None
    votes: str | os.PathLike[str] | None = None
    weights: str | os.PathLike[str] | None = None
    export: RowExport | None = None

    def collector(self, columns: Collection[str], fitted: FittedRows | None = None) -> Measured:
        """What collects the rows of a file with these columns."""
        return Measured(
            surprises=self.surprises,
            against=self.against,
            by=self.by,
            labels=RowLabels.read(columns, self.votes, self.weights),
            fitted=fitted,
            export=self.export,
        )

    def kept(self, measured: Measured) -> tuple[str, ...]:
        """The columns of the file that have to be kept."""
        return (*measured.labels.kept, *(() if self.by is None else (self.by,)))

    def of_pairs(self, pairs: Any, fitted: FittedRows | None = None) -> Measured:
        """What collects the rows of pairs that were opened. Raises UsageError if they have no labels, or no such columns."""
        if not isinstance(pairs, PairFile):
            if self.by is not None or self.weights is not None or self.votes is not None:
                raise UsageError("by, votes and weights need a file or a table of labelled pairs")
            return self.collector((), fitted)
        measured = self.collector(pairs.columns, fitted)
        measured.source = pairs.name
        labels = measured.labels
        if labels.votes is None and not labels.columns and not pairs.may_have_labels:
            raise UsageError(f"{pairs.name}: nothing to evaluate: the file has no label columns ({LABEL_COLUMNS})")
        pairs.keep(*self.kept(measured))
        return measured


def measured_forecasts(
    source: Any,
    forecaster: Forecaster,
    *,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    progress: Progress | None = None,
    wanted: Wanted | None = None,
) -> Measured:
    """Forecast labelled pairs and collect the forecasts, and try the exchange of A and B on some rows."""
    tally = Tally()
    with opened_pairs(source, columns, cells, label_values, max_row) as pairs:
        measured = (wanted or Wanted()).of_pairs(pairs, forecaster.fitted_rows)
        measured.by_margin, measured.judge = isinstance(forecaster.outcome, MarginSign), forecaster.scorer.judge
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
    against: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    by: str | None = None,
    votes: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Forecast labelled pairs (what `predict` takes) and measure the forecasts against the labels.

    `against` are files of other forecasts of the same rows. `by` is a column of the pairs whose values are slices. `votes` is a
    file of vote counts (id, votes_a, votes_b, votes_tie); columns of these names in the pairs are votes too. `weights` is a
    column of the pairs, or a file with id and weight.

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
            wanted=Wanted(against=_read_others(against), by=by, votes=votes, weights=weights),
        ).evaluation()


def _read_others(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[tuple[str, SavedForecasts]]:
    every = [paths] if isinstance(paths, str | os.PathLike) else paths
    return read_others([Path(path) for path in every])


def read_others(paths: Sequence[Path]) -> list[tuple[str, SavedForecasts]]:
    """Files of forecasts with what they are called: by their names, or their paths where two names are the same."""
    names = [path.name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("--against names one file twice")
    return [(name, read_saved(path)) for name, path in zip(names, paths, strict=True)]


def measured_predictions(
    path: str | os.PathLike[str],
    labelled: AbstractContextManager[PairFile] | None = None,
    *,
    wanted: Wanted | None = None,
    swapped: SavedForecasts | None = None,
    label_values: Mapping[str, str] | None = None,
) -> Measured:
    """Collect the forecasts of a file with the labels of `labelled`, joined by id, or with the labels of the file.

    `swapped` are forecasts of the same rows with A and B exchanged. Raises FileError if a labelled row has no forecast.
    """
    wanted = wanted or Wanted()
    if labelled is None:
        made: list[Measured] = []

        def own(columns: Sequence[str]) -> Sequence[str]:
            made.append(wanted.collector(columns))
            return wanted.kept(made[0])

        exchanged = []
        for block in saved_blocks(path, label_values=label_values, own=own):
            measured = made[0]
            labels = _labels(measured, block, shown_path(path))
            with_label = np.array([label is not None for label in labels])
            used = with_label & ~block.failed
            measured.failed += int((with_label & block.failed).sum())
            measured.unlabelled += int((~with_label).sum())
            measured.add_rows(block, used, block.probabilities[used], labels)
            if swapped is not None:
                exchanged.append((block.probabilities, swapped.rows_of(block.ids)))
        if measured.unlabelled == measured.rows:
            raise UsageError("the file of predictions has no labels; name the file of labelled pairs as well")
        if exchanged:
            measured.swap = swap_of(*map(np.concatenate, zip(*exchanged, strict=True)))
        return measured
    with labelled as file:
        measured = wanted.of_pairs(file)
        predictions = SavedForecasts.of(saved_blocks(path, label_values=label_values))
        waiting: list[Pair] = []
        found: list[int] = []
        said: list[RowLabel] = []

        def collect() -> None:
            cut = None if predictions.truncated is None else predictions.truncated[found].tolist()
            measured.add_pairs(waiting, predictions.probabilities[found], cut, said)

        for item in file:
            measured.rows += 1
            if isinstance(item, RowError):
                measured.fail(item)
            elif (label := measured.label_of(item)) is None:
                continue
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
                said.append(label)
                if len(waiting) >= SWAPPED:
                    collect()
                    waiting, found, said = [], [], []
        collect()
    if swapped is not None:
        measured.swap = swap_of(predictions.probabilities, swapped.rows_of(predictions.ids))
    return measured


def measured_scores(
    path: str | os.PathLike[str],
    forecaster: Forecaster | None,
    *,
    wanted: Wanted | None = None,
    label_values: Mapping[str, str] | None = None,
) -> Measured:
    """Forecast from a file of scores with labels, and collect the forecasts. Without a forecaster the sign of the margin
    counts."""
    if forecaster is not None and (not forecaster.scorer.brought or forecaster.scorer.members()):
        raise UsageError("the forecaster needs the texts as well as the scores: name the file of labelled pairs")
    wanted = wanted or Wanted()
    if wanted.by is not None:
        raise UsageError("--by needs the file of labelled pairs, or of forecasts")
    measured = wanted.collector(())
    measured.by_margin = forecaster is None
    outcome = MarginSign() if forecaster is None else forecaster.outcome
    for block in score_blocks(path, label_values=label_values):
        if forecaster is not None:
            check_columns(forecaster.scorer, block.columns, path)
        labels = _labels(measured, block, shown_path(path))
        with_label = np.array([label is not None for label in labels])
        used = block.scored & with_label
        measured.failed += int((~block.scored).sum())
        measured.unlabelled += int((block.scored & ~with_label).sum())
        measured.add_rows(block, used, outcome.probabilities(block.margin[used], block.tie[used]), labels)
    return measured


def _labels(measured: Measured, block: SavedForecasts | GivenScores, name: str) -> list[RowLabel | None]:
    """What people said of the rows of a block. Raises FileError for votes and weights that are no numbers."""
    try:
        return measured.labels_of(block)
    except Fault as fault:
        raise FileError(name, f"{fault.field} {fault.problem}") from None
