"""Figures of forecasts, against other programs, direct computation and simulated truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

import prefcast
from conftest import EXAMPLES, Run, labelled, write_csv, write_jsonl
from prefcast import Pair, load_forecaster, read_pairs
from prefcast.errors import FileError, UsageError
from prefcast.forecasts.predictions import open_writer
from prefcast.measuring.collected import Measured
from prefcast.measuring.evaluation import Wanted, measured_forecasts, measured_predictions
from prefcast.measuring.metrics import Evaluation, row_log_loss
from prefcast.measuring.metrics.measure import FOLDS, evaluate_probabilities
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics import columns
from prefcast.outcomes.statistics.bootstrap import (
    Bootstrap,
    figure,
    group_keys,
    paired_difference,
    paired_error,
    poisson_weights,
)
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs.formats.saved import read_saved
from prefcast.pairs.pair import group_key

PAIRS = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]


def simulated(n: int, seed: int = 0, sure: float = 1.0) -> tuple[Any, Any]:
    """Forecasts that are `sure` times too sure of themselves, and what happened."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(size=n) * 2
    truth = Davidson(1.0, -0.3).probabilities(margin)
    y = (rng.random(n)[:, None] > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return Davidson(sure, -0.3).probabilities(margin), y


def finite_json(found: Evaluation) -> dict[str, Any]:
    """The JSON form, as a strict reader reads it."""
    data: dict[str, Any] = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for name in ("log_loss", "expected_calibration_error"):
        assert set(data[name]) == {"value", "low", "high"}
        assert data[name]["low"] <= data[name]["value"] <= data[name]["high"]
    return data


@settings(max_examples=30)
@given(st.integers(3, 200), st.integers(0, 10**6), st.floats(0.1, 5))
def test_the_figures_agree_with_scikit_learn(n: int, seed: int, sure: float) -> None:
    p, y = simulated(n, seed, sure)
    y[:3] = [0, 1, 2]
    found = evaluate_probabilities(p, y, repeats=4)
    scores = found.scores
    assert scores.log_loss.value == pytest.approx(log_loss(y, p, labels=[0, 1, 2]), abs=1e-12)
    brier = sum(brier_score_loss(y == outcome, p[:, outcome]) for outcome in range(3))
    assert scores.brier_score.value == pytest.approx(brier, abs=1e-12)
    decisive = y < 2
    chance = p[decisive, 0] / (p[decisive, 0] + p[decisive, 1])
    assert scores.auc is not None
    assert scores.auc.value == pytest.approx(roc_auc_score(y[decisive] == 0, chance), abs=1e-12)
    assert np.sum(found.confusion) == pytest.approx(n)
    assert [sum(row) for row in found.confusion] == pytest.approx(np.bincount(y, minlength=3))
    assert sum(map(sum, found.margins.values())) == n
    for bins in found.reliability.values():
        assert sum(each.n for each in bins) == n
        assert all(0 <= each.observed.low <= each.observed.value <= each.observed.high <= 1 + 1e-9 for each in bins)


def test_the_auc_of_few_different_forecasts_counts_ties_as_half() -> None:
    p = np.array([[0.5, 0.3, 0.2]] * 5 + [[0.3, 0.5, 0.2]] * 5)
    y = np.array([0, 0, 1, 1, 2] * 2)
    found = evaluate_probabilities(p, y).scores.auc
    assert found is not None
    assert found.value == roc_auc_score((y == 0)[y < 2], p[y < 2, 0]) == 0.5
    assert evaluate_probabilities(p[:2], y[:2]).scores.auc is None


def test_the_plain_calibration_error_is_the_textbooks() -> None:
    p, y = simulated(1000, 3, 1.6)
    errors = []
    for outcome in range(3):
        order = np.argsort(p[:, outcome])
        gaps = [abs((y[part] == outcome).mean() - p[part, outcome].mean()) * len(part) for part in np.split(order, 10)]
        errors.append(sum(gaps) / 1000)
    found = evaluate_probabilities(p, y, repeats=10).scores.expected_calibration_error_plain
    assert found.value == pytest.approx(np.mean(errors), abs=1e-12)


def test_the_debiased_calibration_error_is_about_right() -> None:
    calibrated = [evaluate_probabilities(*simulated(1000, seed), repeats=200).scores for seed in range(12)]
    plain = np.mean([each.expected_calibration_error_plain.value for each in calibrated])
    debiased = np.mean([each.expected_calibration_error.value for each in calibrated])
    assert plain > 0.02
    # It is 0 in half of the cases.
    assert debiased < plain / 2
    assert sum(each.expected_calibration_error.low == 0 for each in calibrated) >= 10
    # What very many rows say is the truth of forecasts that are too sure.
    truth = evaluate_probabilities(*simulated(150_000, 99, 1.6), repeats=1).scores.expected_calibration_error_plain
    found = [evaluate_probabilities(*simulated(1000, seed, 1.6), repeats=200).scores for seed in range(12)]
    assert np.mean([each.expected_calibration_error.value for each in found]) == pytest.approx(truth.value, rel=0.15)
    covered = sum(
        each.expected_calibration_error.low <= truth.value <= each.expected_calibration_error.high for each in found
    )
    assert covered >= 9


def test_the_class_prior_is_that_of_the_other_rows() -> None:
    p, y = simulated(300)
    y[:] = np.random.default_rng(0).choice(3, 300, p=[0.6, 0.1, 0.3])
    fold = np.arange(300) % FOLDS
    loss = []
    for row in range(300):
        others = np.bincount(y[fold != fold[row]], minlength=3) + 1.0
        side = (others[0] + others[1]) / 2
        share = np.array([side, side, others[2]]) / others.sum()
        loss.append(-np.log(share[y[row]]))
    base = evaluate_probabilities(p, y, repeats=10).baselines["class_prior"]
    assert base.log_loss.value == pytest.approx(np.mean(loss), abs=1e-12)
    assert base.gain.value == pytest.approx(np.mean(loss) - row_log_loss(p, y).mean(), abs=1e-12)


def test_a_length_baseline_that_cannot_know_its_own_row() -> None:
    found = prefcast.evaluate(EXAMPLES, model="surface")
    base = found.baselines["length"]
    assert base.gain.value == pytest.approx(base.log_loss.value - found.scores.log_loss.value, abs=1e-9)
    # Lengths that say nothing: cross-fitted, they cannot beat the prior.
    rng = np.random.default_rng(0)
    noise = [Pair.of(f"q{row}", "a" * rng.integers(1, 500), "b" * rng.integers(1, 500)) for row in range(300)]
    measured = Measured()
    y = rng.integers(0, 3, 300)
    pairs = [
        Pair(pair.turns, row, outcome)
        for row, (pair, outcome) in enumerate(zip(noise, map(prefcast.Outcome, y), strict=True))
    ]
    measured.add_pairs(pairs, np.full((300, 3), 1 / 3), None)
    found = measured.evaluation(repeats=50)
    assert found.baselines["length"].log_loss.value > found.baselines["class_prior"].log_loss.value - 0.005
    # And lengths that decide are found.
    pairs = [
        Pair(pair.turns, row, prefcast.Outcome(int(len(pair.response_a[0]) < len(pair.response_b[0]))))
        for row, pair in enumerate(noise)
    ]
    measured = Measured()
    measured.add_pairs(pairs, np.full((300, 3), 1 / 3), None)
    assert measured.evaluation(repeats=50).baselines["length"].log_loss.value < 0.5


def test_slices_add_up_and_small_ones_are_marked() -> None:
    found = prefcast.evaluate(EXAMPLES, model="surface")
    assert found.slices
    kinds = {part.kind for part in found.slices}
    for kind in kinds - {"models"}:
        parts = [part for part in found.slices if part.kind == kind]
        assert sum(part.n for part in parts) == found.n
        total = sum(part.n * part.log_loss.value for part in parts)
        assert total / found.n == pytest.approx(found.scores.log_loss.value, abs=1e-9)
        gain = sum(part.n * part.gain.value for part in parts) / found.n
        assert gain == pytest.approx(found.baselines["class_prior"].gain.value, abs=1e-9)
    assert all(part.small for part in found.slices)
    measured = Measured()
    measured.add_pairs(PAIRS * 3, np.tile(prefcast.predict(PAIRS, model="surface").probabilities, (3, 1)), None)
    parts = measured.evaluation(repeats=20).slices
    assert all(part.small == (part.n < 100) for part in parts)
    assert any(not part.small for part in parts)


def write_predictions(path: Path, forecasts: Any, with_text: bool = False) -> Path:
    with open_writer(path, with_text=with_text) as writer:
        writer.write(forecasts)
    return path


def test_against_another_forecast_is_a_paired_difference(tmp_path: Path) -> None:
    other = prefcast.predict(EXAMPLES, model="length")
    path = write_predictions(tmp_path / "other.jsonl", other)
    with prefcast.open_pairs(EXAMPLES) as file:
        measured = measured_forecasts(
            file, load_forecaster("surface"), wanted=Wanted(against=[("other.jsonl", read_saved(path))])
        )
    found = measured.evaluation().against
    y = np.array([pair.outcome for pair in PAIRS])
    losses = [row_log_loss(each.probabilities, y) for each in (prefcast.predict(EXAMPLES, model="surface"), other)]
    expected = paired_difference(*losses, groups=[pair.prompt[0] for pair in PAIRS])
    assert found is not None
    assert (found.n, found.name) == (42, "other.jsonl")
    assert found.log_loss.value == pytest.approx(expected.value, abs=1e-12)
    # Another order of the groups' keys: other draws, about the same interval.
    assert found.log_loss.low == pytest.approx(expected.low, abs=0.03)
    # Part of the rows only.
    half = write_predictions(tmp_path / "half.jsonl", prefcast.predict(PAIRS[:20], model="length"))
    found = evaluate_against(path, half)
    assert found.against is not None
    assert found.against.n == 20
    assert found.against.log_loss.value == 0
    write_predictions(tmp_path / "none.jsonl", prefcast.predict([Pair.of("p", "a", "b")], model="length"))
    with pytest.raises(UsageError, match="has none of the measured ids"):
        evaluate_against(path, tmp_path / "none.jsonl")


def evaluate_against(path: Path, other: Path) -> Evaluation:
    return measured_predictions(path, wanted=Wanted(against=[(other.name, read_saved(other))])).evaluation()


def test_exchanging_a_and_b_changes_nothing_of_ours() -> None:
    with prefcast.open_pairs(EXAMPLES) as file:
        measured = measured_forecasts(file, load_forecaster("surface"))
    swap = measured.evaluation().order_swap
    assert swap is not None
    assert (swap.n, swap.flips) == (42, 0)
    assert swap.largest_change < 1e-12


def test_forecasts_that_depend_on_the_order_are_told(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [f"{row},0.6,0.2,0.2,{row % 3}" for row in range(30)]
    head = "id,winner_model_a,winner_model_b,winner_tie,label"
    (tmp_path / "p.csv").write_text("\n".join([head, *rows]) + "\n")
    # It always says A: ten rows of the exchanged file follow the sides, twenty do not.
    back = [f"{row},0.2,0.6,0.2,{row % 3}" if row < 10 else rows[row] for row in range(30)]
    (tmp_path / "q.csv").write_text("\n".join([head, *back]) + "\n")
    done = prefcast_here("evaluate", "--predictions", "p.csv", "--swapped", "q.csv", "--json", "-")
    assert done.returncode == 0, done.stderr
    swap = json.loads(done.stdout)["order_swap"]
    assert swap["n"] == 30
    assert swap["flips"] == pytest.approx(2 / 3)
    assert swap["largest_change"] == pytest.approx(0.4)
    done = prefcast_here("evaluate", "--predictions", "p.csv", "--swapped", "q.csv")
    assert "66.7% of 30 favourites change" in done.stdout


def test_the_size_of_the_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = simulated(500)
    groups = (np.arange(500) // 2).tolist()
    whole = evaluate_probabilities(p, y, groups, repeats=50)
    blocks = columns.Columns.blocks
    monkeypatch.setattr(columns.Columns, "blocks", lambda self, rows=37: blocks(self, rows))
    parts = evaluate_probabilities(p, y, groups, repeats=50)
    assert_same(parts.to_dict(), whole.to_dict())


def test_what_spills_to_disk_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate_probabilities(*simulated(2000), repeats=20)
    monkeypatch.setattr(columns, "_HELD_BYTES", 1000)
    assert evaluate_probabilities(*simulated(2000), repeats=20) == whole


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert set(left) == set(right)
        for name in left:
            assert_same(left[name], right[name])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=1e-5)
    else:
        assert left == right


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(1, 4))
def test_columns_give_back_what_they_took(sizes: list[int], rows: int) -> None:
    table, taken = Columns(["x", "y"]), []
    for number, size in enumerate(sizes):
        block = np.arange(size * 2.0).reshape(size, 2) + 100 * number
        table.append(block)
        taken.append(block)
    whole = np.concatenate([np.zeros((0, 2)), *taken])
    assert len(table) == len(whole)
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, 2)), *table.blocks(rows)]), whole)
    np.testing.assert_array_equal(table.column("y"), whole[:, 1])
    keys = np.array([2**64 - 1, 2**63 + 5, 0x7FF0000000000001], dtype=np.uint64)
    bits = Columns(["key"])
    bits.append(keys.view(np.float64)[:, None])
    np.testing.assert_array_equal(bits.column("key").view(np.uint64), keys)
    with pytest.raises(UsageError, match=r"must have shape \(m, 2\)"):
        table.append(np.zeros((1, 3)))


