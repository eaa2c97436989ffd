"""Two systems compared by votes on some of their pairs."""

from __future__ import annotations

import csv
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SURFACE, Run
from prefcast.errors import FileError, UsageError
from prefcast.measuring.voted import voted
from prefcast.outcomes.statistics.sampled import anytime, sampled_means
from prefcast.pairs import Outcome
from prefcast.pairs.formats.side_votes import SideVote, SideVotes, read_side_votes

_FILE = Path(__file__).parents[1] / "benchmarks" / "votes.py"
_SPEC = spec_from_file_location("benchmark_of_votes", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
ROWS, drawn, population = _MODULE.ROWS, _MODULE.drawn, _MODULE.population

ONE = np.ones(1)


def means(y: Any, f: Any, mean_f: float, *, use: bool = True, inclusion: Any = None) -> Any:
    y, f = np.asarray(y, dtype=float), np.asarray(f, dtype=float)
    w = np.full(len(y), 0.1) if inclusion is None else inclusion
    return sampled_means(y[:, None], f[:, None], np.array([mean_f]), w, np.arange(len(y)), use=use)


def test_the_estimate_is_that_of_a_regression_drawn_towards_a_slope_of_1() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=40) / 3
    y = np.clip(1.2 * f + rng.normal(size=40) / 3, -1, 1)
    # 40 votes beside the 20 that a calibrated forecast counts for.
    slope = (40 * np.polyfit(f, y, 1)[0] + 20) / 60
    found = means(y, f, 0.1)
    assert found.values[0] == pytest.approx(y.mean() + slope * (0.1 - f.mean()))
    assert found.weights[0] == pytest.approx(slope)
    alone = means(y, f, 0.1, use=False)
    assert alone.values[0] == pytest.approx(y.mean())
    # The jackknife of a mean is its usual standard error, here with one more vote for each side.
    more = np.append(y, [1, -1])
    assert alone.error(ONE) == pytest.approx(more.std(ddof=1) / np.sqrt(len(more)))
    assert found.error(ONE) < alone.error(ONE)


def test_inclusion_probabilities_weigh_the_votes() -> None:
    y, inclusion = np.array([1.0, -1.0, 0.0, 1.0]), np.array([0.5, 0.25, 1.0, 0.5])
    assert means(y, np.zeros(4), 0, inclusion=inclusion).values[0] == pytest.approx(
        np.average(y, weights=1 / inclusion)
    )


@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1)), min_size=5, max_size=40), st.floats(-1, 1)
)
@settings(max_examples=50, deadline=None)
def test_exchanging_the_systems_mirrors_the_interval(rows: list[tuple[float, float]], mean_f: float) -> None:
    y, f = np.array(rows).T
    one, other = means(y, f, mean_f).interval(ONE), means(-y, -f, -mean_f).interval(ONE)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-9)


def test_votes_that_all_agree_do_not_prove_that_all_people_do() -> None:
    found = means([1.0] * 10, [0.0] * 10, 0.0).interval(ONE)
    assert found.value == 1
    assert found.low < 0.6


@pytest.mark.parametrize("sample", ["uniform", "planned", "skewed"])
@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_the_interval_holds_whatever_the_forecasts_are_worth(bias: float, sample: str) -> None:
    rng = np.random.default_rng(1)
    ids, groups = [str(row) for row in range(ROWS)], np.arange(ROWS, dtype=np.uint64)
    held, wider = 0, 0.0
    for repeat in range(100):
        votes, forecasts, truth = population(rng, bias, 0.1)
        rows, inclusion = drawn(ids, forecasts, 100, repeat, sample)
        said = [SideVote(ids[row], Outcome(int(votes[row])), None, float(inclusion[row])) for row in rows]
        found = voted(ids, forecasts, groups, SideVotes("votes", said))
        held += found.net.low <= truth <= found.net.high
        wider = max(wider, (found.net.high - found.net.low) / (found.alone.high - found.alone.low))
    # 95 of 100 are expected; fewer than 88 would be a chance of 1 in 500.
    assert held >= 88
    assert wider <= 1.001


def test_looking_after_every_vote_is_allowed() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        votes, forecasts, _ = population(rng, 1.5, 0.1)
        y, f = (votes == 1) - 1.0 * (votes == 0), forecasts[:, 1] - forecasts[:, 0]
        order = rng.permutation(ROWS)[:100]
        low, high = anytime(y[order], f[order], float(f.mean()), ROWS)
        held += bool(((low <= y.mean() + 1e-9) & (high >= y.mean() - 1e-9)).all())
        assert (np.diff(low) >= 0).all()
        assert (np.diff(high) <= 0).all()
    assert held >= 90
    # When every row has its vote, nothing is open.
    everything = anytime(y, f, float(f.mean()), ROWS)
    assert everything[1][-1] - everything[0][-1] < 0.1


VOTES = "id,winner,rater,inclusion_probability\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,winner\n1,links\n", "row 1: winner is 'links'"),
        ("id,vote\n1,left\n", "column 'winner' is missing"),
        ("winner\nleft\n", "column 'id' is missing"),
        ("id,winner\n1,\n", "has no votes"),
        (VOTES + "1,left,r,0\n", "row 1: inclusion_probability is 0; expected a number above 0"),
        (VOTES + "1,left,r,1.5\n", "inclusion_probability is 1.5"),
        (VOTES + "1,left,r,nan\n", "inclusion_probability"),
        (VOTES + "1,left,r,.5\n1,left,s,.6\n", "row 2: inclusion_probability is not that of row 1"),
        (VOTES + "1,left,r,.5\n1,right,r,.5\n", "row 2: rater voted on this id in row 1 already"),
        (VOTES + "1,left,r,.5\n2,left,r,\n", "has an inclusion_probability in some rows only"),
        ("id,winner\n,left\n", "row 1: id is missing"),
    ],
)
def test_a_vote_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(FileError, match=said):
        read_side_votes(tmp_path / "v.csv")


