from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.special import expit, softmax

from prefcast.errors import FitError, UsageError
from prefcast.outcomes.models import (
    OUTCOME_MODELS,
    Davidson,
    FittedModel,
    NotebookRule,
    OutcomeModel,
    RaoKupper,
    outcome_model,
)

numbers = st.floats(-1e6, 1e6)
models = st.one_of(
    st.just(NotebookRule()),
    st.builds(Davidson, st.floats(-20, 20), st.floats(-20, 20), st.floats(-5, 5)),
    st.builds(RaoKupper, st.floats(-20, 20), st.floats(-20, 20), st.floats(-5, 5)),
)


@given(models, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_every_model_gives_probabilities_that_swap_with_the_sides(
    model: OutcomeModel, rows: list[tuple[float, float]]
) -> None:
    margin, tie = np.array(rows).T
    p = model.probabilities(margin, tie)
    assert p.shape == (len(rows), 3)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(model.probabilities(-margin, tie), p[:, [1, 0, 2]])


def test_davidson_is_the_published_formula() -> None:
    pi_a, pi_b, nu = 3.0, 0.5, 0.7
    total = pi_a + pi_b + nu * math.sqrt(pi_a * pi_b)
    expected = [pi_a / total, pi_b / total, nu * math.sqrt(pi_a * pi_b) / total]
    found = Davidson(level=math.log(nu)).probabilities([math.log(pi_a / pi_b)])
    np.testing.assert_allclose(found, [expected], rtol=1e-14)


def test_rao_kupper_is_the_published_formula() -> None:
    pi_a, pi_b, theta = 3.0, 0.5, 1.8
    both = (pi_a + theta * pi_b) * (theta * pi_a + pi_b)
    expected = [pi_a / (pi_a + theta * pi_b), pi_b / (theta * pi_a + pi_b), (theta**2 - 1) * pi_a * pi_b / both]
    level = math.log(math.expm1(math.log(theta)))  # softplus(level) = log(theta)
    found = RaoKupper(level=level).probabilities([math.log(pi_a / pi_b)])
    np.testing.assert_allclose(found, [expected], rtol=1e-13)


# The rule's constants by hand, its boundaries included.
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (0.0, 0.0, [0.00005, 0.00005, 0.9999]),
        (0.05, -0.0299, [0.00005, 0.00005, 0.9999]),
        (0.08, 0.0, [0.519989340 - 0.0001, 0.480010660 - 0.0001, 0.0002]),  # not less than 0.08: no tie
        (0.0, 0.08, [0.480010660 - 0.0001, 0.519989340 - 0.0001, 0.0002]),
        (1.0, 0.0, [0.731058579 - 0.0001, 0.268941421 - 0.0001, 0.0002]),
    ],
)
def test_the_notebooks_rule(a: float, b: float, expected: list[float]) -> None:
    np.testing.assert_allclose(NotebookRule().probabilities([a - b]), [expected], rtol=0, atol=1e-9)


def test_the_notebooks_rule_beyond_the_gap_where_its_subtraction_turns_negative() -> None:
    gap = math.log(1 / 0.0001 - 1)  # sigmoid(-gap) = 0.0001; about 9.21
    just_below, just_above = NotebookRule().probabilities([gap - 1e-6, gap + 1e-6])
    assert just_below[1] > 0
    assert just_above[1] == 0
    for margin in (10.0, 800.0, 1e300):
        a, b, tie = NotebookRule().probabilities([margin])[0]
        total = expit(margin) - 0.0001 + 0.0002
        assert b == 0
        assert a == pytest.approx((expit(margin) - 0.0001) / total, abs=1e-15)
        assert tie == pytest.approx(0.0002 / total, abs=1e-15)


def test_the_notebooks_rule_is_a_softmax_of_the_two_scores() -> None:
    scores = np.array([[3.1, 2.2], [-1.0, 4.0], [0.5, 0.1]])
    expected = np.column_stack([softmax(scores, axis=1) - 0.0001, np.full(3, 0.0002)])
    np.testing.assert_allclose(NotebookRule().probabilities(scores[:, 0] - scores[:, 1]), expected, atol=1e-15)


@pytest.mark.parametrize("model", [Davidson, RaoKupper])
def test_gradients(model: type[FittedModel]) -> None:
    for column in range(3):
        for s, t in [(0.3, -0.5), (-4.0, 1.5), (2.0, -8.0), (9.0, 3.0), (0.0, 0.0)]:
            value = lambda x, c=column: float(model.log_probabilities(x[:1], x[1:])[0][0, c])  # noqa: E731
            slope = lambda x, c=column: np.array([d[0, c] for d in model.log_probabilities(x[:1], x[1:])[1:]])  # noqa: E731
            assert check_grad(value, slope, np.array([s, t])) < 2e-6


