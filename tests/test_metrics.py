from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss

from prefcast.errors import UsageError
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.bootstrap import paired_difference


def simulated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = Davidson(1.0, -0.3).probabilities(rng.normal(size=n) * 2)
    return p, (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)


def test_the_figures_agree_with_scikit_learn() -> None:
    p, y = simulated(2000)
    p[:3] = [[0, 0.5, 0.5], [1, 0, 0], [0, 1, 0]]  # certainty, right and wrong
    y[:3] = [0, 0, 0]
    found = evaluate_probabilities(p, y, repeats=10).scores
    assert found.log_loss.value == pytest.approx(log_loss(y, p, labels=[0, 1, 2]), abs=1e-12)
    one_hot = np.eye(3)[y]
    assert found.brier_score.value == pytest.approx(((p - one_hot) ** 2).sum(axis=1).mean(), abs=1e-12)
    assert found.accuracy.value == pytest.approx((p.argmax(axis=1) == y).mean(), abs=1e-3)
    for outcome, name in enumerate(["a", "b", "tie"]):
        mine = y == outcome
        assert found.log_loss_by_outcome[name].value == pytest.approx(
            log_loss(y[mine], p[mine], labels=[0, 1, 2]), abs=1e-12
        )


def test_by_hand() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    found = evaluate_probabilities(p, [0, 1])
    assert found.scores.log_loss.value == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 2)
    assert found.scores.brier_score.value == pytest.approx((0.375 + 1.04) / 2)
    assert found.scores.accuracy.value == 0.5
    assert found.baselines["uniform"].log_loss.value == pytest.approx(np.log(3))
    assert found.baselines["uniform"].accuracy.value == pytest.approx(1 / 3)
    # The other row and one more of each outcome: (1.5, 1.5, 1) of 4, A and B alike.
    assert found.baselines["class_prior"].log_loss.value == pytest.approx(-np.log(3 / 8))
    assert set(found.scores.log_loss_by_outcome) == {"a", "b"}


def test_exchanging_the_sides_changes_no_figure() -> None:
    p, y = simulated(500)
    found, swapped = evaluate_probabilities(p, y), evaluate_probabilities(p[:, [1, 0, 2]], np.array([1, 0, 2])[y])
    assert found.scores.log_loss == swapped.scores.log_loss
    assert found.scores.accuracy == swapped.scores.accuracy
    assert found.baselines["class_prior"].log_loss == swapped.baselines["class_prior"].log_loss


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    truth_p, truth_y = simulated(400_000, 7)
    truth = -np.log(truth_p[np.arange(len(truth_y)), truth_y]).mean()
    covered = 0
    for repeat in range(200):
        rows = rng.integers(0, len(truth_y), 300)
        figure = evaluate_probabilities(truth_p[rows], truth_y[rows], repeats=200, seed=repeat).scores.log_loss
        covered += figure.low <= truth <= figure.high
    assert 176 <= covered <= 200  # 95 % of 200 is 190, with a standard deviation of 3; the bootstrap is a little narrow


def test_rows_of_one_prompt_are_resampled_together() -> None:
    p, y = simulated(300)
    copies = evaluate_probabilities(np.repeat(p, 10, axis=0), np.repeat(y, 10), np.repeat(np.arange(300), 10).tolist())
    single, apart = evaluate_probabilities(p, y), evaluate_probabilities(np.repeat(p, 10, axis=0), np.repeat(y, 10))
    width = lambda found: found.scores.log_loss.high - found.scores.log_loss.low  # noqa: E731
    assert copies.groups == 300
    assert width(copies) == pytest.approx(width(single), rel=0.15)
    assert width(apart) < 0.5 * width(single)


def test_a_paired_difference_sees_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    left = rng.normal(size=500)
    difference = paired_difference(left + 0.01 + 0.02 * rng.normal(size=500), left)
    assert 0 < difference.low < difference.value < difference.high < 0.02


def test_the_json_form() -> None:
    found = json.loads(json.dumps(evaluate_probabilities(*simulated(50)).to_dict(), allow_nan=False))
    assert (found["n"], found["failed"], found["unlabelled"]) == (50, 0, 0)
    for key in ("log_loss", "accuracy", "brier_score"):
        assert set(found[key]) == {"value", "low", "high"}
        assert found[key]["low"] <= found[key]["value"] <= found[key]["high"]
        assert set(found["baselines"]["class_prior"][key]) == {"value", "low", "high"}
    assert sum(found["outcome_shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[0.5, 0.5]], [0], "must have shape"),
        ([[0.5, 0.5, 0.1]], [0], "sum to 1"),
        ([[1.5, -0.5, 0.0]], [0], "not negative"),
        ([[np.nan, 0.5, 0.5]], [0], "finite"),
        ([[0.5, 0.3, 0.2]], [3], "outcomes must be 0"),
        (np.zeros((0, 3)), [], "nothing to evaluate"),
    ],
)
def test_what_cannot_be_evaluated(p: list[list[float]], y: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_probabilities(p, y)
