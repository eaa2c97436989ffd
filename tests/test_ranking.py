"""Leaderboards: published figures, a second solver, symmetries, files and their faults, plots."""

from __future__ import annotations

import csv
import gzip
import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import evalica
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import prefcast as library
from conftest import EXAMPLES, Run, kaggle_row, said_by, write_csv, write_jsonl
from prefcast.errors import FileError, FitError, UsageError, printable
from prefcast.measuring.ranking import Leaderboard, rank
from prefcast.measuring.ranking.cells import Sums as _Sums
from prefcast.measuring.ranking.reading import read_board_votes
from prefcast.measuring.ranking.strengths import expected_shares, fit_strengths
from prefcast.report.plots import inline_svg, leaderboard_figure, plot_style, save_figure

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
OUTCOMES = ("model_a", "model_b", "tie")

# Davidson (1970), table 1: brands of chocolate pudding i and j; preferences for i, for j, and neither. As in the data
# set `pudding` of the R package PlackettLuce.
PUDDING = [
    (1, 2, 19, 22, 16),
    (1, 3, 16, 19, 12),
    (2, 3, 19, 19, 10),
    (1, 4, 18, 23, 13),
    (2, 4, 23, 19, 9),
    (3, 4, 19, 20, 15),
    (1, 5, 13, 19, 18),
    (2, 5, 16, 20, 12),
    (3, 5, 16, 15, 17),
    (4, 5, 17, 14, 16),
    (1, 6, 18, 21, 12),
    (2, 6, 22, 20, 12),
    (3, 6, 13, 18, 10),
    (4, 6, 14, 19, 18),
    (5, 6, 11, 21, 12),
]
# "The same worth parameters as Davidson (1970)", after his 7 iterations: Turner et al., "Introduction to
# PlackettLuce" (the package's vignette), section 2.1: six worths that sum to 1, and the tie parameter.
PUDDING_WORTH = [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855]
PUDDING_NU = 0.7468147


def vote(model_a: Any, model_b: Any, winner: str, **more: Any) -> dict[str, Any]:
    return {"model_a": model_a, "model_b": model_b, "winner": winner, **more}


def pudding() -> list[dict[str, Any]]:
    return [
        vote(f"brand {i}", f"brand {j}", winner)
        for i, j, *counts in PUDDING
        for winner, count in zip(OUTCOMES, counts, strict=True)
        for _ in range(count)
    ]


def simulated(k: int, n: int, seed: int, nu: float = 0.8, spread: float = 0.7) -> tuple[list[dict[str, Any]], Any]:
    """n votes between k models of known log strengths."""
    rng = np.random.default_rng(seed)
    strengths = rng.normal(0, spread, k)
    strengths -= strengths.mean()
    p = np.exp(strengths)
    rows = []
    for _ in range(n):
        i, j = rng.choice(k, 2, replace=False)
        odds = np.array([p[i], p[j], nu * np.sqrt(p[i] * p[j])])
        rows.append(vote(f"m{i:02}", f"m{j:02}", OUTCOMES[rng.choice(3, p=odds / odds.sum())]))
    return rows, strengths


def ratings(board: Leaderboard) -> dict[str, float]:
    return {standing.model: standing.rating for standing in board.standings}


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    winner = {"model_a": "model_b", "model_b": "model_a"}.get(row["winner"], row["winner"])
    return row | {"model_a": row["model_b"], "model_b": row["model_a"], "winner": winner}


def reference(wins: Any, ties: Any) -> tuple[Any, float]:
    """Davidson's likelihood, written out, and maximised by SciPy."""
    k = len(wins)
    tied = bool(ties.any())

    def loss(x: Any) -> float:
        s = np.append(x[: k - 1], 0.0)
        middle = (s[:, None] + s[None]) / 2 + (x[-1] if tied else -np.inf)
        total = np.logaddexp(np.logaddexp(s[:, None], s[None]), middle)
        lost = (wins * (s[:, None] - total)).sum()
        return -float(lost + ((ties * (middle - total)).sum() / 2 if tied else 0.0))

    found = minimize(loss, np.zeros(k - 1 + tied), method="BFGS", options={"gtol": 1e-9})
    s = np.append(found.x[: k - 1], 0.0)
    return s - s.mean(), float(np.exp(found.x[-1])) if tied else 0.0


# The model