def test_weights_are_poissons() -> None:
    keys = np.array([group_key(f"prompt {number}") for number in range(4000)], dtype=np.uint64)
    for each in (keys, np.arange(4000, dtype=np.uint64)):
        weights = poisson_weights(each, 500)
        assert weights.shape == (4000, 500)
        assert weights.mean() == pytest.approx(1, abs=0.003)
        assert weights.var() == pytest.approx(1, abs=0.01)
        # Rows and draws are independent of each other.
        sums = weights.sum(axis=0)
        assert sums.var() == pytest.approx(4000, rel=0.3)
        assert weights.sum(axis=1).var() == pytest.approx(500, rel=0.15)
        assert np.abs(np.corrcoef(weights.T[:40]) - np.eye(40)).max() < 0.09
    same = poisson_weights(np.array([7, 3, 7], dtype=np.uint64), 100)
    np.testing.assert_array_equal(same[0], same[2])
    assert (same[0] != same[1]).any()
    assert (poisson_weights(keys[:5], 100, seed=1) != poisson_weights(keys[:5], 100)).any()
    np.testing.assert_array_equal(poisson_weights(keys[:5], 7), poisson_weights(keys[:5], 8)[:, :7])
    # The same in every process: figures can be measured again.
    assert group_key("Why?") == 4013538764715231956
    assert group_keys(["x", "y", "x"], 3).tolist() == [0, 1, 0]


