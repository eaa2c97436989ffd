"""The public contract of scorers (`prefcast.testing`): every scorer here keeps it, it notices what breaks it, and another
package can add a scorer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from checkpoints import FAMILIES, fresh_scorer
from conftest import EXAMPLES, ROOT, labelled, write_csv
from prefcast import Evidence, Pair, Scorer, load_forecaster
from prefcast.forecasts.forecaster import built_in
from prefcast.pairs.budget import WHOLE
from prefcast.scorers.base import Cost, Promise
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.testing import check_scorer, contract
from servers import PAIR, serving

OWN = ROOT / "examples" / "own_scorer"


@pytest.mark.parametrize("name", built_in())
def test_the_built_in_scorers_keep_the_contract(name: str) -> None:
    check_scorer(lambda: load_forecaster(name).scorer)


def test_an_ensemble_keeps_the_contract() -> None:
    def make() -> Scorer:
        scorers = [load_forecaster(name).scorer for name in ("surface", "length")]
        return BlendScorer([Member(scorer, WHOLE, 0.5, 0.25) for scorer in scorers])

    check_scorer(make)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_reward_models_keeps_the_contract(tmp_path: Path, family: str) -> None:
    folder = FAMILIES[family](tmp_path / "model")
    # In float32 another batch may change the last digits.
    pairs = [pair for pair in contract.example_pairs() if pair.id != "turns"]

    def make() -> Scorer:
        scorer: Scorer = fresh_scorer(folder)
        scorer.promise = Promise(swap=0.0, batch=1e-5)
        return scorer

    check_scorer(make, pairs)


class Broken(Scorer):
    """Lengths, with a fault."""

    name: ClassVar[str] = "length"

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self.cost = Cost.INSTANT
        self._seen = 0

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        margin = np.array([float(len(pair.response_a[0]) - len(pair.response_b[0])) for pair in pairs])
        tie = np.zeros(len(pairs))
        self._seen += len(pairs)
        if self._fault == "swap":
            margin = np.abs(margin)
        if self._fault == "batch":
            margin = margin * (1 + len(pairs))
        if self._fault == "form":
            margin[:1] = np.nan
        return Evidence(margin, tie)

    def batches(self, pairs: Sequence[Pair]) -> Sequence[Sequence[int]]:
        whole = super().batches(pairs)
        return [*whole, [0]] if self._fault == "twice" and len(pairs) > 1 else whole

    def save(self, folder: Path) -> None:
        if self._fault == "files":
            (folder / "more.txt").write_text("more")


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ("swap", contract.a_swap_negates_the_margin, "a swap of A and B changes margin"),
        ("batch", contract.batches_do_not_matter, "scoring a pair alone changes margin"),
        ("form", contract.evidence_has_its_form, "without finite evidence must have a problem"),
        ("twice", contract.batches_do_not_matter, "every position exactly once"),
        ("files", contract.what_is_saved_is_loaded, "save wrote ['more.txt']"),
    ],
)
def test_what_breaks_the_contract_is_named(fault: str, check: Callable[..., None], said: str) -> None:
    with pytest.raises(AssertionError, match=said.replace("[", r"\[")):
        check(lambda: Broken(fault), contract.example_pairs())


@pytest.fixture(scope="module")
def with_own_scorer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of programs that have the example's package."""
    folder = tmp_path_factory.mktemp("own")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(folder), str(OWN)], check=True, capture_output=True)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def test_another_package_adds_a_scorer(prefcast: Any, tmp_path: Path, with_own_scorer: dict[str, str]) -> None:
    def run(*arguments: str | Path) -> str:
        done = prefcast(*arguments, **with_own_scorer)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    assert "courtesy" in run("models")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(200):
        kind = int(rng.integers(0, 3))
        a, b = (
            ("Please, of course.", "No.") if kind == 0 else ("No.", "Thanks, glad to.") if kind == 1 else ("No.", "No.")
        )
        rows.append(labelled(kind, id=number, prompt=(f"Question {number}?",), a=(a,), b=(b,)))
    write_csv(tmp_path / "votes.csv", rows)
    run("fit", "votes.csv", "--model", "courtesy", "--option", "weight=2", "-o", "mine")
    run("predict", EXAMPLES, "--forecaster", "mine", "-o", "forecasts.jsonl")
    assert len((tmp_path / "forecasts.jsonl").read_text().splitlines()) == 42
    isolated = ("predict", EXAMPLES, "--forecaster", "mine", "--isolate", "--no-store", "-o", "isolated.jsonl")
    run(*isolated)
    assert (tmp_path / "isolated.jsonl").read_bytes() == (tmp_path / "forecasts.jsonl").read_bytes()
    assert "log loss" in run("evaluate", "votes.csv", "--forecaster", "mine")
    done = prefcast("score", EXAMPLES, "--model", "courtesy", "--option", "wait=2", "-o", "s.csv", **with_own_scorer)
    assert done.returncode == 2
    assert "'wait=2' is not NAME=VALUE with a name of this model's options (weight)" in done.stderr
    with serving("--forecaster", str(tmp_path / "mine"), **with_own_scorer) as server:
        assert server.forecast(**PAIR)["probabilities"]


def test_the_own_scorer_keeps_the_contract(with_own_scorer: dict[str, str]) -> None:
    code = (
        "from prefcast.testing import check_scorer; from courtesy import CourtesyScorer; check_scorer(CourtesyScorer)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **with_own_scorer}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