def test_davidsons_puddings() -> None:
    board = rank(pudding(), repeats=1)
    strengths = np.array([ratings(board)[f"brand {i}"] for i in range(1, 7)])
    worth = 10 ** (strengths / 400)
    # He stopped after 7 iterations: the fourth digit is his last.
    assert worth / worth.sum() == pytest.approx(PUDDING_WORTH, abs=1e-4)
    assert board.nu == pytest.approx(PUDDING_NU, abs=1e-4)
    assert strengths.mean() == pytest.approx(1000)
    assert board.models[0] == "brand 6"
    assert board.n == sum(sum(counts) for _, _, *counts in PUDDING)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tied", [True, False])
def test_a_second_solver_agrees(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 9))
    wins = rng.integers(1, 12, (k, k)) * (1.0 - np.eye(k))
    ties = np.triu(rng.integers(0, 9, (k, k)), 1) * float(tied)
    ties = ties + ties.T
    strengths, nu = fit_strengths(wins, ties)
    other_strengths, other_nu = reference(wins, ties)
    assert strengths == pytest.approx(other_strengths, abs=1e-5)
    assert nu == pytest.approx(other_nu, abs=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_evalica_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 41))
    wins = rng.uniform(0.5, 12, (k, k)) * (1.0 - np.eye(k))
    ties = np.triu(rng.uniform(0, 9, (k, k)), 1) * float(seed % 2)
    left, right = np.triu_indices(k, 1)
    found = evalica.newman(
        left.tolist() * 3,
        right.tolist() * 3,
        [winner for winner in (evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw) for _ in left],
        index=pandas.RangeIndex(k),
        weights=np.concatenate([wins[left, right], wins[right, left], ties[left, right]]).tolist(),
        v_init=0.5 if ties.any() else 0.0,
        tolerance=1e-13,
        limit=100_000,
    )
    expected = np.log(found.scores.loc[range(k)].to_numpy())
    strengths, nu = fit_strengths(wins, ties + ties.T)
    assert strengths == pytest.approx(expected - expected.mean(), abs=1e-9)
    assert nu == pytest.approx(2 * found.v, abs=1e-9)  # evalica's v is nu / 2


def test_a_fit_without_a_maximum_raises() -> None:
    # The first model wins every vote: its strength is infinite.
    with pytest.raises(FitError, match="converge"):
        fit_strengths(np.array([[0.0, 5], [0, 0]]), np.zeros((2, 2)))


@settings(max_examples=60)
@given(st.data())
def test_the_likelihood_equations_hold(data: st.DataObject) -> None:
    # Weights as a bootstrap draws them: over orders of magnitude. The wins go round, so there is a maximum.
    k = data.draw(st.integers(2, 5))
    weight = st.floats(0.01, 100)
    wins = np.zeros((k, k))
    for i in range(k):
        wins[i, (i + 1) % k] = data.draw(weight)
    if k == 2:
        wins[1, 0] = data.draw(weight)
    ties = np.zeros((k, k))
    ties[0, 1] = ties[1, 0] = data.draw(weight)
    strengths, nu = fit_strengths(wins, ties)
    played = wins + wins.T + ties
    assert (expected_shares(strengths, nu) * played).sum(axis=1) == pytest.approx(
        (wins + ties / 2).sum(axis=1), rel=1e-5
    )


def test_two_equal_models_have_the_tie_parameter_of_their_ties() -> None:
    # The strengths begin at their maximum and nu does not: a stop by the strengths alone would return nu as it began.
    strengths, nu = fit_strengths(np.array([[0.0, 5], [5, 0]]), np.array([[0.0, 3], [3, 0]]))
    assert strengths == pytest.approx([0, 0])
    assert nu == pytest.approx(2 * 3 / 10)  # P(tie) = nu / (2 + nu) = 3 / 13


def test_a_scale_that_drifts_does_not_pass_for_convergence() -> None:
    # Newman's iteration, which leaves the scale free, ends here where a model has 2.5 times the points that it won.
    wins, ties = np.zeros((4, 4)), np.zeros((4, 4))
    wins[0, 1], wins[1, 0], wins[0, 2], wins[0, 3] = 0.75530136, 1.56993997, 0.6799319, 6.05775308
    wins[2, 1], wins[3, 1] = 0.67358295, 7.73444242
    ties[1, 2] = ties[2, 1] = 0.02207599
    strengths, nu = fit_strengths(wins, ties)
    other_strengths, other_nu = reference(wins, ties)
    assert strengths == pytest.approx(other_strengths, abs=1e-3)
    assert nu == pytest.approx(other_nu, rel=1e-3)


