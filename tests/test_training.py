"""The trainer, on data that the tests make."""

from __future__ import annotations

import numpy as np

from conftest import EXAMPLES
from prefcast import read_pairs
from prefcast.outcomes.models import Davidson
from prefcast.scorers.surface import feature_arrays
from prefcast.training.prompts import prompt_key
from prefcast.training.shared import fit_weights
from train_surface import Rows, _folds, cross_fitted, evidence, train


def simulated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    margin, tie, source = rng.normal(size=(n, 2)), rng.normal(size=(n, 2)), rng.integers(0, 2, n)
    p = Davidson().probabilities(margin @ [1.5, -0.5], tie @ [0.8, 0.0] + np.array([-1.0, 0.5])[source])
    return margin, tie, source, (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)


def test_the_fit_finds_the_weights_that_made_the_data() -> None:
    margin, tie, source, outcome = simulated(30_000)
    none = np.zeros(len(outcome), dtype=bool)
    by_margin, by_tie = fit_weights(margin, tie, source, np.eye(3)[outcome], np.ones(len(outcome)), none, 1.0)
    np.testing.assert_allclose(by_margin, [1.5, -0.5], atol=0.06)
    np.testing.assert_allclose(by_tie, [0.8, 0.0], atol=0.06)


def test_rows_of_a_source_without_ties_teach_the_margin_alone() -> None:
    margin, tie, source, outcome = simulated(30_000)
    kept = (source == 0) | (outcome != 2)  # the second source left its ties out
    arguments = margin[kept], tie[kept], source[kept], np.eye(3)[outcome[kept]], np.ones(int(kept.sum()))
    by_margin, by_tie = fit_weights(*arguments, source[kept] == 1, 1.0)
    np.testing.assert_allclose(by_margin, [1.5, -0.5], atol=0.06)
    np.testing.assert_allclose(by_tie, [0.8, 0.0], atol=0.08)


def test_a_source_with_a_scale_of_its_own_teaches_the_direction_alone() -> None:
    rng = np.random.default_rng(1)
    margin, tie, source = rng.normal(size=(30_000, 2)), rng.normal(size=(30_000, 1)), rng.integers(0, 2, 30_000)
    # The second source is three times as sure.
    strength = margin @ [1.0, -0.5] * np.array([1.0, 3.0])[source]
    p = Davidson().probabilities(strength, 0.5 * tie[:, 0])
    outcome = (rng.random(30_000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    none = np.zeros(30_000, dtype=bool)
    given = margin, tie, source, np.eye(3)[outcome], np.ones(30_000), none, 1.0
    np.testing.assert_allclose(fit_weights(*given, scaled=source == 1)[0], [1.0, -0.5], atol=0.06)
    assert fit_weights(*given)[0][0] > 1.3


def test_rows_of_one_prompt_stay_in_one_fold() -> None:
    group = np.repeat(np.arange(500), 3)
    fold = _folds(group, 0)
    assert set(fold) == set(range(10))
    assert all(len(set(fold[group == number])) == 1 for number in range(500))
    assert prompt_key(next(read_pairs(EXAMPLES))) == prompt_key(next(read_pairs(EXAMPLES)).swapped())


def test_cross_fitting_does_not_see_the_row_that_it_forecasts() -> None:
    rng = np.random.default_rng(3)
    outcome, noise = rng.integers(0, 3, 400), rng.normal(size=(2, 400))
    group = np.arange(400)
    before = cross_fitted(noise[0], noise[1], outcome, group)
    changed = outcome.copy()
    changed[7] = (outcome[7] + 1) % 3
    after = cross_fitted(noise[0], noise[1], changed, group)
    mine = _folds(group, 0) == _folds(group, 0)[7]
    np.testing.assert_array_equal(after[mine], before[mine])
    assert (after[~mine] != before[~mine]).any()


def test_training_learns_and_follows_a_swap() -> None:
    pairs = list(read_pairs(EXAMPLES))

    def rows_of(given: list) -> Rows:
        a, b, both = feature_arrays(given)
        outcome = np.array([pair.outcome for pair in given], dtype=np.int64)
        return Rows(
            ["arena33k_sample574"], np.zeros(len(given), dtype=np.int64), np.arange(len(given)), outcome, a, b, both
        )

    every = np.ones(len(pairs), dtype=bool)
    rows, swapped = rows_of(pairs), rows_of([pair.swapped() for pair in pairs])
    margin, _ = evidence(train(rows, every, 5.0), rows, every)
    decided = rows.outcome < 2
    assert ((margin > 0) == (rows.outcome == 0))[decided].mean() > 0.8
    other, _ = evidence(train(swapped, every, 5.0), swapped, every)
    np.testing.assert_allclose(other, -margin, atol=1e-4)
