"""Which pairs people are asked about."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import EXAMPLES, ROOT, SURFACE, Run
from prefcast.errors import UsageError
from prefcast.measuring.sampling import draw, plan
from prefcast.outcomes.statistics.sampled import sampled_means

RNG = np.random.default_rng(0)
STRENGTH = RNG.normal(size=400) * 2
RIGHT = 0.75 / (1 + np.exp(-STRENGTH))
P = np.column_stack([0.75 - RIGHT, RIGHT, np.full(400, 0.25)])
IDS = [f"p{row}" for row in range(400)]


def test_a_larger_sample_holds_the_smaller_one() -> None:
    few, many = (draw(IDS, P, votes).places.tolist() for votes in (50, 120))
    assert many[:50] == few
    assert len(set(many)) == 120
    assert draw(IDS[::-1], P[::-1], 50).places.tolist() == [399 - place for place in few]
    assert draw(IDS, P, 50, seed=1).places.tolist() != few


@pytest.mark.parametrize("uniform", [False, True])
def test_pairs_are_drawn_as_often_as_their_inclusion_says(uniform: bool) -> None:
    counts, times = np.zeros(400), 1500
    for seed in range(times):
        sample = draw(IDS, P, 60, seed=seed, uniform=uniform)
        counts[sample.places] += 1
    assert sample.inclusion.sum() == pytest.approx(60)
    # Four standard errors, and the small bias of sequential Poisson sampling.
    error = np.sqrt(sample.inclusion * (1 - sample.inclusion) / times)
    assert (np.abs(counts / times - sample.inclusion) < 4 * error + 0.01).all()
    assert (np.ptp(sample.inclusion) == 0) == uniform


@pytest.mark.parametrize("votes", [399, 400, 500])
def test_a_sample_of_almost_everything(votes: int) -> None:
    sample = draw(IDS, P, votes)
    assert len(set(sample.places.tolist())) == min(votes, 400)
    assert sample.inclusion.max() <= 1
    assert sample.inclusion.sum() == pytest.approx(min(votes, 400))
    assert set(np.flatnonzero(sample.inclusion == 1)) <= set(sample.places.tolist())


def test_the_plan_is_what_comes() -> None:
    """Half of the width that was promised is that of the intervals that come, within 5 %, and less than a uniform sample's."""
    rng = np.random.default_rng(3)
    widths = {}
    for uniform in (False, True):
        promised = dict(each[:2] for each in plan(P, votes=100, uniform=uniform).halves)[100]
        found = []
        for seed in range(150):
            y = (rng.random(400)[:, None] > P.cumsum(axis=1)[:, :2]).sum(axis=1)
            net, f = (y == 1) - 1.0 * (y == 0), P[:, 1] - P[:, 0]
            sample = draw(IDS, P, 100, seed=seed, uniform=uniform)
            rows = sample.places
            of = sampled_means(
                net[rows, None], f[rows, None], np.array([f.mean()]), sample.inclusion[rows], np.arange(100)
            ).interval(np.ones(1))
            found.append((of.high - of.low) / 2)
        assert np.mean(found) == pytest.approx(promised, rel=0.05)
        widths[uniform] = np.mean(found)
    assert widths[False] < widths[True]


def test_how_many_votes_a_preference_needs() -> None:
    found = plan(P, votes=100, see=(0.6, 0.4))
    assert [each[0] for each in found.halves] == [50, 100, 200]
    assert found.needed < found.needed_alone
    # The textbook: (1.96 + 1.28)^2 * variance / difference^2.
    alone = 1 - 0.25 - (P[:, 1] - P[:, 0]).mean() ** 2
    assert found.needed_alone == pytest.approx((1.959964 + 1.281552) ** 2 * alone / (0.2 * 0.75) ** 2, abs=1)
    assert plan(P, votes=100, see=(0.55, 0.45)).needed == pytest.approx(4 * found.needed, abs=4)
    for see in ((0.5, 0.5), (0.6, 0.3), (1.0, 0.0)):
        with pytest.raises(UsageError, match="like 55:45"):
            plan(P, votes=10, see=see)


