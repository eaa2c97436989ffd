"""Promises of agreement and the rule of a cascade on tiers with a known truth; benchmarks/cascade.py measures them at length."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from conftest import ROOT
from prefcast.errors import FitError, ForecasterError
from prefcast.fitting.cascade import fit_cascade
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.promises import promised
from prefcast.fitting.ridge import ridge
from prefcast.fitting.selection import OutOfFold
from prefcast.outcomes.agreement import Agreement, agreement, last_passed, lower_bound

sys.path.append(str(ROOT / "benchmarks"))
from simulated_tiers import draw, evidence, expected_gain

SAID = {"wanted": 0.8, "confidence": 0.95, "threshold": 0.6, "rows": 100, "kept": 40, "agreed": 36}


@pytest.mark.parametrize(("agreed", "rows"), [(0, 5), (5, 5), (17, 20), (257, 476)])
def test_the_lower_bound_is_that_of_clopper_and_pearson(agreed: int, rows: int) -> None:
    wanted = binomtest(agreed, rows, alternative="greater").proportion_ci(0.95, method="exact").low
    assert lower_bound(agreed, rows, 0.95) == pytest.approx(wanted)


def tops(*parts: tuple[float, int, int]) -> tuple[Any, Any]:
    """Probabilities with their agreements: (probability, rows, of them agreed)."""
    return (
        np.concatenate([np.full(rows, top) for top, rows, _ in parts]),
        np.concatenate([np.arange(rows) < good for _, rows, good in parts]),
    )


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (tops((0.9, 60, 58), (0.7, 60, 55), (0.5, 60, 20)), 0.7),
        # The first that fails ends the sequence, whatever comes after.
        (tops((0.9, 10, 8), (0.7, 200, 200), (0.5, 60, 60)), None),
        (tops((0.9, 60, 60), (0.7, 60, 60), (0.5, 60, 60)), 0.5),
        (tops((0.4, 60, 60)), None),
    ],
)
def test_the_thresholds_fall_until_one_fails(rows: tuple[Any, Any], wanted: float | None) -> None:
    assert last_passed(*rows, [0.9, 0.7, 0.5], 0.8, 0.95) == wanted
    if wanted is not None:
        kept = rows[0] >= wanted
        assert lower_bound(int(rows[1][kept].sum()), int(kept.sum()), 0.95) > 0.8


def test_a_promise_is_seldom_broken() -> None:
    """People agree with a rate that rises with the probability; the rate above the threshold is known."""
    rng = np.random.default_rng(0)
    broken = kept = 0
    for _ in range(300):
        both = []
        for _ in range(2):
            top = rng.uniform(1 / 3, 1, 300)
            both.append((top, rng.random(300) < top**1.5))
        found = agreement(both[0], both[1], 0.6, 0.95)
        if found.threshold is not None:
            kept += 1
            low = max(found.threshold, 1 / 3)
            # The mean of top^1.5 over the uniform distribution from `low` to 1.
            broken += (1 - low**2.5) / 2.5 / (1 - low) < 0.6
    assert kept > 200
    # 5 % of 300 are 15; with the binomial's own spread.
    assert broken <= 24


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 2.0},
        {"threshold": "0.6"},
        {"wanted": True},
        {"confidence": float("nan")},
        {"kept": 101},
        {"agreed": -1},
        {"rows": 1.5},
        {"more": 1},
    ],
)
def test_a_promise_of_a_damaged_folder_is_refused(change: dict[str, Any]) -> None:
    assert Agreement.read(SAID, "mine") == Agreement(**SAID)
    with pytest.raises(ForecasterError, match="mine: its promise of agreement"):
        Agreement.read({**SAID, **change}, "mine")


def test_of_each_group_one_row_is_tested_and_few_rows_are_refused() -> None:
    data = LabelledEvidence(1)
    margin, votes = np.ones((90, 1)), np.tile([1.0, 0.0, 0.0], (90, 1))
    data.add(margin, margin, votes, np.arange(90, dtype=np.uint64) // 3)
    fitted = OutOfFold(np.tile([0.8, 0.1, 0.1], (90, 1)), votes, np.arange(90, dtype=np.uint64))
    found = promised(fitted, data, lambda rows: np.tile([0.8, 0.1, 0.1], (len(rows), 1)), (0.6, 0.95), 0)
    assert (found.rows, found.kept, found.agreed) == (30, 30, 30)
    with pytest.raises(FitError, match="too few"):
        promised(fitted, LabelledEvidence(1), lambda rows: rows, (0.6, 0.95), 0)


def test_held_out_groups_are_whole_and_no_fold_is_empty() -> None:
    data = LabelledEvidence(1)
    keys = np.arange(4000, dtype=np.uint64) // 2
    data.add(np.ones((4000, 1)), np.ones((4000, 1)), np.ones((4000, 3)), keys)
    parts = [np.concatenate([part.keys(rows) for rows in part.table.blocks()]) for part in data.split(0.5, 3)]
    assert len(parts[0]) + len(parts[1]) == 4000
    assert not set(parts[0].tolist()) & set(parts[1].tolist())
    assert abs(len(parts[0]) - 2000) < 200


def test_ridge_finds_what_there_is_and_shrinks_what_there_is_not() -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.standard_normal(2000) for name in ("a", "b", "noise")} | {"constant": np.ones(2000)}
    wanted = 3 + 2 * columns["a"] - columns["b"] + rng.standard_normal(2000)
    found = ridge(columns, wanted, np.ones(2000), list(columns))
    assert found == pytest.approx({"a": 2.0, "b": -1.0, "noise": 0.0}, abs=0.1)
    blank = ridge(columns, rng.standard_normal(2000), np.ones(2000), list(columns))
    assert all(abs(value) < 0.05 for value in blank.values())


@pytest.mark.parametrize("kind", ["even", "hard", "mixed"])
def test_the_rule_reaches_most_of_the_possible_gain_and_no_less_than_the_margin(kind: str) -> None:
    random = np.random.default_rng([7, len(kind)])
    found = fit_cascade(evidence(draw(kind, 3000, random)), repeats=0)
    rows = draw(kind, 4000, random)
    facts, gain = expected_gain(found, rows, random, draws=60)
    picked = found.rule.chosen(facts, 0.3)
    assert abs(picked.mean() - 0.3) < 0.05

    def best(scores: Any) -> float:
        return float(gain[np.argsort(-scores)[: picked.sum()]].sum())

    assert gain[picked].sum() >= 0.6 * best(gain)
    assert gain[picked].sum() >= best(-facts["size"]) - 1e-9
    assert (len(found.rule.weights) > 1) == (kind != "even")


def test_the_curve_holds_for_fresh_rows() -> None:
    random = np.random.default_rng(11)
    found = fit_cascade(evidence(draw("mixed", 1500, random)), repeats=0)
    rows = draw("mixed", 20_000, random)
    p = found.probabilities(rows.columns)
    at = next(point for point in found.curve if point.share == found.share)
    assert at.log_loss.low < -np.log(p[np.arange(len(p)), rows.votes]).mean() < at.log_loss.high
    assert [point.share for point in found.curve] == sorted(point.share for point in found.curve)


def test_a_fit_is_the_same_again() -> None:
    rows = draw("hard", 400, np.random.default_rng(2))
    one, two = (fit_cascade(evidence(rows), repeats=20) for _ in range(2))
    assert one.curve == two.curve
    assert one.rule == two.rule