# Symmetries


def test_exchanging_a_and_b_and_the_order_of_rows_changes_nothing() -> None:
    rows, _ = simulated(6, 400, 1)
    for number, row in enumerate(rows):
        row["prompt"] = f"prompt {number % 50}"
    one = rank(rows, repeats=20).to_dict()
    assert rank([swapped(row) for row in rows], repeats=20).to_dict() == one
    assert rank(rows[::-1], repeats=20).to_dict() == one


def test_other_names_are_the_same_models() -> None:
    rows, _ = simulated(5, 300, 2)
    names = {f"m{i:02}": f"z{9 - i}" for i in range(5)}
    renamed = [row | {"model_a": names[row["model_a"]], "model_b": names[row["model_b"]]} for row in rows]
    one, other = rank(rows, repeats=20), rank(renamed, repeats=20)
    assert {names[model]: rating for model, rating in ratings(one).items()} == pytest.approx(ratings(other))
    assert [standing.low for standing in one.standings] == pytest.approx([standing.low for standing in other.standings])
    assert one.predicted == pytest.approx(other.predicted, nan_ok=True)


def test_certain_forecasts_are_votes() -> None:
    rows, _ = simulated(5, 300, 3)
    soft = [
        {"model_a": row["model_a"], "model_b": row["model_b"], "margin": 0.0}
        | {label: float(row["winner"] == outcome) for label, outcome in zip(LABELS, OUTCOMES, strict=True)}
        for row in rows
    ]
    votes, forecasts = rank(rows, repeats=5).to_dict(), rank(soft, repeats=5, system_error=0).to_dict()
    assert (votes.pop("source"), forecasts.pop("source")) == ("votes", "forecasts")
    assert (votes.pop("system_error"), forecasts.pop("system_error")) == (None, 0)
    assert votes == forecasts


def test_equal_models_share_a_rank() -> None:
    rows = [vote(a, b, "model_a") for a, b in ("xy", "yx", "xz", "yz", "zx", "zy") for _ in range(3)]
    board = rank(rows, repeats=50)
    assert [standing.rank for standing in board.standings] == [1, 1, 1]
    assert board.models == ("x", "y", "z")
    assert [standing.rating for standing in board.standings] == pytest.approx([1000] * 3)
    assert (board.standings[0].rank_low, board.standings[0].rank_high) == (1, 3)


def test_the_matrices() -> None:
    rows = [vote("x", "y", "model_a")] * 3 + [vote("y", "x", "model_a"), vote("x", "y", "tie"), vote("y", "z", "tie")]
    board = rank([*rows, vote("z", "y", "model_a"), vote("y", "z", "model_a")], repeats=5)
    order = list(board.models)
    x, y, z = (order.index(name) for name in "xyz")
    assert board.observed[x, y] == pytest.approx(3.5 / 5)
    assert board.observed[y, x] == pytest.approx(1.5 / 5)
    assert np.isnan(board.observed[x, z])
    assert np.isnan(board.predicted[x, x])
    assert board.predicted + board.predicted.T == pytest.approx(np.where(np.eye(3), np.nan, 1.0), nan_ok=True)
    assert board.meetings[y, z] == 3
    assert sum(standing.n for standing in board.standings) == 2 * board.n
    plain = json.loads(json.dumps(board.to_dict(), allow_nan=False))
    assert plain["observed"][x][z] is None


def test_intervals_cover_the_truth() -> None:
    inside = total = 0
    for seed in range(20):
        rows, strengths = simulated(5, 400, 100 + seed)
        for standing in rank(rows, repeats=200, seed=seed).standings:
            truth = 1000 + 400 / np.log(10) * strengths[int(standing.model[1:])]
            inside += standing.low <= truth <= standing.high
            total += 1
    assert 0.88 <= inside / total <= 0.99


def test_rows_of_one_prompt_count_as_one_draw() -> None:
    rows, _ = simulated(4, 100, 5)
    # Every vote ten times over: known from the prompt to be no news.
    many = [
        row | {"prompt": json.dumps([f"prompt {number}", str(copy)])}
        for number, row in enumerate(rows)
        for copy in range(10)
    ]
    grouped, loose = rank(many, repeats=200), rank([{**row, "prompt": None} for row in many], repeats=200)
    assert (grouped.groups, grouped.resampled, loose.groups) == (100, "prompts", 1000)
    width = [board.standings[0].high - board.standings[0].low for board in (grouped, loose)]
    assert width[0] > 2 * width[1]
    assert rank(rows, repeats=5).resampled == "rows"


