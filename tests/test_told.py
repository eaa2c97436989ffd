"""What commands tell of their work: faults by kind, plain values, progress, options that are given twice, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run, kaggle_row, labelled, write_csv, write_jsonl
from prefcast import Pair, load_forecaster
from prefcast.cli import shared
from prefcast.errors import RowError
from prefcast.measuring.metrics.languages import prompt_language
from prefcast.measuring.rehearsal import rehearsal_rows
from prefcast.pairs.budget import parse_budget
from prefcast.runs.jobs import scoring
from prefcast.runs.log import Watch
from prefcast.runs.loop import Job, Tally, scored_pieces
from prefcast.scorers.base import Evidence, Meter, Scorer
from prefcast.scorers.surface.features import read_texts

# Faults by kind


def test_check_shows_each_kind_of_fault_once(prefcast_here: Run, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(300):
        if number % 3 == 0:
            rows.append(kaggle_row(number, f"plain {number}", "it's", 'a "quoted" text'))
        elif number % 3 == 1:
            rows.append(kaggle_row(number, ("a",), ("b",) * (2 + number % 5), ("c",)))
        else:
            rows.append(kaggle_row(number))
    rows.append(kaggle_row(300, None))
    write_jsonl(tmp_path / "p.jsonl", rows)
    done = prefcast_here("check", "p.jsonl")
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "p.jsonl: row 1, prompt: is 'plain 0'; expected a JSON array of strings, one a turn (100 rows"
    )
    assert "1, 4, 7, 10, 13, 16, ..." in lines[0]
    assert "p.jsonl: row 2, response_a: the numbers of turns differ" in lines[1]
    assert "(100 rows have a fault of this kind: 2, 5, 8, 11, 14, 17, ...)" in lines[1]
    assert lines[2] == "p.jsonl: row 301, prompt: is null"
    assert lines[3] == "if the cells are plain text, one turn each: --cells text"
    assert done.stdout.count("--cells text") == 1
    assert lines[5].split() == ["rows", "301,", "201", "at", "fault"]


def test_kinds_of_faults_are_bounded(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [kaggle_row(number, winner="x" * (number % 3) + "abc"[number % 3]) for number in range(60)]
    rows += [{**kaggle_row(number), "prompt": {"key" * (number - 59): 1}} for number in range(60, 70)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    done = prefcast_here("check", "p.jsonl")
    # The value of a label varies, its kind does not.
    assert sum("winner: is" in line for line in done.stdout.splitlines()) == 1


# Plain values


@pytest.mark.parametrize("model", ["surface", "embedded"])
@pytest.mark.parametrize("turns", [2, 4])
def test_an_explanation_shows_turns_as_they_are_counted(model: str, turns: int) -> None:
    pair = Pair.of(["Why?"] * turns, ["Because it is so."] * turns, ["No."] * turns)
    shown = {
        name: (a, b) for influence in load_forecaster(model).explain(pair).influences for name, a, b in influence.values
    }
    assert shown["turns"] == (turns, turns)
    assert "vocabulary" not in shown
    assert shown["words"] == (4 * turns, turns)


def test_an_explanation_of_a_fitted_forecaster_shows_counts(prefcast_here: Run, tmp_path: Path) -> None:
    from prefcast.scorers.covariates import TIE_COVARIATES, covariates, plain_covariate

    pair = Pair.of(["Why?", "And?"], ["a", "b"], ["c", "d"])
    values = dict(zip(TIE_COVARIATES, covariates(pair)[1], strict=True))
    assert plain_covariate("turns", values["turns"]) == 2
    assert plain_covariate("prompt_length", values["prompt_length"]) == 8
    assert plain_covariate("similarity", values["similarity"]) == values["similarity"]


# Options


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("evaluate p.jsonl --export a.csv --export b.csv", "--export"),
        ("predict p.jsonl -o a.csv --output b.csv", "--output"),
        ("rank p.jsonl --seed 1 --seed=2", "--seed"),
        ("models show length --trust-remote-code --trust-remote-code", ""),
    ],
)
def test_an_option_that_is_given_twice(prefcast_here: Run, tmp_path: Path, command: str, option: str) -> None:
    write_jsonl(tmp_path / "p.jsonl", [labelled(0)])
    done = prefcast_here(*command.split())
    if option:
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{option} is given twice; it takes one value" in done.stderr
        assert not (tmp_path / "a.csv").exists()
    else:
        assert done.returncode == 0


def test_models_show_says_what_was_meant(prefcast_here: Run) -> None:
    assert prefcast_here("models", "show", "embedded").stdout.startswith("embedded: ")
    done = prefcast_here("models", "show", "embeded")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown model 'embeded'; did you mean 'embedded'?" in done.stderr


# Submissions


def test_a_submission_of_priors_is_refused(prefcast_here: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [kaggle_row(number, "plain", "a", "b") for number in range(3)])
    done = prefcast_here("predict", "p.jsonl", "-o", "out.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "out.csv: was not written: all 3 rows failed" in done.stderr
    assert "p.jsonl: row 1, prompt: is 'plain'" in done.stderr
    assert "--allow-all-failed" in done.stderr
    assert not list(tmp_path.glob("out*"))
    done = prefcast_here("predict", "p.jsonl", "-o", "out.csv", "--allow-all-failed")
    assert done.returncode == 3
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4
    # The other kinds of output say that each row failed.
    assert prefcast_here("predict", "p.jsonl", "-o", "out.jsonl").returncode == 3
    assert prefcast_here("predict", "p.jsonl", "-o", "s.csv", "--shard", "1/1").returncode == 3
    done = prefcast_here("merge", "s.csv.shard-1-of-1", "-o", "s.csv")
    assert (done.returncode, (tmp_path / "s.csv").exists()) == (2, False)
    assert prefcast_here("merge", "s.csv.shard-1-of-1", "-o", "s.csv", "--allow-all-failed").returncode == 3


def test_one_good_row_is_enough_for_a_submission(prefcast_here: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [kaggle_row(1, "plain"), kaggle_row(2)])
    assert prefcast_here("predict", "p.jsonl", "-o", "out.csv", "--model", "length").returncode == 3
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_a_submission_of_winners(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [kaggle_row(f"r{n}", ("Q?",), ("a" * (1 + 30 * n),), ("b" * 60,)) for n in range(5)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    assert prefcast_here("predict", "p.jsonl", "--model", "length", "-o", "p.csv").returncode == 0
    done = prefcast_here("predict", "p.jsonl", "--model", "length", "-o", "w.csv", "--submission", "winner")
    assert done.returncode == 0, done
    head, *lines = (tmp_path / "w.csv").read_text().splitlines()
    assert head == "id,winner"
    for line, plain in zip(lines, (tmp_path / "p.csv").read_text().splitlines()[1:], strict=True):
        id, a, b, _ = plain.split(",")
        assert line == f"{id},{'model_b' if float(b) > float(a) else 'model_a'}"
    assert {line.split(",")[1] for line in lines} == {"model_a", "model_b"}
    prefcast_here("predict", "p.jsonl", "--model", "length", "-o", "m.csv", "--shard", "1/1")
    prefcast_here("merge", "m.csv.shard-1-of-1", "-o", "m.csv", "--submission", "winner")
    assert (tmp_path / "m.csv").read_bytes() == (tmp_path / "w.csv").read_bytes()
    for arguments in (("predict", "p.jsonl"), ("merge", "m.csv.shard-1-of-1")):
        done = prefcast_here(*arguments, "--submission", "winner", "-o", "w.jsonl")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--submission winner is for an output that ends in .csv" in done.stderr


# Figures of forecasts from a file


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("with_pairs", [True, False])
def test_a_report_of_predictions_counts_what_they_say(
    prefcast_here: Run, tmp_path: Path, ending: str, with_pairs: bool
) -> None:
    rows = [labelled(n % 3, id=n, a=("a" * (10 if n else 5000),)) for n in range(6)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    prefcast_here("predict", "p.jsonl", "--model", "length", "--budget", "keep-last:1000", "-o", f"f.{ending}")
    arguments = ["report", *(["p.jsonl"] if with_pairs else []), "--predictions", f"f.{ending}", "-o", "r.html"]
    done = prefcast_here(*arguments, "--json", "r.json", "--repeats", 100)
    if ending == "csv" and not with_pairs:
        assert done.returncode == 2
        return
    assert done.returncode == 0, done
    page, figures = (tmp_path / "r.html").read_text(), json.loads((tmp_path / "r.json").read_text())
    if ending == "csv":
        assert figures["truncated"] is None
        assert "<dt>Truncated</dt><dd>not known: the forecasts do not say</dd>" in page
    else:
        assert figures["truncated"] == 1
        assert "<dt>Truncated</dt><dd>1: pairs of which only a part was read</dd>" in page


# The language of prompts


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("who is Bill Gates?", "en"),
        ("history of islam", "en"),
        ("Write a song about snow", "en"),
        ("how does cython work", "en"),
        ("explain fine-tuning", "en"),
        ("czym usunąć resztki?", "pl"),
        ("İlginç bilgiler verir misin", "tr"),
        ("Sprichst du auch deutsch?", "de"),
        ("¿Qué hora es?", "es"),
        ("Είναι λογικό;", "greek"),
        ("css定位中relative是什么意思?", "chinese"),
        ("llm finetuning에서 설명해줘", "korean"),
        ("xyzzy 123", ""),
        ("", ""),
    ],
)
def test_the_language_of_a_prompt(text: str, language: str) -> None:
    assert prompt_language(read_texts([text])) == language


# Progress


class _Slow(Scorer):
    """Scores ten pairs at a time."""

    name = "slow"
    batch_pairs = 10

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers

    def compute(self, pairs: Any) -> Evidence:
        return Evidence(np.zeros(len(pairs)), np.zeros(len(pairs)))


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_is_told_within_a_piece(workers: int) -> None:
    told: list[int] = []
    pairs = [Pair.of(f"q{n}", "a", "b", id=n) for n in range(600)]
    job = scoring(_Slow(workers), parse_budget("whole"))
    list(scored_pieces(pairs, job, Tally(), watch=Watch(progress=told.append)))
    assert told[0] == 10
    assert told[-1] == 600
    assert max(told) == 600
    assert len(set(told)) >= 60


def test_a_piece_that_is_done_is_counted_once() -> None:
    told: list[int] = []

    def score(items: Any, meter: Meter) -> Any:
        meter.advance(len(items))
        return job.score(items, Meter())

    job = scoring(_Slow(), parse_budget("whole"))
    pairs = [Pair.of("q", "a", "b", id=n) for n in range(512)]
    list(scored_pieces(pairs, Job(score, ahead=2), Tally(), watch=Watch(progress=told.append)))
    assert set(told) <= {256, 512}


class _Source:
    """A file of which all bytes have been read, and 100 rows."""

    progress, rows_read = (1000, 4000), 100


def test_the_bar_compares_with_the_rows_that_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, float | None]] = []

    @contextmanager
    def bar() -> Iterator[Any]:
        yield lambda text, done, total: drawn.append((done, total))

    monkeypatch.setattr(shared, "bar", bar)
    with shared.progress(_Source()) as show:
        assert show is not None
        show(10)
    # A quarter of the bytes were 100 rows.
    assert drawn == [(0, 400.0), (10, 400.0)]


def test_a_rehearsal_estimates_the_rows_that_it_forecasts(tmp_path: Path) -> None:
    write_csv(tmp_path / "stub.csv", [kaggle_row(n) for n in range(3)])
    write_csv(tmp_path / "train.csv", [labelled(n % 3, id=n) for n in range(3000)])
    rows = rehearsal_rows(str(tmp_path / "stub.csv"), str(tmp_path / "train.csv"), None, "json")
    assert rows is not None
    seen = iter(rows)
    assert not isinstance(next(seen), RowError)
    read, of = rows.progress
    assert read == 1
    assert 1 <= of <= 1000
    assert len(list(seen)) == 999
    assert rows.progress == (1000, 1000)

    few = write_csv(tmp_path / "few.csv", [labelled(n % 3, id=n) for n in range(30)])
    rows = rehearsal_rows(str(tmp_path / "stub.csv"), str(few), None, "json")
    assert rows is not None
    list(rows)
    assert rows.progress == (30, 30)


# Leaderboards


def votes(folder: Path) -> Path:
    rows = [
        {"model_a": "m1", "model_b": "m2", "winner": winner, "anony": anony, "language": language}
        for winner, anony, language in [
            ("model_a", True, "English"),
            ("model_b", True, "German"),
            ("model_a", False, "English"),
            ("model_b", False, "English"),
        ]
        * 3
    ]
    return write_jsonl(folder / "votes.jsonl", rows)


def test_rank_counts_the_chosen_rows(prefcast_here: Run, tmp_path: Path) -> None:
    votes(tmp_path)
    done = prefcast_here("rank", "votes.jsonl", "--where", "anony=true", "--repeats", 5)
    assert done.stdout.startswith("6 votes between 2 models")
    done = prefcast_here("rank", "votes.jsonl", "--where", "anony=False", "--where", "language=english", "--repeats", 5)
    assert done.stdout.startswith("6 votes between 2 models")
    done = prefcast_here("rank", "votes.jsonl", "--where", "language=French")
    assert (done.returncode, done.stdout) == (2, "")
    assert "12 not of the chosen rows" in done.stderr


def test_rank_with_an_anchor(prefcast_here: Run, tmp_path: Path) -> None:
    votes(tmp_path)
    found = []
    for more in ((), ("--anchor", "m2=1114")):
        done = prefcast_here("rank", "votes.jsonl", "--repeats", 20, *more, "--json", "b.json")
        assert done.returncode == 0, done
        board = json.loads((tmp_path / "b.json").read_text())
        found.append({each["model"]: each for each in board["standings"]})
    plain, fixed = found
    assert [fixed["m2"][name] for name in ("rating", "low", "high")] == pytest.approx([1114] * 3)
    assert fixed["m1"]["rating"] - 1114 == pytest.approx(plain["m1"]["rating"] - plain["m2"]["rating"])
    assert fixed["m1"]["low"] < fixed["m1"]["rating"] < fixed["m1"]["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--where", "anony"), "--where: 'anony' is not of the form COLUMN=VALUE"),
        (("--where", "a=1", "--where", "a=2"), "--where: 'a' is given twice"),
        (("--where", "nothing=1"), "column 'nothing', which chooses the rows, is missing; found: 'model_a'"),
        (("--anchor", "m1"), "--anchor: 'm1' is not of the form MODEL=RATING"),
        (("--anchor", "m1=nan"), "--anchor: 'm1=nan' is not of the form MODEL=RATING"),
        (("--anchor", "m3=1"), "the anchor 'm3' is not among the ranked models; they are 'm1', 'm2'"),
    ],
)
def test_rank_refuses(prefcast_here: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    votes(tmp_path)
    done = prefcast_here("rank", "votes.jsonl", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
