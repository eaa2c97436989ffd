"""Rewards and the length of answers: the figures of each step, the warning, and the corrections, on simulated truth."""

from __future__ import annotations

import json
import logging
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefcast import rewards
from prefcast.errors import UsageError
from prefcast.service.rewards.lengths import LOOKS, Sums, doublings, looks_of
from prefcast.service.rewards.monitor import Monitor
from test_rewards import called, planted

STEPS, SIZE = 20, 8
# The standard deviation of log2(length) within a group.
SPREAD = 0.6


class Steps:
    """The steps of a simulated training: the reward is the quality, which has nothing to do with the length, plus a bias for length
    that gives both the correlation `bias` within groups."""

    def __init__(self, bias: float, *, seed: int, groups: int = 8, steps: int = STEPS) -> None:
        rng = np.random.default_rng(seed)
        shape = (steps, groups, SIZE)
        length = rng.normal(size=(steps, groups, 1)) + SPREAD * rng.normal(size=shape)
        self.texts = [[f"{'a' * round(1000 * 2**each)}" for each in row] for row in length.reshape(steps, -1)]
        self.length = np.array([[doublings(len(text)) for text in row] for row in self.texts]).reshape(shape)
        self.quality = rng.normal(size=shape)
        self.rewards = self.quality + bias / np.sqrt(1 - bias**2) / SPREAD * self.length
        self.groups = [
            [f"{step} {group}".encode() for group in range(groups) for _ in range(SIZE)] for step in range(steps)
        ]

    def through(self, monitor: Monitor) -> Any:
        """The rewards that the monitor returns."""
        rows = zip(self.groups, self.texts, self.rewards.reshape(len(self.texts), -1).tolist(), strict=True)
        return np.array([monitor.step(*row) for row in rows]).reshape(self.rewards.shape)


def within(values: Any) -> Any:
    return (values - values.mean(axis=-1, keepdims=True)).ravel()


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(within(a), within(b))[0, 1])


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, "prefcast")
    return lambda: [record.getMessage() for record in caplog.records]


def test_looks_are_those_of_the_markdown() -> None:
    assert looks_of("a" * 1000) == (0, 0, 0, 0)
    assert doublings(2001) == pytest.approx(1)
    assert looks_of("# Title\n\n- one\n- two\n- three\n\n**x**")[1:] == (2, 1, 1)


def test_correlations_are_pooled_within_groups() -> None:
    steps = Steps(0.6, seed=3, steps=1)
    looks = np.column_stack([steps.length.ravel(), np.zeros((64, 3))])
    found = Sums.of(steps.groups[0], looks, steps.rewards.ravel())
    assert found.correlation().value == pytest.approx(correlation(steps.length, steps.rewards), abs=1e-12)
    assert np.isnan(found.correlation(1).value)
    order = np.random.default_rng(0).permutation(64)
    groups = [steps.groups[0][each] for each in order]
    mixed = Sums.of(groups, looks[order], steps.rewards.ravel()[order]).correlation()
    assert astuple(mixed) == pytest.approx(astuple(found.correlation()))
    # A constant that differs between groups changes nothing.
    shifted = steps.rewards + 1000 * np.arange(8)[:, None]
    assert Sums.of(steps.groups[0], looks, shifted.ravel()).correlation().value == pytest.approx(
        found.correlation().value
    )
    slope = np.polyfit(within(steps.length), within(steps.rewards), 1)[0]
    assert found.slope().value == pytest.approx(slope, abs=1e-9)
    assert found.slope().low < slope < found.slope().high


def test_the_interval_covers() -> None:
    inside = 0
    for seed in range(200):
        steps = Steps(0.5, seed=seed, steps=1, groups=20)
        looks = np.column_stack([steps.length.ravel(), np.zeros((160, 3))])
        found = Sums.of(steps.groups[0], looks, steps.rewards.ravel()).correlation()
        inside += found.low < 0.5 < found.high
    # 95 % of 200 with a binomial standard error of 3.
    assert inside >= 181


@pytest.mark.parametrize("groups", [2, 8])
def test_a_planted_bias_for_length_is_flagged_within_20_steps(warned: Any, groups: int) -> None:
    for seed in range(5):
        Steps(0.75, seed=seed, groups=groups).through(Monitor("mine"))
        assert len(warned()) == seed + 1
    assert warned()[0].startswith(
        "mine: the rewards follow the length of the answers: within groups the correlation is 0.7"
    )
    Steps(-0.9, seed=9).through(Monitor("other"))
    assert "makes answers shorter" in warned()[-1]
    Steps(0.9, seed=9).through(Monitor("quiet", alarm=None))
    assert len(warned()) == 6


def test_a_sound_reward_is_not_flagged(warned: Any) -> None:
    for seed, bias in enumerate((0.0, 0.0, 0.3, 0.3)):
        Steps(bias, seed=seed, groups=2, steps=100).through(Monitor("mine"))
    assert warned() == []


