"""How far a forecaster is off for whole models: planted, and found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefcast.outcomes.calibration import Calibration, _expected_variance, measure_calibration
from prefcast.outcomes.models import Davidson


def planted(
    bias: float, tie_bias: float = 0.0, n: int = 40_000, models: int = 60, seed: int = 0, prompts: int | None = None
) -> tuple[Any, ...]:
    """Forecasts of pairs of models whose true rates differ by each model's own bias (standard deviation)."""
    rng = np.random.default_rng(seed)
    own, own_tie = bias * rng.standard_normal(models), tie_bias * rng.standard_normal(models)
    own, own_tie = own - own.mean(), own_tie - own_tie.mean()
    a = rng.integers(0, models, n)
    b = (a + rng.integers(1, models, n)) % models
    p = Davidson(1.0, -0.3).probabilities(rng.normal(size=n))
    p = 0.8 * p + 0.2 / 3  # room for a bias
    net, tie = own[b] - own[a], own_tie[a] + own_tie[b]
    truth = p + np.stack([-(tie + net) / 2, (net - tie) / 2, tie], axis=1)
    truth = np.clip(truth, 0, 1)
    y = (rng.random(n)[:, None] > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    keys = (np.arange(n) if prompts is None else rng.integers(0, prompts, n)).astype(np.uint64)
    return p, np.eye(3)[y], keys, a.astype(float), b.astype(float)


def test_a_planted_bias_is_found() -> None:
    found = [measure_calibration(*planted(0.06, 0.02, seed=seed)) for seed in range(3)]
    assert all((each.source, each.n) == ("models", 40_000) for each in found)
    # Two systems differ by two biases.
    assert np.mean([each.net for each in found]) == pytest.approx(0.06 * np.sqrt(2), rel=0.2)
    assert np.mean([each.tie for each in found]) == pytest.approx(0.02 * np.sqrt(2), rel=0.2)


def test_many_rows_of_one_prompt_do_not_count_as_a_bias() -> None:
    found = measure_calibration(*planted(0.06, seed=5, prompts=4000))
    assert found.net == pytest.approx(0.06 * np.sqrt(2), rel=0.25)


def test_no_bias_is_none() -> None:
    found = [measure_calibration(*planted(0.0, seed=seed)) for seed in range(4)]
    assert np.mean([each.net for each in found]) < 0.015
    assert np.mean([each.tie for each in found]) < 0.015
    assert all(each.expected_calibration_error < 0.01 for each in found)


def test_exchanging_the_sides_changes_nothing() -> None:
    p, votes, keys, a, b = planted(0.05, 0.02, n=8000)
    forward = measure_calibration(p, votes, keys, a, b)
    backward = measure_calibration(p[:, [1, 0, 2]], votes[:, [1, 0, 2]], keys, b, a)
    assert backward.net == pytest.approx(forward.net, rel=1e-9)
    assert backward.tie == pytest.approx(forward.tie, rel=1e-9)
    assert backward.expected_calibration_error == pytest.approx(forward.expected_calibration_error, rel=1e-6)


@pytest.mark.parametrize("known", [0, 10])
def test_unknown_models_leave_the_bins(known: int) -> None:
    p, votes, keys, a, b = planted(0.05, n=3000)
    a[known:] = np.nan
    found = measure_calibration(p, votes, keys, a, b)
    error = found.expected_calibration_error
    assert found == Calibration(2 * error, error, "bins", 3000, error)


def test_bins_see_a_forecast_that_is_too_sure() -> None:
    p, votes, keys, a, b = planted(0.0, n=20_000)
    sure = p**3 / (p**3).sum(axis=1, keepdims=True)
    nobody = np.full(len(p), np.nan)
    assert measure_calibration(sure, votes, keys, nobody, nobody).net > 0.1
    assert measure_calibration(p, votes, keys, nobody, nobody).net < 0.02
    # Ten votes a row say the same as ten rows.
    few = slice(0, 500)
    tenfold = measure_calibration(sure[few], 10 * votes[few], keys[few], a[few] * np.nan, b[few] * np.nan)
    assert tenfold.expected_calibration_error > 0.05


def test_a_model_against_itself_says_nothing() -> None:
    p, votes, keys, a, _ = planted(0.05, n=3000)
    assert measure_calibration(p, votes, keys, a, a).source == "bins"


def test_no_bias_seen_in_few_labels_is_not_no_bias() -> None:
    """The measured variance is on average at least the planted one, and never 0, where noise hides it half of the time."""
    bias = 0.03
    found = np.array([measure_calibration(*planted(bias, n=6000, models=40, seed=seed)).net for seed in range(40)])
    assert found.min() > 0.01
    assert bias * np.sqrt(2) < np.sqrt((found**2).mean()) < 2 * bias * np.sqrt(2)


def test_the_expected_variance_is_that_of_its_posterior() -> None:
    """Against sums over a fine grid."""
    for estimate, noise, models in ((0.0, 1.0, 40.0), (-0.2, 1.0, 12.5), (3.0, 0.5, 8.0), (0.001, 0.002, 100.0)):
        v = noise * np.exp(np.linspace(0, 12, 400_001))
        # The grid is even in log v: the prior 1 / v is flat on it.
        log_density = -models / 2 * (np.log(v) + (estimate + noise) / v)
        density = np.exp(log_density - log_density.max())
        expected = float((density * v).sum() / density.sum()) - noise
        assert _expected_variance(estimate, noise, models) == pytest.approx(expected, rel=1e-3)


def test_the_expected_variance_at_its_limits() -> None:
    # Many labels of many models: the estimate itself.
    assert _expected_variance(0.5, 1e-9, 1e6) == pytest.approx(0.5, rel=1e-4)
    assert _expected_variance(0.5, 0.0, 1e6) == pytest.approx(0.5, rel=1e-4)
    assert _expected_variance(0.0, 0.0, 5.0) == 0
    # Estimates that noise can hardly make.
    for estimate in (-1.0, -5.0, -0.999999, -0.9):
        for models in (1.0, 3.0, 10.0, 2000.0):
            assert 0 < _expected_variance(estimate, 1.0, models) < 2.2
    # A larger estimate says more, fewer models leave more open.
    values = [_expected_variance(estimate, 1.0, 20.0) for estimate in np.linspace(-0.9, 5, 50)]
    assert (np.diff(values) > 0).all()
    assert _expected_variance(1.0, 0.1, 5.0) > _expected_variance(1.0, 0.1, 50.0) > 1.0
