"""Which pairs to ask people about: a random sample that tells most about win minus loss, and how much it will tell.

A pair is drawn with a probability in proportion to the standard deviation of its vote given its forecast (Neyman's
allocation). The sample is drawn by sequential Poisson sampling (Ohlsson, "Sequential Poisson sampling", Journal of Official
Statistics 14, 1998): each pair has a fixed random number, so a larger sample holds the smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError
from prefcast.pairs import Outcome

__all__ = ["Plan", "Sample", "draw", "plan"]

Floats = NDArray[np.float64]
# No pair is drawn less than this as often as another: the forecasts may be wrong.
_LEAST_SIZE = 0.45
_POWER, _STEPS = 0.9, (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Sample:
    """The places of the drawn pairs, in the order in which they are to be voted on, and the inclusion probability of every
    pair (n,)."""

    places: NDArray[np.int64]
    inclusion: Floats


@dataclass(frozen=True)
class Plan:
    """How narrow the interval of win minus loss will be, if the forecasts are calibrated.

    `halves` holds (votes, half of the width, half of the width with votes alone on a uniform sample). `needed` votes show the
    preference `see` (the shares of RIGHT and LEFT among the votes that are no ties) with a power of 90 %; `needed_alone`
    without forecasts.
    """

    pairs: int
    halves: tuple[tuple[int, float, float], ...]
    see: tuple[float, float]
    needed: int
    needed_alone: int


def _moments(p: Floats) -> tuple[Floats, Floats]:
    """Mean and variance (n,) of each pair's vote: 1 for RIGHT, -1 for LEFT, 0 for a tie."""
    net: Floats = p[:, Outcome.B] - p[:, Outcome.A]
    return net, np.maximum(0.0, 1 - p[:, Outcome.TIE] - net**2)


def _sizes(p: Floats, *, uniform: bool) -> Floats:
    return np.ones(len(p)) if uniform else np.clip(np.sqrt(_moments(p)[1]), _LEAST_SIZE, 1.0)


def _inclusion(sizes: Floats, votes: int) -> Floats:
    """Probabilities in proportion to the sizes that sum to `votes`, none above 1."""
    found = np.ones(len(sizes))
    free = np.ones(len(sizes), dtype=bool)
    while free.any():
        found[free] = (votes - (len(sizes) - free.sum())) * sizes[free] / sizes[free].sum()
        above = free & (found >= 1)
        if not above.any():
            return found
        found[above] = 1
        free &= ~above
    return found


def draw(ids: Sequence[str], p: Floats, votes: int, *, seed: int = 0, uniform: bool = False) -> Sample:
    """A sample of `votes` of n pairs with forecasts `p` (n, 3); all of them where there are no more.

    The same ids, forecasts and seed give the same order, and more votes only add to it.
    """
    if votes < 1:
        raise UsageError(f"the number of votes must be at least 1, found {votes}")
    sizes = _sizes(p, uniform=uniform)
    inclusion = _inclusion(sizes, min(votes, len(ids)))
    marks = np.array([_mark(seed, id) for id in ids]) / sizes
    # Certain pairs come first.
    order = np.lexsort((marks, inclusion < 1))
    return Sample(order[: min(votes, len(ids))].astype(np.int64), inclusion)


def _mark(seed: int, id: str) -> float:
    """The fixed random number of a pair, above 0 and below 1."""
    digest = hashlib.blake2b(f"{seed}\0{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def plan(p: Floats, *, votes: int, see: tuple[float, float] = (0.55, 0.45), uniform: bool = False) -> Plan:
    """How narrow the interval will be at several numbers of votes, `votes` among them, and how many votes show `see`.

    The variance of the estimate is the mean over pairs of variance / (inclusion probability * n); that of votes alone is the
    whole variance of a vote, divided by the votes.
    """
    from scipy.special import ndtri, stdtrit

    right, left = see
    if not (0 < left < 1 and 0 < right < 1 and abs(left + right - 1) < 1e-6) or left == right:
        raise UsageError(
            f"expected two different shares that sum to 100, like 55:45, found {100 * right:g}:{100 * left:g}"
        )
    net, variance = _moments(p)
    whole = float(variance.mean() + net.var())
    sizes = _sizes(p, uniform=uniform)
    each = float(sizes.mean() * (variance / sizes).mean())

    def half(of: float, n: int) -> float:
        return float(stdtrit(n - 1, 0.975)) * float(np.sqrt(of / n)) if n > 1 else 1.0

    steps = sorted({*(n for n in _STEPS if n < len(p)), min(votes, len(p))})
    decided = float(1 - p[:, Outcome.TIE].mean())
    seen = abs(right - left) * decided
    factor = (float(ndtri(0.975) + ndtri(_POWER)) / seen) ** 2
    return Plan(
        len(p),
        tuple((n, min(1.0, half(each, n)), min(1.0, half(whole, n))) for n in steps),
        see,
        ceil(each * factor),
        ceil(whole * factor),
    )