@pytest.mark.parametrize(("bias", "groups"), [(0.5, 8), (0.75, 8), (0.75, 2)])
def test_residualising_takes_length_out_and_leaves_the_quality(warned: Any, bias: float, groups: int) -> None:
    for seed in range(3):
        steps = Steps(bias, seed=seed, groups=groups)
        after = steps.through(monitor := Monitor("mine", residualise=True))
        before = correlation(steps.length, steps.rewards)
        assert abs(correlation(steps.length, after)) <= 0.2 * abs(before)
        # The reward has the quality with the coefficient 1. What is left of it: the coefficient after the correction.
        kept = within(after) @ within(steps.quality) / (within(steps.quality) @ within(steps.quality))
        assert 0.9 <= kept <= 1.1
        assert correlation(steps.quality, after) > max(0.97, correlation(steps.quality, steps.rewards))
        assert monitor.steps[-1]["length_correlation_before"] > 0.3
        assert monitor.steps[-1]["length_removed"] == pytest.approx(bias / np.sqrt(1 - bias**2) / SPREAD, rel=0.25)
    assert warned() == []


def test_an_unbiased_reward_is_hardly_changed() -> None:
    steps = Steps(0.0, seed=4)
    assert correlation(steps.rewards, steps.through(Monitor("mine", residualise=True))) > 0.995


def test_a_penalty_is_what_a_doubling_costs() -> None:
    texts = ["s=1 " + "a" * (996 if n else 1997) for n in range(2)]
    found = called(rewards.trl(forecaster=planted(), reading="score", length_penalty=0.25), texts)
    assert found == [pytest.approx(0.75), 1.0]
    steps = Steps(0.7, seed=5)
    prompts = [str(group) for row in steps.groups for group in row]
    texts = [text for row in steps.texts for text in row]
    slope = rewards.length_slope(prompts, texts, steps.rewards.ravel().tolist())
    assert (slope.n, slope.groups) == (STEPS * 64, STEPS * 8)
    assert slope.low < 0.7 / np.sqrt(0.51) / SPREAD < slope.high
    after = steps.through(Monitor("mine", penalty=slope.value))
    assert abs(correlation(steps.length, after)) < 0.01
    for wrong, problem in (
        (((["a"], ["b"], [1.0, 2.0])), "expected as many"),
        (((["a", "a"], ["b", 3], [1.0, 2.0])), "sample 2: completion: is a number"),
        (((["a", "a"], ["b", "cc"], [1.0, float("nan")])), "reward 2 is not a finite number"),
        (((["a", "a"], ["b", "cc"], [1.0, 2.0])), "at least two prompts"),
    ):
        with pytest.raises(UsageError, match=problem):
            rewards.length_slope(*wrong)


def test_the_figures_of_a_step_are_logged_and_kept(tmp_path: Path, warned: Any) -> None:
    seen: dict[str, float] = {}
    log = tmp_path / "rewards.jsonl"
    function = rewards.trl(forecaster=planted(), reading="score", residualise="length", log=log, name="mine")
    texts = [f"s={n} {'a ' * 40 * n}" for n in range(4)] + ["s=2 - **b**", "nothing"]

    class State:
        global_step = 7

    called(function, texts, ["p"] * 4 + ["q"] * 2, trainer_state=State(), log_metric=seen.__setitem__)
    assert set(seen) == {
        *("mine/length_correlation", "mine/length_correlation_recent", "mine/length_correlation_before"),
        "mine/length_removed",
    }
    assert all(np.isfinite(value) for value in seen.values())
    called(function, ["s=1", "s=2\n- x"], log_metric=None)
    first, second = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    assert first == function.monitor.steps[0]
    assert (first["step"], first["samples"], first["failed"], first["groups"]) == (7, 5, 1, 1)
    assert first["lists_correlation"] is None
    assert second["lists_correlation"] is not None
    assert {f"{look}_correlation" for look in LOOKS} <= set(first)
    log.unlink()
    log.mkdir()
    called(function, ["s=1", "s=2"])
    assert "the log of rewards ends here" in warned()[-1]


def test_samples_one_a_call_are_steps_of_64() -> None:
    function = rewards.openrlhf(forecaster=planted(), reading="score", residualise="length")
    steps = Steps(0.8, seed=6, groups=8)
    quality = np.round(steps.rewards, 6)
    for step in range(6):
        for group, text, score in zip(steps.groups[step], steps.texts[step], quality[step].ravel(), strict=True):
            answer = f"s={score} {text}"
            last = function([f"{group}?{answer}"], [f"{group}?"], [None])
    assert len(function.monitor.steps) == 6
    assert [record["groups"] for record in function.monitor.steps] == [8] * 6
    # The first step has no slope yet, the last one has that of the steps before.
    first, final = function.monitor.steps[0], function.monitor.steps[-1]
    assert first["length_correlation"] == first["length_correlation_before"] > 0.5
    assert abs(final["length_correlation"]) < 0.35 < final["length_correlation_before"]
    assert last["rewards"] != last["scores"]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"length_alarm": 2.0}, "between 0 and 1"),
        ({"length_penalty": float("inf")}, "finite"),
        ({"length_penalty": 0.1, "residualise": "length"}, "exclude each other"),
        ({"log": "rewards.csv"}, r"\.jsonl"),
        ({"log": "missing/rewards.jsonl"}, "does not exist"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        rewards.trl("surface", **wrong)
