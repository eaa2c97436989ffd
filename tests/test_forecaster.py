from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import prefcast
from conftest import EXAMPLES, kaggle_row, write_jsonl
from prefcast import Forecaster, Pair, load_forecaster, open_pairs, read_pairs
from prefcast.base.files import atomic_file
from prefcast.errors import FitError, ForecasterError, UsageError
from prefcast.outcomes.models import Davidson, NotebookRule, RaoKupper
from prefcast.pairs.budget import KeepLast, Notebook

PAIRS = list(read_pairs(EXAMPLES))


def test_a_forecaster_survives_its_folder(tmp_path: Path) -> None:
    made = Forecaster(load_forecaster("surface").scorer, RaoKupper(1.2, 0.3, 0.1), Notebook(), 0.25, {"data": "mine"})
    made.save(tmp_path / "deep" / "f")
    found = load_forecaster(tmp_path / "deep" / "f")
    assert (found.outcome, found.budget, found.prior, dict(found.card)) == (
        made.outcome,
        made.budget,
        (0.375, 0.375, 0.25),
        {"data": "mine"},
    )
    np.testing.assert_array_equal(found.forecast(PAIRS).probabilities, made.forecast(PAIRS).probabilities)
    card = json.loads((tmp_path / "deep" / "f" / "forecaster.json").read_text())
    assert set(card["versions"]) == {"prefcast", "numpy", "python"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"f"}


def test_saving_replaces_a_forecaster_but_nothing_else(tmp_path: Path) -> None:
    load_forecaster("length").save(tmp_path / "f")
    load_forecaster("surface").save(tmp_path / "f")
    assert load_forecaster(tmp_path / "f").scorer.name == "surface"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds other things than a forecaster"):
        load_forecaster("length").save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_file_laid_beside_a_forecaster_does_not_matter_and_is_not_lost(tmp_path: Path) -> None:
    load_forecaster("surface").save(tmp_path / "f")
    (tmp_path / "f" / "notes.txt").write_text("hello")
    assert load_forecaster(tmp_path / "f").scorer.name == "surface"
    with pytest.raises(UsageError, match="holds other things than a forecaster"):
        load_forecaster("surface").save(tmp_path / "f")
    assert (tmp_path / "f" / "notes.txt").read_text() == "hello"


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupted"]
)
def test_a_save_that_fails_leaves_the_old_forecaster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    load_forecaster("length").save(tmp_path / "f")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise fault
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        load_forecaster("surface").save(tmp_path / "f")
    monkeypatch.undo()
    assert load_forecaster(tmp_path / "f").scorer.name == "length"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_first_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        load_forecaster("surface").save(tmp_path / "f")
    monkeypatch.undo()
    assert not any(tmp_path.iterdir())


def test_saving_into_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_forecaster("surface").save(".")
    assert Path.cwd() == tmp_path
    assert load_forecaster(".").scorer.name == "surface"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        load_forecaster("length").save(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be written"), atomic_file(tmp_path / name):
        pass
    with pytest.raises(ForecasterError, match="no such forecaster folder"):
        load_forecaster(tmp_path / name)


def test_a_link_to_a_forecaster_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    load_forecaster("length").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "forecaster.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(format=9), "format 9 is not one that this version reads"),
        (lambda card: card.update(model="elo"), "damaged: UsageError: unknown model 'elo'"),
        (lambda card: card.update(scorer_sha256="0"), "not those that the outcome model was fitted for"),
        (lambda card: card.update(prior_tie=2), "prior_tie is 2.0; expected a share"),
        (lambda card: card.update(prior_tie=10**400), "damaged: OverflowError"),
        (lambda card: card.pop("budget"), "damaged: KeyError: 'budget'"),
        (lambda card: card["outcome"].update(kind="elo"), "unknown outcome model 'elo'"),
        (lambda card: card["outcome"]["parameters"].update(scale="x"), "needs finite numbers"),
    ],
)
def test_folders_that_are_none(tmp_path: Path, change: object, message: str) -> None:
    load_forecaster("surface").save(tmp_path / "f")
    path = tmp_path / "f" / "forecaster.json"
    card = json.loads(path.read_text())
    change(card)  # type: ignore[operator]
    path.write_text(json.dumps(card))
    with pytest.raises(ForecasterError, match=message):
        load_forecaster(tmp_path / "f")


def test_names_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown model 'lenght'; did you mean 'length'"):
        load_forecaster("lenght")
    with pytest.raises(ForecasterError, match="no such forecaster folder; built in are embedded, surface, length"):
        load_forecaster(tmp_path / "none")
    with pytest.raises(ForecasterError, match="not a forecaster folder: No such file"):
        load_forecaster(tmp_path)
    for text in ("{", "[" * 100_000, "[]"):
        (tmp_path / "forecaster.json").write_text(text)
        with pytest.raises(ForecasterError, match="damaged"):
            load_forecaster(tmp_path)


