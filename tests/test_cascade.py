"""Cascades: a first tier scores every pair, a second tier a share of them; their folders, and the verbs that use them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import prefcast
from conftest import Run, kaggle_row, write_csv
from prefcast import Evidence, Pair, Scorer, load_forecaster
from prefcast.errors import ForecasterError, PrefcastError, UsageError
from prefcast.fitting import Fitted, fit
from prefcast.forecasts.resolve import Choice, resolve
from prefcast.outcomes.agreement import Agreement
from prefcast.outcomes.models import Davidson
from prefcast.pairs import Outcome, Turn
from prefcast.pairs.budget import WHOLE
from prefcast.scorers.base import Cost, Meter
from prefcast.scorers.cascade import Options
from prefcast.scorers.cascade.rule import FACTS, FEATURES, MARGIN_ALONE, Readout, Rule, facts_of, features
from prefcast.scorers.cascade.scorer import ESCALATED, CascadeScorer, Tier
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES, covariates
from prefcast.testing import check_scorer, example_pairs
from servers import serving

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
COVARIATES = {"margin": dict.fromkeys(MARGIN_COVARIATES, 0.5), "tie": dict.fromkeys(TIE_COVARIATES, 0.1)}


def votes(n: int = 240, seed: int = 0) -> list[Pair]:
    """Pairs whose labels follow the lengths of their answers."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 60, (n, 2))
    p = Davidson(2.0, -0.4).probabilities(np.log(words[:, 0] / words[:, 1]))
    y = (rng.random(n)[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)
    return [
        Pair(
            (Turn(f"question {row}?", "word " * words[row, 0], "other " * words[row, 1]),),
            f"r{row}",
            Outcome(int(y[row])),
        )
        for row in range(n)
    ]


def write_votes(path: Path, given: Sequence[Pair]) -> Path:
    rows = [
        kaggle_row(pair.id, list(pair.prompt), list(pair.response_a), list(pair.response_b))
        | {name: int(pair.outcome == place) for place, name in enumerate(LABELS)}
        for pair in given
    ]
    return write_csv(path, rows)


def rule(weights: dict[str, float] | None = None) -> Rule:
    """The margin alone, unless other weights are given, with thresholds at 0, -0.01, ..., -1."""
    return Rule("by margin alone", weights or MARGIN_ALONE, tuple((-np.arange(101) / 100).tolist()))


def cascade(share: float = 0.5, scorers: Sequence[Scorer] = (), covariates: bool = True) -> CascadeScorer:
    first, second = scorers or (load_forecaster("surface").scorer, load_forecaster("length").scorer)
    more = COVARIATES if covariates else {"margin": {}, "tie": {}}
    alone = Readout({"margin:0": 0.7, **more["margin"]}, {"tie:0": 0.9, **more["tie"]}, -0.1)
    both = Readout({"margin:0": 0.5, "margin:1": 0.4}, {"tie:0": 0.3, "tie:1": 0.6}, 0.2)
    return CascadeScorer([Tier(first, WHOLE), Tier(second, WHOLE)], alone, both, rule(), share)


def features_of(made: CascadeScorer, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the rule knows of pairs."""
    found = made.with_options(Options(share=0.0)).evidence(pairs)
    rows = [(*covariates(pair)[1], *facts_of(pair)) for pair in pairs]
    return features(found.margin, found.tie, dict(zip(FACTS, np.array(rows).T, strict=True)))


class Counting(Scorer):
    """A second tier that remembers what it was asked, and fails where an answer says so."""

    name: ClassVar[str] = "length"
    cost = Cost.INSTANT

    def __init__(self) -> None:
        self.asked: list[Pair] = []

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        self.asked += pairs
        bad = {place: "cannot" for place, pair in enumerate(pairs) if "fail" in pair.response_a[0]}
        margin = np.array([np.nan if place in bad else 1.0 for place in range(len(pairs))])
        return Evidence(margin, margin * 0, bad)


# The scorer


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_cascade_keeps_the_contract(share: float) -> None:
    check_scorer(lambda: cascade(share))


@pytest.mark.parametrize("weights", [MARGIN_ALONE, dict.fromkeys(FEATURES, 0.1)], ids=["margin", "fitted"])
def test_the_same_pairs_are_escalated_alone_in_any_order_and_swapped(weights: dict[str, float]) -> None:
    pairs = [*example_pairs(), *votes(60)]
    made = cascade()
    scores = Rule.score(weights, features_of(made, pairs))
    scorer = CascadeScorer([made.first, made.second], *made.readouts, Rule.of("a rule", weights, scores), 0.4)
    whole = scorer.evidence(pairs).raw[ESCALATED]
    assert 0 < whole.sum() < len(pairs)
    alone = [scorer.evidence([pair]).raw[ESCALATED][0] for pair in pairs]
    swapped = scorer.evidence([pair.swapped() for pair in reversed(pairs)]).raw[ESCALATED][::-1]
    assert whole.tolist() == alone == swapped.tolist()


def test_the_second_tier_is_asked_about_the_share_and_counts_once() -> None:
    pairs = votes(100)
    scorer = cascade(0.4, [load_forecaster("length").scorer, second := Counting()])
    meter = Meter()
    found = scorer.evidence(pairs, meter)
    assert len(second.asked) == found.raw[ESCALATED].sum() > 0
    assert meter.pairs == 100
    for share, asked in ((0.0, 0), (1.0, 100)):
        other = cascade(share, [load_forecaster("length").scorer, second := Counting()])
        assert other.evidence(pairs).raw[ESCALATED].sum() == len(second.asked) == asked


def test_a_row_that_a_tier_cannot_score_is_an_error_of_that_row() -> None:
    pairs = [Pair.of("Why?", "fail", "So."), Pair.of("Why?", "Yes.", "No.")]
    found = cascade(1.0, [load_forecaster("length").scorer, Counting()]).evidence(pairs)
    assert found.problems == {0: "cannot"}
    assert np.isfinite(found.margin).tolist() == [False, True]
    found = cascade(1.0, [Counting(), second := Counting()]).evidence(pairs)
    assert found.problems == {0: "cannot"}
    # What the first tier cannot score is not sent to the second.
    assert len(second.asked) == 1


def test_options() -> None:
    scorer = cascade(0.5)
    assert scorer.with_options(Options()) is scorer
    changed = scorer.with_options(Options(share=0.2))
    assert changed.options.share == 0.2
    assert changed.identity() != scorer.identity()
    for options, said in ((Options(share=1.5), "from 0 to 1"), (Options(then="length"), "fixed by its fit")):
        with pytest.raises(UsageError, match=said):
            scorer.with_options(options)
    with pytest.raises(UsageError, match="--share"):
        resolve(Choice("surface", options=Options(share=0.2)))


def set_to(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Replaces what stands at a path of keys; the last item is the new value."""
    *keys, last, value = path

    def change(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in keys:
            inner = inner[key]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_to("format", 2), "format 2"),
        (set_to("share", 1.5), "share is 1.5"),
        (set_to("share", "all"), "finite number"),
        (set_to("share", True), "finite number"),
        (set_to("rule", "weights", {"size": float("nan")}), "finite number"),
        (set_to("rule", "weights", {"__class__": 1.0}), "rule is not one"),
        (set_to("rule", "name", 3), "rule is not one"),
        (set_to("rule", "thresholds", [0.0] * 100), "101 thresholds"),
        (set_to("rule", "thresholds", list(range(101))), "highest first"),
        (set_to("first", "level", None), "finite number"),
        (set_to("first", "margin", {"margin:1": 1.0}), "do not give"),
        (set_to("both", "tie", {}), "readouts are not those"),
        (set_to("first", "margin", {"margin:0": 1.0}), "readouts are not those"),
        (set_to("tiers", []), "two tiers"),
        (set_to("tiers", 0, "model", "no-such-model"), "unknown model"),
        (set_to("tiers", 1, "sha256", "0"), "not those that the outcome model was fitted for"),
        (set_to("rule", None), "NoneType"),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    from prefcast.scorers.base import fingerprint

    folder = tmp_path / "mine"
    prefcast.Forecaster(cascade(), Davidson(1.0, 0.0), WHOLE).save(folder)
    data = json.loads((folder / "cascade.json").read_text())
    change(data)
    (folder / "cascade.json").write_text(json.dumps(data))
    card = json.loads((folder / "forecaster.json").read_text())
    card["scorer_sha256"] = fingerprint(folder, CascadeScorer)
    (folder / "forecaster.json").write_text(json.dumps(card))
    with pytest.raises(ForecasterError, match=said) as raised:
        load_forecaster(folder)
    assert "\n" not in str(raised.value)


def test_numbers_that_are_too_large_are_an_error_of_the_row() -> None:
    made = cascade(1.0)
    huge = Readout({"margin:1": 1e308}, {"tie:1": 1e308}, 1e308)
    scorer = CascadeScorer([made.first, made.second], huge_first(made), huge, rule(dict.fromkeys(FEATURES, 1e308)), 0.0)
    found = prefcast.Forecaster(scorer, Davidson(1.0, 0.0), WHOLE).forecast(
        [Pair.of("Why?", "Because it is so.", "So.")]
    )
    assert "not finite" in str(found.errors[0])


def huge_first(made: CascadeScorer) -> Readout:
    return Readout(dict.fromkeys(made.readouts[0].margin, 1e308), dict.fromkeys(made.readouts[0].tie, 1e308), 1e308)


# From labels to forecasts


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFCAST_CACHE", "/nonexistent/never-made")
        return fit(
            votes(), model="surface", then="length", share=0.4, cost=(1, 50), running=prefcast.Running(keep=False)
        )


def test_a_fit_has_a_curve_and_a_card(fitted: Fitted) -> None:
    found = fitted.cascade
    assert found is not None
    assert [point.share for point in found.curve] == pytest.approx([step / 10 for step in range(11)])
    assert [found.curve[0].realised, found.curve[-1].realised] == [0, 1]
    assert all(abs(point.realised - point.share) < 0.1 for point in found.curve)
    for point in found.curve:
        assert point.log_loss.low < point.log_loss.value < point.log_loss.high
        assert point.cost == pytest.approx(1 + 50 * point.realised)
        assert point.gain.value == pytest.approx(found.curve[0].log_loss.value - point.log_loss.value)
    assert fitted.fit.log_loss.value == pytest.approx(found.curve[4].log_loss.value)
    said = fitted.forecaster.card["cascade"]
    assert (said["first"], said["then"], said["share"]) == ("surface", "length", 0.4)
    assert len(said["curve"]) == 11
    assert "first tier alone: margin of surface" in fitted.forecaster.card["parameters"]


def test_a_saved_cascade_forecasts_the_same(fitted: Fitted, tmp_path: Path) -> None:
    fitted.save(tmp_path / "mine")
    pairs = votes(40, seed=1)
    here = fitted.forecaster.forecast(pairs)
    again = load_forecaster(tmp_path / "mine").forecast(pairs)
    assert np.array_equal(here.probabilities, again.probabilities)
    assert here.escalated is not None
    assert 0 < here.escalated.sum() < 40
    # The link of the intervals is that of the forecasts, in both tiers.
    assert here.link is not None
    assert here.columns is not None
    assert here.link.probabilities(*here.columns) == pytest.approx(here.probabilities, abs=1e-9)
    low, high = here.interval or ((), ())
    assert ((low < here.probabilities) & (here.probabilities < high)).mean() > 0.9


def test_share_0_is_the_first_tier_and_share_1_asks_about_every_pair(fitted: Fitted) -> None:
    pairs = votes(30, seed=2)
    for share, wanted in ((0.0, 0), (1.0, 30)):
        changed = resolve(Choice(forecaster=fitted.forecaster, options=Options(share=share))).forecast(pairs)
        assert changed.escalated is not None
        assert changed.escalated.sum() == wanted


def test_a_target_takes_the_smallest_share_that_reaches_it_or_none(fitted: Fitted) -> None:
    assert fitted.cascade is not None
    curve = fitted.cascade.curve
    target = curve[6].log_loss.value
    wanted = next(point.share for point in curve if point.log_loss.value <= target)
    again = fit(votes(), model="surface", then="length", target_logloss=target)
    assert again.cascade is not None
    assert again.cascade.share == wanted
    with pytest.raises(PrefcastError, match="no share of the pairs reaches it; the lowest log loss is"):
        fit(votes(), model="surface", then="length", target_logloss=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"share": 0.3}, "name its second tier with --then"),
        ({"cost": (1.0, 2.0)}, "name its second tier with --then"),
        ({"then": "length", "share": 1.1}, "from 0 to 1"),
        ({"then": "length", "share": float("nan")}, "from 0 to 1"),
        ({"then": "length", "cost": (1.0, 0.0)}, "FIRST/SECOND"),
        ({"then": "length", "share": 0.3, "target_logloss": 1.0}, "leave --share out"),
        ({"then": "surface"}, "name another model"),
        ({"then": "length", "model": ["surface", "embedded"]}, "give --model once"),
        ({"then": "length", "target_prior": 0.3}, "does not go with"),
        ({"then": "no-such-model"}, "unknown model"),
        ({"agree": 1.0}, "--agree must be"),
        ({"agree": 0.8, "confidence": 0.0}, "--confidence must be"),
        ({"agree": 0.8, "target_prior": 0.3}, "does not go with"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(PrefcastError, match=said):
        fit(votes(30), **{"model": "surface", **arguments})


def test_the_program(prefcast_here: Run, tmp_path: Path) -> None:
    write_votes(tmp_path / "votes.csv", votes())
    write_votes(tmp_path / "new.csv", votes(50, seed=3))
    done = prefcast_here(
        *(
            "fit",
            "votes.csv",
            "--model",
            "surface",
            "--then",
            "length",
            "--cost",
            "1/50",
            "-o",
            "mine",
            "--json",
            "f.json",
        )
    )
    assert done.returncode == 0, done.stderr
    assert "by margin alone" in done.stdout
    assert "30% *" in done.stdout
    assert "cost of a pair" in done.stdout
    assert len(json.loads((tmp_path / "f.json").read_text())["cascade"]["curve"]) == 11
    done = prefcast_here("predict", "new.csv", "--forecaster", "mine", "-o", "one.jsonl")
    asked = int(done.stderr.split("the second tier scored ")[1].split()[0])
    assert 0 < asked < 50
    # The same rows in the other order and in two files are escalated alike.
    rows = list(csv.DictReader((tmp_path / "new.csv").read_text().splitlines()))
    write_csv(tmp_path / "turned.csv", rows[::-1][:30])
    prefcast_here("predict", "turned.csv", "--forecaster", "mine", "--no-store", "-o", "two.jsonl")
    one, two = (
        {row["id"]: row for row in map(json.loads, (tmp_path / name).read_text().splitlines())}
        for name in ("one.jsonl", "two.jsonl")
    )
    assert all(one[id] == row for id, row in two.items())
    done = prefcast_here("evaluate", "new.csv", "--forecaster", "mine", "--share", "1")
    assert "the second tier scored 50 of 50 rows (100.0%)" in done.stderr
    done = prefcast_here("explain", "new.csv", "--forecaster", "mine", "--id", "r0")
    assert "tie level" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("predict", "v.csv", "--model", "surface", "--then", "length"), "must be fitted to labelled pairs first"),
        (("predict", "v.csv", "--model", "surface", "--share", "0.3"), "has no option --share"),
        (("predict", "v.csv", "--model", "surface", "--hand-over", "ids.csv"), "has no promise of agreement"),
        (("predict", "v.csv", "--hand-over", "v.csv"), "is the input"),
        (("predict", "v.csv", "--hand-over", "ids.csv", "-o", "out.csv", "--shard", "1/2"), "exclude each other"),
        (("fit", "v.csv", "--model", "surface", "--then", "length", "--cost", "7", "-o", "m"), "FIRST/SECOND"),
        (("score", "v.csv", "--model", "surface", "--share", "0.2", "-o", "s.csv"), "--share"),
    ],
)
def test_what_the_program_refuses(prefcast_here: Run, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    write_votes(tmp_path / "v.csv", votes(25))
    done = prefcast_here(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.csv"]


# The promise of agreement


def promising(folder: Path, threshold: float | None) -> Path:
    """A cascade with a promise."""
    made = fit(votes(), model="surface", then="length").forecaster
    promise = Agreement(0.6, 0.95, threshold, 100, 0 if threshold is None else 40, 0 if threshold is None else 36)
    prefcast.Forecaster(made.scorer, made.outcome, made.budget, made.prior_tie, link=made.link, agreement=promise).save(
        folder
    )
    return folder


def test_the_rows_below_the_threshold_and_the_failed_ones_are_handed_over(prefcast_here: Run, tmp_path: Path) -> None:
    promising(tmp_path / "mine", 0.6)
    pairs = votes(60, seed=4)
    write_votes(tmp_path / "new.csv", pairs)
    with (tmp_path / "new.csv").open("a") as file:
        file.write('broken,"[""x""]","[","[""y""]",0,0,1\n')
    done = prefcast_here("predict", "new.csv", "--forecaster", "mine", "-o", "out.jsonl", "--hand-over", "ids.csv")
    assert done.returncode == 3
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    wanted = [row["id"] for row in rows if row["error"] or max(row[name] for name in LABELS) < 0.6]
    found = list(csv.reader((tmp_path / "ids.csv").read_text().splitlines()))
    assert found == [["id"], *([id] for id in wanted)]
    assert 1 < len(wanted) < 60
    assert f"{len(wanted)} of 61 rows are for people" in done.stderr
    done = prefcast_here("evaluate", "new.csv", "--forecaster", "mine", "--json", "f.json")
    said = json.loads((tmp_path / "f.json").read_text())["agreement"]
    kept = [row for row in rows if row["id"] not in wanted]
    right = sum(
        max(LABELS, key=row.__getitem__) == LABELS[int(pair.outcome or 0)]
        for row in kept
        for pair in pairs
        if pair.id == row["id"]
    )
    assert (said["rows"], said["kept"], said["agreed"]) == (60, len(kept), right)
    assert said["agreement"]["low"] < said["agreement"]["value"] < said["agreement"]["high"]
    assert "people agree on" in done.stdout


def test_without_a_threshold_every_row_is_handed_over(prefcast_here: Run, tmp_path: Path) -> None:
    promising(tmp_path / "mine", None)
    write_votes(tmp_path / "new.csv", votes(20, seed=4))
    prefcast_here("predict", "new.csv", "--forecaster", "mine", "-o", "out.csv", "--hand-over", "ids.csv")
    assert len((tmp_path / "ids.csv").read_text().splitlines()) == 21
    assert (
        "every one of the 20 rows is for people" in prefcast_here("evaluate", "new.csv", "--forecaster", "mine").stdout
    )


def test_other_settings_end_the_promise(prefcast_here: Run, tmp_path: Path) -> None:
    folder = promising(tmp_path / "mine", 0.6)
    assert resolve(Choice(forecaster=folder)).agreement is not None
    # The share of the fit is no change.
    assert resolve(Choice(forecaster=folder, options=Options(share=0.3))).agreement is not None
    assert resolve(Choice(forecaster=folder, options=Options(share=0.5))).agreement is None
    assert resolve(Choice(forecaster=folder, budget="keep-last:100")).agreement is None
    write_votes(tmp_path / "new.csv", votes(20, seed=4))
    done = prefcast_here(
        *("predict", "new.csv", "--forecaster", "mine", "--share", "0.5", "-o", "out.csv", "--hand-over", "ids.csv")
    )
    assert done.returncode == 2
    assert "does not hold" in done.stderr
    assert not (tmp_path / "ids.csv").exists()


def test_fit_tests_a_promise_on_rows_that_are_held_out(prefcast_here: Run, tmp_path: Path) -> None:
    write_votes(tmp_path / "votes.csv", votes(600))
    done = prefcast_here("fit", "votes.csv", "--model", "length", "--agree", "0.6", "-o", "mine", "--json", "f.json")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "f.json").read_text())
    promise = said["agreement"]
    assert said["fitted_on"]["rows"] + promise["rows"] == 600
    assert 240 < promise["rows"] < 360
    assert promise["lower_bound"] > 0.6
    assert promise["kept"] > 50
    assert "the most likely answer agrees with people at least 60% of the time" in done.stdout
    assert load_forecaster(tmp_path / "mine").agreement is not None
    done = prefcast_here("fit", "votes.csv", "--model", "length", "--agree", "0.99", "-o", "none")
    assert "every row is for people" in done.stdout


