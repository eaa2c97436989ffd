"""prefcast best: fewer comparisons, the probability to be the best of n, and whether none is good."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from checkpoints import save_deberta
from conftest import SURFACE, Run, write_jsonl
from prefcast.errors import UsageError
from prefcast.forecasts.best import Asked, Choice, choices
from prefcast.forecasts.forecaster import Forecaster
from prefcast.outcomes.models import Davidson, MarginSign
from prefcast.outcomes.statistics.coupling import best_of_n
from prefcast.pairs import Pair
from prefcast.pairs.formats.candidates import Candidates
from prefcast.scorers.base import Evidence, Scorer

Floats = NDArray[np.float64]
STRENGTHS = st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=2, max_size=8, unique=True)


def luce(strengths: Sequence[float]) -> tuple[Floats, Floats]:
    """The probabilities (n,) of Luce's choice, and P(row is preferred to column) (n, n)."""
    p = np.exp(strengths) / np.exp(strengths).sum()
    preferred = p[:, None] / (p[:, None] + p[None, :])
    np.fill_diagonal(preferred, np.nan)
    return p, preferred


@given(STRENGTHS)
def test_luces_choice_is_found_exactly(strengths: list[float]) -> None:
    p, preferred = luce(strengths)
    assert best_of_n(preferred) == pytest.approx(p, abs=1e-9)
    # The first against each of the others is enough.
    star = np.full_like(preferred, np.nan)
    star[0], star[:, 0] = preferred[0], preferred[:, 0]
    assert best_of_n(star) == pytest.approx(p, abs=1e-9)


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_the_probabilities_minimise_the_stated_sum(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    r = np.triu(rng.random((n, n)), 1)
    r += np.tril(1 - r.T, -1)
    np.fill_diagonal(r, np.nan)

    def loss(p: Floats) -> float:
        return sum((r[j, i] * p[i] - r[i, j] * p[j]) ** 2 for i in range(n) for j in range(n) if i != j)

    p = best_of_n(r)
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    for _ in range(10):
        other = np.abs(p + rng.normal(0, 0.05, n))
        assert loss(p) <= loss(other / other.sum()) + 1e-12


def test_two_answers_and_certain_preferences() -> None:
    assert best_of_n(np.array([[np.nan, 0.7], [0.3, np.nan]])) == pytest.approx([0.7, 0.3])
    # People call it a tie with 0.4: half of it each.
    assert best_of_n(np.array([[np.nan, 0.5 + 0.4 / 2], [0.1 + 0.4 / 2, np.nan]])) == pytest.approx([0.7, 0.3])
    certain = np.array([[np.nan, 1, 1], [0, np.nan, 1], [0, 0, np.nan]])
    assert best_of_n(certain) == pytest.approx([1, 0, 0], abs=1e-6)


class Planted(Scorer):
    """The margin is the difference of the numbers that the answers begin with. `fail` fails."""

    name = "planted"

    def __init__(self, *, scores: bool = False) -> None:
        self.seen = 0
        self.pointwise = scores
        self.raw_names = ("score_a", "score_b") if scores else ()

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        self.seen += len(pairs)
        found = np.array([[_number(pair.response_a[-1]), _number(pair.response_b[-1])] for pair in pairs]).reshape(
            -1, 2
        )
        problems = dict.fromkeys(np.flatnonzero(np.isnan(found).any(axis=1)).tolist(), "planted")
        raw = {"score_a": found[:, 0], "score_b": found[:, 1]} if self.pointwise else {}
        return Evidence(found[:, 0] - found[:, 1], np.zeros(len(found)), problems, raw)


def _number(text: str) -> float:
    return np.nan if text == "fail" else float(text)


def chosen(strengths: Sequence[object], scorer: Planted, asked: Asked, *, raw: bool = False) -> Choice:
    # Without ties the model of Davidson is that of Bradley and Terry.
    outcome = MarginSign() if raw else Davidson(1.0, -30.0, 0.0)
    row = Candidates("x", ("Why?",), tuple((str(each),) for each in strengths), 1)
    (found,) = choices([row], Forecaster(scorer, outcome), asked=asked)
    return found


@given(STRENGTHS)
def test_fewer_comparisons_find_the_same_answer(strengths: list[float]) -> None:
    full = chosen(strengths, Planted(), Asked()).ranking
    planted = Planted()
    fewer = chosen(strengths, planted, Asked(adaptive=True))
    assert full is not None
    assert fewer.ranking is not None
    assert fewer.ranking.best == full.best
    assert fewer.more["comparisons"] == planted.seen <= len(strengths) * (len(strengths) - 1) // 2
    # Margins that add up: the strengths are those of all comparisons.
    assert fewer.ranking.strengths == pytest.approx(full.strengths, abs=1e-6)
    assert sorted(fewer.ranking.order) == list(range(len(strengths)))


def test_what_is_decided_takes_n_minus_1_comparisons_and_what_is_equal_all() -> None:
    planted = Planted()
    chosen([3, 0, 0, 0, 0, 0], planted, Asked(adaptive=True))
    assert planted.seen == 5
    planted = Planted()
    assert chosen([1] * 6, planted, Asked(adaptive=True)).more["comparisons"] == 15
    assert planted.seen == 15
    planted = Planted()
    found = chosen([0, 0, 3, 0, 0, 3], planted, Asked(adaptive=True))
    assert planted.seen == 5 + 1
    assert len(next(found.records())["pairwise"]) == 6
    assert found.ranking is not None
    assert found.ranking.order[:2] == (2, 5)


@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_a_model_with_scores_scores_each_answer_once(n: int) -> None:
    strengths = [((7 * i) % n) / 2 for i in range(n)]
    planted = Planted(scores=True)
    fewer = chosen(strengths, planted, Asked(adaptive=True, probabilities=True))
    full = chosen(strengths, Planted(), Asked(probabilities=True))
    # Different answers, each as a pair with itself, and one pair to see that a margin is a difference of scores.
    different = len(set(strengths))
    assert planted.seen == different + (different > 1)
    assert fewer.more["comparisons"] == -(-n // 2)
    assert fewer.ranking is not None
    assert full.ranking is not None
    assert fewer.ranking.order == full.ranking.order
    assert fewer.ranking.probabilities == pytest.approx(full.ranking.probabilities, nan_ok=True)
    assert fewer.more["probabilities"] == pytest.approx(full.more["probabilities"])


def test_a_model_without_an_outcome_model_only_ranks() -> None:
    for asked in (Asked(probabilities=True), Asked(threshold=0.5)):
        with pytest.raises(UsageError, match="it only ranks"):
            chosen([1, 2], Planted(), asked, raw=True)
    for strengths, best, comparisons in (([3, 0, 1, 2], 0, 3), ([0, 3, 1, 2], 1, 6)):
        planted = Planted()
        found = chosen(strengths, planted, Asked(adaptive=True), raw=True)
        assert found.ranking is not None
        assert found.ranking.best == best
        assert planted.seen <= comparisons


def test_an_answer_that_fails_names_the_comparison() -> None:
    for scores in (False, True):
        found = chosen([1, "fail", 2], Planted(scores=scores), Asked(adaptive=True))
        assert found.ranking is None
        assert found.error is not None
        assert found.error.field == "responses 1 and 2"


def test_a_threshold_that_is_no_probability() -> None:
    with pytest.raises(UsageError, match="between 0 and 1, found 2"):
        chosen([1, 2], Planted(), Asked(threshold=2))


ROWS: list[dict[str, Any]] = [
    {"id": "good", "prompt": "Why?", "responses": ["3", "1", "2"], "reference": "0", "system": "Be brief."},
    {"id": "bad", "prompt": "Why?", "responses": ["1", "0"], "reference": "4"},
    {"id": "even", "prompt": "Why?", "responses": ["1", "0"], "reference": "1"},
]


def test_none_is_good_if_the_best_is_no_better_than_the_reference() -> None:
    rows = [
        Candidates(each["id"], ("Why?",), tuple((text,) for text in each["responses"]), 1, reference=each["reference"])
        for each in ROWS
    ]
    missing = Candidates("none", ("Why?",), (("1",), ("2",)), 9)
    forecaster = Forecaster(Planted(), Davidson(1.0, -30.0, 0.0))
    found = list(choices([*rows, missing], forecaster, asked=Asked(threshold=0.5)))
    no_better = [each.more["no_better"] for each in found[:3]]
    assert no_better == pytest.approx([1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3)), 0.5])
    assert [each.more["none_good"] for each in found[:3]] == [False, True, True]
    assert str(found[3].error) == "best: row 9, reference: is missing; --threshold compares the best answer with it"
    assert found[3].more == {"no_better": None, "none_good": None}