def test_the_bootstrap_of_a_mean_is_the_normals() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=2000) + 3
    sums = Bootstrap()
    sums.add(np.arange(2000, dtype=np.uint64), {"value": values, "rows": np.ones(2000)})
    found = sums.ratio("value", "rows")
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    error = values.std() / np.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    assert sums.ratio("value", "rows") == found
    nothing = figure(1.0, np.full(10, np.nan))
    assert (nothing.low, nothing.value, nothing.high) == (1.0, 1.0, 1.0)
    mean, deviation = paired_error(values, 0 * values, np.ones(2000), np.arange(2000, dtype=np.uint64))
    assert mean == pytest.approx(values.mean())
    assert deviation == pytest.approx(error, rel=0.01)


def test_an_interval_of_what_does_not_vary_holds_it() -> None:
    found = evaluate_probabilities(np.full((997, 3), 1 / 3), np.arange(997) % 3).scores.log_loss
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 1e-6


@pytest.mark.parametrize(
    ("p", "y"),
    [
        ([[0.2, 0.3, 0.5]], [2]),
        ([[1.0, 0.0, 0.0]], [1]),
        ([[0.0, 0.0, 1.0]] * 30, [2] * 30),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] * 5, [0, 0, 0] * 5),
        ([[0.5, 0.5, 0.0]] * 4, [0, 1, 0, 1]),
    ],
    ids=["one row", "one row, sure and wrong", "one outcome, all sure", "certainties", "no tie"],
)
def test_the_json_form_is_strict(p: Any, y: Any) -> None:
    data = finite_json(evaluate_probabilities(p, y))
    assert data["n"] == len(y)
    assert data["log_loss"]["value"] <= 37


