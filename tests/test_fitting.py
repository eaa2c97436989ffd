"""From labelled pairs or scores to a forecaster's folder, through the library and the program."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import prefcast
from checkpoints import change_config, save_decoder
from conftest import EXAMPLES, Run, kaggle_row, write_csv, write_jsonl
from prefcast import Pair, load_forecaster, read_pairs
from prefcast.errors import FileError, FitError, ForecasterError, ModelError, UsageError
from prefcast.fitting import Fitted, fit
from prefcast.forecasts.resolve import Choice, resolve
from prefcast.measuring.evaluation import measured_forecasts
from prefcast.outcomes.models import Davidson, RaoKupper
from prefcast.pairs import Outcome, Turn
from prefcast.runs.jobs import forecasts_of
from prefcast.runs.loop import Tally
from prefcast.runs.ready import ready
from prefcast.scorers.blend import BlendScorer
from prefcast.scorers.reward import Options

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


def outcomes_of(p: Any, rng: np.random.Generator) -> Any:
    return (rng.random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)


def pairs(n: int = 300, seed: int = 0, level: float = -0.4, empty: float = 0.0) -> list[Pair]:
    """Pairs whose labels follow the lengths of their answers; a share has one empty answer, which loses."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 60, (n, 2))
    p = Davidson(1.0, level).probabilities(np.log(words[:, 0] / words[:, 1]))
    y = outcomes_of(p, rng)
    found = []
    for row in range(n):
        a, b = ("word " * count for count in words[row])
        outcome = int(y[row])
        if rng.random() < empty:
            outcome = int(rng.random() < 0.5)
            a, b = ("", b) if outcome else (a, "")
        found.append(
            Pair((Turn(f"question {row} {'?' * int(rng.integers(1, 80))}", a, b),), f"r{row}", Outcome(outcome))
        )
    return found


def write_pairs(path: Path, given: list[Pair], labels: bool = True) -> Path:
    rows = []
    for pair in given:
        row = kaggle_row(pair.id, list(pair.prompt), list(pair.response_a), list(pair.response_b))
        if labels:
            row |= {name: int(pair.outcome == index) for index, name in enumerate(LABELS)}
        rows.append(row)
    return write_csv(path, rows)