def test_the_program(prefcast_here: Run, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", ROWS)
    plain = prefcast_here("best", file, *SURFACE, "-o", "plain.jsonl", "--with-text")
    assert (plain.returncode, plain.stderr) == (0, "")
    first, second, _ = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    usual = "id best strength responses order strengths pairwise truncated right error"
    assert " ".join(first) == f"{usual} prompt response system reference"
    assert (first["system"], first["reference"]) == ("Be brief.", "0")
    assert (second["system"], second["reference"]) == (None, "4")
    options = ("--adaptive", "--probabilities", "--threshold", "0.6")
    done = prefcast_here("best", file, *SURFACE, "-o", "all.jsonl", *options)
    assert done.returncode == 0
    assert "comparisons instead of 5 (" in done.stderr
    assert "of 3 prompts have no good answer" in done.stderr
    found = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert " ".join(found[0]) == f"{usual} comparisons probability probabilities no_better none_good"
    for row in found:
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert row["probability"] == row["probabilities"][row["best"]]
        assert row["none_good"] == (row["no_better"] >= 0.6)
    prefcast_here("best", file, *SURFACE, "-o", "all.csv", *options, "--with-text")
    rows = list(csv.DictReader(StringIO((tmp_path / "all.csv").read_text())))
    names = "id,best,strength,responses,truncated,right,error,comparisons,probability,no_better,none_good"
    assert ",".join(rows[0]) == f"{names},prompt,response,system,reference"
    assert rows[0]["system"] == "Be brief."
    assert float(rows[1]["no_better"]) == found[1]["no_better"]
    again = prefcast_here("best", file, *SURFACE, "--probabilities")
    assert again.returncode == 2
    assert "--probabilities needs an output file" in again.stderr


def test_a_raw_reward_model_says_that_it_only_ranks(prefcast_here: Run, tmp_path: Path) -> None:
    save_deberta(tmp_path / "model")
    rows = [{"id": n, "prompt": f"Why {n}?", "responses": ["a b", "b c d", "a", "d e f"][: n + 2]} for n in range(3)]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    full = prefcast_here("best", file, "--model", "model", "-o", "full.jsonl", "--no-store")
    assert "the answers are ranked, and there are no probabilities" in full.stderr
    fewer = prefcast_here("best", file, "--model", "model", "-o", "fewer.jsonl", "--adaptive", "--no-store")
    assert "5 comparisons instead of 10 (50.0%)" in fewer.stderr
    best = [
        [json.loads(line)["order"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("full.jsonl", "fewer.jsonl")
    ]
    assert best[0] == best[1]
    refused = prefcast_here("best", file, "--model", "model", "-o", "no.jsonl", "--probabilities")
    assert refused.returncode == 2
    assert "it only ranks" in refused.stderr
    assert not (tmp_path / "no.jsonl").exists()
