"""Fits that shrink towards the outcome model that a forecaster is shipped with.

With few labels the shipped parameters are a better guess than the labels give, with many labels they are not needed. So the
parameters have a prior around the shipped ones: with probability SPIKE they are exactly the shipped ones ("as shipped"), and
otherwise they differ by normal amounts of one of several WIDTHS, in the units of standardised columns. The fit is the mean of
the maxima under each width, weighted by the probability of each width given the labels. That probability is Laplace's
approximation (Tierney and Kadane, "Accurate approximations for posterior moments and marginal densities", JASA 81, 1986); for
such mixtures as priors see Mitchell and Beauchamp, "Bayesian variable selection in linear regression", JASA 83 (1988).

Rows of one first prompt are not independent. The likelihood is raised to the power at which the inverse of its information has the
mean size of the variance over groups (Pauli, Racugno and Ventura, "Bayesian composite marginal likelihoods", Statistica Sinica
21, 2011), so 1,000 rows of 12 prompts count as few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.statistics.likelihood import Block, LinkFunction, Optimum, linear, maximise

__all__ = ["Part", "Shrunken", "power_of", "shrunken"]

Floats = NDArray[np.float64]

SPIKE = 0.7
WIDTHS = {0.1: 0.1, 0.3: 0.1, 1.0: 0.05, 3.0: 0.05}
# The width of the fit from which the dependence of rows is estimated.
_WIDE = 1.0


@dataclass(frozen=True)
class Part:
    """A width of the prior: its `weight` given the labels, the optimum under it, and its penalty; the first is as shipped."""

    weight: float
    optimum: Optimum
    penalty: float


@dataclass(frozen=True)
class Shrunken:
    """The mean `optimum` of the `parts`, and the `power` to which the likelihood was raised."""

    optimum: Optimum
    parts: tuple[Part, ...]
    power: float


def power_of(link: LinkFunction, block: Block, keys: NDArray[np.uint64], basis: Floats, offset: Floats) -> float:
    """The power of the likelihood, at most 1, from the rows of `block` and the groups of `keys` (n,)."""
    m, t, votes = block
    size = basis.shape[1]
    hold = np.full(size, _WIDE**-2)
    found = maximise(link, lambda: [block], basis, offset, penalty=hold)
    _, by_s, by_t = link(*linear(found.theta, m, t))
    of_s, of_t = (votes * by_s).sum(axis=1), (votes * by_t).sum(axis=1)
    score = np.concatenate([of_s[:, None] * m, of_t[:, None], of_t[:, None] * t], axis=1) @ basis
    _, group = np.unique(keys, return_inverse=True)
    count = int(group.max()) + 1
    sums = np.column_stack([np.bincount(group, column, count) for column in score.T])
    between = sums.T @ sums * count / max(1, count - 1)
    wider = float(np.trace(np.linalg.solve(found.information, between)))
    return min(1.0, size / wider) if wider > 0 else 1.0


def shrunken(
    link: LinkFunction,
    blocks: Callable[[], Iterable[Block]],
    basis: Floats,
    offset: Floats,
    power: float,
    name: str,
) -> Shrunken:
    """The fit of the parameters that `basis` (k, f) selects, around `offset` (k,), the shipped parameters.

    Raises FitError as `maximise` does.
    """

    def powered() -> Iterable[Block]:
        return ((m, t, votes * power) for m, t, votes in blocks())

    size = basis.shape[1]
    still = maximise(link, powered, np.zeros((len(offset), 0)), offset, name=name)
    parts = [Part(float(np.log(SPIKE)) - still.loss, replace(still, free=np.zeros(size)), np.inf)]
    start: Floats | None = None
    for width, share in WIDTHS.items():
        penalty = np.full(size, width**-2)
        found = maximise(link, powered, basis, offset, penalty=penalty, start=start, name=name)
        start = found.free
        occam = float(np.log(penalty).sum() - np.linalg.slogdet(found.information)[1]) / 2
        parts.append(Part(float(np.log(share)) - found.loss + occam, found, width**-2))
    logs = np.array([part.weight for part in parts])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    parts = [replace(part, weight=float(weight)) for part, weight in zip(parts, weights, strict=True)]
    free = np.asarray(sum(part.weight * part.optimum.free for part in parts))
    widest = parts[-1].optimum
    mean = replace(widest, theta=offset + basis @ free, free=free, votes=widest.votes / power)
    return Shrunken(mean, tuple(parts), power)