def test_one_labelled_pair_can_be_evaluated(prefcast_here: Run, tmp_path: Path) -> None:
    write_csv(tmp_path / "f.csv", [labelled(2)])
    done = prefcast_here("evaluate", "f.csv", "--model", "surface", "--slices", "--json", "figures.json")
    assert (done.returncode, done.stderr) == (0, "")
    json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("with_text", [False, True])
def test_a_file_of_forecasts_measures_as_the_forecasts(tmp_path: Path, with_text: bool) -> None:
    path = write_predictions(tmp_path / "p.parquet", prefcast.predict(EXAMPLES, model="surface"), with_text)
    found, expected = measured_predictions(path).evaluation(), prefcast.evaluate(EXAMPLES, model="surface")
    assert found.resampled == ("prompts" if with_text else "rows")
    for name in ("log_loss", "accuracy", "brier_score", "expected_calibration_error"):
        assert getattr(found.scores, name).value == pytest.approx(getattr(expected.scores, name).value, abs=1e-9)
    if with_text:
        # The draws depend on the prompts alone.
        assert found.scores.log_loss.low == pytest.approx(expected.scores.log_loss.low, abs=1e-6)


def test_forecasts_that_all_failed_say_so(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", [labelled(0, id=1, prompt=5), labelled(1, id=2, prompt=5)])
    rows = [
        {"id": row, "winner_model_a": 0.3, "winner_model_b": 0.3, "winner_tie": 0.4, "label": 0, "error": "oops"}
        for row in range(3)
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(UsageError, match="of 3 rows 3 failed"):
        measured_predictions(path).evaluation()
    with pytest.raises(FileError, match="no rows"):
        measured_predictions(
            write_csv(tmp_path / "e.csv", [], ["id", "winner_model_a", "winner_model_b", "winner_tie"])
        )


def test_surprises_are_the_worst_rows() -> None:
    measured = Measured(surprises=5)
    p = prefcast.predict(PAIRS, model="surface").probabilities
    for start in range(0, 42, 10):
        measured.add_pairs(PAIRS[start : start + 10], p[start : start + 10], None)
    losses = row_log_loss(p, np.array([pair.outcome for pair in PAIRS]))
    assert [each.log_loss for each in measured.surprises] == sorted(losses.tolist(), reverse=True)[:5]
    assert measured.surprises[0].pair is PAIRS[int(losses.argmax())]


def test_a_hostile_models_name_in_the_slices_is_shown_harmless(prefcast_here: Run, tmp_path: Path) -> None:
    evil = "\x1b[31mred\x07\u202e"
    rows = [labelled(row % 3, id=row, model_a=evil, model_b="plain") for row in range(6)]
    write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast_here("evaluate", "f.jsonl", "--model", "surface", "--slices")
    assert done.returncode == 0
    assert "red" in done.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout + done.stderr)


def test_scores_that_are_brought_are_not_tried_in_the_other_order(prefcast_here: Run, tmp_path: Path) -> None:
    pairs = list(read_pairs(EXAMPLES))
    rows = [f"{pair.id},{0.5 + 0.1 * (pair.outcome == 0)},{0.3},{0.2 - 0.1 * (pair.outcome == 0)}\n" for pair in pairs]
    (tmp_path / "s.csv").write_text("id,winner_model_a,winner_model_b,winner_tie\n" + "".join(rows))
    assert prefcast_here("fit", EXAMPLES, "--scores", "s.csv", "-o", "f").returncode == 0
    done = prefcast_here("evaluate", EXAMPLES, "--scores", "s.csv", "--forecaster", "f")
    assert done.returncode == 0
    assert "A and B exchanged" not in done.stdout
