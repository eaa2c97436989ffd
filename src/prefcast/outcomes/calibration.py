"""The error of a forecaster for a whole system, measured on labelled rows out of fold.

Errors that are independent between prompts average out over many prompts. A bias does not: a forecaster that prefers
long answers more than people do is wrong about every answer of a system whose answers are long. Where the labelled
rows name the models, the bias is measured as a variance between models; otherwise the expected calibration error is
used in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcast.pairs import Outcome

__all__ = ["BINS", "Calibration", "folded_normal_mean", "measure_calibration"]

Floats = NDArray[np.float64]

# The number of bins of equal mass in the expected calibration error.
BINS = 10
# The variance between models is estimated only from at least so many pairs of rows that share a model.
_LEAST_PAIRS = 2000
_LEAST_CHANCE = 1e-200


@dataclass(frozen=True)
class Calibration:
    """Standard deviations of the forecaster's error in two rates of a pair of systems: `net` (the win rate minus the
    loss rate) and `tie`.

    `source` names the method: `models` (the variance between models) or `bins` (the expected calibration error).
    """

    net: float
    tie: float
    source: str
    n: int
    expected_calibration_error: float


def measure_calibration(
    probabilities: Floats, votes: Floats, keys: NDArray[np.uint64], model_a: Floats, model_b: Floats
) -> Calibration:
    """The calibration of out-of-fold `probabilities` (n, 3) against `votes` (n, 3).

    `model_a` and `model_b` (n,) are numbers that identify the models, nan where unknown. With u the bias of a model, the
    residual of a row is u_b - u_a plus noise that is independent between prompts. The moment estimate of the variance
    of u is the mean product of residuals of rows that share a model (as in DerSimonian and Laird, 1986, for one-way
    effects). `_expected_variance` adds the uncertainty of that estimate. The error for two systems is the difference
    of two biases, which has twice the variance.
    """
    error = _expected_calibration_error(probabilities, votes)
    weights = votes.sum(axis=1)
    named = np.isfinite(model_a) & np.isfinite(model_b) & (model_a != model_b) & (weights > 0)
    share = votes[named] / weights[named, None]
    residual = share - probabilities[named]
    net = residual[:, Outcome.B] - residual[:, Outcome.A]
    names, codes = np.unique(np.concatenate([model_a[named], model_b[named]]), return_inverse=True)
    a, b = np.split(codes, 2) if len(codes) else (codes, codes)
    found = [
        _variance(values, a, b, sign, len(names), keys[named]) for values, sign in ((net, -1), (residual[:, 2], 1))
    ]
    if found[0] is None or found[1] is None:
        return Calibration(2 * error, error, "bins", len(votes), error)
    return Calibration(float(np.sqrt(2 * found[0])), float(np.sqrt(2 * found[1])), "models", int(named.sum()), error)


def _variance(
    residual: Floats, a: NDArray[np.int64], b: NDArray[np.int64], sign: int, models: int, keys: NDArray[np.uint64]
) -> float | None:
    """The expected variance between models; None if too few rows share a model.

    Products of two rows of the same prompt are left out: their residuals may be alike because of the prompt.
    """
    if not len(residual):
        return None
    total, pairs = _products(residual, a, b, sign, models)
    # The products within one prompt: the same sums over (prompt, model).
    _, prompt = np.unique(keys, return_inverse=True)
    cells, inner = np.unique(np.concatenate([prompt * models + a, prompt * models + b]), return_inverse=True)
    inner_a, inner_b = np.split(inner, 2)
    within, few = _products(residual, inner_a, inner_b, sign, len(cells))
    if pairs - few < _LEAST_PAIRS:
        return None
    rows = np.bincount(np.concatenate([a, b]), minlength=models).astype(np.float64)
    # Each model has as weight the square of its number of rows; this is the effective number of models.
    effective = float((rows**2).sum() ** 2 / (rows**4).sum())
    noise = float((residual**2).mean()) * np.sqrt(effective / (pairs - few))
    return _expected_variance((total - within) / (pairs - few), noise, effective)


def _expected_variance(estimate: float, noise: float, models: float) -> float:
    """The expected variance of `models` biases, given its moment `estimate` (which may be negative) and the variance
    `noise` with which each bias is observed.

    v = variance + noise is at least `noise`, and (estimate + noise) / v is a mean of `models` squared normals. Under the
    prior 1 / v the mean of v is a ratio of chi-squared probabilities (Hill, "Inference about variance components in the
    one-way model", JASA 60, 1965; Box and Tiao, "Bayesian Inference in Statistical Analysis", 1973, section 5.2). The
    result is therefore above 0 even if the estimate is 0, and larger if there are few labels or few models.
    """
    from scipy.special import chdtr

    # The mean is finite for three models or more.
    models = max(models, 3.0)
    total = models * max(estimate + noise, 0.0)
    if noise <= 0:
        return total / (models - 2)
    lower, upper = (float(chdtr(freedom, total / noise)) for freedom in (models - 2, models))
    # Far below the noise both probabilities are 0 in floating point. There the density of v, from `noise` on, is
    # proportional to v ** (-models / 2 - 1), which gives this mean.
    mean = total / (models - 2) * lower / upper if upper > _LEAST_CHANCE else noise * models / (models - 2)
    return mean - noise


def _products(
    residual: Floats, a: NDArray[np.int64], b: NDArray[np.int64], sign: int, models: int
) -> tuple[float, float]:
    """The sum of products of residuals over ordered pairs of different rows that share a model, and the factor between
    the mean of that sum and the variance."""
    sums = np.bincount(b, residual, models) + sign * np.bincount(a, residual, models)
    squares = np.bincount(b, residual**2, models) + np.bincount(a, residual**2, models)
    counts = np.bincount(a, minlength=models) + np.bincount(b, minlength=models)
    # Two rows of the same two models share both biases: their product is counted under each model, with twice the
    # variance.
    _, together = np.unique(np.minimum(a, b) * models + np.maximum(a, b), return_counts=True)
    times = float((counts * (counts - 1.0)).sum() + 2 * (together * (together - 1.0)).sum())
    return float((sums**2 - squares).sum()), times


def _expected_calibration_error(probabilities: Floats, votes: Floats) -> float:
    """The debiased error of votes, averaged over the outcomes; `metrics.Scores` defines it."""
    weights = votes.sum(axis=1)
    errors = []
    for outcome in Outcome:
        p = probabilities[:, outcome]
        position = np.argsort(p, kind="stable")
        total = 0.0
        for part in np.array_split(position, BINS):
            n = weights[part].sum()
            if n:
                gap = (votes[part, outcome] - weights[part] * p[part]).sum() / n
                noise = np.sqrt((weights[part] * p[part] * (1 - p[part])).sum()) / n
                total += n * float(2 * abs(gap) - folded_normal_mean(gap, noise))
        errors.append(total / weights.sum())
    return max(0.0, float(np.mean(errors)))


def folded_normal_mean(mean: ArrayLike, deviation: ArrayLike) -> Floats:
    """The mean of |X| for a normal X with `mean` and `deviation`."""
    from scipy.special import erf

    mean, deviation = np.asarray(mean, dtype=np.float64), np.asarray(deviation, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(mean) / (deviation * np.sqrt(2))
        folded = deviation * np.sqrt(2 / np.pi) * np.exp(-(z**2)) + np.abs(mean) * erf(z)
    mostly_folded: Floats = np.where(deviation > 0, folded, np.abs(mean))
    return mostly_folded
