"""Newton's method on links of many columns, against derivatives by differences and another optimiser."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize

from prefcast.errors import FitError
from prefcast.outcomes.models import Davidson, FittedModel, RaoKupper
from prefcast.outcomes.statistics.likelihood import Block, _evaluate, linear, maximise

LINKS = [Davidson, RaoKupper]
BASES = {
    "all free": np.eye(6),
    "some fixed": np.eye(6)[:, [0, 2, 4]],
    # A tie coefficient that follows a margin's, as in temperature scaling.
    "tied": np.array([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [0.5, 0, 0], [0, 0, 1], [0, 0, 0]]),
}


def data(n: int = 400, seed: int = 0, link: type[FittedModel] = Davidson) -> Block:
    """Two margins, three ties, and the outcome of each row with 1 to 3 votes."""
    rng = np.random.default_rng(seed)
    m, t = rng.normal(size=(n, 2)), rng.normal(size=(n, 3))
    log_p, _, _ = link.log_probabilities(m @ [1.0, -0.5], -0.2 + t @ [0.5, 0.0, -0.3])
    votes = np.array([rng.multinomial(rng.integers(1, 4), p / p.sum()) for p in np.exp(log_p)]).astype(float)
    return m, t, votes


def objective(link: type[FittedModel], block: Block, basis: Any, offset: Any, hold: Any) -> tuple[Any, Any]:
    """The loss and its gradient as functions of the free parameters."""

    def part(free: Any, which: int) -> Any:
        return _evaluate(link.log_probabilities, lambda: [block], basis, offset, free, hold)[which]

    return lambda free: part(free, 0), lambda free: part(free, 1)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_the_gradient_is_that_of_the_loss(link: type[FittedModel], basis: Any) -> None:
    rng = np.random.default_rng(1)
    loss, slope = objective(link, data(60), basis, rng.normal(size=6), rng.uniform(0, 2, basis.shape[1]))
    for _ in range(5):
        at = rng.normal(size=basis.shape[1])
        assert check_grad(loss, slope, at) < 1e-4 * (1 + np.abs(slope(at)).max())


def test_the_information_is_the_hessian_of_davidsons_loss() -> None:
    basis, at = BASES["tied"], np.array([0.3, -0.5, 0.8])
    hold = np.array([1.0, 0.1, 0.5])
    _, slope = objective(Davidson, data(60), basis, np.zeros(6), hold)
    information = _evaluate(Davidson.log_probabilities, lambda: [data(60)], basis, np.zeros(6), at, hold)[2]
    steps = np.eye(3) * 1e-5
    hessian = np.stack([(slope(at + step) - slope(at - step)) / 2e-5 for step in steps])
    np.testing.assert_allclose(information, hessian, rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(LINKS), st.sampled_from(sorted(BASES)), st.floats(0, 3))
def test_the_optimum_is_that_of_another_optimiser(
    seed: int, link: type[FittedModel], name: str, penalty: float
) -> None:
    block, basis = data(120, seed, link), BASES[name]
    hold = np.full(basis.shape[1], penalty)
    found = maximise(link.log_probabilities, lambda: [block], basis, np.zeros(6), penalty=hold)
    loss, slope = objective(link, block, basis, np.zeros(6), hold)
    other = minimize(loss, np.zeros(basis.shape[1]), jac=slope, method="BFGS", options={"gtol": 1e-6})
    assert loss(found.free) <= other.fun + 1e-9 * abs(other.fun)
    np.testing.assert_allclose(found.free, other.x, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.theta, basis @ found.free, atol=1e-14)
    assert found.votes == block[2].sum()


@settings(max_examples=25)
@given(st.lists(st.integers(1, 79), max_size=6), st.sampled_from(LINKS))
def test_the_optimum_does_not_depend_on_the_blocks(cuts: list[int], link: type[FittedModel]) -> None:
    m, t, votes = data(80, 3)
    edges = [0, *sorted(set(cuts)), 80]
    parts = [(m[a:b], t[a:b], votes[a:b]) for a, b in pairwise(edges)]
    args = np.eye(6), np.zeros(6)
    whole = maximise(link.log_probabilities, lambda: [(m, t, votes)], *args)
    np.testing.assert_allclose(maximise(link.log_probabilities, lambda: parts, *args).theta, whole.theta, atol=1e-7)


@pytest.mark.parametrize("link", LINKS)
def test_weights_are_repeated_rows(link: type[FittedModel]) -> None:
    m, t, votes = data(100, 4)
    weights = np.random.default_rng(0).integers(0, 4, 100)
    again = [np.repeat(part, weights, axis=0) for part in (m, t, votes)]
    args = np.eye(6), np.zeros(6)
    weighted = maximise(link.log_probabilities, lambda: [(m, t, votes * weights[:, None])], *args)
    repeated = maximise(link.log_probabilities, lambda: [(again[0], again[1], again[2])], *args)
    np.testing.assert_allclose(weighted.theta, repeated.theta, atol=1e-7)
    assert weighted.votes == repeated.votes


def test_what_is_fixed_stays() -> None:
    offset = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    found = maximise(Davidson.log_probabilities, lambda: [data()], np.zeros((6, 0)), offset)
    np.testing.assert_array_equal(found.theta, offset)
    found = maximise(Davidson.log_probabilities, lambda: [data()], BASES["some fixed"], offset)
    np.testing.assert_array_equal(found.theta[[1, 3, 5]], offset[[1, 3, 5]])


def test_linear() -> None:
    s, tie = linear(np.array([1.0, 2.0, 3.0]), np.array([[5.0]]), np.array([[7.0]]))
    assert (s[0], tie[0]) == (5.0, 23.0)


@pytest.mark.parametrize("link", LINKS)
def test_fits_that_cannot_be(link: type[FittedModel]) -> None:
    m, t, votes = data(50)
    args = link.log_probabilities, lambda: [(m, t, votes)]
    with pytest.raises(FitError, match="there are no votes"):
        maximise(link.log_probabilities, lambda: [(m, t, 0 * votes)], np.eye(6), np.zeros(6))
    twice = np.column_stack([np.eye(6), np.eye(6)[:, 0]])
    with pytest.raises(FitError, match=r"do not determine every parameter|did not converge"):
        maximise(*args, twice, np.zeros(6))
    # Separated outcomes without a penalty: a scale at infinity, where some information is 0.
    side = np.array([[3.0], [-3.0]] * 20)
    apart = side, np.zeros((40, 0)), np.eye(3)[[0, 1] * 20]
    with pytest.raises(FitError, match="did not converge"):
        maximise(lambda s, t: (np.full((len(s), 3), np.nan),) * 3, lambda: [apart], np.eye(2), np.zeros(2))
    held = maximise(link.log_probabilities, lambda: [apart], np.eye(2), np.zeros(2), penalty=np.ones(2))
    assert np.isfinite(held.theta).all()