def test_votes_are_read_in_every_container(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text(
        '{"id": 1, "winner": "left", "rater": "r"}\n{"id": "b", "winner": null, "rater": "r"}\n'
    )
    found = read_side_votes(tmp_path / "v.jsonl")
    assert found.votes == [SideVote("1", Outcome.A, "r")]
    assert found.skipped == 1
    same = read_side_votes([{"id": "1", "winner": each} for each in ("left", "model_b", "tie")])
    assert [vote.outcome for vote in same.votes] == [Outcome.A, Outcome.B, Outcome.TIE]


@pytest.fixture
def systems(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two systems' answers to 40 prompts, the right one's longer, and votes on 24 of them that mostly prefer it."""
    for name, text in (("left", "No."), ("right", "Because the light is scattered, and blue is scattered the most.")):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for row in range(40):
                said = {"id": row, "prompt": f"Why {row}?", "response": text, "kind": ("sky", "sea")[row % 2]}
                file.write(json.dumps(said) + "\n")
    with (tmp_path / "votes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "winner", "rater"])
        writer.writerows(
            [row, "left" if row % 8 == 0 else "tie" if row % 8 == 1 else "right", "ann"] for row in range(24)
        )
        writer.writerow([99, "left", "ann"])
        writer.writerow([30, "", "ann"])
        writer.writerows([row, "right", "bo"] for row in range(4))
    return tmp_path / "left.jsonl", tmp_path / "right.jsonl", tmp_path / "votes.csv"


def test_the_command(systems: tuple[Path, Path, Path], prefcast_here: Run, tmp_path: Path) -> None:
    left, right, votes = systems
    done = prefcast_here("compare", left, right, *SURFACE, "--votes", votes, "--by", "kind", "--anytime")
    assert done.returncode == 0, done.stderr
    for said in (
        "28 votes by 2 raters on 24 of 40 pairs (joined by id); two raters of one pair agree in 50%",
        "votes on ids that no pair has: 1",
        "rows without a vote: 1",
        "people prefer right.jsonl",
        "votes alone",
        "forecasts alone",
        "at any time",
        "sea         12 of 20",
    ):
        assert said in done.stdout, done.stdout
    prefcast_here("compare", left, right, *SURFACE, "--votes", votes, "--json", tmp_path / "one.json")
    found = json.loads((tmp_path / "one.json").read_text())
    assert found["verdict"] == "right"
    assert found["votes_alone"]["value"] == found["votes_alone"]["net_rate"]["value"]
    assert found["net_rate"]["low"] > 0
    assert -1 <= found["forecasts_alone"]["low"] <= found["forecasts_alone"]["high"] <= 1
    # The other way round.
    turned = votes.read_text().replace("left", "x").replace("right", "left").replace("x", "right")
    (tmp_path / "turned.csv").write_text(turned)
    prefcast_here("compare", right, left, *SURFACE, "--votes", tmp_path / "turned.csv", "--json", tmp_path / "two.json")
    other = json.loads((tmp_path / "two.json").read_text())
    assert other["net_rate"]["low"] == pytest.approx(-found["net_rate"]["high"])
    assert (other["verdict"], other["win"]["value"]) == ("left", pytest.approx(found["loss"]["value"]))


def test_what_is_wrong_is_one_line(systems: tuple[Path, Path, Path], prefcast_here: Run, tmp_path: Path) -> None:
    left, right, votes = systems
    (tmp_path / "few.csv").write_text("id,winner\n1,left\nx,left\n")
    (tmp_path / "unequal.csv").write_text(
        "id,winner,inclusion_probability\n" + "".join(f"{row},left,{0.1 + row / 100}\n" for row in range(9))
    )
    for arguments, said in (
        (("--anytime",), "--anytime goes with --votes"),
        (("--by", "kind"), "--by goes with --votes"),
        (("--votes", votes, "--by", "nothing"), "column 'nothing' is missing"),
        (
            ("--votes", tmp_path / "few.csv"),
            "few.csv: has votes on 1 of the pairs; expected at least 5; the id 'x' is not",
        ),
        (("--votes", tmp_path / "unequal.csv", "--anytime"), "the inclusion probabilities differ"),
        (("--votes", votes, "--json", votes), "votes.csv: is the input"),
    ):
        done = prefcast_here("compare", left, right, *SURFACE, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_many_categories_hold_together() -> None:
    rng = np.random.default_rng(0)
    ids, groups = [str(row) for row in range(ROWS)], np.arange(ROWS, dtype=np.uint64)
    votes, forecasts, _ = population(rng, 0.0, 0.1)
    said = [SideVote(ids[row], Outcome(int(votes[row]))) for row in range(200)]
    of = {id: str(int(id) % 4) for id in ids}
    four = voted(ids, forecasts, groups, SideVotes("v", said), categories=of).categories
    one = voted(ids, forecasts, groups, SideVotes("v", said), categories=dict.fromkeys(ids, "all")).categories[0]
    assert [each.pairs for each in four] == [250] * 4
    assert one.net == voted(ids, forecasts, groups, SideVotes("v", said)).net
    narrow = [each.net.high - each.net.low for each in four if each.net]
    # Wider than a quarter of the votes alone would make them: 99 % intervals in the place of 95 %.
    assert min(narrow) > 1.2 * 2 * (one.net.high - one.net.low if one.net else 0)
    with pytest.raises(UsageError, match="expected at least 5"):
        voted(ids, forecasts, groups, SideVotes("v", said[:3]))
