"""Best of n: the order, the files, the faults."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SURFACE, Run, write_csv, write_jsonl
from prefcast import load_forecaster
from prefcast.errors import FileError, RowError, UsageError
from prefcast.forecasts.best import answer_pairs, choices, ranked_answers
from prefcast.forecasts.predictions import Forecast
from prefcast.pairs.formats.candidates import CandidateFile

RESPONSES = ["No.", "Because air scatters short waves more than long ones.", "- a\n- b\n- c"]


def forecast(a: float, b: float) -> Forecast:
    return Forecast(0, (a, b, 1 - a - b), 0.0, 0.0, None, None, None)


def test_strengths_are_mean_shares() -> None:
    ranking = ranked_answers(3, [forecast(0.6, 0.2), forecast(0.1, 0.5), forecast(0.3, 0.3)])
    assert ranking.strengths == pytest.approx([(0.7 + 0.3) / 2, (0.3 + 0.5) / 2, (0.7 + 0.5) / 2])
    assert ranking.order == (2, 0, 1)
    assert ranking.probabilities[1, 0] == pytest.approx([0.2, 0.6, 0.2])
    assert np.isnan(ranking.probabilities[1, 1]).all()
    assert ranking.strengths.mean() == pytest.approx(0.5)


def test_equal_answers_keep_their_order() -> None:
    assert ranked_answers(4, [forecast(0.3, 0.3)] * 6).order == (0, 1, 2, 3)


@given(st.permutations(range(4)))
def test_the_order_of_the_responses_does_not_matter(order: list[int]) -> None:
    texts = [*RESPONSES, "Yes, it is."]
    surface = load_forecaster("surface")
    plain = ranked_answers(4, list(surface.forecast(answer_pairs("Why?", texts))))
    mixed = ranked_answers(4, list(surface.forecast(answer_pairs("Why?", [texts[index] for index in order]))))
    assert [order[index] for index in mixed.order] == list(plain.order)
    assert mixed.strengths == pytest.approx(plain.strengths[order])


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="at least two"):
        answer_pairs("Why?", ["one"])
    with pytest.raises(UsageError, match="response 2 has 1 turns, the prompt 2"):
        answer_pairs(["a", "b"], [["c", "d"], "e"])


def rows() -> list[dict[str, Any]]:
    return [
        {"id": "one", "prompt": "Why is the sky blue?", "responses": RESPONSES},
        {"id": "two", "prompt": ["Hi", "Who?"], "responses": [["Hello", "Me."], ["Yes", "You."]]},
    ]


def test_both_shapes_and_every_container_say_the_same(prefcast: Run, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    wide = write_jsonl(tmp_path / "wide.jsonl", rows())
    long = [{"id": row["id"], "prompt": row["prompt"], "response": each} for row in rows() for each in row["responses"]]
    listed = [
        {name: [value] if isinstance(value, str) and name != "id" else value for name, value in row.items()}
        for row in long
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), tmp_path / "long.parquet")
    wide_lists = [
        {"id": row["id"], "prompt": json.dumps(row["prompt"]), "responses": json.dumps(row["responses"])}
        for row in rows()
    ]
    files = [
        wide,
        write_jsonl(tmp_path / "long.jsonl", long),
        write_csv(tmp_path / "long.csv", listed),
        write_csv(tmp_path / "wide.csv", [{**row, "prompt": row["prompt"]} for row in wide_lists]),
        tmp_path / "long.parquet",
    ]
    found = []
    for number, file in enumerate(files):
        out = tmp_path / f"out{number}.jsonl"
        done = prefcast("best", file, *SURFACE, "-o", out, "--with-text")
        assert (done.returncode, done.stderr) == (0, "")
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    assert all(each == found[0] for each in found)
    first, second = found[0]
    assert [first["id"], second["id"]] == ["one", "two"]
    assert first["response"] == [RESPONSES[first["best"]]]
    assert first["best"] == first["order"][0]
    assert len(first["pairwise"]) == 3
    for one in first["pairwise"]:
        assert sum(one[f"winner_{name}"] for name in ("model_a", "model_b", "tie")) == pytest.approx(1)


def test_bad_rows_are_errors_and_the_others_are_chosen(prefcast: Run, tmp_path: Path) -> None:
    bad = [
        {"id": "three", "prompt": "Why?", "responses": ["one"]},
        {"id": "four", "prompt": 3, "responses": ["a", "b"]},
    ]
    file = write_jsonl(tmp_path / "in.jsonl", [rows()[0], *bad, rows()[1]])
    done = prefcast("best", file, *SURFACE, "-o", "out.csv")
    assert done.returncode == 3
    assert "2 of 4 prompts failed" in done.stderr
    table = list(csv.DictReader(StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert [row["id"] for row in table] == ["one", "three", "four", "two"]
    assert [bool(row["error"]) for row in table] == [False, True, True, False]
    assert "row 2, responses: has 1 answers" in table[1]["error"]
    assert table[1]["best"] == ""
    stopped = prefcast("best", file, *SURFACE, "-o", "none.csv", "--on-error", "stop")
    assert stopped.returncode == 2
    assert not (tmp_path / "none.csv").exists()


def test_the_table(prefcast: Run, tmp_path: Path) -> None:
    row = {"prompt": "Why?", "responses": ["\x1b[31mred and a longer answer than the other\x1b[0m", "b"]}
    done = prefcast("best", write_jsonl(tmp_path / "in.jsonl", [row]), *SURFACE)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0].split() == ["id", "best", "of", "strength", "response"]
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("columns", "lines", "problem"),
    [
        ("prompt,answer", ["a,b"], "holds no answers"),
        ("id,prompt,response", ["1,a,b", "1,a,c", "2,a,b", "2,a,c", "1,a,d"], "row 5: id .1. is the same as in row 1"),
        ("id,prompt,response", [",a,b"], "row 1: id is missing"),
    ],
)
def test_faults_of_the_file(tmp_path: Path, columns: str, lines: list[str], problem: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text("\n".join([columns, *lines]) + "\n")
    with pytest.raises(FileError, match=problem), CandidateFile(path, cells="text") as file:
        list(file)


def test_faults_of_rows(tmp_path: Path) -> None:
    long = [
        {"id": 1, "prompt": "a", "response": "b"},
        {"id": 1, "prompt": "other", "response": "c"},
        {"id": 2, "prompt": "a", "response": "b"},
        {"id": 3, "prompt": "a", "response": 3},
        {"id": 3, "prompt": "a", "response": "b"},
        {"id": 4, "prompt": "a", "response": ["b", "c"]},
        {"id": 4, "prompt": "a", "response": "b"},
        {"id": 5, "prompt": "a", "response": "b"},
        {"id": 5, "prompt": "a", "response": "c"},
    ]
    with CandidateFile(write_jsonl(tmp_path / "in.jsonl", long)) as file:
        found = list(choices(file, load_forecaster("surface")))
    assert [choice.id for choice in found] == ["1", "2", "3", "4", "5"]
    problems = [choice.error for choice in found]
    assert [error and (error.row, error.field) for error in problems] == [
        (2, "prompt"),
        (3, "response"),
        (4, "response"),
        (6, "response"),
        None,
    ]
    assert all(isinstance(error, RowError) for error in problems[:4])
    assert found[4].ranking is not None


def test_columns_of_ones_own_and_standard_input(prefcast: Run) -> None:
    text = "question,reply\nWhy?,Because of that: air scatters short waves more.\nWhy?,No\n"
    done = prefcast(
        "best", "-", *SURFACE, "--cells", "text", "--columns", "prompt=question,response=reply", stdin=text.encode()
    )
    assert done.returncode == 0, done.stderr
    assert "Because of that" in done.stdout