def test_the_server_says_which_tier_answered_and_what_is_for_people(tmp_path: Path) -> None:
    folder = promising(tmp_path / "mine", 0.6)
    pairs = votes(20, seed=5)
    wanted = load_forecaster(folder).forecast(pairs)
    asked = [
        {"prompt": pair.prompt[0], "response_a": pair.response_a[0], "response_b": pair.response_b[0]} for pair in pairs
    ]
    with serving("--forecaster", str(folder)) as server:
        said = server.loaded().forecast(pairs=asked)["forecasts"]
        counted = server.metric("prefcast_escalated_total")
    assert wanted.escalated is not None
    assert wanted.handed_over is not None
    assert [each["escalated"] for each in said] == wanted.escalated.tolist()
    assert [each["handed_over"] for each in said] == wanted.handed_over.tolist()
    assert counted == wanted.escalated.sum()


# Juries


def test_an_ensemble_says_which_members_earn_their_cost(prefcast_here: Run, tmp_path: Path) -> None:
    given = votes(400, seed=6)
    write_votes(tmp_path / "votes.csv", given)
    found = fit(given, model=["length", "surface"])
    assert found.fit.jury is not None
    assert set(found.fit.jury.lost) == set(found.fit.members)
    assert found.fit.jury.margin.diagonal() == pytest.approx([1, 1])
    assert 0.5 < abs(found.fit.jury.margin[0, 1]) < 1
    done = prefcast_here(
        "fit", "votes.csv", "--model", "length", "--model", "surface", "-o", "mine", "--json", "f.json"
    )
    assert "log loss that is lost without it" in done.stdout
    assert "earns its cost" in done.stdout
    assert "correlation between the margins" in done.stdout
    said = json.loads((tmp_path / "f.json").read_text())["jury"]
    assert said["correlations"]["models"] == ["length", "surface"]
