"""Fits that shrink towards the outcome model that a forecaster is shipped with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefcast.fitting.cards import shipped_said
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import Candidate, Fitter
from prefcast.fitting.selection import AS_SHIPPED, OverShipped, davidson_link, fit_link
from prefcast.fitting.shipped import Shipped
from prefcast.outcomes.models import Davidson, FittedModel, Link, RaoKupper
from prefcast.outcomes.statistics.bootstrap import Figure

SHIPPED = Davidson(0.7, 0.2, 1.3)
ELSEWHERE = Davidson(1.8, -1.0, 0.4)
DAVIDSON = Candidate("davidson", "davidson", (0,), shrunk=True)


def shipped(outcome: FittedModel = SHIPPED) -> Shipped:
    theta = np.array([outcome.scale, outcome.level, outcome.tie_weight])
    draws = theta + np.random.default_rng(5).normal(size=(200, 3)) * 0.08
    return Shipped(outcome, Link(outcome.kind, ("margin",), ("tie",), theta, draws), 0.3)


def labelled(
    n: int, truth: FittedModel, seed: int = 0, copies: int = 1, known: dict[int, Shipped] | None = None
) -> LabelledEvidence:
    """Rows of one scorer whose outcomes follow `truth`; each row `copies` times, under one first prompt."""
    rng = np.random.default_rng(seed)
    margin, tie = rng.normal(size=n), rng.normal(size=n) * 0.4 - 0.2
    p = truth.probabilities(margin, tie)
    outcome = (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    rows = np.repeat(np.arange(n), copies)
    data = LabelledEvidence(1, shipped={0: shipped()} if known is None else known)
    data.add(margin[rows, None], tie[rows, None], np.eye(3)[outcome[rows]], rows.astype(np.uint64))
    return data


def excess(link: Link, truth: FittedModel) -> float:
    """The log loss of the link minus the least possible one, on fresh rows."""
    rng = np.random.default_rng(99)
    margin, tie = rng.normal(size=4000), rng.normal(size=4000) * 0.4 - 0.2
    p, q = truth.probabilities(margin, tie), link.probabilities(margin[:, None], tie[:, None])
    return float((p * (np.log(p) - np.log(q))).sum(axis=1).mean())


@pytest.mark.parametrize("labels", [50, 200])
def test_a_few_labels_do_no_harm(labels: int) -> None:
    shrunk = [excess(Fitter(labelled(labels, SHIPPED, seed)).link(DAVIDSON, 0, 0), SHIPPED) for seed in range(20)]
    free = [excess(davidson_link(labelled(labels, SHIPPED, seed), repeats=0), SHIPPED) for seed in range(20)]
    assert np.mean(shrunk) < 0.001
    assert np.mean(shrunk) < np.mean(free) / 5


@pytest.mark.parametrize("truth", [ELSEWHERE, RaoKupper(2.0, 1.0, 0.5)], ids=lambda model: model.kind)
def test_many_labels_lead_elsewhere(truth: FittedModel) -> None:
    found = fit_link(labelled(1500, truth), repeats=0)
    assert excess(found.link, truth) < 0.004
    before = excess(shipped().as_link(0), truth)
    assert found.over_shipped is not None
    assert not found.over_shipped.kept
    assert found.over_shipped.gain.low < before + 0.05
    assert found.over_shipped.gain.low > 0
    assert found.over_shipped.best == found.chosen != AS_SHIPPED


def test_the_prior_weighs_less_with_more_labels() -> None:
    weights = [Fitter(labelled(n, ELSEWHERE)).shrink(DAVIDSON).parts[0].weight for n in (20, 60, 400)]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] < 1e-6


def test_rows_of_one_prompt_count_together() -> None:
    once, many = (Fitter(labelled(120, ELSEWHERE, 3, copies)) for copies in (1, 10))
    one, ten = once.shrink(DAVIDSON), many.shrink(DAVIDSON)
    assert one.power > 0.8
    assert ten.power == pytest.approx(one.power / 10, rel=0.2)
    np.testing.assert_allclose(ten.optimum.theta, one.optimum.theta, atol=0.1)
    # Ten rows of ten prompts are ten times the labels.
    assert Fitter(labelled(1200, ELSEWHERE, 3)).shrink(DAVIDSON).power > 0.8


def test_as_shipped_is_kept_exactly() -> None:
    found = next(
        fit for seed in range(20) if (fit := fit_link(labelled(40, SHIPPED, seed), repeats=50)).chosen == AS_SHIPPED
    )
    assert (found.link.theta == [SHIPPED.scale, SHIPPED.level, SHIPPED.tie_weight]).all()
    known = shipped().link
    assert known is not None
    np.testing.assert_array_equal(found.link.draws, known.draws)
    over = found.over_shipped
    assert over is not None
    assert over.kept
    assert found.log_loss == over.log_loss
    assert over.best in {trial.name for trial in found.trials} - {AS_SHIPPED}
    assert [trial.taken for trial in found.trials].count(True) == 1


def test_another_kind_of_model_starts_from_the_same_forecasts() -> None:
    fitter = Fitter(labelled(300, SHIPPED))
    wanted = shipped().as_link(0)
    other = Candidate("rao-kupper", "rao-kupper", (0,), shrunk=True)
    basis, offset, _ = fitter.basis(other)
    link = fitter.link(other, 0, 0)
    assert basis.shape == (3, 3)
    assert np.isfinite(offset).all()
    rows = fitter.sample
    p, q = (each.probabilities(*fitter.data.columns(each, rows)) for each in (wanted, link))
    assert np.abs(p - q).max() < 0.08


@pytest.mark.parametrize("labels", [60, 5200])
def test_the_draws_lie_around_the_fit(labels: int) -> None:
    """Below and above the number of labels up to which each draw is fitted anew."""
    link = Fitter(labelled(labels, ELSEWHERE)).link(DAVIDSON, 200, 0)
    assert link.draws.shape == (200, 3)
    assert (np.abs(link.draws.mean(axis=0) - link.theta) < link.draws.std(axis=0)).all()
    again = Fitter(labelled(labels, ELSEWHERE)).link(DAVIDSON, 200, 0)
    np.testing.assert_array_equal(again.draws, link.draws)


def test_exchanging_the_sides_changes_nothing() -> None:
    data = labelled(200, ELSEWHERE)
    rows = np.concatenate(list(data.table.blocks()))
    swapped = LabelledEvidence(1, shipped=data.shipped)
    swapped.add(-rows[:, :1], rows[:, 1:2], data.votes(rows)[:, [1, 0, 2]], data.keys(rows))
    one, other = fit_link(data, repeats=5), fit_link(swapped, repeats=5)
    assert one.chosen == other.chosen
    np.testing.assert_allclose(one.link.theta, other.link.theta, atol=1e-9)


def test_an_ensemble_shrinks_towards_its_shipped_member() -> None:
    rng = np.random.default_rng(0)
    margin, tie = rng.normal(size=(400, 2)), np.zeros((400, 2))
    p = Davidson(1.0, 0.2).probabilities(margin.sum(axis=1))
    outcome = (rng.random(400)[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    keys = np.arange(400, dtype=np.uint64)
    data = LabelledEvidence(2, names=("mine", "other"), shipped={0: shipped(Davidson(1.0, 0.2, 0.0))})
    data.add(margin, tie, np.eye(3)[outcome], keys)
    found = fit_link(data, repeats=5)
    assert found.members == (0, 1)
    assert found.jury is not None
    assert all(lost.value > 0 for lost in found.jury.lost.values())
    assert len(found.member_links) == 2
    noise = LabelledEvidence(2, names=("mine", "noise"), shipped={0: shipped(Davidson(1.0, 0.2, 0.0))})
    noise.add(np.column_stack([margin.sum(axis=1), rng.normal(size=400)]), tie, np.eye(3)[outcome], keys)
    alone = fit_link(noise, repeats=5)
    assert (alone.members, alone.useless) == ((0,), (1,))


def said(gain: Figure, *, kept: bool) -> str:
    loss = Figure(1.015, 0.9, 1.1)
    return shipped_said(OverShipped(loss, "davidson", Figure(1.015 - gain.value, 0.9, 1.1), gain, kept), 588)


def test_one_line_says_whether_it_is_better() -> None:
    assert said(Figure(0.003, -0.001, 0.007), kept=False) == (
        "log loss out of fold 1.0120, as shipped 1.0150: better by 0.0030 [-0.0010, 0.0070] (n = 588)"
    )
    worse = said(Figure(-0.004, -0.009, 0.001), kept=True)
    assert worse.endswith("(davidson) 1.0190 out of fold: worse by 0.0040 [-0.0010, 0.0090] (n = 588)")
    assert worse.startswith("no fit is better than as shipped, so the forecaster stays as shipped: log loss 1.0150")
    assert "better by 0.0010 [-0.0010, 0.0020], less than its standard error" in said(
        Figure(0.001, -0.001, 0.002), kept=True
    )


def test_without_an_outcome_model_nothing_is_said_of_as_shipped() -> None:
    found: Any = fit_link(labelled(100, ELSEWHERE, known={}), repeats=5)
    assert found.over_shipped is None
    assert AS_SHIPPED not in {trial.name for trial in found.trials}