def scores(path: Path, n: int = 400, seed: int = 0, truth: Any = None, **more: Any) -> tuple[Path, Any, Any]:
    """A file of scores with labels, the scores and the labels."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)) * 2
    p = (truth or Davidson(0.8, -0.3, 0)).probabilities(values[:, 0] - values[:, 1])
    y = outcomes_of(p, rng)
    rows = [
        {"id": f"r{row}", "score_a": str(values[row, 0]), "score_b": str(values[row, 1]), "label": int(y[row]), **more}
        for row in range(n)
    ]
    return write_csv(path, rows), values, y


def test_a_forecaster_is_made_and_used(prefcast_here: Run, tmp_path: Path) -> None:
    write_pairs(tmp_path / "train.csv", pairs())
    write_pairs(tmp_path / "new.csv", pairs(5, 1), labels=False)
    done = prefcast_here("fit", "train.csv", "--model", "length", "-o", "mine", "--json", "found.json")
    assert done.returncode == 0, done.stderr
    assert "chosen: " in done.stdout
    assert "over the class prior" in done.stdout
    assert done.stderr == "prefcast: forecaster in mine; use it with --forecaster mine\n"
    made = load_forecaster(tmp_path / "mine")
    assert made.link is not None
    for output in ("f.jsonl", "f.parquet", "f.csv"):
        done = prefcast_here("predict", "new.csv", "--forecaster", "mine", "-o", output)
        assert (done.returncode, done.stderr) == (0, "")
    expected = made.forecast(pairs(5, 1))
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist()
    assert expected.interval is not None
    for row, (line, record) in enumerate(zip(lines, table, strict=True)):
        for outcome, name in enumerate(LABELS):
            assert line[name] == record[name] == expected.probabilities[row, outcome]
            assert line[f"{name}_low"] == record[f"{name}_low"] == expected.interval[0][row, outcome]
            assert line[f"{name}_low"] < line[name] < line[f"{name}_high"]
    card = json.loads((tmp_path / "mine" / "forecaster.json").read_text())
    assert card["model"] in ("length", "blend")
    assert len(card["scorer_sha256"]) == 64
    assert card["budget"]
    assert set(card["versions"]) == {"prefcast", "numpy", "python"}
    assert {"net", "tie", "source"} <= set(card["calibration"])
    said = json.loads((tmp_path / "found.json").read_text())
    assert said == card["card"]
    fitted_on = said["fitted_on"]
    assert (fitted_on["rows"], fitted_on["votes"], fitted_on["first_prompts"]) == (300, 300, 300)
    assert sum(fitted_on["outcome_shares"].values()) == pytest.approx(1)
    crossed = said["cross_validated"]
    assert crossed["log_loss"]["low"] < crossed["log_loss"]["value"] < crossed["log_loss"]["high"] < 1.1
    assert crossed["better_than_class_prior"] is True
    assert said["outcome_model"] in {trial["name"] for trial in said["candidates"]}
    assert all(each["low"] <= each["value"] <= each["high"] for each in said["parameters"].values())
    assert said["used"] == ["length"]


def test_what_is_fitted_again_is_the_same() -> None:
    one, other = (fit(pairs(100), model="length") for _ in range(2))
    assert one.forecaster.outcome == other.forecaster.outcome
    assert one.forecaster.card == other.forecaster.card


def test_covariates_travel_with_the_folder(tmp_path: Path) -> None:
    given = pairs(600, 3, empty=0.3)
    fitted = fit(given, model="surface")
    facts = fit(given, model="length")
    made = next(each for each in (facts, fitted) if each.fit.chosen == "davidson with covariates")
    assert isinstance(made.forecaster.scorer, BlendScorer)
    made.save(tmp_path / "f")
    loaded = load_forecaster(tmp_path / "f")
    some = given[:50]
    forward, backward = loaded.forecast(some), loaded.forecast([pair.swapped() for pair in some])
    np.testing.assert_array_equal(forward.probabilities, made.forecaster.forecast(some).probabilities)
    np.testing.assert_allclose(backward.probabilities, forward.probabilities[:, [1, 0, 2]], atol=1e-12)
    assert forward.interval is not None
    assert backward.interval is not None
    for part in range(2):
        np.testing.assert_allclose(backward.interval[part], forward.interval[part][:, [1, 0, 2]], atol=1e-9)
    assert (forward.interval[0] <= forward.probabilities + 0.05).all()
    # The link that gives the intervals is the one that forecasts.
    assert loaded.link is not None
    p = loaded.link.probabilities(*(part for part in forward.columns or ()))
    np.testing.assert_allclose(p, forward.probabilities, atol=1e-9)


def test_votes_are_rows(tmp_path: Path) -> None:
    given = pairs(60)
    rng = np.random.default_rng(0)
    votes = rng.multinomial(3, [0.4, 0.35, 0.25], 60)
    write_csv(
        tmp_path / "votes.csv",
        [
            {"id": pair.id, **dict(zip(("votes_a", "votes_b", "votes_tie"), map(int, counts), strict=True))}
            for pair, counts in zip(given, votes, strict=True)
        ],
    )
    by_votes = fit(given, model="length", votes=tmp_path / "votes.csv")
    rows = [
        Pair(pair.turns, f"{pair.id}-{outcome}-{number}", Outcome(outcome))
        for pair, counts in zip(given, votes, strict=True)
        for outcome in range(3)
        for number in range(counts[outcome])
    ]
    by_rows = fit(rows, model="length")
    assert (by_votes.fit.rows, by_votes.fit.votes, by_rows.fit.rows) == (60, 180, 180)
    assert by_votes.fit.chosen == by_rows.fit.chosen
    np.testing.assert_allclose(
        by_votes.forecaster.forecast(given).probabilities, by_rows.forecaster.forecast(given).probabilities, atol=1e-7
    )
    # Rows without votes have no label, whatever their label says.
    few = (tmp_path / "votes.csv").read_text().splitlines()[:31]
    (tmp_path / "few.csv").write_text("\n".join(few) + "\n")
    found = fit(given, model="length", votes=tmp_path / "few.csv")
    assert (found.fit.rows, found.unlabelled) == (30, 30)


def test_weights_are_repeated_rows(tmp_path: Path) -> None:
    path, _, _ = scores(tmp_path / "s.csv", 80)
    weights = np.random.default_rng(0).integers(0, 3, 80)
    write_csv(tmp_path / "w.csv", [{"id": f"r{row}", "weight": int(weight)} for row, weight in enumerate(weights)])
    weighted = fit(scores=path, weights=tmp_path / "w.csv")
    # On average a row counts 1, whatever the weights' unit.
    assert weighted.fit.votes == pytest.approx(80)
    assert weighted.fit.rows == (weights > 0).sum()
    (tmp_path / "short.csv").write_text("id,weight\nr0,1\n")
    with pytest.raises(UsageError, match="id 'r1' has no weight; every labelled row needs one"):
        fit(scores=path, weights=tmp_path / "short.csv")
    head, *rows = path.read_text().splitlines()
    repeated = [f"x{number}{row}" for row, weight in zip(rows, weights, strict=True) for number in range(weight)]
    (tmp_path / "t.csv").write_text("\n".join([head, *repeated]) + "\n")
    again = fit(scores=tmp_path / "t.csv")
    if again.fit.chosen == weighted.fit.chosen:
        # Not exactly: the weak priors weigh a little more beside 80 rows than beside 87.
        np.testing.assert_allclose(again.fit.link.theta, weighted.fit.link.theta, atol=0.02)
    large = [{"id": f"r{row}", "weight": 1000 * int(weight)} for row, weight in enumerate(weights)]
    scaled = fit(scores=path, weights=write_csv(tmp_path / "large.csv", large))
    np.testing.assert_allclose(scaled.fit.link.theta, weighted.fit.link.theta, atol=1e-9)
    alone = [{"id": f"r{row}", "weight": 1000 if row == 0 else 0.001} for row in range(80)]
    (tmp_path / "alone.csv").write_text("id,weight\n" + "".join(f"{each['id']},{each['weight']}\n" for each in alone))
    with pytest.raises(FitError, match=r"the labels count as 1\.0 rows"):
        fit(scores=path, weights=tmp_path / "alone.csv")


def test_a_share_of_ties_that_cannot_be_known_is_not_made_up() -> None:
    with pytest.raises(UsageError, match="do not predict ties well enough to estimate the share"):
        fit(pairs(100, 1), model="length", target=pairs(100, 2))


@pytest.mark.parametrize("differs", ["lengths", "prompts"])
def test_a_target_that_differs_in_more_than_ties_is_refused(differs: str, prefcast_here: Run, tmp_path: Path) -> None:
    target = [
        Pair(
            tuple(
                Turn(
                    turn.prompt + (" again" * 40 if differs == "prompts" else ""),
                    turn.response_a,
                    turn.response_b * (1 if differs == "prompts" else 5),
                )
                for turn in pair.turns
            ),
            pair.id,
        )
        for pair in pairs(150, 2)
    ]
    write_pairs(tmp_path / "train.csv", pairs(200, 1))
    write_pairs(tmp_path / "new.csv", target, labels=False)
    done = prefcast_here("fit", "train.csv", "--model", "length", "--target", "new.csv", "-o", "mine")
    assert done.returncode == 2
    assert "the target differs from the labelled pairs in more than its share of ties (p = 0.0" in done.stderr
    assert "label some pairs of the target and fit to them" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("few", ["labels", "target"])
def test_a_target_needs_first_prompts(few: str) -> None:
    def of_few_prompts(given: list[Pair]) -> list[Pair]:
        return [
            Pair(
                (Turn(f"question {row % 7}", pair.turns[0].response_a, pair.turns[0].response_b),),
                pair.id,
                pair.outcome,
            )
            for row, pair in enumerate(given)
        ]

    sides = [pairs(150, 1), pairs(150, 2)]
    sides[few == "target"] = of_few_prompts(sides[few == "target"])
    found = "7 and 150" if few == "labels" else "150 and 7"
    with pytest.raises(UsageError, match=f"needs 20 first prompts .*; found {found};"):
        fit(sides[0], model="length", target=sides[1])


def test_a_fit_as_shipped_forecasts_as_before(prefcast_here: Run, tmp_path: Path) -> None:
    """Random labels teach nothing."""
    before = load_forecaster("length")
    given = pairs(60)
    p = before.forecast(given).probabilities
    for seed in range(20):
        outcomes = outcomes_of(p, np.random.default_rng(seed))
        drawn = [replace(pair, outcome=Outcome(int(y))) for pair, y in zip(given, outcomes, strict=True)]
        if fit(drawn, model="length").fit.chosen == "as shipped":
            break
    write_pairs(tmp_path / "train.csv", drawn)
    done = prefcast_here("fit", "train.csv", "--model", "length", "-o", "mine")
    assert done.returncode == 0, done.stderr
    assert "no fit is better than as shipped, so the forecaster stays as shipped: log loss" in done.stdout
    made = load_forecaster(tmp_path / "mine")
    assert made.outcome == before.outcome
    assert made.prior == before.prior
    np.testing.assert_array_equal(made.forecast(given).probabilities, p)
    card = json.loads((tmp_path / "mine" / "forecaster.json").read_text())["card"]
    assert card["as_shipped"]["kept"] is True
    assert card["as_shipped"]["log_loss"] == card["cross_validated"]["log_loss"]
    assert card["outcome_model"] == "as shipped"
    assert card["used"] == ["length"]


def test_odd_scores_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, _, _ = scores(tmp_path / "s.csv", 80)
    head, first, *rows = path.read_text().splitlines()
    cells = first.split(",")
    place = head.split(",").index("score_a")
    for value, said in (("1e12", "one score gap is 1e+12 and outweighs all others"), ("1e200", None)):
        cells[place] = value
        (tmp_path / "odd.csv").write_text("\n".join([head, ",".join(cells), *rows]) + "\n")
        if said is None:
            with pytest.raises(FitError, match="a score is 1e"):
                fit(scores=tmp_path / "odd.csv")
        else:
            fit(scores=tmp_path / "odd.csv")
            assert said in caplog.text


@pytest.mark.parametrize("truth", [Davidson(0.8, -0.3, 0), RaoKupper(1.2, 0.6, 0)], ids=lambda model: model.kind)
def test_a_target_prior_moves_ties_as_bayes_says(tmp_path: Path, truth: Any) -> None:
    path, values, y = scores(tmp_path / "s.csv", 4000, truth=truth)
    plain, moved = fit(scores=path), fit(scores=path, target_prior=0.1)
    assert plain.fit.link.kind == truth.kind
    margin = values[:, 0] - values[:, 1]
    p, q = (each.forecaster.outcome.probabilities(margin) for each in (plain, moved))
    before = (y == 2).mean()
    weights = np.array([0.9 / (1 - before)] * 2 + [0.1 / before])
    expected = p * weights / (p * weights).sum(axis=1, keepdims=True)
    assert q[:, 2].mean() == pytest.approx(expected[:, 2].mean(), abs=1e-6)
    if truth.kind == "davidson":
        np.testing.assert_allclose(q, expected, atol=1e-12)
    assert moved.target_prior == moved.forecaster.prior_tie == 0.1
    card = moved.forecaster.card["tie_level_moved"]
    assert (card["from"], card["to"]) == (pytest.approx(before), 0.1)
    # The intervals move with the level.
    assert moved.forecaster.link is not None
    assert moved.forecaster.link.interval(np.zeros((1, 1)), np.zeros((1, 1)))[1][0, 2] < p[:, 2].max()


def test_the_share_of_ties_is_estimated_from_unlabelled_pairs() -> None:
    rng = np.random.default_rng(4)

    def told(n: int, name: str, keep: float) -> list[Pair]:
        """Pairs whose answers are of one length nine times in ten where they tie, and hardly ever where they do not."""
        made = []
        for row in range(n):
            outcome = Outcome(rng.choice(3, p=[0.3, 0.3, 0.4]))
            if outcome == Outcome.TIE and rng.random() > keep:
                continue
            alike = rng.random() < (0.9 if outcome == Outcome.TIE else 0.1)
            b = 100 if alike else 100 + 200 * (1 if rng.random() < 0.7 else -0.4) * (1 if outcome == Outcome.B else -1)
            made.append(Pair.of(f"{name} {row}", "x" * 100, "x" * max(1, int(b)), id=f"{name}{row}", outcome=outcome))
        return made

    fitted_on, there = told(600, "here", 1.0), told(600, "away", 0.35)
    planted = np.mean([pair.outcome == Outcome.TIE for pair in there])
    before = np.mean([pair.outcome == Outcome.TIE for pair in fitted_on])
    unlabelled = [Pair(pair.turns, pair.id) for pair in there]
    found = fit(fitted_on, model="length", target=unlabelled)
    assert found.target_prior is not None
    assert abs(found.target_prior - planted) < 0.35 * abs(before - planted)
    moved = found.forecaster.card["tie_level_moved"]
    assert moved["estimate"]["low"] < planted < moved["estimate"]["high"] < before
    assert found.forecaster.card["tie_level_moved"]["target"] == "unlabelled pairs"
    with pytest.raises(UsageError, match="no row could be forecast"):
        fit(fitted_on[:50], model="length", target=[])


SHAPES = {
    "scores": lambda p: {"score_a": np.log(p[0]), "score_b": np.log(p[1])},
    "logits": lambda p: {"logit_a": np.log(p[0]), "logit_b": np.log(p[1]), "logit_tie": np.log(p[2])},
    "margins": lambda p: {"margin": np.log(p[0] / p[1]), "tie": np.log(p[2]) - (np.log(p[0]) + np.log(p[1])) / 2},
    "probabilities": lambda p: dict(zip(LABELS, p, strict=True)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("joined", [False, True])
def test_scores_of_ones_own(prefcast_here: Run, tmp_path: Path, shape: str, joined: bool) -> None:
    rng = np.random.default_rng(0)
    given = pairs(400)
    margin, tie = rng.normal(size=400), rng.normal(size=400)
    p = Davidson(1, 0, 1).probabilities(margin, tie)
    y = outcomes_of(p, rng)
    rows = [{"id": f"r{row}", **SHAPES[shape](p[row]), "label": int(y[row])} for row in range(400)]
    given = [Pair(pair.turns, pair.id, Outcome(int(outcome))) for pair, outcome in zip(given, y, strict=True)]
    if joined:
        rows = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    write_jsonl(tmp_path / "s.jsonl", rows)
    write_pairs(tmp_path / "train.csv", given)
    fitted = fit(tmp_path / "train.csv" if joined else None, scores=tmp_path / "s.jsonl")
    assert fitted.fit.useful
    # Log-odds of a forecast may be kept as they are; scores of answers mean nothing of themselves.
    names = {trial.name for trial in fitted.fit.trials}
    assert ("as given" in names) == (shape in ("logits", "probabilities"))
    if shape != "scores":
        assert fitted.fit.log_loss.value == pytest.approx(-np.log(p[np.arange(400), y]).mean(), abs=0.03)
    fitted.save(tmp_path / "f")
    assert fitted.forecaster.scorer.name in ("scores", "blend")
    if shape == "probabilities":
        assert fitted.fit.chosen == "as given"
        loaded = load_forecaster(tmp_path / "f")
        found = resolve(Choice(forecaster=loaded, scores=tmp_path / "s.jsonl")).forecast(given[:20])
        np.testing.assert_allclose(found.probabilities, p[:20], atol=1e-9)
    if shape == "margins":
        done = prefcast_here("predict", "train.csv", "--forecaster", "f", "--scores", "s.jsonl", "-o", "out.jsonl")
        assert (done.returncode, done.stderr) == (0, "")
        done = prefcast_here("predict", "train.csv", "--forecaster", "f", "-o", "none.jsonl")
        assert done.returncode == 2
        assert "bring those of these pairs with --scores" in done.stderr


def test_scores_with_covariates_are_brought_to_the_blend(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = pairs(600, 3, empty=0.3)
    # Scores that do not know of empty answers.
    rows = [{"id": pair.id, "score_a": float(rng.normal()), "score_b": float(rng.normal())} for pair in given]
    write_jsonl(tmp_path / "s.jsonl", rows)
    fitted = fit(given, scores=tmp_path / "s.jsonl")
    assert fitted.fit.chosen == "davidson with covariates"
    fitted.save(tmp_path / "f")
    found = prefcast.evaluate(given, forecaster=load_with(tmp_path / "f", tmp_path / "s.jsonl"))
    assert found.n == 600
    np.testing.assert_array_equal(
        load_with(tmp_path / "f", tmp_path / "s.jsonl").forecast(given[:9]).probabilities,
        fitted.forecaster.forecast(given[:9]).probabilities,
    )
    # Without the texts there are no covariates: figures of another forecaster would be worse than none.
    labelled = [row | {"label": int(pair.outcome or 0)} for row, pair in zip(rows, given, strict=True)]
    write_jsonl(tmp_path / "t.jsonl", labelled)
    from prefcast.measuring.evaluation import measured_scores

    with pytest.raises(UsageError, match="needs the texts"):
        measured_scores(tmp_path / "t.jsonl", load_with(tmp_path / "f", tmp_path / "t.jsonl"))


def load_with(folder: Path, path: Path) -> Any:
    return resolve(Choice(forecaster=folder, scores=path))


def test_a_constant_on_both_scores_changes_nothing(tmp_path: Path) -> None:
    path, values, y = scores(tmp_path / "s.csv", 200)
    moved = [
        {"id": f"r{row}", "score_a": str(a + 100.0), "score_b": str(b + 100.0), "label": int(y[row])}
        for row, (a, b) in enumerate(values)
    ]
    one, other = fit(scores=path), fit(scores=write_csv(tmp_path / "t.csv", moved))
    assert one.fit.chosen == other.fit.chosen
    np.testing.assert_allclose(one.fit.link.theta, other.fit.link.theta, atol=1e-9)


def test_scores_that_miss_rows(tmp_path: Path) -> None:
    path, _, _ = scores(tmp_path / "s.csv", 60)
    text = path.read_text().splitlines()
    text[3] = text[3].split(",")[0] + ",,,1"
    text[4] = ",".join(text[4].split(",")[:3]) + ","
    path.write_text("\n".join(text) + "\n")
    found = fit(scores=path)
    assert (found.fit.rows, found.failed, found.unlabelled) == (58, 1, 1)
    # Joined with pairs: one has no scores, one's are missing, and one has an id of which nothing is known.
    given = [*pairs(60), Pair.of("p", "a", "b")]
    given[-1] = Pair(given[-1].turns, "unknown", Outcome.A)
    found = fit(given, scores=path)
    assert (found.failed, found.rows) == (2, 61)
    assert found.first_error is not None
    assert "its scores in" in str(found.first_error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,score_a\nx,1\n", "has no scores; expected id and score_a, score_b"),
        ("score_a,score_b\n1,2\n", "column 'id' is missing; scores are joined by it"),
        ("id,score_a,score_b\nx,1,two\n", "row 1: score_b is 'two'; expected a finite number"),
        ("id,score_a,score_b\nx,1,2\ny,nan,2\n", "row 2: score_a is 'nan'; expected a finite number"),
        ("id,score_a,score_b\nx,1,\n", "row 1: score_b is ''; expected a finite number"),
        ("id,score_a,score_b,label\nx,1,2,3\n", "row 1: label is '3'; expected 0"),
        ("id,score_a,score_b\nx,1,2\nx,1,2\n", "row 2: id 'x' is the same as in row 1"),
        ("id,score_a,score_b\n,1,2\n", "row 1: id is missing"),
        (
            "id,winner_model_a,winner_model_b,winner_tie\nx,0.5,0.5,0.5\n",
            "row 1: winner_model_a,winner_model_b,winner_tie sum to 1.5",
        ),
        ("id,score_a,score_b\n", "has no rows"),
    ],
)
def test_scores_at_fault(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(FileError, match=message) as caught:
        fit(scores=tmp_path / "s.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,votes_a,votes_b\nr0,1,2\n", "column 'votes_tie' is missing"),
        ("id,votes_a,votes_b,votes_tie\nr0,1,-2,0\n", "row 1: votes_b is '-2'; expected a finite number, 0 or more"),
        ("id,votes_a,votes_b,votes_tie\nr0,1,inf,0\n", "row 1: votes_b is 'inf'"),
        ("id,votes_a,votes_b,votes_tie\nr0,0,0,0\n", "row 1: has no vote at all"),
        ("id,votes_a,votes_b,votes_tie\nr0,1,0,0\nr0,1,0,0\n", "row 2: id 'r0' is the same as in row 1"),
        ("id,votes_a,votes_b,votes_tie\n", "has no rows"),
    ],
)
def test_votes_at_fault(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(FileError, match=message):
        fit(pairs(30), model="length", votes=tmp_path / "v.csv")


def test_votes_on_other_ids_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("id,votes_a,votes_b,votes_tie\nelsewhere,1,0,0\n")
    with pytest.raises(FitError, match="nothing to fit: of 30 rows 0 failed and 30 have no label"):
        fit(pairs(30), model="length", votes=tmp_path / "v.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "length", "scores": "s.csv"}, "give either models or --scores, not both"),
        ({"model": ["length", "length"]}, "a model is named twice"),
        ({"model": "lenght"}, "unknown model 'lenght'; did you mean 'length'"),
        ({"model": "../../no/such\x1b[31m"}, "no such|not a|cannot"),
        ({"target_prior": 1.5}, "must be a share of ties between 0 and 1; found 1.5"),
        ({"target_prior": float("nan")}, "must be a share of ties between 0 and 1"),
        ({"target_prior": 0.2, "target": "x.csv"}, "give only one of them"),
        ({"scores": "s.csv", "target": "x.csv"}, "with --scores give the share of ties"),
        ({"model": "length", "options": Options(dtype="bfloat16")}, "the model length has no option --dtype"),
    ],
)
def test_calls_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ModelError), match=message) as caught:
        fit(pairs(30), **arguments)
    assert "\x1b" not in str(caught.value)


def test_data_that_hold_no_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a file of labelled pairs"):
        fit()
    path = write_pairs(tmp_path / "f.csv", pairs(30), labels=False)
    with pytest.raises(UsageError, match=r"f\.csv: nothing to fit: the file has no label columns"):
        fit(path, model="length")
    with pytest.raises(FitError, match="of 30 rows 0 failed and 30 have no label"):
        fit([Pair(pair.turns, pair.id) for pair in pairs(30)], model="length")
    with pytest.raises(FitError, match="at least 20 labelled pairs that could be scored; there are 19"):
        fit(pairs(19), model="length")


def test_rows_that_fail_are_told(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [
        kaggle_row(pair.id, list(pair.prompt), list(pair.response_a), list(pair.response_b))
        | {name: int(pair.outcome == index) for index, name in enumerate(LABELS)}
        for pair in pairs(40)
    ]
    rows[7]["prompt"] = 5
    write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast_here("fit", "f.jsonl", "--model", "length", "-o", "mine")
    assert done.returncode == 3
    assert "1 of 40 rows failed and are not in the fit; the first: f.jsonl: row 8, prompt: is a number" in done.stderr
    assert (tmp_path / "mine" / "forecaster.json").exists()


def test_scrambled_labels_are_told_to_the_person(prefcast_here: Run, tmp_path: Path) -> None:
    path, _, y = scores(tmp_path / "s.csv", 300)
    order = np.random.default_rng(0).permutation(300)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *(f"{row.rsplit(',', 1)[0]},{y[order[n]]}" for n, row in enumerate(rows))]) + "\n")
    done = prefcast_here("fit", "--scores", "s.csv", "-o", "mine")
    assert done.returncode == 0
    assert "it is no better than the class prior" in done.stdout
    assert load_forecaster(tmp_path / "mine").card["cross_validated"]["better_than_class_prior"] is False


def test_no_ties_are_told(prefcast_here: Run, tmp_path: Path) -> None:
    path, _, _ = scores(tmp_path / "s.csv", 300)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *(row for row in rows if not row.endswith(",2"))]) + "\n")
    done = prefcast_here("fit", "--scores", "s.csv", "-o", "mine")
    assert done.returncode == 0
    assert "no label is a tie" in done.stderr
    done = prefcast_here("fit", "--scores", "s.csv", "-o", "mine", "--target-prior", "0.3")
    assert done.returncode == 2
    assert "expected a share between 0 and 1 to adjust the tie level" in done.stderr


def test_figures_of_scores_are_those_of_the_forecasts(prefcast_here: Run, tmp_path: Path) -> None:
    path, values, y = scores(tmp_path / "s.csv", 300)
    fitted = fit(scores=path)
    fitted.save(tmp_path / "mine")
    done = prefcast_here("evaluate", "--scores", "s.csv", "--forecaster", "mine", "--json", "-")
    assert done.returncode == 0, done.stderr
    p = fitted.forecaster.outcome.probabilities(values[:, 0] - values[:, 1])
    assert json.loads(done.stdout)["log_loss"]["value"] == pytest.approx(-np.log(p[np.arange(300), y]).mean())
    # Without a fit only the preferred answer is known.
    done = prefcast_here("evaluate", "--scores", "s.csv")
    assert done.returncode == 0
    assert "no outcome model was fitted to these scores" in done.stdout


def test_forecaster_fit_leaves_no_old_uncertainty() -> None:
    """The shipped forecaster has draws of its link; those of a link fitted anew are others."""
    shipped = load_forecaster("length")
    assert shipped.link is not None
    again = shipped.fit(pairs(200))
    found = again.forecast(pairs(5, 1))
    if found.interval is not None:
        low, high = found.interval
        assert (low <= found.probabilities).all()
        assert (found.probabilities <= high).all()
    assert again.link is None
    assert again.calibration is None


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("fitting") / "m")


@pytest.fixture(scope="module")
def ensemble(reward: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, list[Pair]]:
    """Surface, length and a tiny reward model that knows the half of what people want."""
    rng = np.random.default_rng(0)
    given = [Pair(pair.turns, pair.id) for pair in pairs(80)]
    scorer = prefcast.load_scorer(reward, devices="cpu")
    from prefcast.forecasts.forecaster import Forecaster

    margin, _ = Forecaster(scorer, Davidson(1, 0, 0)).evidence(given)
    lengths = np.log([len(pair.response_a[0]) / len(pair.response_b[0]) for pair in given])
    p = Davidson(1.0, -1.0).probabilities(4 * margin / margin.std() + 3 * lengths)
    y = outcomes_of(p, rng)
    labelled = [Pair(pair.turns, pair.id, Outcome(int(outcome))) for pair, outcome in zip(given, y, strict=True)]
    models = ["surface", "length", str(reward)]
    return fit(labelled, model=models, options=Options(devices="cpu")), labelled


def test_an_ensemble_is_saved_and_loaded_with_the_same_forecasts(
    ensemble: tuple[Fitted, list[Pair]], reward: Path, tmp_path: Path
) -> None:
    fitted, labelled = ensemble
    assert 2 in fitted.fit.members
    assert len(fitted.fit.members) >= 2
    assert sorted((*fitted.fit.members, *fitted.fit.useless)) == [0, 1, 2]
    card = fitted.forecaster.card
    assert card["models"] == ["surface", "length", str(reward)]
    assert set(card["used"]) | set(card["useless"]) == set(card["models"])
    fitted.save(tmp_path / "f")
    loaded = load_forecaster(tmp_path / "f")
    one, other = fitted.forecaster.forecast(labelled), loaded.forecast(labelled)
    np.testing.assert_allclose(other.probabilities, one.probabilities, rtol=0, atol=1e-12)
    assert other.spread is not None
    assert ((other.spread >= 0) & (other.spread <= 1)).all()
    records = list(other.records())
    assert records[0]["member_spread"] == other.spread[0]
    # Saved in its own place, then replaced.
    loaded.save(tmp_path / "f")
    # The same batches: torch's sums differ in the last digit with the size of a batch.
    np.testing.assert_array_equal(load_forecaster(tmp_path / "f").forecast(labelled).probabilities, other.probabilities)
    moved = Path(shutil.copytree(reward, tmp_path / "moved"))
    np.testing.assert_array_equal(
        load_forecaster(tmp_path / "f", model=str(moved)).forecast(labelled).probabilities, other.probabilities
    )
    elsewhere = resolve(Choice(forecaster=tmp_path / "f", options=Options(devices="cpu")))
    np.testing.assert_allclose(elsewhere.forecast(labelled).probabilities, other.probabilities, atol=1e-6)
    with pytest.raises(UsageError, match="is fixed in the forecaster"):
        resolve(Choice(forecaster=tmp_path / "f", options=Options(dtype="bfloat16")))
    another = save_decoder(tmp_path / "another", seed=1)
    with pytest.raises(ForecasterError, match="is not the model that the outcome model was fitted for"):
        load_forecaster(tmp_path / "f", model=str(another))
    change_config(moved, note="changed")
    with pytest.raises(ForecasterError, match="is not the model that the outcome model was fitted for"):
        load_forecaster(tmp_path / "f", model=str(moved))


def test_a_member_that_was_changed_is_refused(ensemble: tuple[Fitted, list[Pair]], tmp_path: Path) -> None:
    fitted, _ = ensemble
    fitted.save(tmp_path / "f")
    member = next((tmp_path / "f").glob("member-*/*.json"))
    text = member.read_text()
    member.write_text(text.replace("1", "2", 1))
    with pytest.raises(ForecasterError, match=r"are not those that the outcome model was fitted for|not the model"):
        load_forecaster(tmp_path / "f")
    member.write_text(text)
    path = tmp_path / "f" / "blend.json"
    path.write_text(path.read_text().replace('"margin_weight": ', '"margin_weight": 1'))
    with pytest.raises(ForecasterError, match="are not those that the outcome model was fitted for"):
        load_forecaster(tmp_path / "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(margin=["evil"]), "names evidence that the scorer does not give"),
        (lambda data: data["draws"].append([1.0]), "damaged"),
        (lambda data: data["theta"].__setitem__(0, float("nan")), "do not fit together"),
        (lambda data: data.update(kind="elo"), "is not one that this version reads"),
        (lambda data: data.pop("draws"), "damaged"),
    ],
)
def test_uncertainty_that_is_damaged(tmp_path: Path, change: Any, message: str) -> None:
    load_forecaster("length").save(tmp_path / "f")
    path = tmp_path / "f" / "uncertainty.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ForecasterError, match=message):
        load_forecaster(tmp_path / "f")


def test_nothing_is_scored_twice(reward: Path, tmp_path: Path) -> None:
    options = Options(devices="cpu")
    first = fit(EXAMPLES, model=["length", str(reward)], options=options)
    assert first.restored == 0
    again = fit(EXAMPLES, model=str(reward), options=options)
    assert again.restored == again.rows == 42
    again.save(tmp_path / "f")
    loaded = load_forecaster(tmp_path / "f")
    with ready(loaded) as forecaster:
        tally = Tally()
        measured = measured_forecasts(EXAMPLES, forecaster)
        list(forecasts_of(read_pairs(EXAMPLES), forecaster, tally))
    # Evaluating swaps A and B too: the same conversations.
    assert measured.restored == tally.restored == 42


@pytest.mark.parametrize(
    "name",
    ["evil\x1b[31m/" + "a" * 300 + "\n", *(pytest.param(each, marks=pytest.mark.long) for each in ("../..", "a\n"))],
)
def test_a_hostile_name_of_a_model(prefcast: Run, tmp_path: Path, name: str) -> None:
    write_pairs(tmp_path / "f.csv", pairs(30))
    done = prefcast("fit", "f.csv", "--model", name, "-o", "mine", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "mine").exists()
