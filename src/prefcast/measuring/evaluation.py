"""Evaluation: measures forecasts, made here or read from a file, against labels."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecasts
from prefcast.forecasts.resolve import Choice, check_columns, resolve
from prefcast.forecasts.scores import score_blocks
from prefcast.measuring.metrics import NAMES, Evaluation, Swap, row_log_loss
from prefcast.measuring.metrics.measure import FOLDS, MeasuredRows, measure
from prefcast.measuring.metrics.slices import KINDS, Slicer
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.bootstrap import REPEATS
from prefcast.outcomes.statistics.columns import Columns
from prefcast.outcomes.statistics.likelihood import Block, linear, maximise
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.formats import PairFile, open_pairs
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.pairs.formats.saved import SavedForecasts, saved_blocks
from prefcast.pairs.pair import group_key
from prefcast.pairs.sources import opened_pairs
from prefcast.runs.jobs import forecasts_of
from prefcast.runs.loop import Progress, Tally
from prefcast.runs.ready import Running, ready
from prefcast.scorers.length import LengthScorer

_STUB_ROWS, _REHEARSED_ROWS = 3, 1000
__all__ = [
    "Measured",
    "Rehearsal",
    "Surprise",
    "evaluate",
    "evaluate_predictions",
    "measured_forecasts",
    "measured_predictions",
    "measured_scores",
]

Floats = NDArray[np.float64]

# The exchange of A and B is tried on so many rows, which is enough to detect a dependence on the order.
_SWAPPED = 256
_LENGTH_PENALTY = np.array([1.0, 0.1, 1.0])


@dataclass(frozen=True)
class Surprise:
    """A labelled pair whose outcome had a low probability, with the probabilities and the log loss."""

    pair: Pair
    probabilities: tuple[float, float, float]
    log_loss: float


class Measured:
    """Collects forecasts with their labels and measures them.

    `surprises` is the number of rows with the largest log loss to keep. `against` is another forecast of the same rows,
    which are matched by id.
    """

    def __init__(self, *, surprises: int = 0, against: tuple[str, SavedForecasts] | None = None) -> None:
        self._slicer = Slicer()
        self._length = LengthScorer()
        names = [
            *MeasuredRows.COLUMNS,
            "length",
            *(f"slice:{kind}" for kind in KINDS),
            *(f"other_{name}" for name in NAMES),
        ]
        self._table = Columns(names)
        self._against = against
        self._most = surprises
        self._heap: list[tuple[float, int, Surprise]] = []
        self._texts = True
        self._swapped: list[tuple[Pair, Floats]] = []
        self.swap: Swap | None = None
        self.rows = self.failed = self.unlabelled = self.truncated = self.restored = 0
        self.first_error: RowError | None = None

    def add(self, forecasts: Forecasts) -> None:
        """Collect forecasts of pairs, labelled or not."""
        good: list[int] = []
        for index, (pair, error) in enumerate(zip(forecasts.pairs, forecasts.errors, strict=True)):
            if error is not None or pair is None:
                self.failed += 1
            elif pair.outcome is None:
                self.unlabelled += 1
            else:
                good.append(index)
        self.rows += len(forecasts)
        self.first_error = self.first_error or next(filter(None, forecasts.errors), None)
        pairs = [pair for pair in (forecasts.pairs[index] for index in good) if pair is not None]
        truncations = [forecasts.truncations[index] for index in good]
        self.truncated += sum(each is not None and each.truncated for each in truncations)
        self.add_pairs(pairs, forecasts.probabilities[good], [*map(self._slicer.codes, pairs, truncations)])

    def add_pairs(self, pairs: Sequence[Pair], p: Floats, codes: Sequence[Sequence[float]] | None = None) -> None:
        """Collect the probabilities (n, 3) of labelled pairs."""
        if not pairs:
            return
        codes = codes if codes is not None else [self._slicer.codes(pair, None) for pair in pairs]
        y = np.array([pair.outcome for pair in pairs], dtype=np.int64)
        keys = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
        other = np.full((len(pairs), 3), np.nan)
        if self._against is not None:
            other = self._against[1].rows_of([pair.id for pair in pairs])
        length = self._length.evidence(pairs).margin
        self._table.append(np.column_stack([p, y, keys.view(np.float64), length, np.array(codes), other]))
        self._remember(pairs, p, y)
        if len(self._swapped) < _SWAPPED:
            self._swapped += list(zip(pairs, p, strict=True))[: _SWAPPED - len(self._swapped)]

    def add_rows(self, p: Floats, y: NDArray[np.int64], keys: NDArray[np.uint64], other: Floats | None) -> None:
        """Collect probabilities (n, 3), labels (n,) and group keys (n,) of rows without texts."""
        self._texts = False
        blank = np.full((len(p), 1 + len(KINDS)), -1.0)
        other = np.full((len(p), 3), np.nan) if other is None else other
        self._table.append(np.column_stack([p, y, keys.view(np.float64), blank, other]))

    def _remember(self, pairs: Sequence[Pair], p: Floats, y: NDArray[np.int64]) -> None:
        if not self._most:
            return
        for row, loss in enumerate(row_log_loss(p, y).tolist()):
            if len(self._heap) < self._most or loss > self._heap[0][0]:
                a, b, tie = p[row].tolist()
                item = (loss, -len(self._table) - row, Surprise(pairs[row], (a, b, tie), loss))
                (heapq.heappush if len(self._heap) < self._most else heapq.heappushpop)(self._heap, item)

    def try_swapped(self, forecaster: Forecaster) -> None:
        """Forecast the first rows again with A and B exchanged, and measure the change."""
        if not self._swapped:
            return
        if forecaster.scorer.brought:
            return  # given scores exist for one order only
        again = forecaster.forecast([pair.swapped() for pair, _ in self._swapped])
        good = [index for index, error in enumerate(again.errors) if error is None]
        before = np.array([self._swapped[index][1] for index in good]).reshape(-1, 3)
        self.swap = swap_of(before, again.probabilities[good])

    @property
    def surprises(self) -> list[Surprise]:
        """The rows with the largest log loss, the largest first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    def evaluation(self, *, repeats: int = REPEATS, seed: int = 0) -> Evaluation:
        """The figures of all collected rows. Raises UsageError if no row has both a forecast and a label."""
        if not len(self._table):
            raise UsageError(
                f"nothing to evaluate: of {self.rows} rows {self.failed} failed and {self.unlabelled} have no label ({LABEL_COLUMNS})"
                + (f"; the first that failed: {self.first_error}" if self.first_error else "")
            )
        other = None if self._against is None else "other"
        if self._texts:
            rows = MeasuredRows(self._with_lengths(), ("length",), other, self._slicer.names)
        else:
            rows = MeasuredRows(self._table, (), other, {}, self.resampled)
        found = measure(rows, repeats=repeats, seed=seed)
        against = found.against
        if self._against is not None:
            if against is None:
                raise UsageError(f"{self._against[0]}: nothing to compare: the file has none of the measured ids")
            against = replace(against, name=self._against[0])
        return replace(
            found,
            against=against,
            order_swap=self.swap,
            failed=self.failed,
            unlabelled=self.unlabelled,
            truncated=self.truncated,
        )

    resampled = "rows"

    def _with_lengths(self) -> Columns:
        """The table with the probabilities of a Davidson link on the lengths of the answers, fitted out of fold."""
        place = {name: index for index, name in enumerate(self._table.names)}

        def block_of(rows: Floats) -> Block:
            m = rows[:, [place["length"]]]
            return m, -np.abs(m), np.eye(len(Outcome))[rows[:, place["label"]].astype(np.int64)]

        def folds(rows: Floats) -> NDArray[np.uint64]:
            found: NDArray[np.uint64] = rows[:, place["key"]].copy().view(np.uint64) % np.uint64(FOLDS)
            return found

        start, thetas = None, []
        for fold in range(FOLDS):

            def others(fold: int = fold) -> Iterator[Block]:
                for rows in self._table.blocks():
                    yield block_of(rows[folds(rows) != fold])

            if not any(len(m) for m, _, _ in others()):
                thetas.append(np.zeros(3))
                continue
            found = maximise(
                Davidson.log_probabilities, others, np.eye(3), np.zeros(3), penalty=_LENGTH_PENALTY, start=start
            )
            start = found.free
            thetas.append(found.theta)
        out = Columns([*self._table.names, *(f"length_{name}" for name in NAMES)])
        for rows in self._table.blocks():
            m, t, _ = block_of(rows)
            p, within = np.empty((len(rows), len(Outcome))), folds(rows)
            for number, theta in enumerate(thetas):
                test = within == number
                p[test] = np.exp(Davidson.log_probabilities(*linear(theta, m[test], t[test]))[0])
            out.append(np.column_stack([rows, p]))
        return out


