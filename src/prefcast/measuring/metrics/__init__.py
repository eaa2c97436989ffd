"""The figures that say how good forecasts are, and their definitions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.tables import ShownTable, Tables
from prefcast.forecasts.fitted_rows import InSample
from prefcast.measuring.bias import JudgeBias
from prefcast.measuring.metrics.calibration import CalibrationTest
from prefcast.measuring.metrics.people import PeopleLimit
from prefcast.outcomes.statistics.bootstrap import Figure
from prefcast.pairs import Outcome

__all__ = [
    "Baseline",
    "Bin",
    "CalibrationTest",
    "Compared",
    "Difference",
    "Evaluation",
    "Figure",
    "InSample",
    "PeopleLimit",
    "Scores",
    "Slice",
    "Swap",
    "row_accuracy",
    "row_brier",
    "row_favourites",
    "row_log_loss",
    "row_pairwise",
]

Floats = NDArray[np.float64]

SMALL_SLICE = 100
HISTOGRAM = np.linspace(-4.0, 4.0, 41)
NAMES = tuple(outcome.name.lower() for outcome in Outcome)
# As in scikit-learn's log_loss: a probability of 0 counts as this one.
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Scores:
    """The figures of one forecast.

    `brier_score` is the sum of the squared errors of the three outcomes (0 to 2). `accuracy` is the share of rows whose
    likeliest outcome happened; if two (three) outcomes are equally likely, each counts as a half (a third).

    `expected_calibration_error` puts the rows, for each outcome, into 10 bins of equal mass by its probability, and
    averages |observed share - mean probability| over rows and outcomes: `expected_calibration_error_plain`. Sampling
    noise alone makes that average positive, so it is debiased: `metrics.calibration` says how, and how its interval is
    found, which holds 0 in 95 % of the cases if the forecasts are calibrated. `calibration_p_value` is the p value of the
    hypothesis that the error is 0. `calibration_test` tests whether one slope and a shift of A and B would improve the
    log-probabilities; it finds forecasts that are too sure, or too unsure, in fewer rows.

    `pairwise_accuracy` is about the `decisive` rows, whose label is no tie: the share where the preferred answer has the
    higher probability; equal ones count as a half. It needs no forecast of ties.

    `tie_recall` is the accuracy on ties. `auc` is the probability that a pair that A won has a higher
    P(A) / (P(A) + P(B)) than a pair that B won. A figure without rows is None; `log_loss_by_outcome` has only outcomes
    that occur.
    """

    log_loss: Figure
    accuracy: Figure
    brier_score: Figure
    log_loss_by_outcome: dict[str, Figure]
    expected_calibration_error: Figure
    expected_calibration_error_plain: Figure
    tie_recall: Figure | None
    auc: Figure | None
    pairwise_accuracy: Figure | None
    decisive: int
    calibration_p_value: float = 1.0
    calibration_test: CalibrationTest | None = None


@dataclass(frozen=True)
class Baseline:
    """A simple forecast of the same rows; `gain` is its log loss minus that of the forecast, paired."""

    log_loss: Figure
    accuracy: Figure
    brier_score: Figure
    gain: Figure
    pairwise_accuracy: Figure | None


@dataclass(frozen=True)
class Difference:
    """The figures of this forecast minus those of another, on the n rows that all compared forecasts have.

    This forecast is better if a loss is below 0 or the accuracy is above 0. `theirs` is the log loss of the other.
    `together` is the difference of the log losses with an interval that allows for all comparisons; `log_loss` has the
    interval of this one comparison. `may_be_best` says that no compared forecast is clearly better than the other.
    """

    name: str
    n: int
    log_loss: Figure
    brier_score: Figure
    accuracy: Figure
    theirs: Figure
    together: Figure
    may_be_best: bool


@dataclass(frozen=True)
class Compared:
    """This forecast and `others` on the n rows that all of them have: its `log_loss` there, and whether none of the others is
    clearly better than it."""

    n: int
    log_loss: Figure
    may_be_best: bool
    others: tuple[Difference, ...]


@dataclass(frozen=True)
class Bin:
    """Rows with similar probabilities of one outcome: their number, mean probability, and the share where it happened."""

    n: int
    forecast: float
    observed: Figure


@dataclass(frozen=True)
class Slice:
    """The rows of one kind: `gain` is the log loss of the class prior minus that of the forecast on these rows; `small`
    says that there are fewer than 100. `decisive` of them have no tie as their label."""

    kind: str
    name: str
    n: int
    log_loss: Figure
    gain: Figure
    small: bool
    pairwise_accuracy: Figure | None
    decisive: int


@dataclass(frozen=True)
class Swap:
    """The effect of exchanging A and B on n forecasts: the share with another favourite, and the largest change of a
    probability."""

    n: int
    flips: float
    largest_change: float


@dataclass(frozen=True)
class Evaluation(Tables):
    """The `scores` of a forecast on `n` labelled rows, and those of the `baselines` on the same rows.

    The intervals are from resampling `groups` units; `resampled` says whether these are first prompts or rows. `failed`
    rows had no forecast and `unlabelled` rows no label; neither is in the figures. `truncated` of the rows were read only
    in part; None if a file of forecasts does not say. `confusion[i][j]` is the number of
    rows with outcome i whose likeliest outcome was j. `margins` are histograms of log(P(A) / P(B)) by outcome over the
    edges HISTOGRAM; values outside are in the first and last bin. With `by_margin` the model has no outcome model: only
    the pairwise accuracies mean something. `judge_bias` is there where an LLM judged. `compared` has the other forecasts
    of the same rows. `people` is the limit that people's agreement sets, where pairs have several votes. `in_sample` counts the
    rows that the forecaster was fitted on, None if the forecaster does not say. With `weighted` the rows have weights.
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
    compared: Compared | None = None
    order_swap: Swap | None = None
    failed: int = 0
    unlabelled: int = 0
    truncated: int | None = 0
    resampled: str = "rows"
    by_margin: bool = False
    judge_bias: JudgeBias | None = None
    people: PeopleLimit | None = None
    in_sample: InSample | None = None
    weighted: bool = False

    @property
    def against(self) -> Difference | None:
        """The comparison with the first other forecast."""
        return None if self.compared is None else self.compared.others[0]

    def tables(self) -> list[ShownTable]:
        """The forecast beside the baselines and the other forecasts, its other figures, and the slices."""
        from prefcast.measuring.metrics.shown import evaluation_tables

        return evaluation_tables(self)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; the fields of `scores` are on the top level. Without figures that mean nothing."""
        plain = asdict(self)
        plain["against"] = None if self.compared is None else plain["compared"]["others"][0]
        if self.by_margin:
            plain["baselines"] = {name: _pairwise(base) for name, base in plain["baselines"].items()}
            plain["slices"] = [_pairwise(part) for part in plain["slices"]]
            plain = {
                name: value for name, value in plain.items() if name not in ("reliability", "confusion", "margins")
            }
            plain["scores"] = _pairwise(plain["scores"])
        return {"n": plain.pop("n"), **plain.pop("scores"), **plain}


def _pairwise(figures: dict[str, Any]) -> dict[str, Any]:
    """Those of the figures that need no outcome model."""
    kept = ("kind", "name", "n", "small", "pairwise_accuracy", "decisive")
    return {name: value for name, value in figures.items() if name in kept}


def _shares(outcomes: NDArray[Any]) -> Floats:
    """Labels (n,) as shares of votes (n, 3)."""
    if outcomes.ndim == 1:
        shares: Floats = np.eye(len(Outcome))[outcomes]
        return shares
    return outcomes


def row_log_loss(probabilities: Floats, outcomes: NDArray[Any]) -> Floats:
    """The mean of -log of the probability of each vote, (n,); probabilities are clipped to [eps, 1 - eps] as in scikit-learn.

    Here and below, `outcomes` are labels (n,), or shares of votes (n, 3).
    """
    losses: Floats = -(_shares(outcomes) * np.log(np.clip(probabilities, _EPSILON, 1 - _EPSILON))).sum(axis=1)
    return losses


def row_accuracy(probabilities: Floats, outcomes: NDArray[Any]) -> Floats:
    """The share of the votes that say the likeliest outcome; a half or a third of it if two or three are equally likely, (n,)."""
    accurate: Floats = (_shares(outcomes) * row_favourites(probabilities)).sum(axis=1)
    return accurate


def row_pairwise(probabilities: Floats, outcomes: NDArray[Any]) -> Floats:
    """The share of the votes that prefer the answer with the higher probability, plus half of those for either answer if both
    have the same, (n,). A vote for a tie counts as 0."""
    ahead = np.sign(probabilities[:, Outcome.A] - probabilities[:, Outcome.B])
    share = _shares(outcomes)
    right: Floats = share[:, Outcome.A] * (1 + ahead) / 2 + share[:, Outcome.B] * (1 - ahead) / 2
    return right


def row_favourites(probabilities: Floats) -> Floats:
    """1 for the likeliest outcome of a row, a half or a third if two or three are equally likely, and 0, (n, 3)."""
    best = probabilities == probabilities.max(axis=1, keepdims=True)
    favourites: Floats = best / best.sum(axis=1, keepdims=True)
    return favourites


def row_brier(probabilities: Floats, outcomes: NDArray[Any]) -> Floats:
    """The sum of the squared errors of the three probabilities, mean over the votes, (n,)."""
    share = _shares(outcomes)
    squares: Floats = (share * (1 - probabilities) ** 2 + (1 - share) * probabilities**2).sum(axis=1)
    return squares
