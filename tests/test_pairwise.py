"""Pairwise accuracy, and models without an outcome model: evaluate, best and score by margins alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import INTERNLM2
from conftest import Run, kaggle_row, write_csv, write_jsonl
from prefcast import load_scorer
from prefcast.measuring.metrics.measure import evaluate_probabilities

REWARD = str(INTERNLM2)
GOOD = "Yes, it is so, because of this reason and of that one."


def preferences(folder: Path, n: int = 40) -> Path:
    rows = [
        {"id": number, "prompt": f"Question {number}?", "chosen": GOOD, "rejected": "No.", "subset": "ab"[number % 2]}
        for number in range(n)
    ]
    return write_jsonl(folder / "pairs.jsonl", rows)


def test_the_share_of_pairs_whose_preferred_answer_is_ahead() -> None:
    p = np.array([[0.3, 0.1, 0.6], [0.4, 0.5, 0.1], [0.2, 0.2, 0.6], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1]])
    scores = evaluate_probabilities(p, [0, 0, 1, 1, 2]).scores
    assert scores.decisive == 4
    assert scores.pairwise_accuracy is not None
    assert scores.pairwise_accuracy.value == (1 + 0 + 0.5 + 1) / 4
    assert scores.pairwise_accuracy.low < scores.pairwise_accuracy.value < scores.pairwise_accuracy.high
    only_ties = evaluate_probabilities(p, [2] * 5).scores
    assert (only_ties.pairwise_accuracy, only_ties.decisive) == (None, 0)


@pytest.mark.parametrize("model", ["surface", "length"])
def test_labels_without_ties_show_it_beside_the_accuracy(prefcast_here: Run, tmp_path: Path, model: str) -> None:
    preferences(tmp_path)
    done = prefcast_here(
        "evaluate", "pairs.jsonl", "--model", model, "--by", "subset", "--repeats", 100, "--json", "e.json"
    )
    assert done.returncode == 0, done
    head, own = done.stdout.splitlines()[3:5]
    assert head.split() == ["log", "loss", "pairwise", "accuracy", "accuracy", "Brier", "score"]
    assert own.split()[4:7] == ["1.0000", "[1.0000,", "1.0000]"]
    assert "no label is a tie" in done.stdout
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["pairwise_accuracy"]["value"] == 1.0
    assert found["baselines"]["uniform"]["pairwise_accuracy"]["value"] == 0.5
    parts = [part for part in found["slices"] if part["kind"] == "subset"]
    assert [(part["name"], part["n"], part["decisive"], part["pairwise_accuracy"]["value"]) for part in parts] == [
        ("a", 20, 20, 1.0),
        ("b", 20, 20, 1.0),
    ]


def test_labels_with_ties_show_it_with_its_number(prefcast_here: Run, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "p.jsonl",
        [kaggle_row(n, (f"q{n}",), (GOOD,), ("No.",), winner=("tie" if n % 3 else "model_a")) for n in range(30)],
    )
    done = prefcast_here("evaluate", "p.jsonl", "--model", "length", "--repeats", 100)
    said = " ".join(done.stdout.split())
    assert "pairwise accuracy 1.0000 [1.0000, 1.0000] on 10 pairs whose label is no tie" in said
    assert "no label is a tie" not in done.stdout


@pytest.mark.parametrize("by", ["nothing", ""])
def test_a_column_that_is_not_there(prefcast_here: Run, tmp_path: Path, by: str) -> None:
    preferences(tmp_path, 4)
    done = prefcast_here("evaluate", "pairs.jsonl", "--model", "length", "--by", by)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"column '{by}' is missing; found: 'id', 'prompt'" in done.stderr


def test_a_column_that_is_called_as_a_kind_of_rows(prefcast_here: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [kaggle_row(n, winner="model_a", turns=f"t{n % 2}") for n in range(4)])
    done = prefcast_here("evaluate", "p.jsonl", "--model", "length", "--by", "turns", "--repeats", 100)
    assert "turns: 1 " in done.stdout
    assert "column turns: t1 " in done.stdout


def scores(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return write_csv(folder / "scores.csv", rows)


@pytest.mark.parametrize("names", [("score_a", "score_b"), ("score_chosen", "score_rejected")])
def test_scores_of_ones_own_need_no_fit(prefcast_here: Run, tmp_path: Path, names: tuple[str, str]) -> None:
    rows = [kaggle_row(n, (f"q{n}",), winner="model_a" if n % 2 else "model_b") for n in range(40)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    # The first of the two is ahead in all rows but those that 4 divides, where both are equal.
    scores(tmp_path, [{"id": n, names[0]: 2.0 if n % 4 else 1.0, names[1]: 1.0} for n in range(40)])
    arguments = ("evaluate", "p.jsonl", "--scores", "scores.csv", "--repeats", 100, "--json", "e.json")
    done = prefcast_here(*arguments)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[3].split() == ["pairwise", "accuracy"]
    assert done.stdout.splitlines()[4].startswith("scores.csv ")
    found = json.loads((tmp_path / "e.json").read_text())
    expected = (20 * 1 + 10 * 0 + 10 * 0.5) / 40 if names[0] == "score_a" else (30 * 1 + 10 * 0.5) / 40
    assert found["pairwise_accuracy"]["value"] == expected
    # Figures that would need probabilities are not there.
    assert "log_loss" not in found
    assert all(set(base) == {"pairwise_accuracy"} for base in found["baselines"].values())


def test_scores_with_labels_of_their_own(prefcast_here: Run, tmp_path: Path) -> None:
    scores(tmp_path, [{"id": n, "score_a": n % 3, "score_b": 1, "label": n % 2} for n in range(60)])
    done = prefcast_here("evaluate", "--scores", "scores.csv", "--repeats", 100)
    assert done.returncode == 0, done
    assert "scores.csv        0.5000" in done.stdout


def test_a_reward_model_without_an_outcome_model(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [
        {"id": n, "prompt": f"Why {n}?", "response_a": "Because.", "response_b": f"So, {n}.", "winner": "model_a"}
        for n in range(6)
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    done = prefcast_here(
        "evaluate", "p.jsonl", "--cells", "text", "--model", REWARD, "--repeats", 100, "--json", "e.json", "--slices"
    )
    assert done.returncode == 0, done
    found = json.loads((tmp_path / "e.json").read_text())
    with load_scorer(REWARD) as scorer:
        talks = [
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
            for row in map(json.loads, path.read_text().splitlines())
            for name in ("response_a", "response_b")
        ]
        given = scorer.score(talks).reshape(-1, 2)
    assert found["pairwise_accuracy"]["value"] == (given[:, 0] > given[:, 1]).mean()
    assert found["by_margin"] is True
    assert "no outcome model was fitted" in done.stdout
    assert "log loss" not in done.stdout

    answers = ["Because.", "So.", "I do not know, ask somebody else."]
    write_jsonl(
        tmp_path / "b.jsonl",
        [{"id": n, "prompt": f"Why {n}?", "chosen": answers[:1], "rejected": answers[1:]} for n in range(5)],
    )
    done = prefcast_here("best", "b.jsonl", "--model", REWARD, "-o", "best.jsonl")
    assert done.returncode == 0, done
    choices = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    with load_scorer(REWARD) as scorer:
        for number, choice in enumerate(choices):
            talks = [
                [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": answer}]
                for answer in answers
            ]
            order = np.argsort(-scorer.score(talks), kind="stable")
            assert choice["order"] == order.tolist()
            assert sorted(choice["strengths"]) == [0.0, 0.5, 1.0]
            assert choice["right"] == float(order[0] == 0)
    share = np.mean([choice["right"] for choice in choices])
    assert f"is an answer that people found best in {share:.1%} [" in done.stderr


def test_equal_answers_share_what_is_right(prefcast_here: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "Why?", "chosen": ["same"], "rejected": ["same", "same"]}])
    done = prefcast_here("best", "b.jsonl", "--model", "length", "-o", "best.jsonl")
    assert json.loads((tmp_path / "best.jsonl").read_text())["right"] == pytest.approx(1 / 3)
    assert "33.3%" in done.stderr


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_single_answers_have_one_score(prefcast_here: Run, tmp_path: Path, ending: str) -> None:
    rows = [
        {"id": "a", "prompt": "Why?", "response": "Because."},
        {"id": "b", "prompt": ["Why?", "And?"], "response": ["Because.", "So."]},
        {"id": "c", "prompt": [{"role": "human", "content": "Why?"}], "response": "So."},
        {"id": "d", "prompt": 1, "response": "So."},
    ]
    write_jsonl(tmp_path / "p.jsonl", rows)
    done = prefcast_here("score", "p.jsonl", "--model", REWARD, "-o", f"out.{ending}")
    assert done.returncode == 3, done
    text = (tmp_path / f"out.{ending}").read_text()
    found = list(csv.DictReader(text.splitlines())) if ending == "csv" else list(map(json.loads, text.splitlines()))

    def talk(*texts: str) -> list[dict[str, str]]:
        return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]

    with load_scorer(REWARD) as scorer:
        plain = scorer.score([talk("Why?", "Because."), talk("Why?", "Because.", "And?", "So."), talk("Why?", "So.")])
    assert [row["id"] for row in found] == ["a", "b", "c", "d"]
    assert [float(row["score"]) for row in found[:3]] == pytest.approx(plain.tolist(), abs=1e-5)
    assert [int(row["characters"]) for row in found[:3]] == [12, 19, 7]
    assert not found[3]["score"]
    assert "row 4, prompt: is a number" in found[3]["error"]
    assert not {"score_a", "margin"} & set(found[0])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("score one.jsonl --model length -o o.csv", "holds single answers, and length compares two; only a pointwise"),
        ("predict one.jsonl -o o.csv", "holds one answer to each prompt, in 'response'; expected two answers"),
        ("score half.jsonl --model length -o o.csv", "column 'response_b' is missing"),
        ("evaluate one.jsonl --model length", "holds one answer to each prompt"),
        (
            f"evaluate two.jsonl --model {REWARD} --scores s.csv",
            "--scores brings the scores of the pairs, --model computes",
        ),
        ("evaluate --scores s.csv --by subset", "--by needs the file of labelled pairs, or of forecasts"),
    ],
)
def test_what_is_refused(prefcast_here: Run, tmp_path: Path, command: str, message: str) -> None:
    write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Why?", "response": "So."}])
    write_jsonl(tmp_path / "half.jsonl", [{"prompt": ["Why?"], "response": "x", "response_a": ["So."]}])
    write_jsonl(tmp_path / "two.jsonl", [kaggle_row(winner="tie")])
    write_csv(tmp_path / "s.csv", [{"id": 1, "score_a": 1, "score_b": 0}])
    done = prefcast_here(*command.split())
    assert (done.returncode, done.stdout) == (2, ""), done
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
