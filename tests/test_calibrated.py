"""Is a forecast calibrated? The error with its interval, the two tests, and the limit that people's agreement sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefcast.errors import UsageError
from prefcast.measuring.metrics import row_log_loss
from prefcast.measuring.metrics.calibration import Gaps, calibration_error, drawn_noise, recalibration_test
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.measuring.metrics.people import people_limit
from prefcast.measuring.metrics.several import LOSSES, compared
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.bootstrap import Bootstrap, Figure

NOTHING = Figure(1.0, 1.0, 1.0)


def probabilities(n: int, seed: int) -> Any:
    return Davidson(1.0, -0.3).probabilities(np.random.default_rng(seed).normal(size=n) * 2)


def labels(p: Any, seed: int) -> Any:
    return (np.random.default_rng(seed).random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)


def sharpened(p: Any, power: float) -> Any:
    q = p**power
    return q / q.sum(axis=1, keepdims=True)


def test_the_interval_of_calibrated_forecasts_holds_0_in_about_95_percent() -> None:
    p = [probabilities(120, seed) for seed in range(40)]
    found = [evaluate_probabilities(q, labels(q, 100 + seed), repeats=4).scores for seed, q in enumerate(p)]
    # 95 % of 40 is 38, with a standard deviation of 1.4.
    assert 34 <= sum(each.expected_calibration_error.low == 0 for each in found) <= 40
    assert sum(each.calibration_test is not None and each.calibration_test.p_value < 0.05 for each in found) <= 6
    for each in found:
        assert (each.expected_calibration_error.low == 0) == (each.calibration_p_value >= 0.05)


@pytest.mark.parametrize("power", [2.0, 0.4])
def test_forecasts_that_are_too_sure_or_too_unsure_are_found(power: float) -> None:
    p = probabilities(700, 1)
    scores = evaluate_probabilities(sharpened(p, power), labels(p, 2), repeats=4).scores
    assert scores.calibration_p_value < 0.05
    assert scores.expected_calibration_error.low > 0
    assert scores.calibration_test is not None
    assert scores.calibration_test.p_value < 0.001
    assert scores.calibration_test.degrees == 3


def test_rows_of_one_prompt_do_not_make_forecasts_look_uncalibrated() -> None:
    p = probabilities(60, 3)
    rows = np.repeat(np.arange(60), 30)
    y = labels(p, 4)
    grouped = evaluate_probabilities(p[rows], y[rows], rows.tolist(), repeats=200).scores
    alone = evaluate_probabilities(p[rows], y[rows], repeats=4).scores
    assert alone.calibration_p_value < 0.01
    assert grouped.calibration_p_value > 0.05
    assert grouped.calibration_test is not None
    assert grouped.calibration_test.p_value > 0.05


@pytest.mark.parametrize(
    ("p", "y", "degrees"),
    [
        (np.full((30, 3), 1 / 3), np.arange(30) % 3, 2),
        (np.tile([0.5, 0.3, 0.2], (30, 1)), np.arange(30) % 3, 2),
    ],
    ids=["equal chances", "all the same"],
)
def test_forecasts_that_do_not_vary_have_no_slope(p: Any, y: Any, degrees: int) -> None:
    scores = evaluate_probabilities(p, y, repeats=4).scores
    assert scores.calibration_test is not None
    assert scores.calibration_test.degrees == degrees
    assert 0 <= scores.calibration_test.p_value <= 1


def test_certain_and_right_is_calibrated() -> None:
    scores = evaluate_probabilities(np.tile([0.0, 0.0, 1.0], (30, 1)), np.full(30, 2), repeats=4).scores
    assert scores.calibration_p_value == 1
    assert scores.expected_calibration_error.value == 0
    assert scores.calibration_test is not None
    assert scores.calibration_test.p_value > 0.99


def test_certain_and_wrong_is_not_calibrated() -> None:
    scores = evaluate_probabilities(np.tile([1.0, 0.0, 0.0], (30, 1)), np.full(30, 1), repeats=4).scores
    assert scores.calibration_p_value < 0.05
    assert scores.expected_calibration_error.value > 0.3
    assert scores.calibration_test is not None
    assert scores.calibration_test.p_value < 0.001


def test_no_gap_at_all_is_0_with_room_above() -> None:
    gaps = Gaps(np.full(3, 10.0), np.full(3, 5.0), np.full(3, 5.0), np.full(3, 10.0), drawn_noise(np.eye(3) * 2.5))
    found, p_value = calibration_error(gaps)
    assert (found.low, found.value) == (0, 0)
    assert 0 < found.high < 0.3
    assert p_value == 1
    test = recalibration_test(np.zeros(3), np.eye(3), np.ones(3))
    assert (test.p_value, test.statistic, test.degrees) == (1, 0, 3)


def test_counts_of_one_vote_are_labels() -> None:
    p = probabilities(200, 5)
    y = labels(p, 6)
    assert evaluate_probabilities(p, np.eye(3)[y], repeats=10) == evaluate_probabilities(p, y, repeats=10)


def test_counts_measure_as_rows_with_a_part_of_the_weight_each() -> None:
    p = probabilities(150, 7)
    rng = np.random.default_rng(8)
    counts = np.array([rng.multinomial(rng.integers(1, 6), q) for q in p])
    rows, outcomes = (
        np.concatenate(parts) for parts in zip(*(_votes(row, each) for row, each in enumerate(counts)), strict=True)
    )
    soft = evaluate_probabilities(p, counts, repeats=10).scores
    weights = 1 / counts.sum(axis=1)[rows]
    hard = evaluate_probabilities(p[rows], outcomes, rows.tolist(), weights=weights, repeats=10).scores
    for name in ("log_loss", "brier_score", "accuracy", "auc", "pairwise_accuracy", "tie_recall"):
        assert getattr(soft, name).value == pytest.approx(getattr(hard, name).value, abs=1e-9)
    entropy = row_log_loss(p, counts / counts.sum(axis=1, keepdims=True))
    assert soft.log_loss.value == pytest.approx(entropy.mean(), abs=1e-12)


def _votes(row: int, counts: Any) -> tuple[Any, Any]:
    outcomes = np.repeat(np.arange(3), counts)
    return np.full(len(outcomes), row), outcomes


def test_a_weight_of_two_counts_as_two_rows() -> None:
    p = probabilities(80, 9)
    y, weight = labels(p, 10), np.where(np.arange(80) % 3 == 0, 2.0, 1.0)
    found = evaluate_probabilities(p, y, weights=weight, repeats=10)
    rows = np.repeat(np.arange(80), weight.astype(int))
    expected = evaluate_probabilities(p[rows], y[rows], rows.tolist(), repeats=10)
    assert found.weighted
    assert found.n == 80
    assert found.scores.log_loss.value == pytest.approx(expected.scores.log_loss.value, abs=1e-12)
    assert found.scores.accuracy.value == pytest.approx(expected.scores.accuracy.value, abs=1e-12)
    assert found.outcome_shares == pytest.approx(expected.outcome_shares)


@pytest.mark.parametrize(
    ("votes", "weights", "message"),
    [
        ([[1, 0, 0], [0, 0, 0]], None, "every row needs one"),
        ([[1, 0, 0], [-1, 2, 0]], None, "not negative"),
        ([[1, 0, 0], [np.nan, 2, 0]], None, "finite"),
        ([0, 1], [1, -1], "weights"),
        ([0, 1], [0, 0], "not all 0"),
        ([0, 1], [1], "shape"),
        ([0, 1], [1, np.inf], "finite"),
    ],
)
def test_votes_and_weights_that_mean_nothing(votes: Any, weights: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_probabilities(np.full((2, 3), 1 / 3), votes, weights=weights)


@pytest.mark.parametrize("alpha", [(2.0, 2.0, 1.0), (0.5, 0.4, 0.2)], ids=["people differ", "people mostly agree"])
def test_the_limit_is_the_entropy_of_what_all_people_say(alpha: tuple[float, ...]) -> None:
    rng = np.random.default_rng(1)
    truth = rng.dirichlet(alpha, 3000)
    counts = np.array([rng.multinomial(1 + row % 4, shares) for row, shares in enumerate(truth)], dtype=float)
    found = people_limit(counts, rng.integers(0, 2**63, 3000).astype(np.uint64), NOTHING)
    assert found is not None
    several = np.arange(3000) % 4 > 0
    entropy = -(truth * np.log(np.maximum(truth, 1e-300))).sum(axis=1)[several].mean()
    assert found.pairs == several.sum()
    assert found.votes == counts.sum(axis=1)[several].sum()
    assert found.log_loss.low < entropy < found.log_loss.high
    assert found.log_loss.high - found.log_loss.low < 0.1
    same = (truth**2).sum(axis=1)[several].mean()
    assert found.agree.low < same < found.agree.high
    assert found.brier_score.value == pytest.approx(1 - found.agree.value)
    assert people_limit(np.eye(3), np.arange(3, dtype=np.uint64), NOTHING) is None


def test_intervals_of_many_forecasts_hold_together() -> None:
    rng, outside = np.random.default_rng(0), 0
    for repeat in range(30):
        # The losses of five forecasts, which are equally good.
        losses = rng.normal(1, 0.5, (80, 5))
        sums = Bootstrap(200, repeat)
        columns = {f"log_loss:{number}": losses[:, number] for number in range(5)} | {"rows:both": np.ones(80)}
        for number in range(1, 5):
            columns |= {f"{what}:minus:{number}": losses[:, 0] - losses[:, number] for what in LOSSES}
        sums.add(np.arange(80, dtype=np.uint64), columns)
        found = compared(sums, ["b", "c", "d", "e"], 80)
        assert found is not None
        outside += not all(each.together.low <= 0 <= each.together.high for each in found.others)
        assert all(
            each.together.high - each.together.low > each.log_loss.high - each.log_loss.low for each in found.others
        )
    # 5 % of 30 are 1.5.
    assert outside <= 5
