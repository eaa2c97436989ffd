"""Choosing links: by laws, and by data whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcast.errors import FitError, UsageError
from prefcast.fitting import fitter as fitting
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import LEAST_LABELS
from prefcast.fitting.selection import Fit, davidson_link, fit_link
from prefcast.outcomes.models import FITTED_MODELS, Davidson, Link, RaoKupper, drawn_interval
from prefcast.outcomes.statistics.likelihood import maximise

SWAPPED = [1, 0, 2]


def drawn(p: Any, rng: np.random.Generator) -> Any:
    """Outcomes (n,) of probabilities (n, 3)."""
    return (rng.random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)


def evidence(
    margin: Any,
    tie: Any,
    outcomes: Any,
    *,
    keys: Any = None,
    facts: tuple[Any, Any] | None = None,
    log_odds: bool = False,
) -> LabelledEvidence:
    """Rows for a fit: margin and tie (n,) or (n, members), a label each."""
    margin, tie = (np.atleast_2d(np.asarray(part, dtype=float).T).T for part in (margin, tie))
    names = ("empty",), ("similarity",)
    data = LabelledEvidence(margin.shape[1], *(names if facts else ((), ())), log_odds=log_odds)
    keys = np.arange(len(margin), dtype=np.uint64) if keys is None else np.asarray(keys, dtype=np.uint64)
    more = {} if facts is None else {"margin_covariates": facts[0], "tie_covariates": facts[1]}
    data.add(margin, tie, np.eye(3)[outcomes], keys, **more)
    return data


def simulated(n: int = 1500, seed: int = 0, scale: float = 1.0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    margin, tie = rng.normal(size=n) * 2, rng.normal(size=n)
    return margin, tie, drawn(Davidson(scale, -0.3, 0.5).probabilities(margin, tie), rng)


links = st.builds(
    lambda kind, theta: Link(kind, ("margin:0", "empty"), ("tie:0", "similarity"), theta[0], theta[1:]),
    st.sampled_from(sorted(FITTED_MODELS)),
    st.integers(0, 10**6).map(lambda seed: np.random.default_rng(seed).normal(size=(8, 5)) * 2),
)


@given(links, st.integers(0, 10**6))
def test_exchanging_the_sides_exchanges_the_columns_exactly(link: Link, seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, t = rng.normal(size=(6, 2)) * 3, rng.normal(size=(6, 2)) * 3
    p = link.probabilities(m, t)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(link.probabilities(-m, t), p[:, SWAPPED])
    for there, back in zip(link.interval(m, t), link.interval(-m, t), strict=True):
        np.testing.assert_array_equal(back, there[:, SWAPPED])
    np.testing.assert_allclose(link.drawn(m, t).sum(axis=2), 1, rtol=0, atol=1e-12)
    moved = link.shifted(0.7)
    if link.kind == "davidson":
        # Bayes' rule: the odds of a tie are multiplied, those of A against B stay.
        q = moved.probabilities(m, t)
        decided = p[:, 0] + p[:, 1]
        np.testing.assert_allclose(
            q[:, 2] * decided, np.exp(0.7) * p[:, 2] * (q[:, 0] + q[:, 1]), rtol=1e-9, atol=1e-300
        )
    assert link.renamed({"tie:0": "tie"}).tie == ("tie", "similarity")


def test_scores_at_another_scale_give_the_same_probabilities() -> None:
    margin, tie, y = simulated(400)
    found = fit_link(evidence(margin, tie, y), repeats=20)
    p = found.link.probabilities(margin[:, None], tie[:, None])
    for factor, tie_factor, shift in ((1e-4, 1e3, 7.0), (1e5, 1e-3, -2.0)):
        scaled = fit_link(evidence(margin * factor, tie * tie_factor + shift, y), repeats=20)
        assert scaled.chosen == found.chosen
        q = davidson_link(evidence(margin * factor, tie * tie_factor + shift, y), repeats=0)
        own = davidson_link(evidence(margin, tie, y), repeats=0)
        np.testing.assert_allclose(
            q.probabilities(margin[:, None] * factor, tie[:, None] * tie_factor + shift),
            own.probabilities(margin[:, None], tie[:, None]),
            atol=1e-7,
        )
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)


def test_a_fit_follows_an_exchange_of_the_sides() -> None:
    margin, tie, y = simulated(500)
    found, swapped = (
        fit_link(evidence(*each), repeats=30) for each in ((margin, tie, y), (-margin, tie, np.array(SWAPPED)[y]))
    )
    assert found.chosen == swapped.chosen
    np.testing.assert_allclose(swapped.link.theta, found.link.theta, atol=1e-7)
    np.testing.assert_allclose(swapped.link.draws, found.link.draws, atol=1e-6)
    assert swapped.log_loss.value == pytest.approx(found.log_loss.value, abs=1e-9)


@pytest.mark.parametrize("truth", [Davidson(0.8, -0.4, 0.7), RaoKupper(1.2, 0.3, 0.8)], ids=lambda model: model.kind)
def test_the_parameters_that_made_the_data_are_found(truth: Any) -> None:
    rng = np.random.default_rng(1)
    margin, tie = rng.normal(size=40_000) * 2, rng.normal(size=40_000)
    found = fit_link(evidence(margin, tie, drawn(truth.probabilities(margin, tie), rng)), repeats=50)
    assert found.link.kind == truth.kind
    np.testing.assert_allclose(found.link.theta, [truth.scale, truth.level, truth.tie_weight], atol=0.06)
    low, high = np.quantile(found.link.draws, [0.001, 0.999], axis=0)
    assert ((low < found.link.theta) & (found.link.theta < high)).all()
    assert found.useful


def test_covariates_are_found() -> None:
    rng = np.random.default_rng(2)
    n = 6000
    margin, tie, empty, similar = rng.normal(size=n), np.zeros(n), rng.integers(-1, 2, n), rng.random(n)
    p = np.exp(Davidson.log_probabilities(0.8 * margin + 2.0 * empty, -1.0 + 1.5 * similar)[0])
    found = fit_link(evidence(margin, tie, drawn(p, rng), facts=(empty[:, None], similar[:, None])), repeats=20)
    assert found.chosen == "davidson with covariates"
    by_name = dict(zip((*found.link.margin, "level", *found.link.tie), found.link.theta, strict=True))
    assert by_name["margin:0"] == pytest.approx(0.8, abs=0.1)
    assert by_name["empty"] == pytest.approx(2.0, abs=0.2)
    assert by_name["similarity"] == pytest.approx(1.5, abs=0.3)
    assert by_name["tie:0"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_calibrated_forecast_is_kept_as_given(seed: int) -> None:
    margin, tie, _ = simulated(800, seed)
    y = drawn(Davidson(1, 0, 1).probabilities(margin, tie), np.random.default_rng(seed + 100))
    found = fit_link(evidence(margin, tie, y, log_odds=True), repeats=20)
    # In one of the three a fitted model is better by chance, but not by enough.
    assert found.chosen == "as given"
    np.testing.assert_allclose(found.link.theta, [1, 0, 1], atol=1e-12)
    assert np.ptp(found.link.draws, axis=0).max() < 1e-12
    # A forecast that is far too sure is not.
    assert fit_link(evidence(5 * margin, 5 * tie, y, log_odds=True), repeats=5).chosen != "as given"


def test_scrambled_labels_are_told() -> None:
    useful = 0
    for seed in range(5):
        margin, tie, y = simulated(600, seed)
        found = fit_link(evidence(margin, tie, np.random.default_rng(seed).permutation(y)), repeats=5)
        useful += found.useful
        assert found.log_loss.value < 1.12
    assert useful == 0


def test_fifty_labels_say_how_uncertain_they_leave_it() -> None:
    margin, tie, y = simulated(3000)
    few, many = (fit_link(evidence(margin[:n], tie[:n], y[:n])) for n in (50, 3000))
    m, t = np.array([[2.0]]), np.array([[0.0]])
    widths = [np.subtract(*found.link.interval(m, t)[::-1])[0, 0] for found in (few, many)]
    assert widths[0] > 3 * widths[1] > 0
    assert np.isfinite(few.link.draws).all()
    assert few.log_loss.low < few.log_loss.value < few.log_loss.high


@pytest.mark.parametrize("n", [1, LEAST_LABELS - 1])
def test_too_few_labels(n: int) -> None:
    with pytest.raises(
        FitError,
        match=f"needs at least {LEAST_LABELS} labelled pairs that could be scored; there are {n}|first prompts",
    ):
        fit_link(evidence(*(part[:n] for part in simulated())))


def test_one_prompt_is_no_ground_for_a_fit_and_two_are() -> None:
    margin, tie, y = simulated(60)
    with pytest.raises(FitError, match="all of these have the same"):
        fit_link(evidence(margin, tie, y, keys=np.zeros(60)))
    for shift in range(12):
        found = fit_link(evidence(margin, tie, y, keys=np.arange(60) % 2 + 7 * shift), repeats=5)
        assert found.groups == 2


@pytest.mark.parametrize("never", [0, 2])
def test_an_outcome_that_never_occurs(never: int) -> None:
    margin, tie, y = simulated(500)
    kept = y != never
    found = fit_link(evidence(margin[kept], tie[kept], y[kept]), repeats=30)
    assert np.isfinite(found.link.theta).all()
    assert found.shares[never] == 0
    p = found.link.probabilities(margin[:, None], tie[:, None])
    assert np.isfinite(p).all()
    if never == 2:
        assert p[:, 2].mean() < 0.02


def test_separated_outcomes_are_held_by_the_penalty() -> None:
    margin = np.array([3.0, -3.0, 0.0] * 20)
    found = fit_link(evidence(margin, -np.abs(margin), np.array([0, 1, 2] * 20)), repeats=30)
    assert np.isfinite(found.link.theta).all()
    assert found.link.probabilities(np.array([[3.0]]), np.array([[-3.0]]))[0, 0] > 0.8


def members(n: int = 1500, seed: int = 0) -> tuple[Any, Any, Any]:
    """Two margins that know different things, and labels of both."""
    rng = np.random.default_rng(seed)
    both = rng.normal(size=(n, 2)) * 1.5
    return both, rng, drawn(Davidson(1.0, -0.4).probabilities(both.sum(axis=1)), rng)


def test_two_members_that_complement_each_other_beat_the_better_one() -> None:
    both, _, y = members()
    found = fit_link(evidence(both, 0 * both, y), repeats=20)
    assert (found.members, found.useless) == ((0, 1), ())
    assert len(found.member_links) == 2
    alone = min(fit_link(evidence(both[:, one], 0 * y, y), repeats=5).log_loss.value for one in range(2))
    assert found.log_loss.value < alone - 0.05
    np.testing.assert_allclose(found.link.theta[:2], [1, 1], atol=0.2)


@pytest.mark.parametrize("seed", range(4))
def test_a_member_that_knows_nothing_gets_no_weight(seed: int) -> None:
    both, rng, y = members(800, seed)
    noise = rng.normal(size=800)
    found = fit_link(evidence(np.column_stack([both.sum(axis=1), noise]), 0 * both, y), repeats=5)
    assert (found.members, found.useless) == ((0,), (1,))
    assert found.link.margin == ("margin:0",)


@pytest.mark.parametrize("n", [60, 300, 2000])
def test_a_copy_of_a_member_is_useless(n: int) -> None:
    both, _, y = members(n, n)
    for factor in (1.0, 3.0):
        copied = np.column_stack([both.sum(axis=1), factor * both.sum(axis=1)])
        found = fit_link(evidence(copied, 0 * copied, y), repeats=5)
        assert len(found.members) == 1
        assert len(found.useless) == 1


def test_no_member_is_useful_where_labels_are_noise() -> None:
    both, rng, y = members(400)
    found = fit_link(evidence(both, 0 * both, rng.permutation(y)), repeats=5)
    assert not found.useful
    assert (found.chosen, found.useless) == ("prior", (0, 1))


def test_cross_validation_keeps_a_prompt_in_one_fold() -> None:
    """A prompt ten times with the same label: split between folds, a fit would look better than it is."""
    margin, tie, y = simulated(150)
    once = fit_link(evidence(margin, tie, y, keys=np.arange(150)), repeats=5)
    ten = [np.repeat(part, 10) for part in (margin, tie, y, np.arange(150))]
    many = fit_link(evidence(*ten[:3], keys=ten[3]), repeats=100)
    assert many.groups == 150
    assert many.rows == 1500
    # As wide as that of 150 rows, not of 1,500.
    width = lambda figure: figure.high - figure.low  # noqa: E731
    assert width(many.log_loss) == pytest.approx(width(once.log_loss), rel=0.3)
    fitter = fitting.Fitter(evidence(*ten[:3], keys=ten[3]))
    out = fitter.out_of_fold(fitting.Candidate("davidson", "davidson", (0,)))
    by_prompt = out.reshape(150, 10, 3)
    np.testing.assert_array_equal(by_prompt, np.repeat(by_prompt[:, :1], 10, axis=1))


def test_memory_of_a_prompt_would_show() -> None:
    """Evidence that is a prompt's own noise, labels that are the prompt's own: grouped, it is worthless."""
    rng = np.random.default_rng(3)
    keys = np.repeat(np.arange(40), 10)
    found = fit_link(
        evidence(rng.normal(size=40)[keys], 0.0 * keys, rng.integers(0, 3, 40)[keys], keys=keys), repeats=5
    )
    assert not found.useful


def test_what_is_in_doubt_widens_the_interval_and_a_swap_mirrors_it() -> None:
    rng = np.random.default_rng(0)
    link = Link(
        "davidson", ("margin",), ("tie",), np.array([1.0, 0.0, 1.0]), rng.normal([1.0, 0.0, 1.0], 0.05, (200, 3))
    )
    m, t, error = rng.normal(size=(50, 1)), rng.normal(size=(50, 1)), rng.uniform(0.5, 2.0, 50)
    low, high = link.interval(m, t, error)
    narrow_low, narrow_high = link.interval(m, t)
    assert ((high - low) / (narrow_high - narrow_low))[:, :2].mean() > 1.5
    mirrored = link.interval(-m, t, error)
    assert np.array_equal(low, mirrored[0][:, [1, 0, 2]])
    assert np.array_equal(high, mirrored[1][:, [1, 0, 2]])
    np.testing.assert_allclose(link.interval(m, t, 0 * error), link.interval(m, t), atol=0.01)
    # The log-odds of A against B have the standard error that was given: 95 % of a normal distribution.
    sure = Link("davidson", ("margin",), ("tie",), np.array([1.0, -9.0, 0.0]), np.tile([1.0, -9.0, 0.0], (200, 1)))
    ends = [np.log(end[:, 0] / (1 - end[:, 0])) for end in sure.interval(np.zeros((1, 1)), t[:1], np.array([0.5]))]
    np.testing.assert_allclose(np.ravel(ends), [-0.98, 0.98], atol=0.05)


def test_an_interval_leaves_out_as_many_draws_as_it_says() -> None:
    """A further draw falls below the k-th of B with chance k / (B + 1)."""
    draws = np.random.default_rng(0).permutation(np.arange(1.0, 200.0))
    assert drawn_interval(draws) == pytest.approx((5.0, 195.0), rel=1e-12)
    link = Link("davidson", ("margin",), ("tie",), np.zeros(3), np.column_stack([draws, draws * 0, draws * 0]))
    low, high = link.interval(np.ones((1, 1)), np.zeros((1, 1)))
    ends = Davidson(1.0).probabilities([5.0, 195.0])
    np.testing.assert_allclose([low[0], high[0]], [ends.min(axis=0), ends.max(axis=0)], rtol=1e-12)


def test_the_prior_does_not_narrow_the_draws_of_few_labels() -> None:
    """They vary as the posterior does; the bootstrap of the penalised fit alone varies 0.8 times as much."""
    shares = []
    for seed in range(20):
        margin, _, y = simulated(30, seed, scale=0.3)
        nothing = np.zeros(len(margin))
        unit = np.sqrt((margin**2).mean())
        block = (margin / unit)[:, None], np.zeros((len(margin), 0)), np.eye(3)[y]
        found = maximise(
            Davidson.log_probabilities, lambda block=block: [block], np.eye(2), np.zeros(2), penalty=np.array([1, 0.1])
        )
        draws = davidson_link(evidence(margin, nothing, y), repeats=100, seed=seed).draws[:, 0] * unit
        shares.append(draws.std() / np.sqrt(np.linalg.inv(found.information)[0, 0]))
    assert 0.97 < np.mean(shares) / fitting.expanded(30) < 1.15


def test_few_groups_make_the_draws_wider() -> None:
    # Student's quantile for the normal one, n - 1 for n: of the tables.
    assert fitting.expanded(2) == pytest.approx(12.706 / 1.960 * np.sqrt(2), rel=1e-3)
    assert fitting.expanded(30) == pytest.approx(2.045 / 1.960 * np.sqrt(30 / 29), rel=1e-3)
    assert fitting.expanded(1_000_000) == pytest.approx(1.0, abs=1e-5)
    margin, tie, y = simulated(240)
    few, many = (davidson_link(evidence(margin, tie, y, keys=np.arange(240) // size)) for size in (80, 1))
    assert (few.draws.std(axis=0) > many.draws.std(axis=0)).all()
    assert np.isfinite(few.interval(np.ones((1, 1)), np.zeros((1, 1)))).all()


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    margin, tie, y = simulated(200)
    keys = np.arange(200) // 2
    order = np.random.default_rng(seed).permutation(200)
    one = fit_link(evidence(margin, tie, y, keys=keys), repeats=10)
    other = fit_link(evidence(margin[order], tie[order], y[order], keys=keys[order]), repeats=10)
    assert one.chosen == other.chosen
    np.testing.assert_allclose(other.link.theta, one.link.theta, atol=1e-6)
    np.testing.assert_allclose(other.link.draws, one.link.draws, atol=1e-6)
    assert other.log_loss.value == pytest.approx(one.log_loss.value, abs=1e-6)


def test_a_fit_is_the_same_each_time() -> None:
    one, other = (fit_link(evidence(*simulated(200)), repeats=20, seed=3) for _ in range(2))
    assert one.link.draws.tobytes() == other.link.draws.tobytes()
    assert one.trials == other.trials
    assert one.log_loss == other.log_loss
    assert not np.array_equal(fit_link(evidence(*simulated(200)), repeats=20, seed=4).link.draws, one.link.draws)


def test_draws_of_one_step_are_as_those_fitted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    data = evidence(*simulated(2000))
    refitted = davidson_link(data)
    monkeypatch.setattr(fitting, "_REFITTED", 0)
    stepped = davidson_link(data)
    assert stepped.draws.shape == refitted.draws.shape
    spread = refitted.draws.std(axis=0)
    np.testing.assert_allclose(stepped.draws.std(axis=0), spread, rtol=0.1)
    # Draw by draw: the weights are the same.
    assert (np.abs(stepped.draws - refitted.draws) < 0.5 * spread).mean() > 0.98


def test_a_sample_for_cross_validation_keeps_groups_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    margin, tie, y = simulated(3000)
    keys = np.arange(3000) // 3
    data = evidence(margin, tie, y, keys=keys)
    whole = fit_link(data, repeats=10)
    monkeypatch.setattr(fitting, "_CROSS_VALIDATED", 1000)
    found = fit_link(data, repeats=10)
    assert 600 < found.validated < 1500
    assert (found.rows, found.groups) == (3000, 1000)
    sample = fitting.Fitter(data).keys
    assert (np.unique(sample, return_counts=True)[1] == 3).all()
    # Only the choice looks at the sample; the fit itself has all rows.
    assert found.chosen == whole.chosen == "davidson"
    np.testing.assert_allclose(found.link.theta, whole.link.theta, atol=1e-9)


def test_votes_are_rows() -> None:
    margin, tie, _ = simulated(300)
    rng = np.random.default_rng(0)
    votes = rng.multinomial(3, [0.4, 0.35, 0.25], 300).astype(float)
    together = LabelledEvidence(1)
    together.add(margin[:, None], tie[:, None], votes, np.arange(300, dtype=np.uint64))
    row, outcome = (part.astype(int) for part in votes.nonzero())
    counts = votes[row, outcome].astype(int)
    row, outcome = np.repeat(row, counts), np.repeat(outcome, counts)
    apart = evidence(margin[row], tie[row], outcome, keys=row)
    one, other = fit_link(together, repeats=5), fit_link(apart, repeats=5)
    assert one.votes == other.votes == 900
    assert one.chosen == other.chosen
    np.testing.assert_allclose(one.link.theta, other.link.theta, atol=1e-7)
    np.testing.assert_allclose(one.link.draws, other.link.draws, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, t, v: m.__setitem__(0, np.nan),
        lambda m, t, v: t.__setitem__(0, np.inf),
        lambda m, t, v: v.__setitem__((0, 0), -1.0),
    ],
)
def test_rows_that_are_none(change: Callable[..., None]) -> None:
    m, t, v = np.zeros((2, 1)), np.zeros((2, 1)), np.ones((2, 3))
    change(m, t, v)
    with pytest.raises(UsageError, match="must be finite, votes not negative"):
        LabelledEvidence(1).add(m, t, v, np.arange(2, dtype=np.uint64))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([20, 35, 80]), st.sampled_from([0.0, 1e-9, 1.0, 1e9]))
def test_any_small_data_gives_a_fit_no_worse_than_the_share_of_ties(seed: int, n: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    margin, tie = unit * rng.standard_cauchy(n), unit * rng.integers(0, 2, n)
    y = rng.choice(3, n, p=rng.dirichlet([0.3, 0.3, 0.3]))
    found: Fit = fit_link(evidence(margin, tie, y, keys=rng.integers(0, n, n)), repeats=20)
    p = found.link.probabilities(margin[:, None], tie[:, None].astype(float))
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    assert np.isfinite(found.link.draws).all()
    ties = np.mean(y == 2)
    shares = np.array([(1 - ties) / 2, (1 - ties) / 2, ties])
    # The penalty on few labels costs a little.
    assert -np.log(p[np.arange(n), y]).mean() < -np.log(shares[y]).mean() + 0.1