class Rehearsal:
    """A writer that passes forecasts on and collects them to measure them."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._measured = Measured()

    def write(self, forecasts: Forecasts) -> None:
        self._writer.write(forecasts)
        self._measured.add(forecasts)

    def evaluation(self) -> Evaluation:
        """The figures of all forecasts with a label."""
        return self._measured.evaluation()


def swap_of(before: Floats, after: Floats) -> Swap | None:
    """The effect of exchanging A and B: probabilities `before` (n, 3), and `after` (n, 3) of the exchanged rows."""
    if not len(before):
        return None
    back = after[:, [Outcome.B, Outcome.A, Outcome.TIE]]
    change = np.abs(back - before)
    flips = (back.argmax(axis=1) != before.argmax(axis=1)) & (change.max(axis=1) > 1e-9)
    return Swap(len(before), float(flips.mean()), float(change.max()))


def measured_forecasts(
    source: Any,
    forecaster: Forecaster,
    *,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    surprises: int = 0,
    against: tuple[str, SavedForecasts] | None = None,
) -> Measured:
    """Forecast labelled pairs and collect the forecasts, and try the exchange of A and B on some rows."""
    measured, tally = Measured(surprises=surprises, against=against), Tally()
    with opened_pairs(source, columns, cells, label_values) as pairs:
        if isinstance(pairs, PairFile) and not pairs.may_have_labels:
            raise UsageError(f"{pairs.name}: nothing to evaluate: the file has no label columns ({LABEL_COLUMNS})")
        for forecasts in forecasts_of(pairs, forecaster, tally, progress=progress):
            measured.add(forecasts)
    measured.restored = tally.restored
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
    progress: Progress | None = None,
    preset: str | None = None,
    running: Running | None = None,
) -> Evaluation:
    """Forecast labelled pairs (what `predict` takes) and measure the forecasts against the labels.

    Rows that fail and rows without a label are counted and left out. Raises UsageError if no row is left.
    """
    choice = Choice(model, forecaster, budget=budget, preset=preset)
    with ready(resolve(choice), running) as chosen:
        return measured_forecasts(
            source, chosen, columns=columns, cells=cells, label_values=label_values, progress=progress
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
    measured = Measured(surprises=surprises, against=against)
    if labelled is None:
        start = 0
        exchanged: list[tuple[Floats, Floats]] = []
        for block in saved_blocks(path, label_values=label_values):
            labelled_rows = block.labels >= 0
            used = labelled_rows & ~block.failed
            measured.rows += len(block.ids)
            measured.failed += int((labelled_rows & block.failed).sum())
            measured.unlabelled += int((~labelled_rows).sum())
            keys = np.arange(start, start + len(block.ids), dtype=np.uint64) if block.keys is None else block.keys
            measured.resampled = "rows" if block.keys is None else "prompts"
            start += len(block.ids)
            other = None if against is None else against[1].rows_of(block.ids)[used]
            measured.add_rows(block.probabilities[used], block.labels[used], keys[used], other)
            if swapped is not None:
                exchanged.append((block.probabilities, swapped.rows_of(block.ids)))
        if measured.unlabelled == measured.rows:
            raise UsageError("the file of predictions has no labels; name the file of labelled pairs as well")
        if exchanged:
            measured.swap = _both(*map(np.concatenate, zip(*exchanged, strict=True)))
        return measured
    predictions = SavedForecasts.of(saved_blocks(path, label_values=label_values))
    with labelled as file:
        waiting: list[Pair] = []
        found: list[int] = []
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
                if len(waiting) >= _SWAPPED:
                    measured.add_pairs(waiting, predictions.probabilities[found])
                    waiting, found = [], []
        measured.add_pairs(waiting, predictions.probabilities[found])
    if swapped is not None:
        measured.swap = _both(predictions.probabilities, swapped.rows_of(predictions.ids))
    return measured


def measured_scores(
    path: str | os.PathLike[str],
    forecaster: Forecaster,
    *,
    against: tuple[str, SavedForecasts] | None = None,
    label_values: Mapping[str, str] | None = None,
) -> Measured:
    """Forecast from a file of scores with labels, and collect the forecasts."""
    if not forecaster.scorer.brought or forecaster.scorer.members():
        raise UsageError("the forecaster needs the texts as well as the scores: name the file of labelled pairs")
    measured = Measured(against=against)
    for block in score_blocks(path, label_values=label_values):
        check_columns(forecaster.scorer, block.columns, path)
        start, n = measured.rows, len(block.ids)
        measured.rows += n
        used = block.scored & (block.labels >= 0)
        measured.failed += int((~block.scored).sum())
        measured.unlabelled += int((block.scored & (block.labels < 0)).sum())
        keys = np.arange(start, start + n, dtype=np.uint64) if block.keys is None else block.keys
        measured.resampled = "rows" if block.keys is None else "prompts"
        p = forecaster.outcome.probabilities(block.margin[used], block.tie[used])
        ids = [block.ids[row] for row in np.flatnonzero(used)]
        measured.add_rows(p, block.labels[used], keys[used], None if against is None else against[1].rows_of(ids))
    return measured


def _both(before: Floats, after: Floats) -> Swap | None:
    there = np.isfinite(after).all(axis=1)
    return swap_of(before[there], after[there])


def evaluate_predictions(
    path: str | os.PathLike[str], labelled: AbstractContextManager[PairFile] | None = None
) -> Evaluation:
    """Measure a file of forecasts; see `measured_predictions`."""
    return measured_predictions(path, labelled).evaluation()


def rehearsal_rows(
    stub: str, train: str, columns: Mapping[str, str] | None, cells: str, label_values: Mapping[str, str] | None = None
) -> Iterable[Pair | RowError] | None:
    """The first 1,000 rows of `train` if `stub` has exactly three rows, as the competition's public test file has;
    otherwise None.

    Raises UsageError if `train` has no label columns or `stub` is standard input, which can be read only once.
    """
    if stub == "-":
        raise UsageError("--rehearse reads the input twice, and standard input can be read only once; name a file")
    labelled = open_pairs(train, columns=columns, cells=cells, label_values=label_values)
    if not labelled.may_have_labels:
        labelled.close()
        raise UsageError(f"{labelled.name}: a rehearsal needs labels ({LABEL_COLUMNS})")
    with open_pairs(stub, columns=columns, cells=cells) as file:
        rows = sum(1 for _ in islice(file, _STUB_ROWS + 1))
    if rows != _STUB_ROWS:
        labelled.close()
        return None

    def rows_of() -> Iterator[Pair | RowError]:
        with labelled as file:
            yield from islice(file, _REHEARSED_ROWS)

    return rows_of()