def test_sums_settle_to_the_same_however_often() -> None:
    rng = np.random.default_rng(0)
    rare, often = _Sums(), _Sums()
    for group, left, outcome in rng.integers(0, [20, 5, 3], (500, 3)):
        for sums in (rare, often):
            sums.add(int(group), int(left), int(left) + 1, int(outcome), 0.5)
        often.settle()
    (keys, weights), (other_keys, other_weights) = rare.settle(), often.settle()
    assert (keys == other_keys).all()
    assert weights == pytest.approx(other_weights)
    assert weights.sum() == 250


# Input


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz"])
def test_every_container(tmp_path: Path, ending: str) -> None:
    import pyarrow
    import pyarrow.parquet

    rows, _ = simulated(3, 60, 7)
    path = tmp_path / f"votes{ending}"
    if ending == ".jsonl":
        write_jsonl(path, rows)
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = write_csv(tmp_path / "plain", rows).read_text().replace(",", "\t" if ending == ".tsv" else ",")
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    assert rank(path, repeats=5).to_dict() == rank(rows, repeats=5).to_dict()


def test_every_way_to_say_who_won() -> None:
    rows, _ = simulated(3, 60, 8)
    base = [{"model_a": row["model_a"], "model_b": row["model_b"]} for row in rows]
    won = [OUTCOMES.index(row["winner"]) for row in rows]
    ways: list[list[dict[str, Any]]] = [
        [row | {"label": outcome} for row, outcome in zip(base, won, strict=True)],
        [
            row | {label: int(i == outcome) for i, label in enumerate(LABELS)}
            for row, outcome in zip(base, won, strict=True)
        ],
        [
            row | {label: str(i == outcome) for i, label in enumerate(LABELS)}
            for row, outcome in zip(base, won, strict=True)
        ],
        [
            row | {"winner": ("model_a", "MODEL_B", "tie (bothbad)")[outcome]}
            for row, outcome in zip(base, won, strict=True)
        ],
    ]
    for way in ways:
        assert rank(way, repeats=3).to_dict() == rank(rows, repeats=3).to_dict()
    left = [{"left": row["model_a"], "right": row["model_b"], "said": row["winner"]} for row in rows]
    names = {"model_a": "left", "model_b": "right", "winner": "said"}
    assert rank(left, columns=names, repeats=3).to_dict() == rank(rows, repeats=3).to_dict()


def forecast(model_a: str, model_b: str, a: float, b: float, tie: float, **more: Any) -> dict[str, Any]:
    return {"model_a": model_a, "model_b": model_b, **dict(zip(LABELS, (a, b, tie), strict=True)), **more}


def test_forecasts_and_votes_of_a_predictions_file(tmp_path: Path) -> None:
    rows = [
        forecast("x", "y", 1.0, 0.0, 0.0, margin=9.0, label=1, error=None),
        forecast("x", "y", 0.2, 0.3, 0.5, margin=0.1, label=0, error=None),
        forecast("y", "x", 0.5, 0.2995, 0.2, margin=0.1, label=2, error=None),
        forecast("y", "x", 0.4, 0.4, 0.2, margin=None, label=0, error="too long"),
        forecast("x", "y", 0.3, 0.3, 0.4, margin=0.1, label=None, error=None),
    ]
    path = write_jsonl(tmp_path / "forecasts.jsonl", rows)
    forecasts, votes = rank(path, of="forecasts", repeats=3, system_error=0.2), rank(path, of="votes", repeats=3)
    assert (forecasts.source, forecasts.n, forecasts.failed, forecasts.unlabelled) == ("forecasts", 4, 1, 0)
    assert (votes.source, votes.n, votes.failed, votes.unlabelled) == ("votes", 3, 1, 1)
    x = next(standing for standing in forecasts.standings if standing.model == "x")
    assert x.wins == pytest.approx(1 + 0.2 + 0.2995 / 0.9995 + 0.3)
    assert x.n == 4


