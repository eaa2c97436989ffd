"""Leaderboards of votes with forecasts, of forecasts alone, by category, with style control, and onto an earlier board."""

from __future__ import annotations

import csv
import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run, labelled, write_csv, write_jsonl
from prefcast.errors import FileError, UsageError
from prefcast.measuring.ranking import Leaderboard, rank
from prefcast.measuring.ranking.boards import POINTS, Settings
from prefcast.measuring.ranking.cells import FORECAST, GUESS, VOTE
from prefcast.measuring.ranking.powered import powered
from prefcast.measuring.ranking.reading import MOST_CATEGORIES
from prefcast.measuring.ranking.strengths import Pairs

_FILE = Path(__file__).parents[1] / "benchmarks" / "ranking.py"
_SPEC = spec_from_file_location("benchmark_of_ranking", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
STRENGTHS, sums, world = _MODULE.STRENGTHS, _MODULE.sums, _MODULE.world

WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
MODELS = "abcde"


def records(rows: int, voted: int, seed: int = 0, error: float = 0.0) -> list[dict[str, Any]]:
    """A predictions file, the first rows of which have labels."""
    left, right, votes, forecasts = world(np.random.default_rng(seed), rows, error)
    return [
        {
            "id": str(row),
            "model_a": MODELS[left[row]],
            "model_b": MODELS[right[row]],
            **dict(zip(WINNERS, forecasts[row].tolist(), strict=True)),
            "margin": 0.1,
            "label": int(votes[row]) if row < voted else None,
        }
        for row in range(rows)
    ]


def ratings(board: Leaderboard) -> dict[str, float]:
    return {standing.model: standing.rating for standing in board.standings}


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    a, b, tie = WINNERS
    turned = {"model_a": row["model_b"], "model_b": row["model_a"], a: row[b], b: row[a], tie: row[tie]}
    return row | turned | {"label": row["label"] if row["label"] is None else (1, 0, 2)[row["label"]]}


# The likelihood


def test_the_derivatives_are_those_of_the_likelihood() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
    pairs = Pairs(left, right, 4, 0.3, rng.normal(size=(30, 2)))
    counts = rng.uniform(-0.2, 2, (3, 30))
    theta, step = rng.normal(size=7), 1e-5

    def value(moved: Any) -> float:
        return pairs._log_likelihood(moved, counts, counts.sum(axis=0))

    steps = step * np.eye(7)
    slope = [(value(theta + each) - value(theta - each)) / (2 * step) for each in steps]
    assert pairs.score(theta, counts) == pytest.approx(slope, abs=1e-7)
    curve = [(pairs.score(theta - each, counts) - pairs.score(theta + each, counts)) / (2 * step) for each in steps]
    assert pairs.information(theta, counts.sum(axis=0)) == pytest.approx(np.array(curve), abs=1e-7)


# Votes with forecasts


def test_votes_correct_a_forecaster_that_misjudges_a_system() -> None:
    rows = records(6000, 3000, error=1.5)
    both = rank(rows, repeats=50)
    assert (both.source, both.n, both.together and (both.together.rows, both.together.voted)) == (
        "both",
        3000,
        (6000, 3000),
    )
    truth = dict(zip(MODELS, 1000 + POINTS * STRENGTHS, strict=True))
    alone = rank(rows, of="forecasts", repeats=5, system_error=0.2)
    # Prompts that differ make the ratings of a crowd lie closer together than those of one prompt.
    assert ratings(both)["a"] == pytest.approx(ratings(rank(rows, of="votes", repeats=5))["a"], abs=15)
    assert ratings(alone)["a"] > ratings(both)["a"] + 60
    assert all(abs(ratings(both)[model] - truth[model]) < 50 for model in MODELS)


def test_good_forecasts_narrow_the_intervals_and_bad_ones_do_not_widen_them() -> None:
    rows = records(2000, 300)
    rng = np.random.default_rng(3)
    # Forecasts that know half of the votes.
    good = [row | _nearly(row, rng) for row in records(2000, 2000)]
    for row in good[300:]:
        row["label"] = None
    noise = [row | dict(zip(WINNERS, rng.dirichlet([1, 1, 1]).tolist(), strict=True)) for row in rows]
    helped, plain = rank(good, repeats=20), rank(noise, repeats=20)
    assert helped.together is not None
    assert helped.together.weight > 0.5
    assert helped.together.worth > 1.3 * helped.together.voted
    for standing, alone in zip(helped.standings, helped.together.alone, strict=True):
        assert standing.high - standing.low < 0.95 * (alone.high - alone.low)
    assert plain.together is not None
    assert plain.together.weight < 0.2
    for standing, alone in zip(plain.standings, plain.together.alone, strict=True):
        assert standing.high - standing.low < 1.02 * (alone.high - alone.low)


def _nearly(row: dict[str, Any], rng: np.random.Generator) -> dict[str, float]:
    said = row["label"] if rng.random() < 0.6 else rng.integers(0, 3)
    return {name: 0.8 if place == said else 0.1 for place, name in enumerate(WINNERS)}


def test_votes_on_every_row_leave_nothing_to_forecast() -> None:
    rows = records(400, 400)
    alone, every = rank(rows, of="votes", repeats=5), rank(rows, repeats=5)
    assert (every.source, every.unused, every.together) == ("votes", 400, None)
    assert every.to_dict() | {"unused": 0} == alone.to_dict() | {"unused": 0}
    # The fold that a row is in changes a little how its forecast counts.
    assert ratings(rank(rows, of="both", repeats=5)) == pytest.approx(ratings(alone), abs=3)


@pytest.mark.parametrize("scale", ["davidson", "arena"])
def test_exchanging_a_and_b_and_the_order_of_rows_changes_nothing(scale: str) -> None:
    rows = [row | {"prompt": f"prompt {number % 90}"} for number, row in enumerate(records(400, 150))]
    one = rank(rows, repeats=10, scale=scale).to_dict()
    assert one["together"]["voted"] == 150
    for other in ([swapped(row) for row in rows], rows[::-1]):
        found = rank(other, repeats=10, scale=scale)
        assert ratings(found) == pytest.approx({each["model"]: each["rating"] for each in one["standings"]})
        assert np.array(found.covariance) == pytest.approx(np.array(one["covariance"]))


def test_the_sandwich_is_that_of_the_bootstrap() -> None:
    """Where there are many votes the two ways to an interval agree."""
    rows = records(3000, 3000, seed=4)
    board, other = rank(rows, of="votes", repeats=300), rank(rows, of="both", repeats=10)
    place = [other.models.index(model) for model in board.models]
    widths = np.sqrt(np.diag(other.covariance)[place] / np.diag(board.covariance))
    assert widths == pytest.approx(np.ones(5), abs=0.12)


def test_votes_of_one_prompt_are_not_independent() -> None:
    rows = records(300, 100, seed=5)
    copies = [row | {"prompt": row["id"], "id": f"{row['id']}-{copy}"} for row in rows for copy in range(4)]
    loose = [{name: value for name, value in row.items() if name != "prompt"} for row in copies]
    grouped, alone = rank(copies, repeats=5), rank(loose, repeats=5)
    width = [board.standings[0].high - board.standings[0].low for board in (grouped, alone)]
    assert width[0] > 1.7 * width[1]
    assert (grouped.resampled, alone.resampled) == ("prompts", "rows")


def test_a_planned_sample_counts_by_its_inclusion_probabilities() -> None:
    rows = records(600, 600, seed=6)
    rng = np.random.default_rng(6)
    for row in rows:
        row["inclusion_probability"] = float(rng.uniform(0.2, 1))
    planned = rank(rows, of="votes", repeats=5)
    again = [
        row | {"inclusion_probability": None} for row in rows for _ in range(round(10 / row["inclusion_probability"]))
    ]
    assert ratings(planned) == pytest.approx(ratings(rank(again, of="votes", repeats=2)), abs=4)
    assert planned.n == 600
    assert planned.groups == 600


@pytest.mark.parametrize("value", [0, 1.5, "half", 1e-300, float("inf")])
def test_an_inclusion_probability_at_fault_is_the_rows_fault(value: Any) -> None:
    rows = records(200, 100, seed=7)
    rows[3]["inclusion_probability"] = value
    board = rank(rows, repeats=3)
    assert board.faults == 1
    assert "inclusion_probability" in str(board.first_fault)


def test_too_few_votes_say_what_forecasts_can_do() -> None:
    rows = records(60, 60)
    for row in rows[3:]:
        row["label"] = None
    for row in rows[:3]:
        row["label"] = 0
    with pytest.raises(
        UsageError, match=r"more votes are needed; --prior 400 .*--from forecasts ranks by the forecasts alone"
    ):
        rank(rows, repeats=2)


def test_few_votes_use_no_forecasts() -> None:
    given = sums(*_few())
    found = powered(given, Settings(repeats=3, prior=300))
    assert (found.weight, found.gain) == (0, 1)
    assert found.rated is found.alone


def _few() -> Any:
    left, right, votes, forecasts = world(np.random.default_rng(0), 40, 0.0)
    rows = np.arange(9)
    said, guess = np.eye(3)[votes[rows]], forecasts[rows]
    return left, right, [(VOTE, rows, said), (GUESS, rows, guess), (FORECAST, np.arange(40), forecasts)]


@pytest.mark.long
@pytest.mark.parametrize("error", [0.0, 1.5])
def test_the_intervals_hold(error: float) -> None:
    lines = list(_MODULE.simulated(60, [error]))
    assert len(lines) == 6
    for line in lines:
        assert float(line.split("|")[4].strip(" %")) > 90


# Forecasts alone


def test_forecasts_alone_need_the_error_of_their_forecaster() -> None:
    rows = [row | {"label": None} for row in records(500, 0)]
    with pytest.raises(
        UsageError, match=r"forecasts without votes.* --votes FILE.*--model or --forecaster.*--system-error"
    ):
        rank(rows, repeats=3)
    narrow, wide = (rank(rows, repeats=200, system_error=error) for error in (0.0, 0.3))
    assert (wide.source, wide.system_error) == ("forecasts", 0.3)
    for one, other in zip(narrow.standings, wide.standings, strict=True):
        assert one.rating == pytest.approx(other.rating)
        assert other.high - other.low > 4 * (one.high - one.low)
        assert np.isfinite([other.low, other.high]).all()


@pytest.mark.parametrize("error", [-0.1, 1.0, float("nan")])
def test_an_error_that_no_forecaster_has(error: float) -> None:
    with pytest.raises(UsageError, match="expected a share of the votes"):
        rank(records(50, 0), system_error=error)


def test_intervals_of_forecasts_hold_a_misjudged_system() -> None:
    rows = [row | {"label": None} for row in records(4000, 0, error=1.0)]
    board = rank(rows, repeats=300, system_error=0.27)
    truth = dict(zip(MODELS, 1000 + POINTS * STRENGTHS, strict=True))
    assert all(standing.low < truth[standing.model] < standing.high for standing in board.standings)


# Several votes a pair, weights


def test_vote_counts_are_repeated_rows(tmp_path: Path) -> None:
    rows = records(200, 200, seed=8)
    counts = np.random.default_rng(8).integers(0, 3, (200, 3))
    counts[counts.sum(axis=1) == 0, 2] = 1
    votes = tmp_path / "votes.csv"
    write_csv(
        votes,
        [
            {"id": row["id"], **dict(zip(("votes_a", "votes_b", "votes_tie"), each.tolist(), strict=True))}
            for row, each in zip(rows, counts, strict=True)
        ],
    )
    plain = [{name: row[name] for name in ("id", "model_a", "model_b")} for row in rows]
    several = [
        row | {"label": outcome}
        for row, each in zip(plain, counts, strict=True)
        for outcome in range(3)
        for _ in range(each[outcome])
    ]
    one, other = rank(plain, votes=votes, repeats=20), rank(several, repeats=20)
    assert (one.n, other.resampled) == (counts.sum(), "ids")
    assert ratings(one) == pytest.approx(ratings(other))
    assert [each.high for each in one.standings] == pytest.approx([each.high for each in other.standings])
    # A row counts once beside forecasts, however many voted.
    both = rank(rows, votes=votes, of="both", repeats=5)
    assert (both.together and both.together.voted, both.n) == (200, counts.sum())


def test_ballots_of_label_are_votes(tmp_path: Path) -> None:
    rows = records(300, 0, seed=9)
    ballots = [
        {"id": row["id"], "winner": "12"[number % 2], "first": "left", "inclusion_probability": 0.5}
        for number, row in enumerate(rows[:90])
    ]
    votes = write_csv(tmp_path / "ballots.csv", [*ballots, {**ballots[0], "id": "nobody"}])
    board = rank(rows, votes=votes, repeats=5, prior=400)
    assert (board.source, board.n, board.unmatched) == ("both", 90, 1)
    said = [{**row, "label": (0, 1)[number % 2]} if number < 90 else row for number, row in enumerate(rows)]
    assert ratings(board) == pytest.approx(ratings(rank(said, repeats=5, prior=400)))


def test_weights_count_rows(tmp_path: Path) -> None:
    rows = records(120, 120, seed=10)
    heavy = write_csv(
        tmp_path / "weights.csv", [{"id": row["id"], "weight": 1 + number % 2} for number, row in enumerate(rows)]
    )
    again = [{**row, "id": f"{row['id']}-{copy}"} for number, row in enumerate(rows) for copy in range(1 + number % 2)]
    assert ratings(rank(rows, of="votes", weights=heavy, repeats=2)) == pytest.approx(
        ratings(rank(again, of="votes", repeats=2))
    )


@pytest.mark.parametrize(
    ("name", "lines", "says"),
    [
        ("votes", "id,votes_a,votes_b,votes_tie\n0,1,0,0\n1,0,0,0", "has no vote at all"),
        ("votes", "id,votes_a,votes_b,votes_tie\n0,1e300,0,0\n1,0,1,0", "between 1e-09 and 1e+09"),
        ("votes", "id,said\n0,1", "column 'winner' is missing"),
        ("weights", "id,weight\n0,1", "the id '1' has no weight"),
        ("weights", "id,weight\n0,-1\n1,2", "expected a finite number"),
        ("weights", "id,weight\n0,1e308\n1,1e308", "row 1: weight is '1e308'; expected 0, or a number between"),
        ("weights", "id,weight\n0,1\n1,1e-320", "row 2: weight is '1e-320'; expected 0, or a number between"),
    ],
)
def test_faults_of_the_files_beside(tmp_path: Path, name: str, lines: str, says: str) -> None:
    path = tmp_path / "beside.csv"
    path.write_text(lines + "\n")
    with pytest.raises(FileError, match=re.escape(says)):
        rank(records(2, 2), **{name: path}, repeats=2)


def test_votes_on_an_id_that_two_rows_have(tmp_path: Path) -> None:
    votes = write_csv(tmp_path / "votes.csv", [{"id": "0", "votes_a": 1, "votes_b": 0, "votes_tie": 0}])
    rows = records(3, 3)
    with pytest.raises(FileError, match="which two rows have"):
        rank([*rows, rows[0]], votes=votes, repeats=2)


# Categories


def test_a_board_for_each_category(tmp_path: Path, prefcast_here: Run) -> None:
    rows = [
        {**row, "kind": ("easy", "=hard", None)[number % 3]} for number, row in enumerate(records(900, 600, seed=11))
    ]
    lonely = {**rows[0], "id": "x", "kind": "lonely", "model_a": "a", "model_b": "b", "label": 0}
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, lonely])
    done = prefcast_here("rank", path, "--by", "kind", "--repeats", "20", "-o", "board.csv", "--json", "board.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "== easy ==" in done.stdout
    assert "== lonely ==\nnot ranked: no finite rating for 'b'" in done.stdout
    found = json.loads((tmp_path / "board.json").read_text())
    assert [each["name"] for each in found["categories"]] == ["(none)", "=hard", "easy", "lonely"]
    easy = rank([row for row in rows if row["kind"] == "easy"], repeats=20)
    assert [each["rating"] for each in found["categories"][2]["board"]["standings"]] == pytest.approx(
        [each.rating for each in easy.standings]
    )
    with (tmp_path / "board.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 * 5
    assert {row["category"] for row in table} == {"", "(none)", "'=hard", "easy"}
    assert all(row["alone"] for row in table)


def test_categories_are_few_and_in_the_file() -> None:
    rows = [row | {"kind": str(number)} for number, row in enumerate(records(MOST_CATEGORIES + 1, 300))]
    with pytest.raises(FileError, match=f"has more than {MOST_CATEGORIES} values"):
        rank(rows, by="kind", repeats=2)
    with pytest.raises(FileError, match="column 'colour', which names the categories, is missing"):
        rank(rows, by="colour", repeats=2)


# Style control


def styled(slope: float, rows: int = 700, seed: int = 0) -> list[dict[str, Any]]:
    """Votes that go with the longer answer; model a writes at length. In truth all models are equal."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        left, right = rng.choice(4, 2, replace=False)
        words = [int(rng.integers(5, 60) * (3 if model == 0 else 1)) for model in (left, right)]
        z = (words[0] - words[1]) / sum(words)
        odds = np.array([np.exp(slope * z / 2), np.exp(-slope * z / 2), 0.7])
        row = labelled(
            int(rng.choice(3, p=odds / odds.sum())),
            id=number,
            a=("word " * words[0],),
            b=("word " * words[1],),
            prompt=(f"prompt {number}",),
            model_a=MODELS[left],
            model_b=MODELS[right],
        )
        found.append(row)
    return found


def test_style_control_finds_what_goes_with_length() -> None:
    board = rank(styled(3.0), style=True, repeats=60)
    assert board.style is not None
    length, *others = board.style.slopes
    assert length.points is not None
    assert length.points.low <= POINTS * 3.0 * length.deviation <= length.points.high
    assert length.points.low > 0
    assert [slope.points for slope in others] == [None] * 3
    wordy = next(shift for shift in board.style.shifts if shift.model == "a")
    assert wordy.raw.value > 1080
    assert wordy.change.high < 0
    assert all(standing.low < 1000 < standing.high for standing in board.standings)


@pytest.mark.parametrize("scale", ["davidson", "arena"])
def test_style_control_leaves_a_board_without_an_effect(scale: str) -> None:
    board = rank(styled(0.0, seed=1), style=True, repeats=60, scale=scale)
    assert board.style is not None
    assert all(shift.change.low <= 0 <= shift.change.high for shift in board.style.shifts)
    raw = rank(styled(0.0, seed=1), repeats=5, scale=scale)
    assert {shift.model: shift.raw.value for shift in board.style.shifts} == pytest.approx(ratings(raw), abs=0.01)


def test_style_does_not_depend_on_the_order() -> None:
    rows = styled(2.0, 200)
    other = [_turned(row) for row in rows[::-1]]
    one, two = (rank(each, style=True, repeats=5) for each in (rows, other))
    assert ratings(one) == pytest.approx(ratings(two))
    assert [each.high for each in one.standings] == pytest.approx([each.high for each in two.standings])


def _turned(row: dict[str, Any]) -> dict[str, Any]:
    a, b, tie = WINNERS
    return row | {
        "model_a": row["model_b"],
        "model_b": row["model_a"],
        "response_a": row["response_b"],
        "response_b": row["response_a"],
        a: row[b],
        b: row[a],
        tie: row[tie],
    }


def test_style_needs_texts_and_votes() -> None:
    with pytest.raises(FileError, match="has no texts, and style is read from the texts"):
        rank(records(50, 50), style=True, repeats=2)
    with pytest.raises(UsageError, match="style control is of votes"):
        rank(styled(1.0, 50), style=True, of="forecasts", repeats=2)
    bad = styled(1.0, 300)
    bad[7]["response_a"] = ["one", "two"]
    board = rank(bad, style=True, repeats=2)
    assert (board.n, board.faults) == (299, 1)


# Onto an earlier board


def boards(tmp_path: Path) -> tuple[Path, list[dict[str, Any]], Leaderboard]:
    """The board of all models but e, the rows of all, and the board of all."""
    rows = records(2500, 2500, seed=12)
    old = rank([row for row in rows if "e" not in (row["model_a"], row["model_b"])], of="votes", repeats=100)
    path = tmp_path / "board.json"
    path.write_text(json.dumps(old.to_dict()))
    return path, rows, rank(rows, of="votes", repeats=100)


def test_a_new_model_is_rated_beside_the_old_ones(tmp_path: Path) -> None:
    path, rows, whole = boards(tmp_path)
    board = rank(rows, of="votes", onto=path, repeats=100)
    assert board.added is not None
    assert (board.added.models, board.added.uncertainty) == (("e",), "covariance")
    old = {each["model"]: each for each in json.loads(path.read_text())["standings"]}
    for standing in board.standings:
        if standing.model != "e":
            assert (standing.rating, standing.low, standing.high, standing.n) == (
                pytest.approx(old[standing.model]["rating"]),
                *(old[standing.model][name] for name in ("low", "high", "n")),
            )
    # Against one of the old models it stands where a board of all puts it.
    lead = [ratings(each)["d"] - ratings(each)["e"] for each in (board, whole)]
    assert lead[0] == pytest.approx(lead[1], abs=12)
    # The next model can be put onto this board.
    path.write_text(json.dumps(board.to_dict()))
    more = [row | {"model_b": "f"} for row in rows if row["model_b"] == "e"]
    assert "f" in rank(more, of="votes", onto=path, repeats=5).models


def test_what_the_interval_of_a_new_model_covers(tmp_path: Path) -> None:
    path, rows, _ = boards(tmp_path)
    # The new model has met one of the old ones only, so it is as uncertain as that one.
    rows = [row for row in rows if (row["model_a"], row["model_b"]) == ("a", "e")]
    said = json.loads(path.read_text())
    widths = {}
    for name in ("covariance", "intervals", "none"):
        board = rank(rows, of="votes", onto=path, repeats=200)
        assert board.added is not None
        assert board.added.uncertainty == name
        widths[name] = next(each.high - each.low for each in board.standings if each.model == "e")
        if name == "covariance":
            said["covariance"] = None
        for standing in said["standings"] if name == "intervals" else ():
            standing["low"] = None
        path.write_text(json.dumps(said))
    assert widths["none"] < 0.97 * widths["covariance"]
    assert widths["intervals"] == pytest.approx(widths["covariance"], rel=0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"standings": []}, "has 0 standings"),
        ({"standings": "x"}, "has no list standings"),
        ({"scale": "elo"}, "has the scale 'elo'"),
        ({"nu": -1}, "tie parameter nu"),
        ({"nu": None}, "tie parameter nu"),
        ({"style": {"slopes": []}}, "style control"),
        ({"covariance": [[1]]}, "not a table of 4 by 4"),
        ({"covariance": [[1e99] * 4] * 4}, "symmetric table of finite numbers"),
        ({"covariance": [[0, 9, 0, 0], [9, 0, 0, 0], [0] * 4, [0] * 4]}, "negative eigenvalue"),
    ],
)
def test_a_board_that_is_none(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path, rows, _ = boards(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileError, match=says):
        rank(rows[:200], of="votes", onto=path, repeats=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not valid JSON"), ("[" * 5000, "nested too deeply"), ("[1]", "has no list"), ("\xff", "not UTF-8")],
)
def test_a_file_that_is_no_board(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "board.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=says):
        rank(records(20, 20), onto=path, repeats=2)
    with pytest.raises(FileError, match="cannot be read"):
        rank(records(20, 20), onto=tmp_path / "none.json", repeats=2)


def test_new_models_that_cannot_be_rated(tmp_path: Path) -> None:
    path, rows, _ = boards(tmp_path)
    old = [row for row in rows if "e" not in (row["model_a"], row["model_b"])]
    with pytest.raises(UsageError, match="has every model of these votes"):
        rank(old, of="votes", onto=path, repeats=2)
    strangers = [row | {"model_a": "y", "model_b": "z"} for row in old]
    with pytest.raises(UsageError, match="has none of the models of these votes"):
        rank(strangers, of="votes", onto=path, repeats=2)
    winner = [row | {"model_b": "y", "label": 1} for row in old if row["model_a"] == "a"]
    with pytest.raises(UsageError, match="no finite rating for 'y' beside the models of the board"):
        rank(winner, of="votes", onto=path, repeats=2)
    assert rank(winner, of="votes", onto=path, repeats=20, prior=300).models[0] == "y"
    with pytest.raises(UsageError, match="--anchor does not go with --onto"):
        rank(winner, of="votes", onto=path, anchor=("a", 1.0))


# The program


def test_models_and_votes_on_the_command_line(tmp_path: Path, prefcast_here: Run) -> None:
    rows = styled(1.0, 60)
    pairs = [{name: value for name, value in row.items() if name not in WINNERS} for row in rows]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    with_error = prefcast_here("rank", path, "--model", "surface", "--repeats", "20", "--no-store")
    assert with_error.returncode == 0, with_error.stderr
    assert "the forecaster's own error for a whole system, which has a standard deviation of 26.8%" in with_error.stdout
    votes = write_csv(
        tmp_path / "votes.csv",
        [{"id": row["id"], "winner": ("left", "right", "tie")[row["id"] % 3]} for row in rows[:45]],
    )
    done = prefcast_here(
        "rank", path, "--model", "surface", "--votes", votes, "--repeats", "20", "--no-store", "--prior", "400"
    )
    assert done.returncode == 0, done.stderr
    assert "45 votes on 45 of 60 rows with forecasts, between 4 models" in done.stdout
    assert "if the rows with votes are a random sample" in done.stdout
    styles = prefcast_here(
        "rank",
        write_jsonl(tmp_path / "rows.jsonl", rows),
        "--style",
        "--repeats",
        "5",
        "-o",
        "board.csv",
        "--prior",
        "400",
    )
    assert styles.returncode == 0, styles.stderr
    assert "an association" in styles.stdout
    assert (tmp_path / "board.csv").read_text().splitlines()[0].endswith("win_rate,raw,change,change_low,change_high")
    for arguments, says in (
        (("--model", "surface", "--style"), "leave out --model"),
        (("--onto", path), "expected a leaderboard"),
        (("--system-error", "2"), "--system-error"),
    ):
        refused = prefcast_here("rank", path, *arguments)
        assert refused.returncode == 2
        assert says in refused.stderr
        assert not refused.stdout
