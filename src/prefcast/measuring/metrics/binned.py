"""What the figures of calibration need of the rows, collected in one pass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.metrics import NAMES
from prefcast.measuring.metrics.calibration import (
    DRAWN_ROWS,
    CalibrationTest,
    Gaps,
    calibration_error,
    drawn_labels,
    drawn_noise,
    recalibration_test,
)
from prefcast.outcomes.calibration import BINS
from prefcast.outcomes.statistics.bootstrap import Bootstrap, Figure

__all__ = ["Binned", "bin_edges"]

Floats = NDArray[np.float64]

_LEAST = float(np.finfo(np.float64).eps)
_SCORES = ("score:a", "score:b", "score:slope")
# Rows of one prompt are alike, votes on one pair vary less than one vote: by no more than this.
_LEAST_INFLATION, _MOST_INFLATION = 0.02, 1000.0


class Binned:
    """Puts rows into bins of equal mass for each outcome, and collects sums over them.

    Its `columns` are sums that are drawn again by the bootstrap. The other sums are kept here: the covariance of what happens in
    the bins if the forecasts are calibrated, and the information of the recalibration.
    """

    def __init__(self, edges: Mapping[str, Floats], rows: int) -> None:
        self._edges, self._rows = edges, rows
        self.bins = [(name, index) for name in NAMES for index in range(len(edges[name]) + 1)]
        self._of = np.array([NAMES.index(name) for name, _ in self.bins])
        k = len(self.bins)
        self._covariance, self._squares, self._residuals = np.zeros((k, k)), np.zeros(k), np.zeros(k)
        self._information, self._scores = np.zeros((3, 3)), np.zeros(3)
        self._held: list[tuple[Floats, Floats, Floats]] = []

    def columns(self, p: Floats, share: Floats, weight: Floats) -> dict[str, Floats]:
        """What each row of a block adds to the drawn sums: probabilities and shares of votes (m, 3), weights (m,)."""
        inside = np.zeros((len(p), len(self.bins)))
        for outcome, name in enumerate(NAMES):
            first = self.bins.index((name, 0))
            place = np.searchsorted(self._edges[name], np.ascontiguousarray(p[:, outcome]), side="right")
            inside[np.arange(len(p)), first + place] = 1.0
        weighted = inside * weight[:, None]
        said, happened = weighted * p[:, self._of], weighted * share[:, self._of]
        self._covariance -= said.T @ said
        for outcome in range(3):
            mine = np.ix_(self._of == outcome, self._of == outcome)
            here = weighted[:, self._of == outcome]
            self._covariance[mine] += here.T @ (here * p[:, [outcome]])
        self._squares += (weighted**2).sum(axis=0)
        self._residuals += ((happened - said) ** 2).sum(axis=0)
        if self._rows <= DRAWN_ROWS:
            self._held.append((p, inside, weight))
        columns: dict[str, Floats] = {}
        for number, (name, index) in enumerate(self.bins):
            parts = (weighted, said, happened)
            columns |= {
                f"{what}:{name}:{index}": part[:, number]
                for what, part in zip(("rows", "forecast", "happened"), parts, strict=True)
            }
        return columns | self._of_slope(p, share, weight)

    def _of_slope(self, p: Floats, share: Floats, weight: Floats) -> dict[str, Floats]:
        """The gradient of each row at the shifts 0 and the slope 1, and its variance if the forecasts are calibrated."""
        logs = np.log(np.clip(p, _LEAST, 1.0))
        off = (share - p) * weight[:, None]
        gradient = np.column_stack([off[:, 0], off[:, 1], (off * logs).sum(axis=1)])
        # What is certain has no variance; then any surprise is a contradiction.
        near = np.clip(p, _LEAST, 1.0)
        mean = (p * logs).sum(axis=1)
        weighted = near * (weight**2)[:, None]
        # The derivatives of log q by the parameters, less their means.
        steps = [np.eye(3)[outcome] - p[:, [outcome]] for outcome in range(2)] + [logs - mean[:, None]]
        self._information += [[float((weighted * one * other).sum()) for other in steps] for one in steps]
        self._scores += (gradient**2).sum(axis=0)
        return dict(zip(_SCORES, gradient.T, strict=True))

    def figures(self, sums: Bootstrap, *, grouped: bool, soft: bool) -> tuple[Figure, float, CalibrationTest]:
        """The calibration error with the p value of the hypothesis that it is 0, and the test of recalibration.

        `grouped` rows share prompts; the labels of `soft` rows are shares of several votes.
        """
        parts = [[f"{what}:{name}:{index}" for name, index in self.bins] for what in ("rows", "forecast", "happened")]
        rows, said, happened = (np.array([sums.total(part) for part in each]) for each in parts)
        drawn = np.column_stack(
            [sums.drawn(one) - sums.drawn(other) for one, other in zip(parts[2], parts[1], strict=True)]
        )
        spread = ((drawn - (happened - said)) ** 2).mean(axis=0)
        expected = np.diag(self._covariance) if soft else self._residuals
        more = np.ones(len(self.bins))
        if grouped or soft:
            for outcome in range(3):
                mine = self._of == outcome
                more[mine] = _inflation(spread[mine].sum(), expected[mine].sum(), soft)
        if self._held:
            p, inside, weight = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
            noise = drawn_labels(p, inside, self._of, weight)
        else:
            noise = drawn_noise(self._covariance)
        noise *= np.sqrt(more)
        error, p_value = calibration_error(Gaps(rows, said, happened, self._squares * more, noise))
        score = np.array([sums.total(name) for name in _SCORES])
        larger = np.ones(3)
        if grouped or soft:
            again = np.column_stack([sums.drawn(name) for name in _SCORES])
            varies = ((again - score) ** 2).mean(axis=0)
            usual = np.diag(self._information) if soft else self._scores
            larger = np.array([_inflation(one, other, soft) for one, other in zip(varies, usual, strict=True)])
        return error, p_value, recalibration_test(score, self._information, larger)


def _inflation(found: float, expected: float, soft: bool) -> float:
    """By how much a variance is larger than that of separate rows with one vote each."""
    ratio = found / expected if expected > 0 else 1.0
    return float(np.clip(ratio, _LEAST_INFLATION if soft else 1.0, _MOST_INFLATION))


def bin_edges(values: Floats) -> Floats:
    """The inner edges of bins of equal mass; equal values are in one bin, so there may be fewer than 10 bins."""
    values.sort()
    starts = np.arange(1, BINS) * len(values) // BINS
    edges = np.unique(values[starts])
    inner: Floats = edges[edges > values[0]]
    return inner
