"""The test whether a sample is a mixture of two others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefcast.outcomes.statistics.mixture import MixtureTest, mixture_test


def rows(n: int, share: float, rng: np.random.Generator, move: float = 0.0) -> tuple[Any, Any]:
    """Rows (n, 2) of a mixture of two normal samples, and which of the two each is from."""
    second = rng.random(n) < share
    values = rng.normal(size=(n, 2)) + np.where(second, 1.5, 0.0)[:, None] + move
    return values, np.column_stack([~second, second]).astype(float)


def outcome_of(seed: int, share: float, move: float = 0.0, n: int = 120, copies: int = 1) -> MixtureTest:
    rng = np.random.default_rng(seed)
    (sample, second), (target, _) = rows(n, 0.3, rng), rows(n, share, rng, move)
    target = np.repeat(target, copies, axis=0)
    keys = np.arange(n, dtype=np.uint64)
    there = np.repeat(keys + np.uint64(n), copies)
    return mixture_test(sample, second, keys, target, there, repeats=99, seed=seed)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_mixtures_are_refused_rarely(share: float) -> None:
    refused = [outcome_of(seed, share).p_value <= 0.05 for seed in range(60)]
    # Five per cent of 60 are 3; 8 or more would be a chance of 1 in 100.
    assert sum(refused) < 8


def test_the_share_of_the_nearest_mixture_is_the_planted_one() -> None:
    for share in (0.1, 0.7):
        found = np.mean([outcome_of(seed, share).share for seed in range(20)])
        assert found == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("move", [-0.8, 2.5])
def test_what_is_no_mixture_is_refused(move: float) -> None:
    assert all(outcome_of(seed, 0.3, move).p_value <= 0.05 for seed in range(5))


def test_copies_of_a_group_prove_nothing() -> None:
    """Without the groups, ten copies of every row would look like a certain difference."""
    refused = [outcome_of(seed, 0.3, copies=10).p_value <= 0.05 for seed in range(20)]
    assert sum(refused) < 5


def test_the_unit_of_a_column_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    (sample, second), (target, _) = rows(60, 0.3, rng), rows(50, 0.5, rng)
    keys, there = np.arange(60, dtype=np.uint64), np.arange(100, 150, dtype=np.uint64)
    plain = mixture_test(sample, second, keys, target, there, repeats=49)
    assert mixture_test(np.exp(sample), second, keys, np.exp(target), there, repeats=49) == plain
    assert 0 < plain.p_value <= 1
    assert 0 <= plain.share <= 1


def test_a_constant_column_says_nothing() -> None:
    rng = np.random.default_rng(2)
    (sample, second), (target, _) = rows(60, 0.3, rng), rows(50, 0.5, rng)
    keys, there = np.arange(60, dtype=np.uint64), np.arange(100, 150, dtype=np.uint64)
    plain = mixture_test(sample, second, keys, target, there, repeats=49)
    more = [np.column_stack([part, np.full(len(part), 7.0)]) for part in (sample, target)]
    assert mixture_test(more[0], second, keys, more[1], there, repeats=49).p_value == pytest.approx(
        plain.p_value, abs=0.05
    )