@pytest.mark.parametrize("model", [Davidson(1.7, -0.4, 0.8), RaoKupper(1.7, 0.3, 0.8)], ids=lambda model: model.kind)
def test_a_fit_finds_the_parameters_that_made_the_data(model: FittedModel) -> None:
    rng = np.random.default_rng(1)
    margin, tie = rng.normal(size=40_000) * 3, rng.normal(size=40_000)
    p = model.probabilities(margin, tie)
    outcomes = (rng.random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1)
    found = type(model).fit(margin, tie, outcomes)
    for name, value in model.parameters().items():
        assert getattr(found, name) == pytest.approx(value, abs=0.06), name


@pytest.mark.parametrize("model", [Davidson, RaoKupper])
def test_a_fit_does_not_depend_on_the_scale_of_the_scores_and_follows_a_swap(model: type[FittedModel]) -> None:
    rng = np.random.default_rng(2)
    margin, tie = rng.normal(size=500), rng.normal(size=500)
    outcomes = rng.integers(0, 3, 500)
    found = model.fit(margin, tie, outcomes)
    p = found.probabilities(margin, tie)
    scaled = model.fit(margin * 1e-4, tie * 1e3 + 5, outcomes)
    np.testing.assert_allclose(scaled.probabilities(margin * 1e-4, tie * 1e3 + 5), p, atol=1e-5)
    swapped = model.fit(-margin, tie, np.array([1, 0, 2])[outcomes])
    np.testing.assert_allclose(list(swapped.parameters().values()), list(found.parameters().values()), atol=1e-5)


@pytest.mark.parametrize("model", [Davidson, RaoKupper])
def test_a_weight_counts_as_so_many_rows(model: type[FittedModel]) -> None:
    rng = np.random.default_rng(3)
    margin, tie, outcomes, weights = rng.normal(size=60), rng.normal(size=60), np.arange(60) % 3, rng.integers(0, 4, 60)
    weighted = model.fit(margin, tie, outcomes, weights)
    repeated = model.fit(*(np.repeat(column, weights) for column in (margin, tie, outcomes)))
    np.testing.assert_allclose(list(weighted.parameters().values()), list(repeated.parameters().values()), atol=1e-5)


def test_a_scorer_without_a_view_of_ties_gets_no_tie_weight() -> None:
    rng = np.random.default_rng(4)
    assert Davidson.fit(rng.normal(size=300), np.zeros(300), rng.integers(0, 3, 300)).tie_weight == 0


@pytest.mark.parametrize("model", [Davidson, RaoKupper])
def test_fits_that_cannot_be(model: type[FittedModel]) -> None:
    margin = np.array([3.0, -3.0, 0.0] * 20)
    with pytest.raises(FitError, match=r"never occurs among the .* labels: TIE"):
        model.fit(margin, margin, np.array([0, 1, 0] * 20))
    with pytest.raises(FitError, match="did not converge"):
        model.fit(margin, -np.abs(margin), np.array([0, 1, 2] * 20))  # separated: the best scale is infinite


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [0.0], [3]), "outcomes must be 0"),
        (([1.0, 2.0], [0.0], [0, 1]), "must all have shape"),
        (([math.nan], [0.0], [0]), "must be finite"),
        (([1.0], [0.0], [0], [-1.0]), "weights not negative"),
    ],
)
def test_fits_of_what_is_no_data(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Davidson.fit(*arguments)


@pytest.mark.parametrize("margin", [[math.nan], [math.inf], [[1.0]]])
def test_evidence_that_is_none(margin: list[float]) -> None:
    with pytest.raises(UsageError, match="margin"):
        Davidson().probabilities(margin)


def test_parameters_without_measure_give_an_error_and_never_a_nan() -> None:
    for model in (RaoKupper(1.0, 1e308, 1.0), Davidson(1e308, 0.0, 1.0)):
        with pytest.raises(UsageError, match="gives no finite probabilities"):
            model.probabilities([1e10], [1e10])


def test_models_are_saved_by_kind_and_parameters() -> None:
    for model in (Davidson(1.5, -2.0, 0.25), RaoKupper(0.5, 1.0, 0.0), NotebookRule()):
        assert outcome_model(model.kind, model.parameters()) == model
    assert set(OUTCOME_MODELS) == {"davidson", "rao-kupper", "notebook"}
    with pytest.raises(UsageError, match="unknown outcome model 'elo'"):
        outcome_model("elo", {})
    with pytest.raises(UsageError, match="needs finite numbers for level, scale, tie_weight"):
        outcome_model("davidson", {"scale": math.nan, "level": 0.0, "tie_weight": 1.0})