def test_forecasts_of_predict_can_be_ranked(tmp_path: Path) -> None:
    rows = [
        kaggle_row(
            number, prompt=(f"Why {number % 4}?",), a=("Because. " * (1 + number % 5),), model_a="x", model_b="y"
        )
        for number in range(12)
    ]
    forecasts = library.predict(write_csv(tmp_path / "pairs.csv", rows))
    board = library.rank(forecasts.records(with_text=True), repeats=10, of="forecasts", system_error=0.1)
    assert (board.source, board.n, board.groups, board.resampled) == ("forecasts", 12, 4, "prompts")


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        (forecast("", "y", 1, 0, 0), "model_a", "is missing"),
        (forecast("x", "  ", 1, 0, 0), "model_b", "is missing"),
        (forecast("x", "x", 1, 0, 0), "model_b", "expected another model"),
        (forecast("x", "y", 1, 1, 0), ",".join(LABELS), "expected exactly one 1 and two 0"),
        (forecast("x", "y", 0.3, 0.3, 0.4), ",".join(LABELS), "--from forecasts"),
        (forecast("x", "y", 1, 0, 0, winner="model_b"), "winner", "says B where"),
        ({"model_a": "x", "model_b": "y", "winner": "me"}, "winner", "is 'me'; expected one of"),
    ],
)
def test_rows_at_fault_are_counted_and_named(row: dict[str, Any], field: str, says: str) -> None:
    good = [forecast("x", "y", 1, 0, 0, winner="model_a"), forecast("x", "y", 0, 1, 0, winner="model_b")]
    board = rank([*good, row], repeats=3)
    assert (board.n, board.faults) == (2, 1)
    assert board.first_fault is not None
    assert (board.first_fault.row, board.first_fault.field) == (3, field)
    assert says in board.first_fault.problem


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (forecast("x", "y", 0.5, 0.4, 0.4), "sum to 1.3; expected 1"),
        (forecast("x", "y", -0.1, 0.7, 0.4), "winner_model_a: is -0.1; expected a probability"),
        (forecast("x", "y", float("inf"), 0.7, 0.4), "expected a probability"),
        (forecast("x", "y", 0.5, "half", 0.4), "winner_model_b: is 'half'"),
    ],
)
def test_forecasts_at_fault(row: dict[str, Any], says: str) -> None:
    board = rank([forecast("x", "y", 0.5, 0.3, 0.2), row], repeats=3, system_error=0.1)
    assert board.faults == 1
    assert says in str(board.first_fault)


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{"model_a": "x", "winner": "tie"}], {}, "column 'model_b' is missing"),
        ([{"model_a": "x", "model_b": "y"}], {}, "has no column that says who won"),
        ([{"model_a": "x", "model_b": "y", "winner_tie": 1}], {}, "column 'winner_model_a' is missing"),
        ([vote("x", "y", "tie")], {"of": "forecasts"}, "has no column that says who won"),
        ([vote("x", "x", "tie")], {}, "no row has a vote between two models: 0 failed, 0 without a vote, 1 at fault"),
        ([vote("x", "y", "")], {}, "1 without a vote"),
        ([vote("x", "y", "tie")], {"columns": {"model_a": "left"}}, "column 'left', named for model_a, is missing"),
    ],
)
def test_faults_of_the_file(rows: list[dict[str, Any]], options: dict[str, Any], says: str) -> None:
    with pytest.raises(FileError, match=says.replace("(", r"\(")):
        rank(rows, **options)


