"""What is collected of forecasts with their labels, to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecasts
from prefcast.forecasts.scores import GivenScores
from prefcast.measuring.bias import Judged
from prefcast.measuring.metrics import NAMES, Evaluation, Swap, row_log_loss
from prefcast.measuring.metrics.measure import FOLDS, MeasuredRows, measure
from prefcast.measuring.metrics.slices import Slicer
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.bootstrap import REPEATS
from prefcast.outcomes.statistics.columns import Columns
from prefcast.outcomes.statistics.likelihood import Folded, cross_fitted
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.pairs.formats.saved import SavedForecasts
from prefcast.pairs.pair import group_key
from prefcast.scorers.base import Spent, costs_money
from prefcast.scorers.length import LengthScorer

__all__ = ["SWAPPED", "KeptRows", "Measured", "Surprise", "swap_of"]

Floats = NDArray[np.float64]

# The exchange of A and B is tried on so many rows, which is enough to detect a dependence on the order.
SWAPPED = 256
# All of them are held; fewer where they are very long.
_SWAPPED_CHARACTERS = 64_000_000
_LENGTH_PENALTY = np.array([1.0, 0.1, 1.0])


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

    `surprises` is the number of rows with the largest log loss to keep. `against` is another forecast of the same rows,
    which are matched by id. `by` is a file whose kept column is a kind of rows (`PairFile.keep`).
    """

    def __init__(
        self,
        *,
        surprises: int = 0,
        against: tuple[str, SavedForecasts] | None = None,
        by: PairFile | None = None,
    ) -> None:
        self._kept = {} if by is None else by.kept
        self._slicer, self._length = Slicer(None if by is None else by.kept_column), LengthScorer()
        of_texts = ["length", *(f"slice:{kind}" for kind in self._slicer.kinds)]
        self._table = Columns([*MeasuredRows.COLUMNS, *of_texts, *(f"other_{name}" for name in NAMES)])
        self._against, self._most = against, surprises
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
        for index, (pair, error) in enumerate(zip(forecasts.pairs, forecasts.errors, strict=True)):
            if error is not None or pair is None:
                self.failed += 1
            elif pair.outcome is None:
                self.unlabelled += 1
            else:
                good.append(index)
                pairs.append(pair)
        self.rows += len(forecasts)
        self.first_error = self.first_error or next(filter(None, forecasts.errors), None)
        cuts = [forecasts.truncations[index] for index in good]
        self.literal += sum(cut is not None and cut.literal for cut in cuts)
        if forecasts.evidence is not None and Judged.tells(forecasts.evidence):
            self._judged = self._judged or Judged(self.judge)
            self._judged.add(pairs, {name: values[good] for name, values in forecasts.evidence.items()})
        if forecasts.handed_over is not None:
            kept = ~forecasts.handed_over[good]
            outcomes = np.array([pair.outcome for pair in pairs], dtype=np.int64)
            agreed = kept & (forecasts.probabilities[good].argmax(axis=1) == outcomes)
            self.kept = (self.kept or KeptRows()).plus(len(good), int(kept.sum()), int(agreed.sum()))
        self.add_pairs(pairs, forecasts.probabilities[good], [cut is not None and cut.truncated for cut in cuts])

    def add_pairs(self, pairs: Sequence[Pair], p: Floats, truncated: Sequence[bool] | None) -> None:
        """Collect the probabilities (n, 3) of labelled pairs, and whether only a part of each was read, if that is known."""
        self._count_truncated(truncated)
        if not pairs:
            return
        y = np.array([pair.outcome for pair in pairs], dtype=np.int64)
        keys = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
        values = [self._kept.pop(pair.row, None) for pair in pairs]
        codes = np.array([*map(self._slicer.codes, pairs, repeat(None) if truncated is None else truncated, values)])
        lengths = self._length.evidence(pairs).margin
        if self._most:
            numbers = range(-len(self._table), -len(self._table) - len(pairs), -1)
            new = zip(row_log_loss(p, y).tolist(), numbers, pairs, p.tolist(), strict=True)
            self._largest = nlargest(self._most, [*self._largest, *new])
        self._append([pair.id for pair in pairs], p, y, keys, np.column_stack([lengths, codes]))
        for pair, each in zip(pairs, p, strict=True):
            if len(self._swapped) == SWAPPED or self._swapped_characters > _SWAPPED_CHARACTERS:
                break
            self._swapped.append((pair, each))
            self._swapped_characters += pair.characters

    def add_rows(self, block: SavedForecasts | GivenScores, used: NDArray[np.bool_], p: Floats) -> None:
        """Collect the probabilities (m, 3) of the m rows of a block that are `used` (n,); the rows have no texts."""
        keys = np.arange(self.rows, self.rows + len(block.ids), dtype=np.uint64) if block.keys is None else block.keys
        if isinstance(block, SavedForecasts):
            self._count_truncated(None if block.truncated is None else block.truncated[used].tolist())
        self._texts, self._resampled = False, "rows" if block.keys is None else "prompts"
        self.rows += len(block.ids)
        ids = [block.ids[row] for row in np.flatnonzero(used)]
        self._append(ids, p, block.labels[used], keys[used], np.full((len(ids), 1 + len(self._slicer.kinds)), -1.0))

    def _count_truncated(self, truncated: Sequence[bool] | None) -> None:
        known = self.truncated is not None and truncated is not None
        self.truncated = (self.truncated or 0) + sum(truncated or ()) if known else None

    def _append(
        self, ids: Sequence[str | int], p: Floats, y: NDArray[np.int64], keys: NDArray[np.uint64], of_texts: Floats
    ) -> None:
        other = np.full((len(ids), 3), np.nan) if self._against is None else self._against[1].rows_of(ids)
        self._table.append(np.column_stack([p, y, keys.view(np.float64), of_texts, other]))

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
        other = None if self._against is None else self._against[0]
        if self._texts:
            rows = MeasuredRows(_with_lengths(self._table), ("length",), other, self._slicer.names)
        else:
            rows = MeasuredRows(self._table, (), other, {}, self._resampled)
        found = measure(rows, repeats=repeats, seed=seed)
        if other is not None and found.against is None:
            raise UsageError(f"{other}: nothing to compare: the file has none of the measured ids")
        return replace(
            found,
            order_swap=self.swap,
            failed=self.failed,
            unlabelled=self.unlabelled,
            truncated=self.truncated,
            by_margin=self.by_margin,
            judge_bias=None if self._judged is None else self._judged.bias(repeats=repeats, seed=seed),
        )


def _with_lengths(table: Columns) -> Columns:
    """The table with the probabilities of a Davidson link on the lengths of the answers, fitted out of fold."""
    length, label, key = (table.names.index(name) for name in ("length", "label", "key"))

    def folded() -> Iterator[Folded]:
        for rows in table.blocks():
            m, votes = rows[:, [length]], np.eye(len(Outcome))[rows[:, label].astype(np.int64)]
            yield (m, -np.abs(m), votes), rows[:, key].copy().view(np.uint64) % np.uint64(FOLDS)

    out = Columns([*table.names, *(f"length_{name}" for name in NAMES)])
    found = cross_fitted(Davidson.log_probabilities, folded, FOLDS, np.eye(3), np.zeros(3), penalty=_LENGTH_PENALTY)
    for rows, log_p in zip(table.blocks(), found, strict=True):
        out.append(np.column_stack([rows, np.exp(log_p)]))
    return out


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
