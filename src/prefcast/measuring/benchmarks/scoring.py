"""Items -> what a model prefers in each, some at a time; and what the model did meanwhile: lengths, ties, calibration, position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError
from prefcast.forecasts.fitted_rows import Overlap
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecasts
from prefcast.measuring.benchmarks.base import Benchmark, Item, Preferences, Row
from prefcast.measuring.benchmarks.reading import Placed
from prefcast.measuring.bias import JudgeBias, Judged
from prefcast.measuring.metrics import Evaluation
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.outcomes.models import MarginSign
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.pair import pair_key
from prefcast.scorers.base import SILENT, Meter

__all__ = ["Observed", "scored_rows"]

# So many comparisons are forecast together.
_PIECE = 256
_SCORES = ("score_a", "score_b")
_ORDERS = ("margin_a", "margin_b")
Floats = NDArray[np.float64]
Ask = tuple[int, int]


def asked(item: Item, *, scores: bool) -> list[Ask]:
    """The pairs of an item's answers that the model is shown. A model with a score for each answer is shown each answer once,
    right ones beside wrong ones where there are both."""
    if not scores or len(item.compared) == 1:
        return list(item.compared)
    needed = sorted({position for both in item.compared for position in both})
    right = [position for position in needed if position in item.right]
    wrong = [position for position in needed if position not in item.right]
    shared = min(len(right), len(wrong))
    rest = right[shared:] + wrong[shared:]
    pairs = list(zip(right, wrong, strict=False)) + list(zip(rest[::2], rest[1::2], strict=False))
    if len(rest) % 2:
        pairs.append((needed[0], rest[-1]))
    return pairs


def preferences(item: Item, asks: Sequence[Ask], forecasts: Forecasts, here: slice, *, scores: bool) -> Preferences:
    """What the forecasts of `asks`, which stand at `here`, say of an item."""
    raw: Mapping[str, Floats] = forecasts.evidence or {}
    if scores:
        of: dict[int, float] = {}
        for place, both in zip(range(here.start, here.stop), asks, strict=True):
            of |= {position: float(raw[name][place]) for position, name in zip(both, _SCORES, strict=True)}
        return Preferences({(one, other): of[one] - of[other] for one, other in item.compared})
    margins = {both: float(forecasts.margin[here.start + place]) for place, both in enumerate(asks)}
    if not all(name in raw for name in _ORDERS):
        return Preferences(margins)
    orders = {
        both: (float(raw[_ORDERS[0]][here.start + place]), float(raw[_ORDERS[1]][here.start + place]))
        for place, both in enumerate(asks)
    }
    return Preferences(margins, orders)


@dataclass
class Lengths:
    """Lengths of what the model was shown, in characters, and how many comparisons were not read whole."""

    longest: int = 0
    longest_read: int = 0
    truncated: int = 0
    truncated_rows: int = 0


class Observed:
    """What is collected beside the marks. It holds numbers, no texts."""

    def __init__(self, forecaster: Forecaster) -> None:
        self.calibrated = not isinstance(forecaster.outcome, MarginSign)
        self.scores = all(name in forecaster.scorer.raw_names for name in _SCORES)
        self.lengths = Lengths()
        self.overlap = Overlap(forecaster.fitted_rows)
        self.comparisons = self.undecided = 0
        self._judged = Judged(forecaster.scorer.judge)
        self._forecasts: list[tuple[float, float, float]] = []
        self._outcomes: list[int] = []
        self._groups: list[int] = []

    def add(self, item: Item, asks: Sequence[Ask], forecasts: Forecasts, here: slice) -> None:
        """Collect from an item's forecasts, none of which failed."""
        cut = 0
        for place, (a, b) in zip(range(here.start, here.stop), asks, strict=True):
            truncation, pair = forecasts.truncations[place], forecasts.pairs[place]
            assert truncation is not None and pair is not None  # noqa: S101, PT018
            self.lengths.longest = max(self.lengths.longest, truncation.total)
            self.lengths.longest_read = max(self.lengths.longest_read, truncation.kept)
            cut += int(truncation.truncated)
            self.comparisons += 1
            self.overlap.add([pair])
            self.undecided += int(forecasts.margin[place] == 0)
            outcome = _outcome(item, a, b)
            if outcome is not None:
                self._add_outcome(item, pair, outcome, forecasts.probabilities[place])
        self.lengths.truncated += cut
        self.lengths.truncated_rows += int(cut > 0)
        if self._judged.tells(forecasts.evidence) and forecasts.evidence is not None:
            labelled = [
                (place, replace(pair, outcome=outcome))
                for place, (a, b) in zip(range(here.start, here.stop), asks, strict=True)
                if (pair := forecasts.pairs[place]) is not None and (outcome := _outcome(item, a, b)) is not None
            ]
            places = [place for place, _ in labelled]
            raw = {name: values[places] for name, values in forecasts.evidence.items()}
            self._judged.add([pair for _, pair in labelled], raw)

    def _add_outcome(self, item: Item, pair: Pair, outcome: Outcome, said: Floats) -> None:
        if not self.calibrated:
            return
        # A benchmark's chosen answer always stands first: the sides are drawn by a hash of the texts.
        key, greater = pair_key(pair)
        swap = bool(key & 1) != greater
        a, b, tie = map(float, said)
        self._forecasts.append((b, a, tie) if swap else (a, b, tie))
        self._outcomes.append(int(outcome.swapped if swap else outcome))
        self._groups.append(item.group)

    def calibration(self, repeats: int) -> Evaluation | None:
        """How good the probabilities are, over comparisons of a right and a wrong answer. If no row is a tie, the forecast of a tie is
        left out: P(A) / (P(A) + P(B)). None for a model without probabilities."""
        if not self._forecasts:
            return None
        found, outcomes = np.array(self._forecasts), np.array(self._outcomes)
        if not (outcomes == Outcome.TIE).any():
            sides = found[:, :2] / found[:, :2].sum(axis=1, keepdims=True)
            found = np.column_stack([sides, np.zeros(len(sides))])
        return evaluate_probabilities(found, outcomes, self._groups, repeats=repeats)

    def position(self, repeats: int) -> JudgeBias | None:
        """The biases of a judge that is asked in both orders; None for other models."""
        return self._judged.bias(repeats=repeats)