@pytest.mark.parametrize(
    "options", [{"of": "rumours"}, {"columns": {"colour": "x"}}, {"repeats": 0}, {"min_votes": -1}]
)
def test_calls_that_are_wrong(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        rank([vote("x", "y", "tie")], **options)


# Where no rating is finite


def test_a_model_that_never_lost_has_no_rating() -> None:
    rows = [
        vote("x", "y", "model_a"),
        vote("y", "x", "model_a"),
        vote("top", "x", "model_a"),
        vote("top", "y", "model_a"),
    ]
    with pytest.raises(UsageError, match=r"no finite rating for 'top' \(of 3 models\): never lost or tied; more votes"):
        rank(rows)


def test_models_that_never_won_are_named_together() -> None:
    rows = [vote(f"low {i}", f"low {(i + 1) % 7}", "tie") for i in range(7)]
    rows += [vote(f"high {i}", f"high {(i + 1) % 9}", "tie") for i in range(9)]
    rows += [vote("high 0", "low 0", "model_a")]
    with pytest.raises(UsageError, match=r"'low 0', .*'low 4' and 2 more \(of 16 models\): never won or tied against"):
        rank(rows)
    with pytest.raises(UsageError, match=r"no finite rating for 'low 0'.*: never met the others"):
        rank([*rows[:-1], vote("high 0", "high 1", "model_a")])


def test_a_tie_joins_both_ways() -> None:
    rows = [vote("x", "y", "model_a"), vote("y", "x", "model_a"), vote("z", "x", "tie")]
    assert set(rank(rows, repeats=5).models) == {"x", "y", "z"}


@pytest.mark.parametrize("finite", [False, True])
def test_ties_alone_set_no_limit(finite: bool) -> None:
    # A win and a tie: the better x is and the more ties there are, the likelier are both.
    rows = [vote("x", "y", "model_a"), vote("x", "y", "tie")]
    # Three wins in a row, and one tie back to the first, are a limit.
    rows = (
        [vote("w", "x", "model_a"), vote("x", "y", "model_a"), vote("y", "z", "model_a"), vote("z", "w", "tie")]
        if finite
        else rows
    )
    if finite:
        board = rank(rows, repeats=5)
        assert board.models == ("w", "x", "y", "z")
        return
    with pytest.raises(UsageError, match="no finite ratings: no win contradicts"):
        rank(rows)


def test_only_ties_tell_nothing() -> None:
    with pytest.raises(UsageError, match="every vote is a tie"):
        rank([vote("x", "y", "tie")])


def test_rare_models_are_left_out_and_named() -> None:
    rows, _ = simulated(4, 200, 9)
    rare = [vote("rare", "m00", "model_a"), vote("rarer", "rare", "model_a"), vote("m00", "rare", "model_a")]
    with pytest.raises(UsageError, match=r"'rarer'.* or --min-votes 2, which leaves 5 models and 202 votes"):
        rank(rows + rare)
    # Without `rarer` the model `rare` has two votes left, of three.
    board = rank(rows + rare, min_votes=3, repeats=5)
    assert board.left_out == ("rare", "rarer")
    assert (board.n, board.min_votes) == (200, 3)
    assert ratings(board) == pytest.approx(ratings(rank(rows, repeats=5)))
    with pytest.raises(UsageError, match="fewer than two models have 999 votes"):
        rank(rows, min_votes=999)


# The program


HOSTILE = [
    "<script>alert(1)</script>",
    "$x_1$ and $\\frac{1}{2}$",
    "\x1b[31mred",
    "=cmd()|'/C calc'!A0",
    'comma, "quote"\nline',
    "模型",
    "$unbalanced",
    "a" * 200,
]


def hostile_rows() -> list[dict[str, Any]]:
    k = len(HOSTILE)
    pairs = [(i, j) for i in range(k) for j in range(k) if i != j]
    return [vote(HOSTILE[i], HOSTILE[j], OUTCOMES[(i + 2 * j) % 3]) for i, j in pairs for _ in range(2)]


def test_the_verb_writes_everything(tmp_path: Path, prefcast_here: Run) -> None:
    path = write_csv(tmp_path / "votes.csv", hostile_rows())
    outputs = ("-o", "board.csv", "--plot", "board.svg", "--matrix", "matrix.csv", "--json", "board.json")
    done = prefcast_here("rank", path, *outputs, "--repeats", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert "112 votes between 8 models; 95 % intervals by bootstrap over 112 rows" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\\x1b[31mred" in done.stdout
    with (tmp_path / "board.csv").open(newline="", encoding="utf-8") as file:
        board = list(csv.DictReader(file))
    # A terminal obeys none of them, a spreadsheet runs none.
    shown = {printable(name) for name in HOSTILE}
    assert {row["model"].removeprefix("'") for row in board} == shown
    assert not any(row["model"].startswith(("=", "+", "-", "@")) for row in board)
    assert [int(row["rank"]) for row in board] == sorted(int(row["rank"]) for row in board)
    with (tmp_path / "matrix.csv").open(newline="", encoding="utf-8") as file:
        matrix = list(csv.DictReader(file))
    assert len(matrix) == 8 * 7
    assert all(0 < float(row["predicted"]) < 1 and int(row["votes"]) == 4 for row in matrix)
    figures = json.loads((tmp_path / "board.json").read_text())
    names = [printable(standing["model"]) for standing in figures["standings"]]
    assert names == [row["model"].removeprefix("'") for row in board]
    assert figures["standings"][0]["rating"] == pytest.approx(float(board[0]["rating"]))
    svg = (tmp_path / "board.svg").read_text()
    assert "<script" not in svg
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in svg
    assert "$x_1$ and $\\frac{1}{2}$" in svg
    assert "$unbalanced" in svg
    assert "\x1b" not in svg
    assert not list(tmp_path.glob(".prefcast-*"))


def test_json_on_standard_output_from_standard_input(prefcast: Run) -> None:
    text = "model_a,model_b,label\n" + "x,y,0\ny,x,0\nx,y,2\n" * 5
    done = prefcast("rank", "-", "--json", "-", "--repeats", "9", "--seed", "3", stdin=text.encode())
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["n"], figures["repeats"], figures["seed"], figures["source"]) == (15, 9, 3, "votes")


def test_rows_at_fault_end_with_3(tmp_path: Path, prefcast_here: Run) -> None:
    rows, _ = simulated(3, 50, 4)
    path = write_csv(tmp_path / "votes.csv", [*rows, vote("m00", "", "tie"), vote("m00", "m01", "me")])
    done = prefcast_here("rank", path, "--repeats", "5", "-o", "board.jsonl")
    assert done.returncode == 3
    assert f"2 rows are at fault and not in the ratings; the first: {path}: row 51, model_b: is missing" in done.stderr
    assert "50 votes between 3 models, 2 at fault" in done.stdout
    assert len((tmp_path / "board.jsonl").read_text().splitlines()) == 3


# Plots


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return rank(hostile_rows(), repeats=10)


@pytest.mark.parametrize(("ending", "magic"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_plots_are_the_same_every_time(board: Leaderboard, tmp_path: Path, ending: str, magic: bytes) -> None:
    for name in ("one", "two"):
        save_figure(leaderboard_figure(board), tmp_path / f"{name}{ending}")
    one = (tmp_path / f"one{ending}").read_bytes()
    assert one.startswith(magic)
    assert one == (tmp_path / f"two{ending}").read_bytes()


def test_names_do_not_overlap(board: Leaderboard) -> None:
    # Many models, and names of any length: no label over another, none outside the figure.
    k = 40
    names = [f"provider/a-model-with-a-long-name-{i}-instruct-preview-2024" for i in range(k)]
    rows = [vote(names[i], names[(i + d) % k], OUTCOMES[d % 3]) for i in range(k) for d in (1, 2, 3, 5)]
    many = rank(rows, repeats=3)
    for shown in (board, many):
        figure = leaderboard_figure(shown)
        with plot_style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            figure.draw_without_rendering()
            boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert len(figure.axes) == (1 if shown is many else 3)
        assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(boxes))
        assert all(box.x0 >= 0 for box in boxes)


def test_an_inline_svg_brings_no_prolog_and_no_style_sheet(board: Leaderboard) -> None:
    text = inline_svg(leaderboard_figure(board))
    assert text.startswith("<svg ")
    assert text.rstrip().endswith("</svg>")
    assert "<style" not in text
    assert "<!DOCTYPE" not in text
    assert "stroke-linejoin" in text[:200]
    assert "&lt;script&gt;" in text


# Cost


def test_ranking_starts_nothing_heavy_before_it_must() -> None:
    code = (
        "import sys; sys.argv = ['prefcast', 'rank', '--help']; import prefcast.cli\n"
        "try: prefcast.cli.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('matplotlib', 'pandas', 'scipy', 'pyarrow') if name in sys.modules])"
    )
    assert said_by(code).splitlines()[-1] == "[]"


def test_a_plot_leaves_matplotlib_as_it_was() -> None:
    code = (
        "import sys, matplotlib\n"
        "from prefcast.report.plots import inline_svg, leaderboard_figure\n"
        "from prefcast.measuring.ranking import rank\n"
        "before = matplotlib.rcParams.copy()\n"
        "votes = [{'model_a': 'x', 'model_b': 'y', 'label': label} for label in (0, 1, 2)]\n"
        "inline_svg(leaderboard_figure(rank(votes, repeats=3)))\n"
        # Comparing the settings asks for the backend, which loads pyplot.
        "print('matplotlib.pyplot' in sys.modules, matplotlib.rcParams.copy() == before)"
    )
    assert said_by(code).split() == ["False", "True"]


def test_votes_are_kept_as_sums() -> None:
    rows, _ = simulated(4, 3000, 6)
    votes = read_board_votes([row | {"prompt": "the same"} for row in rows]).votes
    assert len(votes.weight) <= 3 * 6
    assert votes.weight.sum() == votes.n == 3000


# Other scales


@pytest.mark.parametrize("seed", range(10))
def test_arenas_scale_is_that_of_evalica(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 20))
    names = [f"m{index}" for index in range(k)]
    left, right = rng.integers(0, k, (2, 40 * k))
    keep = left != right
    left, right = left[keep], right[keep]
    outcome = rng.integers(0, 3, len(left))
    records = [
        {"model_a": names[a], "model_b": names[b], "winner": ("model_a", "model_b", "tie")[o]}
        for a, b, o in zip(left, right, outcome, strict=True)
    ]
    board = rank(records, scale="arena", repeats=2)
    winners = (evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw)
    found = evalica.bradley_terry(
        [names[each] for each in left],
        [names[each] for each in right],
        [winners[o] for o in outcome],
        tolerance=1e-14,
        limit=100_000,
    )
    expected = np.log(found.scores) * 400 / np.log(10)
    expected = expected - expected.mean() + 1000
    for standing in board.standings:
        assert standing.rating == pytest.approx(expected[standing.model], abs=0.01)
    assert board.nu == 0
    # A share of the votes that the row wins, as for Davidson's model.
    assert np.nanmax(np.abs(board.predicted + board.predicted.T - 1)) < 1e-12


NEVER = [{"model_a": "a", "model_b": b, "winner": "model_a"} for b in ("b", "c") for _ in range(10)] + [
    {"model_a": "b", "model_b": "c", "winner": winner} for winner in ("model_a", "model_b", "tie") for _ in range(10)
]


@pytest.mark.parametrize("scale", ["davidson", "arena"])
def test_a_model_that_never_lost_has_a_place_with_a_prior(scale: str) -> None:
    with pytest.raises(UsageError, match=r"never lost .*; --prior 400 ranks them too, with wide intervals"):
        rank(NEVER, scale=scale, repeats=10)
    board = rank(NEVER, scale=scale, prior=400, repeats=400)
    first, second, third = board.standings
    assert (first.model, first.rank_high) == ("a", 1)
    assert np.mean([standing.rating for standing in board.standings]) == pytest.approx(1000, abs=1e-6)
    assert second.rating == pytest.approx(third.rating, abs=1e-6)
    # Nothing says how far it is ahead.
    assert first.high - first.low > 1.5 * (second.high - second.low)
    tight, loose = (rank(NEVER, scale=scale, prior=prior, repeats=2).standings[0].rating for prior in (50, 1000))
    assert tight < first.rating < loose


def test_a_weak_prior_changes_nothing() -> None:
    records = [
        {"model_a": a, "model_b": b, "winner": winner}
        for a, b in (("a", "b"), ("b", "c"), ("c", "a"))
        for winner in ("model_a", "model_a", "model_b", "tie")
    ]
    plain, weak = rank(records, repeats=20), rank(records, repeats=20, prior=1e6)
    for one, other in zip(plain.standings, weak.standings, strict=True):
        assert one.rating == pytest.approx(other.rating, abs=1e-3)


def test_the_interval_of_the_prior_is_the_prior_where_there_are_no_votes() -> None:
    """Two models with a single tie between them say nothing of a third whose only vote is a tie: its spread is the prior's."""
    records = [{"model_a": "a", "model_b": "b", "winner": winner} for winner in ("model_a", "model_b")] * 500
    records += [{"model_a": "a", "model_b": "c", "winner": "tie"}]
    board = rank(records, scale="arena", prior=100, repeats=600)
    (third,) = [standing for standing in board.standings if standing.model == "c"]
    (first,) = [standing for standing in board.standings if standing.model == "a"]
    assert 2.5 * 100 < third.high - third.low < 4 * 100
    assert first.high - first.low < third.high - third.low


def test_scales_on_the_command_line(prefcast_here: Run, tmp_path: Path) -> None:
    done = prefcast_here("rank", EXAMPLES, "--scale", "arena", "--prior", "300", "--repeats", "20", "--json", "b.json")
    assert done.returncode == 0, done.stderr
    assert "a tie is half a win of either side; pulled towards the mean by a prior of 300 points" in done.stdout
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["scale"], found["prior"]) == ("arena", 300)
    assert "Davidson's model" in prefcast_here("rank", EXAMPLES, "--repeats", "20").stdout
    for arguments, said in ((("--prior", "0"), "--prior"), (("--scale", "elo"), "--scale")):
        assert said in prefcast_here("rank", EXAMPLES, *arguments).stderr
    for options in ({"prior": float("nan")}, {"prior": -1.0}, {"scale": "elo"}):
        with pytest.raises(UsageError, match=r"expected a positive number of points|unknown scale"):
            rank(NEVER, **options)
