"""The Kaggle notebook as a preset: budget, precision, rule, failed rows, columns, order; and the rehearsal."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from checkpoints import INTERNLM2, save_decoder, save_gemma2_pair, save_internlm2
from conftest import EXAMPLES, SURFACE, Run, kaggle_row, labelled, write_csv
from prefcast import Forecaster, Pair, load_scorer, predict, read_pairs
from prefcast.errors import UsageError
from prefcast.forecasts.resolve import Choice, is_named_model, resolve, resolve_scorer
from prefcast.scorers.reward import Options
from prefcast.scorers.reward.store import quantize_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_internlm2(tmp_path_factory.mktemp("preset") / "m", changes={"max_position_embeddings": 8192})


def submission(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_notebook_end_to_end(folder: Path, prefcast_here: Run, tmp_path: Path) -> None:
    rows = [
        kaggle_row(id=7, prompt=("Why?",), a=("<|im_end|>",), b=("So.",)),
        kaggle_row(id=3, prompt=("p" * 2000,), a=("a" * 9000,), b=("b",)),
        kaggle_row(id=5) | {"response_a": "__import__('os')"},
        kaggle_row(id=1, prompt=("x", "y" * 7200), a=("one", "two"), b=("other", "more")),
        kaggle_row(id=2, a=("same",), b=("same",)),
        kaggle_row(id=9, prompt=("Hi", None), a=(None, "x"), b=("b", "")),
    ]
    write_csv(tmp_path / "test.csv", rows)
    done = prefcast_here("predict", "test.csv", "--model", folder, "--preset", "notebook", "-o", "submission.csv")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(
        "prefcast: 1 of 6 rows failed and got (0.33334, 0.33333, 0.33333); the first: test.csv: row 3, response_a"
    )
    head, *lines = submission(tmp_path / "submission.csv")
    assert head == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [line[0] for line in lines] == ["7", "3", "5", "1", "2", "9"]
    assert lines[2][1:] == ["0.33334", "0.33333", "0.33333"]
    # By the definition: 4 bit, special tokens parsed, 7,200 characters, softmax of (sA - 1e-4, sB - 1e-4, 2e-4).
    scorer = load_scorer(folder, quantize="nf4", special_tokens="original")
    cut = {
        0: ("Why?", "<|im_end|>", "So."),
        1: ("p" * 1000, "a" * 3000, "b"),
        3: ("x", "one", "other"),
        4: ("Why?", "same", "same"),
    }
    for number, (prompt, a, b) in cut.items():
        scores = scorer.score(
            [[{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for text in (a, b)]
        )
        if abs(scores[0] - scores[1]) < 0.08:
            expected = np.array([0.00005, 0.00005, 0.9999])
        else:
            expected = np.exp(scores - scores.max())
            expected = np.append(expected / expected.sum() - 0.0001, 0.0002)
        np.testing.assert_allclose([float(cell) for cell in lines[number][1:]], expected, rtol=0, atol=2e-6)
    assert lines[4][1:] == ["5e-05", "5e-05", "0.9999"]


def test_the_notebook_takes_a_checkpoint_that_is_in_4_bit_already(folder: Path, tmp_path: Path) -> None:
    quantize_checkpoint(str(folder), tmp_path / "q", "nf4")
    pairs = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]
    one, two = (predict(pairs, model=str(path), preset="notebook").probabilities for path in (folder, tmp_path / "q"))
    np.testing.assert_array_equal(one, two)


def test_the_notebooks_forecaster_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    made = resolve(Choice(str(folder), preset="notebook"))
    made.save(tmp_path / "f")
    again = Forecaster.load(tmp_path / "f")
    assert again.prior == made.prior == (0.33334, 0.33333, 0.33333)
    assert str(again.budget) == "notebook:7200"
    assert again.scorer.options == made.scorer.options  # type: ignore[attr-defined]


def test_options_win_over_the_preset(folder: Path) -> None:
    made = resolve(Choice(str(folder), preset="notebook", options=Options(quantize="int8", special_tokens="literal")))
    assert made.scorer.options.quantize == "int8"  # type: ignore[attr-defined]
    assert made.scorer.options.special_tokens == "literal"  # type: ignore[attr-defined]
    assert str(resolve(Choice(str(folder), preset="notebook", budget="keep-last:99")).budget) == "keep-last:99"


@pytest.mark.parametrize("verb", ["evaluate", "explain"])
def test_other_verbs_take_the_preset(folder: Path, prefcast_here: Run, verb: str) -> None:
    more = {"evaluate": [], "explain": ["--id", "ex-01"]}[verb]
    done = prefcast_here(verb, EXAMPLES, "--model", folder, "--preset", "notebook", *more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_what_the_preset_is_not_for(tmp_path: Path) -> None:
    for model, message in (
        ("surface", "--preset notebook needs a reward model"),
        (
            str(save_gemma2_pair(tmp_path / "g")),
            "the notebook's rule is for scores of single conversations; this model reads both",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            resolve(Choice(model, preset="notebook"))
    with pytest.raises(UsageError, match="unknown preset 'kaggle'; there is notebook"):
        resolve(Choice(str(INTERNLM2), preset="kaggle"))
    with pytest.raises(UsageError, match="the model surface has no option --dtype"):
        resolve(Choice("surface", options=Options(dtype="float16")))


def write_train(path: Path, count: int) -> None:
    write_csv(
        path,
        [
            labelled(number % 3, id=number, prompt=(f"question {number}",), a=("yes",), b=("no, never",))
            for number in range(count)
        ],
    )


def test_a_rehearsal(folder: Path, prefcast_here: Run, tmp_path: Path) -> None:
    write_csv(tmp_path / "stub.csv", [kaggle_row(id=number) for number in range(3)])
    write_train(tmp_path / "train.csv", 1003)
    done = prefcast_here("predict", "stub.csv", "--rehearse", "train.csv", *SURFACE, "-o", "submission.csv")
    assert done.returncode == 0, done.stderr
    assert "stub.csv is the stub: the first 1000 rows of train.csv were forecast instead" in done.stderr
    assert done.stdout.startswith("1000 labelled pairs")
    assert "log loss" in done.stdout
    assert "accuracy" in done.stdout
    assert len(submission(tmp_path / "submission.csv")) == 1001
    small = prefcast_here(
        "predict", "stub.csv", "--rehearse", EXAMPLES, "--model", folder, "--preset", "notebook", "-o", "s.csv"
    )
    assert small.returncode == 0, small.stderr
    assert small.stdout.startswith("42 labelled pairs")


def test_a_rehearsal_is_only_for_the_stub(prefcast_here: Run, tmp_path: Path) -> None:
    for count in (2, 4):
        write_csv(tmp_path / "test.csv", [kaggle_row(id=number) for number in range(count)])
        done = prefcast_here("predict", "test.csv", "--rehearse", EXAMPLES, "-o", "s.csv")
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert len(submission(tmp_path / "s.csv")) == count + 1


def test_budgets_and_tokens(tmp_path: Path) -> None:
    """A policy without a limit cuts to the model's tokens; with one, characters go first."""
    folder = str(save_decoder(tmp_path / "m"))
    for budget, policy, characters in (
        (None, "keep-last", "whole"),
        ("proportional", "proportional", "whole"),
        ("proportional:900", "proportional", "proportional:900"),
        ("notebook", "keep-last", "notebook:7200"),
    ):
        scorer, read = resolve_scorer(Choice(str(folder), budget=budget, options=Options(max_tokens=100)))
        assert scorer.limit is not None
        assert (scorer.limit.name, str(read)) == (f"{policy} in tokens", characters)


