"""Rows of preference data that go: which, why, and that the others are written as they were read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import EXAMPLES, SURFACE, Run, write_csv, write_jsonl
from prefcast import load_forecaster, open_pairs
from prefcast.errors import FileError, UsageError
from prefcast.fitting.soft_labels import read_weights
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.scores import read_scores
from prefcast.measuring.filtering import FilterRule, Verdicts, judged
from prefcast.measuring.filtering.verdicts import REASONS
from prefcast.outcomes.models import Davidson
from prefcast.pairs.formats.prompts import open_prompts
from test_doctor import named, rows_of

PROBABILITIES = ("winner_model_a", "winner_model_b", "winner_tie")


def forecasts(path: Path, ids: Sequence[str], p: Sequence[Sequence[float]]) -> Path:
    rows = [{"id": id, **dict(zip(PROBABILITIES, each, strict=True))} for id, each in zip(ids, p, strict=True)]
    return write_csv(path, rows)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def kept_ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]


def six(path: Path, **more: Any) -> Path:
    """Six different rows: A, B and tie, twice."""
    rows = named(rows_of(6, seed=3))
    for number, row in enumerate(rows):
        row |= {"winner": ("model_a", "model_b", "tie")[number % 3], **more}
        row |= {name: [row[name]] for name in ("prompt", "response_a", "response_b")}
    return write_jsonl(path, rows)


# By hand: the probabilities of A, B and tie, and that of the label.
P = [
    [0.50, 0.20, 0.30],  # A: 0.50
    [0.70, 0.05, 0.25],  # B: 0.05
    [0.60, 0.30, 0.10],  # tie: 0.10
    [0.08, 0.60, 0.32],  # A: 0.08
    [0.30, 0.40, 0.30],  # B: 0.40
    [0.10, 0.10, 0.80],  # tie: 0.80
]
OF_LABEL = [0.50, 0.05, 0.10, 0.08, 0.40, 0.80]


def test_unlikely_labels_go_and_weights_are_probabilities(prefcast_here: Run, tmp_path: Path) -> None:
    six(tmp_path / "in.jsonl", note="mine")
    forecasts(tmp_path / "f.csv", [f"p{number}" for number in range(6)], P)
    more = ("--min-probability", "0.09", "--reweight", "w.csv", "--report", "gone.csv", "--json", "c.json")
    done = prefcast_here("filter", "in.jsonl", "--forecasts", "f.csv", "-o", "kept.jsonl", *more)
    assert done.returncode == 0, done.stderr
    assert kept_ids(tmp_path / "kept.jsonl") == ["p0", "p2", "p4", "p5"]
    assert json.loads((tmp_path / "kept.jsonl").read_text().splitlines()[0])["note"] == "mine"
    gone = table(tmp_path / "gone.csv")
    assert [(row["row"], row["id"], row["reason"]) for row in gone] == [
        ("2", "p1", "unlikely label"),
        ("4", "p3", "unlikely label"),
    ]
    assert [float(row["probability"]) for row in gone] == pytest.approx([0.05, 0.08])
    weights = {row["id"]: float(row["weight"]) for row in table(tmp_path / "w.csv")}
    assert weights == pytest.approx({f"p{number}": OF_LABEL[number] for number in (0, 2, 4, 5)})
    assert read_weights(tmp_path / "w.csv")["p5"] == pytest.approx(0.80 / 0.45)  # on average 1
    assert "4 of 6 rows stay (66.7%)" in done.stdout
    assert "unlikely label     2  33.3%  p1, p3" in done.stdout
    counts = json.loads((tmp_path / "c.json").read_text())
    assert (counts["kept"], counts["gone"]["unlikely label"], counts["two_sided"]) == (4, 2, False)


def test_without_ties_the_label_stands_against_the_other_side(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [
        {"id": f"p{number}", "prompt": f"Why {number}?", "chosen": f"yes {number}", "rejected": f"no {number}"}
        for number in range(3)
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with open_pairs(tmp_path / "in.jsonl") as file:
        sides = [pair.outcome for pair in file]  # type: ignore[union-attr]
    # P(chosen), P(rejected), P(tie): 0.4 / 0.5, 0.1 / 0.4, 0.2 / 0.5 of the two sides.
    said = [(0.40, 0.10, 0.50), (0.10, 0.30, 0.60), (0.20, 0.30, 0.50)]
    p = [each if side == 0 else (each[1], each[0], each[2]) for side, each in zip(sides, said, strict=True)]
    forecasts(tmp_path / "f.csv", ["p0", "p1", "p2"], p)
    more = ("--min-probability", "0.3", "--reweight", "w.csv", "-o", "kept.jsonl")
    assert prefcast_here("filter", "in.jsonl", "--forecasts", "f.csv", *more).returncode == 0
    assert kept_ids(tmp_path / "kept.jsonl") == ["p0", "p2"]
    assert [float(row["weight"]) for row in table(tmp_path / "w.csv")] == pytest.approx([0.8, 0.4])


def verdicts(
    folder: Path, rows: Sequence[dict[str, Any]], rule: FilterRule, p: Sequence[Sequence[float]] | None = None
) -> Verdicts:
    with open_pairs(named(rows), cells="text") as file:
        if p is None:
            return judged(file, rule)
        scores = read_scores(forecasts(folder / "f.csv", [row["id"] for row in rows], p))
        return judged(file, rule, forecaster=Forecaster(scores, Davidson(1.0, 0.0, 1.0)))


def reasons(found: Verdicts) -> list[str]:
    return [REASONS[each] for each in found.reason.tolist()]


def exchanged(row: dict[str, Any], winner: str, **more: Any) -> dict[str, Any]:
    return {**row, "response_a": row["response_b"], "response_b": row["response_a"], "winner": winner, **more}


def test_of_duplicates_the_first_that_stays(tmp_path: Path) -> None:
    first, other = ({**row, "winner": "a"} for row in rows_of(2, seed=5))
    near = {**first, "id": "near", "response_a": f"{first['response_a']} indeed"}
    rows = [
        first,
        exchanged(first, "b", id="same"),  # the same vote
        exchanged(first, "a", id="against"),  # the other vote
        other,
        near,
        {**near, "id": "near again"},
    ]
    found = verdicts(tmp_path, rows, FilterRule(duplicates="exact"))
    assert reasons(found) == ["", "exact duplicate", "exact duplicate", "", "", "exact duplicate"]
    assert found.contradicting == 1
    assert found.details == {2: "of row 1", 3: "of row 1, with another label", 6: "of row 5"}
    near_too = ["", "exact duplicate", "exact duplicate", "", "near-duplicate", "near-duplicate"]
    assert reasons(verdicts(tmp_path, rows, FilterRule(duplicates="near"))) == near_too
    assert reasons(verdicts(tmp_path, rows, FilterRule(duplicates="none"))) == [""] * 6
    # The first row goes for its label: then its duplicate stays.
    p = [(0.01, 0.98, 0.01), (0.2, 0.6, 0.2), (0.6, 0.2, 0.2), (0.6, 0.2, 0.2), (0.6, 0.2, 0.2), (0.6, 0.2, 0.2)]
    found = verdicts(tmp_path, rows, FilterRule(0.05, duplicates="near"), p)
    assert reasons(found) == ["unlikely label", "", "exact duplicate", "", "near-duplicate", "near-duplicate"]
    assert found.details[3] == "of row 2, with another label"


@pytest.mark.parametrize("kind", ["prompts", "turns", "csv", "messages", "pairs"])
def test_prompts_of_a_benchmark_go(prefcast_here: Run, tmp_path: Path, kind: str) -> None:
    rows = named(rows_of(40, seed=7))
    write_jsonl(tmp_path / "in.jsonl", rows)
    leaked = [rows[3]["prompt"].upper() + " ?", rows[8]["prompt"].replace("river", "a river")]
    if kind == "csv":
        bench = write_csv(tmp_path / "bench.csv", [{"question": text} for text in (*leaked, "[Something] else")])
    elif kind == "turns":
        bench = write_jsonl(tmp_path / "bench.jsonl", [{"question_id": 1, "turns": [text, "More?"]} for text in leaked])
    elif kind == "messages":
        said = [{"prompt": [{"role": "user", "content": text}]} for text in leaked]
        bench = write_jsonl(tmp_path / "bench.jsonl", said)
    elif kind == "prompts":
        bench = write_jsonl(tmp_path / "bench.jsonl", [{"prompt": text} for text in leaked])
    else:
        pairs = [{"prompt": text, "response_a": "x", "response_b": "y"} for text in leaked]
        bench = write_jsonl(tmp_path / "bench.jsonl", pairs)
    done = prefcast_here(
        "filter", "in.jsonl", "--cells", "text", "--against", bench, "-o", "k.jsonl", "--report", "g.csv"
    )
    assert done.returncode == 0, done.stderr
    gone = table(tmp_path / "g.csv")
    assert [(row["id"], row["reason"]) for row in gone] == [("p3", "leak"), ("p8", "leak")]
    assert gone[0]["detail"] == f"same prompt: row 1 of {bench}"
    assert len(kept_ids(tmp_path / "k.jsonl")) == 38


def test_a_benchmark_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no pairs found"):
        open_prompts(write_jsonl(tmp_path / "b.jsonl", [{"text": "x"}]))
    bad = write_jsonl(tmp_path / "c.jsonl", [{"prompt": "x"}, {"prompt": 3}])
    with open_prompts(bad) as file:
        assert [type(item).__name__ for item in file] == ["Pair", "RowError"]


# Rows are written as they were read


ODD = [
    {
        "id": "=1+1",
        "prompt": ["a"],
        "response_a": [" x\r\n"],
        "response_b": ['"q", \t'],
        "n": 1.50,
        "own": {"k": [1, None]},
    },
    {"id": "x", "prompt": ["é\u2028"], "response_a": [""], "response_b": ["b"], "n": 10**20, "own": {"k": []}},
    {
        "id": "=1+1 again",
        "prompt": ["a"],
        "response_a": [" x\r\n"],
        "response_b": ['"q", \t'],
        "n": 2,
        "own": {"k": [3]},
    },
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "csv", "tsv", "parquet"])
def test_every_kind_of_file_keeps_its_values(prefcast_here: Run, tmp_path: Path, ending: str) -> None:
    import pyarrow
    import pyarrow.parquet

    file, out = tmp_path / f"in.{ending}", tmp_path / f"out.{ending.removesuffix('.gz')}"
    lines = "".join(json.dumps(row) + "\n" for row in ODD)
    if ending == "parquet":
        schema = pyarrow.schema(
            [
                ("id", pyarrow.string()),
                *((name, pyarrow.list_(pyarrow.string())) for name in ("prompt", "response_a", "response_b")),
                ("n", pyarrow.decimal128(30, 2)),
                ("own", pyarrow.struct([("k", pyarrow.list_(pyarrow.int8()))])),
            ],
            {"own": "metadata"},
        )
        whole = pyarrow.Table.from_pylist([{**row, "n": _decimal(row["n"])} for row in ODD], schema)
        pyarrow.parquet.write_table(whole, file)
    elif ending == "json":
        file.write_text(json.dumps(ODD))
    elif ending.startswith("jsonl"):
        file.write_bytes(gzip.compress(lines.encode()) if ending.endswith("gz") else lines.encode())
    else:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="," if ending == "csv" else "\t")
            writer.writerow(ODD[0])
            writer.writerows(
                [cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()] for row in ODD
            )
    done = prefcast_here("filter", file, "-o", out, "--report", "gone.csv")
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in table(tmp_path / "gone.csv")] == ["'=1+1 again"]
    if ending == "parquet":
        found = pyarrow.parquet.read_table(out)
        assert found.schema.equals(pyarrow.parquet.read_schema(file), check_metadata=True)
        assert found.to_pylist() == whole.to_pylist()[:2]
    elif ending == "json":
        assert json.loads(out.read_text()) == ODD[:2]
    elif ending.startswith("jsonl"):
        assert [json.loads(line) for line in out.read_text().split("\n")[:-1]] == ODD[:2]
    else:
        with file.open(newline="") as before, out.open(newline="") as after:
            delimiter = "," if ending == "csv" else "\t"
            assert list(csv.reader(after, delimiter=delimiter)) == list(csv.reader(before, delimiter=delimiter))[:3]
    wrong = prefcast_here("filter", file, "-o", tmp_path / "out.txt")
    assert (wrong.returncode, "as they were read" in wrong.stderr) == (2, True)


def _decimal(number: float) -> Any:
    from decimal import Decimal

    return Decimal(str(number))


def test_several_files_without_ids(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "id"} for row in named(rows_of(6, seed=2))]
    rows[0]["winner"] = rows[4]["winner"] = "model_a"
    left = write_jsonl(tmp_path / "left.jsonl", rows[:4])
    right = write_jsonl(tmp_path / "right.jsonl", [rows[0], {"prompt": 3}, *rows[4:]])
    done = prefcast_here(
        "filter", left, right, *SURFACE, "-o", "k.jsonl", "--report", "g.csv", "--reweight", "w.csv", "--cells", "text"
    )
    assert done.returncode == 3
    assert "1 of 8 rows cannot be read or forecast, and are not in k.jsonl; the first: " in done.stderr
    assert [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()] == rows
    gone = [(row["row"], row["id"], row["reason"], row["detail"], row["file"]) for row in table(tmp_path / "g.csv")]
    assert gone == [
        ("1", "5", "exact duplicate", "of row 1", str(right)),
        ("2", "6", "cannot be read", "", str(right)),
    ]
    # Without ids a row is called by its number in the new file.
    assert [row["id"] for row in table(tmp_path / "w.csv")] == ["1", "2", "3", "4", "5", "6"]
    stopped = prefcast_here("filter", left, right, "-o", "x.jsonl", "--on-error", "stop", "--cells", "text")
    assert (stopped.returncode, (tmp_path / "x.jsonl").exists()) == (2, False)


# Forecasters


def test_rows_that_the_forecaster_learned_are_told(prefcast_here: Run, tmp_path: Path) -> None:
    surface = load_forecaster("surface")
    with open_pairs(EXAMPLES) as file:
        pairs: list[Any] = list(file)
    replace(surface, fitted_rows=FittedRows.of(pairs[:30])).save(tmp_path / "mine")
    done = prefcast_here("filter", EXAMPLES, "--forecaster", "mine", "--min-probability", "0.1", "-o", "k.csv")
    assert done.returncode == 0
    assert "30 of these 42 rows were in the fit: the forecaster knows their labels" in done.stderr
    done = prefcast_here("filter", EXAMPLES, *SURFACE, "--min-probability", "0.1", "-o", "k.csv")
    assert "in the fit" not in done.stderr


@pytest.mark.parametrize("two_sided", [False, True])
def test_scores_get_their_scale_from_the_labels(tmp_path: Path, two_sided: bool) -> None:

    rng = np.random.default_rng(0)
    truth = Davidson(1.0, -np.inf if two_sided else 0.0, 0.0)
    margin = rng.normal(0, 2, 3000)
    p = truth.probabilities(margin, np.zeros(3000))
    outcome = (rng.random(3000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    winners = ("model_a", "model_b", "tie")
    rows = [
        {"id": f"p{n}", "prompt": f"q{n}", "response_a": f"a{n}", "response_b": f"b{n}", "winner": winners[each]}
        for n, each in enumerate(outcome)
    ]
    path = tmp_path / "s.csv"
    path.write_text("id,margin\n" + "".join(f"p{n},{50 * each}\n" for n, each in enumerate(margin)))
    with open_pairs(rows, cells="text") as file:
        found = judged(file, FilterRule(0.1), forecaster=Forecaster(read_scores(path), Davidson()), scaled=False)
    assert found.two_sided is two_sided
    assert found.probability == pytest.approx(p[np.arange(3000), outcome], abs=0.05)


def test_wrong_calls(prefcast_here: Run, tmp_path: Path) -> None:
    six(tmp_path / "in.jsonl")
    forecasts(tmp_path / "f.csv", ["p0", "p1", "p2", "p3", "p4"], P[:5])
    calls = {
        ("-", "-o", "k.jsonl"): "reads its file twice",
        ("in.jsonl", "-o", "k.csv"): "as JSON Lines; name a file that ends in .jsonl or .ndjson",
        ("in.jsonl", "-o", "in.jsonl"): "is the input",
        ("in.jsonl", *SURFACE, "-o", "k.jsonl"): "a forecast is used with --min-probability or --reweight",
        ("in.jsonl", "--min-probability", "1", "-o", "k.jsonl"): "must be above 0 and below 1",
        ("in.jsonl", "--report", "g.txt", "-o", "k.jsonl"): "the report is written as .csv",
        ("in.jsonl", *SURFACE, "--forecasts", "f.csv", "--reweight", "w.csv", "-o", "k.jsonl"): "give one of them",
    }
    for call, problem in calls.items():
        done = prefcast_here("filter", *call)
        assert (done.returncode, problem in done.stderr) == (2, True), (call, done.stderr)
    assert not (tmp_path / "k.jsonl").exists()
    # A row without a forecast goes, and is told.
    done = prefcast_here("filter", "in.jsonl", "--forecasts", "f.csv", "--min-probability", "0.01", "-o", "k.jsonl")
    assert done.returncode == 3
    assert "no forecast     1  16.7%  p5" in done.stdout
    unlabelled = [{key: value for key, value in row.items() if key != "winner"} for row in rows_of(3)]
    write_jsonl(tmp_path / "u.jsonl", unlabelled)
    done = prefcast_here("filter", "u.jsonl", "--cells", "text", *SURFACE, "--reweight", "w.csv", "-o", "k2.jsonl")
    assert "no row has a label" in done.stderr
    with pytest.raises(UsageError, match="unknown duplicates"):
        FilterRule(duplicates="most")
