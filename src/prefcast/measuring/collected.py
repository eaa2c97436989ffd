"""What is collected of forecasts with their labels, to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import repeat
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.forecasts.fitted_rows import FittedRows, Overlap
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecasts
from prefcast.forecasts.scores import GivenScores
from prefcast.measuring.bias import Judged
from prefcast.measuring.exported import ExportedRows, RowExport
from prefcast.measuring.lengths import with_lengths
from prefcast.measuring.metrics import NAMES, Evaluation, Swap, row_log_loss
from prefcast.measuring.metrics.measure import measure
from prefcast.measuring.metrics.rows import MeasuredRows, given_rows
from prefcast.measuring.metrics.slices import Slicer
from prefcast.measuring.row_labels import RowLabel, RowLabels
from prefcast.outcomes.statistics.bootstrap import REPEATS
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats.fields import Fault
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.pairs.formats.saved import SavedForecasts
from prefcast.pairs.pair import group_key, pair_key
from prefcast.scorers.base import Spent, costs_money
from prefcast.scorers.length import LengthScorer

__all__ = ["SWAPPED", "KeptRows", "Measured", "Surprise", "swap_of"]

Floats = NDArray[np.float64]

# The exchange of A and B is tried on so many rows, which is enough to detect a dependence on the order.
SWAPPED = 256
# All of them are held; fewer where they are very long.
_SWAPPED_CHARACTERS = 64_000_000


@dataclass(frozen=True)
class Surprise:
    """A labelled pair whose outcome had a low probability, with the probabilities and the log loss."""

    pair: Pair
    probabilities: tuple[float, float, float]
    log_loss: float


@dataclass(frozen=True)
class KeptRows:
    """Of labelled `rows`, those that a promise of agreement keeps from people, and on how many of these people agree."""

    rows: int = 0
    kept: int = 0
    agreed: int = 0

    def plus(self, rows: int, kept: int, agreed: int) -> KeptRows:
        return KeptRows(self.rows + rows, self.kept + kept, self.agreed + agreed)


class Measured:
    """Collects forecasts with their labels and measures them.

    `surprises` is the number of rows with the largest log loss to keep. `against` are other forecasts of the same rows,
    which are matched by id. `by` is a kept column of the rows (`PairFile.keep`) whose values are kinds of rows. `labels` say
    where votes and weights come from, `fitted` which rows the forecaster was fitted on. `export` gets the measured rows.
    """

    def __init__(
        self,
        *,
        surprises: int = 0,
        against: Sequence[tuple[str, SavedForecasts]] = (),
        by: str | None = None,
        labels: RowLabels | None = None,
        fitted: FittedRows | None = None,
        export: RowExport | None = None,
    ) -> None:
        self._by, self.labels, self._overlap, self._export = by, labels or RowLabels(), Overlap(fitted), export
        self._slicer, self._length = Slicer(by), LengthScorer()
        of_texts = ["length", *(f"slice:{kind}" for kind in self._slicer.kinds)]
        others = [f"other{number}_{name}" for number in range(len(against)) for name in NAMES]
        self._table = Columns([*MeasuredRows.COLUMNS, *of_texts, *others])
        self._against, self._most = tuple(against), surprises
        self._largest: list[tuple[float, int, Pair, list[float]]] = []
        self._swapped: list[tuple[Pair, Floats]] = []
        self._swapped_characters = 0
        self._texts, self._resampled = True, "rows"
        # The forecaster says only which answer it prefers: it has no outcome model.
        self.by_margin = False
        self.swap: Swap | None = None
        self.rows = self.failed = self.unlabelled = self.restored = self.literal = 0
        # None: the file of forecasts does not say.
        self.truncated: int | None = 0
        self.first_error: RowError | None = None
        self.spent = Spent()
        self._judged: Judged | None = None
        # The name of the file, for the errors of its rows.
        self.source = ""
        # The name of the judge's model, where the forecaster is a judge.
        self.judge: str | None = None
        # Rows that the second tier of a cascade scored, and what became of a promise of agreement; None without them.
        self.escalated: int | None = None
        self.kept: KeptRows | None = None
        # `kept` beside what was promised, as JSON.
        self.agreement: dict[str, Any] | None = None

    def add(self, forecasts: Forecasts) -> None:
        """Collect forecasts of pairs, labelled or not."""
        good: list[int] = []
        pairs: list[Pair] = []
        labels: list[RowLabel] = []
        for index, (pair, error) in enumerate(zip(forecasts.pairs, forecasts.errors, strict=True)):
            if error is not None or pair is None:
                self.fail(error)
            elif (label := self.label_of(pair)) is not None:
                good.append(index)
                pairs.append(pair)
                labels.append(label)
        self.rows += len(forecasts)
        cuts = [forecasts.truncations[index] for index in good]
        self.literal += sum(cut is not None and cut.literal for cut in cuts)
        if forecasts.evidence is not None and Judged.tells(forecasts.evidence):
            self._judged = self._judged or Judged(self.judge)
            labelled = list(map(_with_majority, pairs, labels))
            self._judged.add(labelled, {name: values[good] for name, values in forecasts.evidence.items()})
        if forecasts.handed_over is not None:
            kept = ~forecasts.handed_over[good]
            outcomes = np.array([label.majority for label in labels], dtype=np.int64)
            agreed = kept & (forecasts.probabilities[good].argmax(axis=1) == outcomes)
            self.kept = (self.kept or KeptRows()).plus(len(good), int(kept.sum()), int(agreed.sum()))
        self.add_pairs(
            pairs, forecasts.probabilities[good], [cut is not None and cut.truncated for cut in cuts], labels
        )

    def fail(self, error: RowError | None) -> None:
        """Count a row that has no forecast, or whose votes or weight are no numbers."""
        self.failed += 1
        self.first_error = self.first_error or error

    def label_of(self, pair: Pair) -> RowLabel | None:
        """What people said of a pair; None, and the row is counted, if nobody did or that cannot be read."""
        try:
            label = self.labels.of(pair.id, pair.outcome, dict(pair.own))
        except Fault as fault:
            self.fail(RowError(self.source, pair.row, fault.field, fault.problem, pair.id))
            return None
        self.unlabelled += label is None
        return label

    def add_pairs(
        self,
        pairs: Sequence[Pair],
        p: Floats,
        truncated: Sequence[bool] | None,
        labels: Sequence[RowLabel] | None = None,
    ) -> None:
        """Collect the probabilities (n, 3) of labelled pairs, and whether only a part of each was read, if that is known.
        Without `labels` their own labels count."""
        self._count_truncated(truncated)
        if not pairs:
            return
        said = [RowLabel.alone(int(cast(Outcome, pair.outcome))) for pair in pairs] if labels is None else labels
        keys = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
        either, turned = np.array([pair_key(pair) for pair in pairs], dtype=np.uint64).T
        same = either ^ turned
        values = [None if self._by is None else dict(pair.own).get(self._by) for pair in pairs]
        cut: Sequence[bool | None] = [None] * len(pairs) if truncated is None else truncated
        codes = np.array([*map(self._slicer.codes, pairs, cut, values)])
        lengths = self._length.evidence(pairs).margin
        if self._most:
            numbers = range(-len(self._table), -len(self._table) - len(pairs), -1)
            losses = row_log_loss(p, np.array([each.share for each in said])).tolist()
            new = zip(losses, numbers, map(_with_majority, pairs, said), p.tolist(), strict=True)
            self._largest = nlargest(self._most, [*self._largest, *new])
        self._overlap.add(pairs)
        self._append([pair.id for pair in pairs], p, said, (keys, same), np.column_stack([lengths, codes]))
        for pair, each in zip(pairs, p, strict=True):
            if len(self._swapped) == SWAPPED or self._swapped_characters > _SWAPPED_CHARACTERS:
                break
            self._swapped.append((pair, each))
            self._swapped_characters += pair.characters

    def labels_of(self, block: SavedForecasts | GivenScores) -> list[RowLabel | None]:
        """What people said of the rows (n,) of a block, which have no texts. Raises Fault."""
        own = block.own if isinstance(block, SavedForecasts) else {}
        rows = zip(*own.values(), strict=True) if own else repeat(())
        found = []
        for id, label, values in zip(block.ids, block.labels.tolist(), rows):  # noqa: B905 - without columns rows never end
            said = {name: value for name, value in zip(own, values, strict=True) if value is not None}
            found.append(self.labels.of(id, label, said))
        return found

    def add_rows(
        self,
        block: SavedForecasts | GivenScores,
        used: NDArray[np.bool_],
        p: Floats,
        labels: Sequence[RowLabel | None],
    ) -> None:
        """Collect the probabilities (m, 3) of the m rows of a block that are `used` (n,), and what people said of its rows
        (n,); the rows have no texts."""
        numbers = np.arange(self.rows, self.rows + len(block.ids), dtype=np.uint64)
        keys = numbers if block.keys is None else block.keys
        of_texts = np.full((len(block.ids), 1 + len(self._slicer.kinds)), -1.0)
        if isinstance(block, SavedForecasts):
            self._count_truncated(None if block.truncated is None else block.truncated[used].tolist())
            if self._by is not None:
                of_texts[:, -1] = [self._slicer.own_code(value) for value in block.own[self._by]]
        self._texts, self._resampled = False, "rows" if block.keys is None else "prompts"
        self.rows += len(block.ids)
        good = np.flatnonzero(used).tolist()
        said = [cast(RowLabel, labels[row]) for row in good]
        self._append([block.ids[row] for row in good], p, said, (keys[used], numbers[used]), of_texts[used])

    def _count_truncated(self, truncated: Sequence[bool] | None) -> None:
        known = self.truncated is not None and truncated is not None
        self.truncated = (self.truncated or 0) + sum(truncated or ()) if known else None

    def _append(
        self,
        ids: list[str | int],
        p: Floats,
        said: Sequence[RowLabel],
        keys: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        of_texts: Floats,
    ) -> None:
        if not ids:
            return
        share, votes, weight = (
            np.array([getattr(each, what) for each in said]) for what in ("share", "votes", "weight")
        )
        others = [saved.rows_of(ids) for _, saved in self._against]
        rows = given_rows(p, share, keys[0], votes=votes, weight=weight, pairs=keys[1])
        self._table.append(np.column_stack([rows, of_texts, *others]))
        if self._export is not None:
            losses = {
                name: np.where(np.isfinite(q).all(axis=1), row_log_loss(np.nan_to_num(q, nan=1 / 3), share), np.nan)
                for name, q in zip(self._export.others, others, strict=True)
            }
            slices = [dict(zip(self._export.slices, self._slicer.read(codes[1:]), strict=True)) for codes in of_texts]
            self._export.write(ExportedRows(ids, p, share, votes, weight, keys[0], slices, losses))

    def try_swapped(self, forecaster: Forecaster) -> None:
        """Forecast the first rows again with A and B exchanged, and measure the change."""
        # Given scores exist for one order only. What is paid for asks in both orders anyway.
        if not self._swapped or forecaster.scorer.brought or costs_money(forecaster.scorer):
            return
        again = forecaster.forecast([pair.swapped() for pair, _ in self._swapped])
        good = [index for index, error in enumerate(again.errors) if error is None]
        before = np.array([self._swapped[index][1] for index in good]).reshape(-1, 3)
        self.swap = swap_of(before, again.probabilities[good])

    @property
    def surprises(self) -> list[Surprise]:
        """The rows with the largest log loss, the largest first."""
        return [Surprise(pair, (p[0], p[1], p[2]), loss) for loss, _, pair, p in self._largest]

    def evaluation(self, *, repeats: int = REPEATS, seed: int = 0) -> Evaluation:
        """The figures of all collected rows. Raises UsageError if no row has both a forecast and a label."""
        if not len(self._table):
            raise UsageError(
                f"nothing to evaluate: of {self.rows} rows {self.failed} failed and {self.unlabelled} have no label ({LABEL_COLUMNS})"
                + (f"; the first that failed: {self.first_error}" if self.first_error else "")
            )
        others = tuple(name for name, _ in self._against)
        if self._texts:
            rows = MeasuredRows(with_lengths(self._table), ("length",), others, self._slicer.names)
        else:
            names = {kind: names for kind, names in self._slicer.names.items() if kind == self._slicer.own}
            rows = MeasuredRows(self._table, (), others, names, self._resampled)
        found = measure(rows, repeats=repeats, seed=seed)
        if others and found.compared is None:
            shown = others[0] if len(others) == 1 else f"{', '.join(others)} together"
            raise UsageError(
                f"{shown}: nothing to compare: {'the file has' if len(others) == 1 else 'they have'} none of the measured ids"
            )
        return replace(
            found,
            order_swap=self.swap,
            failed=self.failed,
            unlabelled=self.unlabelled,
            truncated=self.truncated,
            by_margin=self.by_margin,
            in_sample=self._overlap.found,
            judge_bias=None if self._judged is None else self._judged.bias(repeats=repeats, seed=seed),
        )


def _with_majority(pair: Pair, label: RowLabel) -> Pair:
    """The pair with what most of its votes say as its label."""
    return pair if pair.outcome == label.majority else replace(pair, outcome=Outcome(label.majority))


def swap_of(before: Floats, after: Floats) -> Swap | None:
    """The effect of exchanging A and B: probabilities `before` (n, 3), and `after` (n, 3) of the exchanged rows.

    Rows that are nan in `after` are left out; the result is None if no row is left.
    """
    there = np.isfinite(after).all(axis=1)
    if not there.any():
        return None
    before, back = before[there], after[there][:, [Outcome.B, Outcome.A, Outcome.TIE]]
    change = np.abs(back - before)
    flips = (back.argmax(axis=1) != before.argmax(axis=1)) & (change.max(axis=1) > 1e-9)
    return Swap(len(before), float(flips.mean()), float(change.max()))