def ballots(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, winners: dict[str, str]) -> None:
    rows = ballots(path)
    for row in rows:
        row["winner"] = winners.get(row["id"], row["winner"])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def systems(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("left", "right"):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for row in range(60):
                said: dict[str, Any] = {
                    "id": row,
                    "prompt": f"Why {row}?",
                    "response": f"{name} says " + "=1+1, " * (row + 1),
                }
                if row == 7:
                    said |= {"prompt": ["a", "b"], "response": [f"{name} one", "two"]}
                file.write(json.dumps(said) + "\n")
    return tmp_path / "left.jsonl", tmp_path / "right.jsonl"


def test_from_two_systems_to_a_decision(systems: tuple[Path, Path], prefcast_here: Run, tmp_path: Path) -> None:
    out = tmp_path / "to_label.csv"
    done = prefcast_here("label", *systems, *SURFACE, "--votes", "20", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "to see 55 to 45 with 90 % power: votes on" in done.stdout
    rows = ballots(out)
    assert len(rows) == 20
    assert {row["first"] for row in rows} == {"left", "right"}
    # Blind: the answers stand where `first` says, and nothing else tells whose they are.
    assert all(row["answer_1"].startswith((row["first"], f"[1] {row['first']}")) for row in rows)
    # The person prefers the right system.
    fill(out, {row["id"]: "1" if row["first"] == "right" else "2" for row in rows})
    before = {row["id"]: row for row in ballots(out)}
    assert prefcast_here("label", *systems, *SURFACE, "--votes", "30", "-o", out).returncode == 0
    rows = ballots(out)
    assert len(rows) == 30
    assert sum(bool(row["winner"]) for row in rows) == 20
    for row in rows:
        if row["id"] in before:
            assert {**row, "inclusion_probability": ""} == {**before[row["id"]], "inclusion_probability": ""}
    # Fewer votes than before: what is there stays.
    prefcast_here("label", *systems, *SURFACE, "--votes", "5", "-o", out)
    assert ballots(out) == rows
    found = prefcast_here("compare", *systems, *SURFACE, "--votes", out)
    assert "20 votes on 20 of 60 pairs" in found.stdout
    assert "rows without a vote: 10" in found.stdout
    assert "people prefer right.jsonl" in found.stdout


def test_a_file_of_pairs_and_jsonl(prefcast_here: Run, tmp_path: Path) -> None:
    out = tmp_path / "to_label.jsonl"
    done = prefcast_here("label", EXAMPLES, *SURFACE, "--votes", "10", "--uniform", "--see", "70:30", "-o", out)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 10
    assert all(
        isinstance(row["answer_1"], list) and row["inclusion_probability"] == pytest.approx(10 / 42) for row in rows
    )
    again = tmp_path / "again.jsonl"
    prefcast_here("label", EXAMPLES, *SURFACE, "--votes", "10", "--uniform", "-o", again)
    assert again.read_bytes() == out.read_bytes()


def test_a_spreadsheet_runs_no_answer(prefcast_here: Run, tmp_path: Path) -> None:
    evil = ("=cmd()", "+1", "-1", "@x", "\tx")
    lines = [{"id": row, "prompt": text, "response_a": text, "response_b": "fine"} for row, text in enumerate(evil)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prefcast_here("label", tmp_path / "p.jsonl", "--cells", "text", *SURFACE, "-o", tmp_path / "o.csv")
    cells = [row[name] for row in ballots(tmp_path / "o.csv") for name in ("prompt", "answer_1", "answer_2")]
    assert len(cells) == 15
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in cells)


def test_what_is_wrong_is_one_line(systems: tuple[Path, Path], prefcast_here: Run, tmp_path: Path) -> None:
    left, right = systems
    (tmp_path / "mine.csv").write_text("id,winner\n1,left\n")
    done = prefcast_here("label", left, right, *SURFACE, "--votes", "10", "-o", tmp_path / "voted.csv")
    fill(tmp_path / "voted.csv", {row["id"]: "tie" for row in ballots(tmp_path / "voted.csv")})
    for arguments, said in (
        (("-o", left), "left.jsonl: is the input"),
        (("-o", tmp_path / "mine.csv"), "mine.csv: exists and is not a file of pairs to vote on"),
        (("-o", tmp_path / "x.parquet"), "are written as .csv or .jsonl"),
        (("-o", tmp_path / "x.csv", "--see", "55"), "--see: '55' is not of the form 55:45"),
        (("-o", tmp_path / "x.csv", "--see", "50:50"), "two different shares"),
        (("-o", tmp_path / "voted.csv", "--votes", "10", "--seed", "9"), "that this draw does not have"),
        ((), "Missing option"),
    ):
        done = prefcast_here("label", left, right, *SURFACE, *arguments)
        assert done.returncode == 2
        assert said in done.stderr, done.stderr
        assert not (tmp_path / "x.csv").exists()
    assert {row["winner"] for row in ballots(tmp_path / "voted.csv")} == {"tie"}


def test_the_commands_of_the_docs(prefcast_here: Run, systems: tuple[Path, Path], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    block = page.split("```sh\n")[1].split("```")[0]
    commands = [line.split()[1:] for line in block.splitlines() if line.startswith("prefcast ")]
    assert [command[0] for command in commands] == ["label", "compare"]
    for here, named in zip(systems, ("yesterday.jsonl", "today.jsonl"), strict=True):
        here.rename(tmp_path / named)
    done = prefcast_here(*commands[0], *SURFACE)
    assert done.returncode == 0, done.stderr
    fill(tmp_path / "to_label.csv", {row["id"]: "1" for row in ballots(tmp_path / "to_label.csv")})
    done = prefcast_here(*commands[1], *SURFACE)
    assert done.stdout.startswith("60 votes on 60 of 60 pairs (joined by id); today.jsonl against yesterday.jsonl")
