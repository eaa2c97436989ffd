"""How good forecasts are: figures with 95 % intervals, next to baselines on the same rows.

All figures are means over rows, so a bootstrap over groups of rows (the same first prompt) needs only each group's
sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcast.errors import UsageError
from prefcast.pairs import Outcome

__all__ = ["Evaluation", "Figure", "Scores", "evaluate_probabilities", "paired_difference"]

Floats = NDArray[np.float64]

REPEATS = 1000
# As scikit-learn's log_loss: a probability of 0 costs what the smallest step above it costs.
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Figure:
    """An estimate with the 2.5 % and 97.5 % quantiles of its bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Scores:
    """The figures of one forecast.

    `brier_score` sums the squared errors of the three outcomes (0 to 2); a tie between the two largest probabilities
    counts as half (a third) an accurate forecast. `log_loss_by_outcome` has the outcomes that occur.
    """

    log_loss: Figure
    accuracy: Figure
    brier_score: Figure
    log_loss_by_outcome: dict[str, Figure]


@dataclass(frozen=True)
class Evaluation:
    """`scores` on `n` labelled rows, with `baselines` on the same rows.

    The intervals resampled `groups` units: `resampled` says whether those were first prompts or rows. `failed` rows had no forecast and `unlabelled` rows no label; neither is in the figures.
    """

    n: int
    groups: int
    scores: Scores
    baselines: dict[str, Scores]
    outcome_shares: dict[str, float]
    failed: int = 0
    unlabelled: int = 0
    resampled: str = "rows"

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready form: every field, the scores' own on the same level."""
        plain = asdict(self)
        return {"n": plain.pop("n"), **plain.pop("scores"), **plain}


def row_log_loss(probabilities: Floats, outcomes: NDArray[np.int64]) -> Floats:
    """-log of the probability of what happened, (n,); probabilities are clipped to [eps, 1 - eps] as scikit-learn does."""
    return -np.log(np.clip(probabilities[np.arange(len(outcomes)), outcomes], _EPSILON, 1 - _EPSILON))


def _row_accuracy(probabilities: Floats, outcomes: NDArray[np.int64]) -> Floats:
    best = probabilities == probabilities.max(axis=1, keepdims=True)
    accurate: Floats = best[np.arange(len(outcomes)), outcomes] / best.sum(axis=1)
    return accurate


def _row_brier(probabilities: Floats, outcomes: NDArray[np.int64]) -> Floats:
    squares: Floats = ((probabilities - np.eye(len(Outcome))[outcomes]) ** 2).sum(axis=1)
    return squares


def _groups(groups: Sequence[object] | NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(n)
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def _draws(group: NDArray[np.int64], columns: Sequence[Floats], repeats: int, seed: int) -> Floats:
    """Sums of k columns (n,) over bootstrap draws of whole groups, (repeats, k)."""
    sums = np.stack([np.bincount(group, column) for column in columns], axis=1)
    rng = np.random.default_rng(seed)
    g = len(sums)
    return np.stack([np.bincount(rng.integers(0, g, g), minlength=g) @ sums for _ in range(repeats)])


def _figure(value: float, draws: Floats) -> Figure:
    # A draw may hold no row of a rare outcome: it says nothing about that figure.
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Figure(float(value), float(low), float(high))


def _scores(total: Floats, counts: Floats, total_draws: Floats, count_draws: Floats) -> Scores:
    """Figures from sums of log loss by outcome (3), accuracy and Brier score, (5,) and (repeats, 5), and counts (3,), (repeats, 3)."""
    n, n_draws = counts.sum(), count_draws.sum(axis=1)
    by_outcome = {
        outcome.name.lower(): _figure(
            total[outcome] / counts[outcome], _ratio(total_draws[:, outcome], count_draws[:, outcome])
        )
        for outcome in Outcome
        if counts[outcome]
    }
    log_loss = _figure(total[:3].sum() / n, total_draws[:, :3].sum(axis=1) / n_draws)
    accuracy, brier = (_figure(total[column] / n, total_draws[:, column] / n_draws) for column in (3, 4))
    return Scores(log_loss, accuracy, brier, by_outcome)


def _ratio(sums: Floats, counts: Floats) -> Floats:
    ratios: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return ratios


def evaluate_probabilities(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    failed: int = 0,
    unlabelled: int = 0,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Evaluation:
    """Figures of `probabilities` (n, 3) against `outcomes` (n,) in Outcome's values.

    `groups` (n hashable values, by default one a row) are resampled as wholes. The baseline `class_prior` is the
    outcomes' own shares on these rows with A and B counted as one (the forecaster does not see them: this flatters
    the baseline). Raises UsageError on shapes that do not fit, rows that do not sum to 1 within 1e-6, or no rows.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(outcomes, dtype=np.int64)
    if (
        p.ndim != 2
        or p.shape[1] != len(Outcome)
        or y.shape != (len(p),)
        or (groups is not None and len(groups) != len(p))
    ):
        raise UsageError(
            f"probabilities must have shape (n, 3), outcomes and groups (n,); found {p.shape} and {y.shape}"
        )
    if not len(p):
        raise UsageError("no labelled row has a forecast: nothing to evaluate")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=1), 1.0, rtol=0, atol=1e-6)):
        raise UsageError("probabilities must be finite, not negative, and sum to 1 in every row")
    if ((y < 0) | (y >= len(Outcome))).any():
        raise UsageError("outcomes must be 0 (A), 1 (B) or 2 (tie)")
    group = _groups(groups, len(p))
    happened = np.eye(len(Outcome))[y]
    columns = [*(row_log_loss(p, y)[:, None] * happened).T, _row_accuracy(p, y), _row_brier(p, y), *happened.T]
    totals = np.array([column.sum() for column in columns])
    draws = _draws(group, columns, repeats, seed)
    counts, count_draws = totals[5:], draws[:, 5:]
    shares = counts / len(y)
    decisive = (shares[Outcome.A] + shares[Outcome.B]) / 2
    baselines = {}
    for name, row in (("uniform", [1 / 3] * 3), ("class_prior", [decisive, decisive, shares[Outcome.TIE]])):
        # What a constant forecast costs depends on the outcome alone, so the counts of a draw are all it takes.
        constant, each = np.tile(row, (3, 1)), np.arange(3)
        costs = np.column_stack(
            [np.diag(row_log_loss(constant, each)), _row_accuracy(constant, each), _row_brier(constant, each)]
        )
        baselines[name] = _scores(counts @ costs, counts, count_draws @ costs, count_draws)
    return Evaluation(
        n=len(p),
        groups=int(group.max()) + 1,
        scores=_scores(totals[:5], counts, draws[:, :5], count_draws),
        baselines=baselines,
        outcome_shares={outcome.name.lower(): float(shares[outcome]) for outcome in Outcome},
        failed=failed,
        unlabelled=unlabelled,
        resampled="rows" if groups is None else "prompts",
    )


def paired_difference(
    left: ArrayLike, right: ArrayLike, groups: Sequence[object] | None = None, *, repeats: int = REPEATS, seed: int = 0
) -> Figure:
    """Mean of left - right, two losses (n,) of the same rows, with a bootstrap interval over groups."""
    difference = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    group = _groups(groups, len(difference))
    draws = _draws(group, [difference, np.ones(len(group))], repeats, seed)
    return _figure(difference.mean(), draws[:, 0] / draws[:, 1])
