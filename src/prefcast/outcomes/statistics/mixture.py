"""Whether a sample comes from a mixture of two other samples, with any share: a test with a known size.

The distance is the energy distance (Szekely and Rizzo, "Energy statistics: a class of statistics based on distances", Journal of
Statistical Planning and Inference 143, 2013) between the target and the mixture that is nearest to it; Kawakubo, du Plessis and
Sugiyama use the share of that mixture as an estimate ("Computationally efficient class-prior estimation under class balance
change using energy distance", IEICE Transactions E99-D, 2016). Its distribution under the hypothesis is that of a bootstrap over
groups of the distance between the drawn samples and the samples themselves, with the share estimated again in each draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.statistics.bootstrap import poisson_weights

__all__ = ["MixtureTest", "mixture_test"]

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

_REPEATS = 499


@dataclass(frozen=True)
class MixtureTest:
    """The nearest mixture: the `share` of its second sample, the `distance`, and the p value of "the target is a mixture"."""

    share: float
    distance: float
    p_value: float


def mixture_test(
    sample: Floats,
    second: Floats,
    keys: Keys,
    target: Floats,
    target_keys: Keys,
    *,
    repeats: int = _REPEATS,
    seed: int = 0,
) -> MixtureTest:
    """Test whether the rows of `target` (m, d) come from a mixture of two samples.

    `sample` (n, d) holds the rows of both samples; `second` (n, 2) says how much each row counts in the first and in the
    second. `keys` (n,) and `target_keys` (m,) are those of the groups, which are drawn whole. Each column is replaced by its
    ranks among all rows, so its unit does not matter.
    """
    n = len(sample)
    points = _ranked(np.concatenate([sample, target]))
    distances = _distances(points)
    every = np.concatenate([keys, target_keys])
    drawn = poisson_weights(every, repeats, seed).astype(np.float64)
    weights = np.concatenate([np.ones((len(every), 1)), drawn], axis=1)
    parts = []
    for row_weights, rows in (
        (second[:, 0], slice(0, n)),
        (second[:, 1], slice(0, n)),
        (np.ones(len(target)), slice(n, None)),
    ):
        part = np.zeros_like(weights)
        part[rows] = row_weights[:, None] * weights[rows]
        total = part.sum(axis=0)
        part /= np.where(total > 0, total, np.nan)
        parts.append(part)
    first, other, aim = parts
    # Of the data itself: the mixture first + share * step - aim, as a signed measure on the points.
    gap, step = first[:, 0] - aim[:, 0], other[:, 0] - first[:, 0]
    share, distance = _nearest(distances, gap[:, None], step[:, None])
    centre = gap + share[0] * step
    _, null = _nearest(distances, first[:, 1:] - aim[:, 1:] - centre[:, None], other[:, 1:] - first[:, 1:])
    null = null[np.isfinite(null)]
    p = (1 + int((null >= distance[0]).sum())) / (1 + len(null))
    return MixtureTest(float(share[0]), float(distance[0]), p)


def _nearest(distances: NDArray[np.float32], gap: Floats, step: Floats) -> tuple[Floats, Floats]:
    """For each column the share from 0 to 1 with the least energy of gap + share * step, and that energy."""
    far_gap, far_step = -(distances @ gap.astype(np.float32)), -(distances @ step.astype(np.float32))
    gg, gs, ss = (gap * far_gap).sum(axis=0), (gap * far_step).sum(axis=0), (step * far_step).sum(axis=0)
    with np.errstate(all="ignore"):
        share = np.clip(-gs / ss, 0.0, 1.0)
    return share, gg + 2 * share * gs + share**2 * ss


def _ranked(points: Floats) -> Floats:
    """Each column's mid-ranks, from 0 to 1."""
    out = np.empty_like(points)
    for place, column in enumerate(points.T):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        middle = counts.cumsum() - counts / 2
        out[:, place] = (middle / len(column))[inverse]
    return out


def _distances(points: Floats) -> NDArray[np.float32]:
    """The Euclidean distances (n, n) between all rows."""
    squares = (points**2).sum(axis=1)
    found = np.maximum(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0.0)
    single: NDArray[np.float32] = np.sqrt(found).astype(np.float32)
    return single