def _outcome(item: Item, a: int, b: int) -> Outcome | None:
    """Which of two answers is to be preferred; None where the benchmark does not say."""
    if not item.right:
        return Outcome.TIE
    if (a in item.right) == (b in item.right):
        return None
    return Outcome.A if a in item.right else Outcome.B


def scored_rows(
    benchmark: Benchmark,
    items: Iterable[Placed],
    forecaster: Forecaster,
    observed: Observed,
    meter: Meter = SILENT,
) -> Iterator[tuple[Row, RowError | None]]:
    """The row of each item, in their order, and why it failed."""
    held: list[tuple[Placed, list[Ask]]] = []
    size = 0
    for placed in items:
        # A tie among people says nothing of a model that has no probabilities.
        nothing = not placed.item.right and not observed.calibrated
        asks = [] if nothing else asked(placed.item, scores=observed.scores)
        held.append((placed, asks))
        size += len(asks)
        if size >= _PIECE or len(held) >= _PIECE:
            yield from _rows(benchmark, held, forecaster, observed, meter)
            held, size = [], 0
    yield from _rows(benchmark, held, forecaster, observed, meter)


def _rows(
    benchmark: Benchmark,
    held: Sequence[tuple[Placed, list[Ask]]],
    forecaster: Forecaster,
    observed: Observed,
    meter: Meter,
) -> Iterator[tuple[Row, RowError | None]]:
    pairs = [placed.item.pair(a, b, place, placed.row) for place, (placed, asks) in enumerate(held) for a, b in asks]
    forecasts = forecaster.forecast(pairs, meter)
    start = 0
    for placed, asks in held:
        here = slice(start, start + len(asks))
        start = here.stop
        item = placed.item
        row = Row(item.id, item.digest, item.group, item.subsets, {})
        error = next((each for each in forecasts.errors[here] if each is not None), None)
        if error is not None:
            error = RowError(placed.file, placed.row, "", error.problem, item.id)
            row.error, row.marks = str(error), None if benchmark.failed is None else dict(benchmark.failed)
        elif asks:
            observed.add(item, asks, forecasts, here)
            row.marks = benchmark.marks(item, preferences(item, asks, forecasts, here, scores=observed.scores))
        yield row, error