def test_rows_that_failed_keep_their_place_with_the_class_prior(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row("a"), kaggle_row("b", prompt=5), kaggle_row("c")])
    forecaster = load_forecaster("surface")
    with open_pairs(path) as file:
        forecasts = forecaster.forecast(file)
    assert forecasts.ids == ["a", "b", "c"]
    assert [error is not None for error in forecasts.errors] == [False, True, False]
    np.testing.assert_allclose(forecasts.probabilities[1], forecaster.prior)
    assert forecaster.prior[0] == forecaster.prior[1]
    assert np.isnan(forecasts.margin[1])


def test_the_budget_decides_what_is_read() -> None:
    pair = Pair.of("p", "a" * 500, "b" * 100)
    free, cut = (
        load_forecaster("length").with_budget(budget).forecast([pair]) for budget in (KeepLast(1000), KeepLast(101))
    )
    assert free.margin[0] > cut.margin[0] >= 0
    assert cut.truncations[0].kept == 101
    assert cut.pairs[0] is pair


def test_fitting_moves_the_link_and_not_the_evidence() -> None:
    before = load_forecaster("surface")
    after = before.fit(PAIRS)
    assert isinstance(after.outcome, Davidson)
    assert after.prior_tie == 12 / 42
    assert (after.card["outcome_fitted_on"], after.card["made_from"]) == (42, before.card)
    assert before.fit(iter(PAIRS)).outcome == after.outcome
    np.testing.assert_array_equal(after.forecast(PAIRS).margin, before.forecast(PAIRS).margin)
    labels = [pair.outcome for pair in PAIRS]
    losses = [-np.log(each.forecast(PAIRS).probabilities[np.arange(42), labels]).mean() for each in (before, after)]
    assert losses[1] < losses[0]
    assert isinstance(before.fit(PAIRS, RaoKupper).outcome, RaoKupper)
    with pytest.raises(UsageError, match="every pair must have an outcome"):
        before.fit([Pair.of("p", "a", "b")])
    with pytest.raises(FitError, match="never occurs"):
        before.fit(PAIRS[:1])


def test_an_explanation_says_what_moved_a_forecast_and_by_how_much() -> None:
    pair = next(pair for pair in PAIRS if pair.id == "ex-37")  # B is empty
    explanation = load_forecaster().explain(pair)
    forecast = load_forecaster().forecast([pair])[0]
    assert explanation.forecast.probabilities == forecast.probabilities
    by_name = {influence.name: influence for influence in explanation.influences}
    assert by_name["length"].change[0] > 0 > by_name["length"].change[1]
    for influence in explanation.influences:
        assert sum(influence.change) == pytest.approx(0, abs=1e-12)
    sizes = [max(map(abs, influence.change)) for influence in explanation.influences]
    assert sizes == sorted(sizes, reverse=True)
    total = sum(influence.margin for influence in explanation.influences)
    assert total == pytest.approx(load_forecaster().outcome.parameters()["scale"] * forecast.margin, abs=1e-9)


def test_a_swap_swaps_the_explanation() -> None:
    one, other = (load_forecaster().explain(pair) for pair in (PAIRS[5], PAIRS[5].swapped()))
    assert [influence.name for influence in one.influences] == [influence.name for influence in other.influences]
    for left, right in zip(one.influences, other.influences, strict=True):
        np.testing.assert_allclose(left.change, np.array(right.change)[[1, 0, 2]], atol=1e-12)


def test_the_notebooks_rule_can_serve_as_outcome_model() -> None:
    forecaster = Forecaster(load_forecaster("length").scorer, NotebookRule(), Notebook())
    p = forecaster.forecast([Pair.of("p", "same length", "SAME LENGTH")]).probabilities[0]
    np.testing.assert_allclose(p, [0.00005, 0.00005, 0.9999])
    assert forecaster.explain(PAIRS[0]).influences


def test_the_shipped_cards_tell_data_and_figures() -> None:
    card = load_forecaster("surface").card
    assert sum(source["n"] for source in card["trained_on"].values()) > 19_000
    figures = card["figures"]["dev_cross_fitted"]
    assert figures["n"] == 588
    assert figures["log_loss"]["low"] < figures["log_loss"]["value"] <= 1.055
    gain = card["figures"]["cross_validation"]["gain_over_lengths"]
    assert gain["low"] > 0
    assert load_forecaster("length").card["figures"]["dev_cross_fitted"]["n"] == 588


def test_the_public_names() -> None:
    assert set(prefcast.__all__) <= set(dir(prefcast))
    for name in prefcast.__all__:
        assert getattr(prefcast, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prefcast.nothing  # noqa: B018