def test_every_cut_row_is_reported(folder: Path, prefcast_here: Run, tmp_path: Path) -> None:
    done = prefcast_here("score", EXAMPLES, "--model", folder, "--max-tokens", "120", "-o", "scores.jsonl")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    scorer = load_scorer(folder)
    for record, pair in zip(records, read_pairs(EXAMPLES), strict=True):
        assert isinstance(pair, Pair)
        long = max(len(ids) for ids in scorer.group(pair).ids) > 120
        assert (record["characters_kept"] < record["characters"]) == long
        assert record["margin"] == record["score_a"] - record["score_b"]
    cut = sum(record["characters_kept"] < record["characters"] for record in records)
    assert f", {cut} truncated; " in done.stderr


def test_scores_of_rows_that_fail(folder: Path, prefcast_here: Run, tmp_path: Path) -> None:
    write_csv(tmp_path / "in.csv", [kaggle_row(id="a,b"), kaggle_row(id="x") | {"response_b": "nothing"}])
    for name in ("s.csv", "s.jsonl", "s.parquet"):
        done = prefcast_here("score", "in.csv", "--model", folder, "-o", name)
        assert done.returncode == 3
        assert "1 of 2 rows failed; the first: in.csv: row 2, response_b" in done.stderr
    with (tmp_path / "s.csv").open(newline="") as file:
        good, bad = list(csv.DictReader(file))
    assert good["id"] == "a,b"
    assert good["error"] == bad["margin"] == bad["score_a"] == ""
    assert bad["error"].startswith("in.csv: row 2, response_b: is 'nothing'")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert table == [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    stop = prefcast_here("score", "in.csv", "--model", folder, "-o", "t.csv", "--on-error", "stop")
    assert stop.returncode == 2
    assert not (tmp_path / "t.csv").exists()


def test_built_in_models_have_scores_too(prefcast_here: Run, tmp_path: Path) -> None:
    done = prefcast_here("score", EXAMPLES, "--model", "length", "-o", "s.csv")
    assert done.returncode == 0, done.stderr
    assert submission(tmp_path / "s.csv")[0][:3] == ["id", "margin", "tie"]


def test_what_counts_as_a_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert [is_named_model(name) for name in ("surface", "here", "owner/name", "./x", "surfaec")] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_a_model_that_has_moved_is_named_anew(folder: Path, tmp_path: Path, prefcast_here: Run) -> None:
    import shutil

    moved = Path(shutil.copytree(folder, tmp_path / "here"))
    resolve(Choice(str(moved), preset="notebook")).save(tmp_path / "f")
    moved.rename(tmp_path / "there")
    lost = prefcast_here("predict", EXAMPLES, "--forecaster", "f", "-o", "s.csv")
    assert lost.returncode == 2
    assert "its model is no longer in" in lost.stderr
    assert "--model PATH beside --forecaster" in lost.stderr
    found = prefcast_here("predict", EXAMPLES, "--forecaster", "f", "--model", "./there", "-o", "s.csv")
    assert found.returncode == 0, found.stderr
    other = prefcast_here("predict", EXAMPLES, "--forecaster", "f", "--model", str(INTERNLM2), "-o", "s.csv")
    assert "is not the model that the outcome model was fitted for" in other.stderr


def test_truncated_rows_are_told(prefcast_here: Run) -> None:
    done = prefcast_here("predict", EXAMPLES, "--model", INTERNLM2, "--preset", "notebook", "-o", "s.csv")
    assert "rows were truncated (256 tokens, notebook:7200)" in done.stderr
    done = prefcast_here("evaluate", EXAMPLES, "--model", INTERNLM2, "--preset", "notebook")
    assert "rows were truncated (256 tokens, notebook:7200)" in done.stderr


def test_a_rehearsal_does_not_eat_its_labels(prefcast_here: Run, tmp_path: Path) -> None:
    write_csv(tmp_path / "stub.csv", [kaggle_row(id=number) for number in range(3)])
    write_train(tmp_path / "train.csv", 20)
    before = (tmp_path / "train.csv").read_bytes()
    done = prefcast_here("predict", "stub.csv", "--rehearse", "train.csv", "-o", "train.csv")
    assert done.returncode == 2
    assert (tmp_path / "train.csv").read_bytes() == before
    missing = prefcast_here("predict", EXAMPLES, "--rehearse", "nothing.csv", "-o", "s.csv")
    assert missing.returncode == 2
    assert "nothing.csv: cannot be read" in missing.stderr
    failed = prefcast_here(
        "predict",
        "stub.csv",
        "--rehearse",
        "train.csv",
        "--model",
        INTERNLM2,
        "--preset",
        "notebook",
        "--max-tokens",
        "3",
        "-o",
        "s.csv",
        "--allow-all-failed",
    )
    assert failed.returncode == 3
    assert "20 of 20 rows failed" in failed.stderr


def test_the_preset_without_4_bit(folder: Path) -> None:
    assert (
        resolve(Choice(str(folder), preset="notebook", options=Options(quantize="none"))).scorer.options.quantize
        is None
    )  # type: ignore[attr-defined]
    made = resolve(Choice(str(folder), preset="notebook", budget="proportional"))
    assert str(made.budget) == "notebook:7200"
    assert made.scorer.options.policy == "proportional"  # type: ignore[attr-defined]
