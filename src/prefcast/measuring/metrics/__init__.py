"""How good forecasts are: what each figure is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcast.errors import UsageError
from prefcast.outcomes.statistics.bootstrap import Figure
from prefcast.pairs import Outcome

__all__ = [
    "Baseline",
    "Bin",
    "Difference",
    "Evaluation",
    "Figure",
    "Scores",
    "Slice",
    "Swap",
    "checked_probabilities",
    "row_accuracy",
    "row_brier",
    "row_log_loss",
]

Floats = NDArray[np.float64]

SMALL_SLICE = 100
HISTOGRAM = np.linspace(-4.0, 4.0, 41)
NAMES = tuple(outcome.name.lower() for outcome in Outcome)
# As scikit-learn's log_loss: a probability of 0 costs what the smallest step above it costs.
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Scores:
    """The figures of one forecast.

    `brier_score` sums the squared errors of the three outcomes (0 to 2). A tie between the two largest probabilities
    counts as half (a third) an accurate forecast. `expected_calibration_error` takes, for each outcome, 10 bins of
    equal mass by its probability, and averages |observed share - mean probability| over rows, then over the outcomes;
    sampling noise alone makes that positive, and the headline figure is debiased (Kumar, Liang and Ma, "Verified
    uncertainty calibration", NeurIPS 2019, normal approximation; not below 0); the plain one stands beside it.
    `tie_recall` is the accuracy on ties, `auc` the chance that a pair that A won has a higher P(A) / (P(A) + P(B))
    than one that B won. A figure whose rows do not exist is None; `log_loss_by_outcome` has the outcomes that occur.
    """

    log_loss: Figure
    accuracy: Figure
    brier_score: Figure
    log_loss_by_outcome: dict[str, Figure]
    expected_calibration_error: Figure
    expected_calibration_error_plain: Figure
    tie_recall: Figure | None
    auc: Figure | None


@dataclass(frozen=True)
class Baseline:
    """A forecast that anyone can make, on the same rows; `gain` is its log loss less the forecast's, paired."""

    log_loss: Figure
    accuracy: Figure
    brier_score: Figure
    gain: Figure


@dataclass(frozen=True)
class Difference:
    """This forecast less another, on the n rows that both have: below 0 is better for losses, above 0 for accuracy."""

    name: str
    n: int
    log_loss: Figure
    brier_score: Figure
    accuracy: Figure


@dataclass(frozen=True)
class Bin:
    """Rows with like probabilities of one outcome: their number, mean probability, and the share where it happened."""

    n: int
    forecast: float
    observed: Figure


@dataclass(frozen=True)
class Slice:
    """The rows of one kind: `gain` is the class prior's log loss on them less the forecast's; `small` warns that there
    are fewer than 100."""

    kind: str
    name: str
    n: int
    log_loss: Figure
    gain: Figure
    small: bool


@dataclass(frozen=True)
class Swap:
    """What exchanging A and B did to n forecasts: the share whose favourite is another answer then, and the largest
    change of a probability."""

    n: int
    flips: float
    largest_change: float


@dataclass(frozen=True)
class Evaluation:
    """`scores` on `n` labelled rows, with what anyone can do (`baselines`) on the same rows.

    The intervals resampled `groups` units: `resampled` says whether those were first prompts or rows. `failed` rows had
    no forecast and `unlabelled` rows no label; neither is in the figures. `confusion[i][j]` counts rows that were i and
    whose likeliest outcome was j; `margins` are histograms of log(P(A) / P(B)) by outcome over the edges HISTOGRAM (what
    lies beyond is in the first and last).
    """

    n: int
    groups: int
    scores: Scores
    baselines: dict[str, Baseline]
    outcome_shares: dict[str, float]
    reliability: dict[str, tuple[Bin, ...]]
    confusion: tuple[tuple[float, ...], ...]
    margins: dict[str, tuple[int, ...]]
    slices: tuple[Slice, ...] = ()
    against: Difference | None = None
    order_swap: Swap | None = None
    failed: int = 0
    unlabelled: int = 0
    truncated: int = 0
    resampled: str = "rows"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: every field, the scores' own on the same level."""
        plain = asdict(self)
        return {"n": plain.pop("n"), **plain.pop("scores"), **plain}


def row_log_loss(probabilities: Floats, outcomes: NDArray[np.int64]) -> Floats:
    """-log of the probability of what happened, (n,); probabilities are clipped to [eps, 1 - eps] as scikit-learn does."""
    return -np.log(np.clip(probabilities[np.arange(len(outcomes)), outcomes], _EPSILON, 1 - _EPSILON))


def row_accuracy(probabilities: Floats, outcomes: NDArray[np.int64]) -> Floats:
    """1 where the likeliest outcome happened, a half or a third where it shares that place, (n,)."""
    best = probabilities == probabilities.max(axis=1, keepdims=True)
    accurate: Floats = best[np.arange(len(outcomes)), outcomes] / best.sum(axis=1)
    return accurate


def row_brier(probabilities: Floats, outcomes: NDArray[np.int64]) -> Floats:
    """The squared errors of the three probabilities, summed, (n,)."""
    squares: Floats = ((probabilities - np.eye(len(Outcome))[outcomes]) ** 2).sum(axis=1)
    return squares


def checked_probabilities(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    """Both as arrays, (n, 3) and (n,). Raises UsageError on shapes that do not fit, on rows that do not sum to 1
    within 1e-6, on labels that are none, and where there is no row."""
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(outcomes, dtype=np.int64)
    if p.ndim != 2 or p.shape[1] != len(Outcome) or y.shape != (len(p),):
        raise UsageError(f"probabilities must have shape (n, 3) and outcomes (n,); found {p.shape} and {y.shape}")
    if not len(p):
        raise UsageError("no labelled row has a forecast: nothing to evaluate")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=1), 1.0, rtol=0, atol=1e-6)):
        raise UsageError("probabilities must be finite, not negative, and sum to 1 in every row")
    if ((y < 0) | (y >= len(Outcome))).any():
        raise UsageError("outcomes must be 0 (A), 1 (B) or 2 (tie)")
    return p, y
