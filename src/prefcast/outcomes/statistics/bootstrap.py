"""The bootstrap over groups of rows, in one pass; memory does not grow with the number of rows.

The weight of a row in a draw is a Poisson(1) number that depends only on the draw and the key of the row's group, so
all rows of a group have the same weight, wherever they are (Hanley and MacGibbon, "Creating non-parametric bootstrap
samples using Poisson frequencies", Computer Methods and Programs in Biomedicine 83, 2006). A figure that is a function
of sums over rows then needs only the sums of each draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcast.errors import UsageError

__all__ = [
    "REPEATS",
    "Bootstrap",
    "Figure",
    "figure",
    "group_keys",
    "paired_difference",
    "paired_error",
    "poisson_weights",
    "weighted_mean",
]

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

REPEATS = 1000
_PART = 4096
_LEVEL = 0.05


@dataclass(frozen=True)
class Figure:
    """An estimate with the 2.5 % and 97.5 % quantiles of its bootstrap draws."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def group_keys(groups: Sequence[object] | None, n: int) -> Keys:
    """The keys (n,) of n rows: rows of one group have the same key; without groups each row is a group."""
    if groups is None:
        return np.arange(n, dtype=np.uint64)
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.uint64)


@cache
def _poisson_table() -> NDArray[np.uint8]:
    """The Poisson(1) number for each value of a uniform 16-bit number."""
    cumulative = np.cumsum([exp(-1) / factorial(k) for k in range(12)])
    return np.searchsorted(cumulative, (np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.uint8)


def poisson_weights(keys: Keys, repeats: int, seed: int = 0) -> NDArray[np.float32]:
    """The weights (m, repeats) in each draw of m rows with `keys` (m,)."""
    # SplitMix64 (Steele, Lea and Flood, 2014), used as a hash of (key, draw); each hash gives four draws.
    quarter = -(-repeats // 4)
    with np.errstate(over="ignore"):
        steps = np.arange(1, quarter + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(0x632BE59BD9B4E019)
        z = (keys * np.uint64(0xD1342543DE82EF95))[:, None] + (steps * np.uint64(0x9E3779B97F4A7C15))[None, :]
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return _poisson_table()[z.view(np.uint16)][:, :repeats].astype(np.float32)


class Bootstrap:
    """Sums of k columns: over all rows in `sums` (k,), and for each draw in `draws` (repeats, k)."""

    def __init__(self, repeats: int = REPEATS, seed: int = 0) -> None:
        self.names: dict[str, int] = {}
        self._repeats, self._seed = repeats, seed

    def add(self, keys: Keys, columns: Mapping[str, Floats]) -> None:
        """Add m rows: their columns (m,) by name, the same names in every call, and the `keys` (m,) of their groups."""
        if not self.names:
            self.names = {name: index for index, name in enumerate(columns)}
            self.sums, self.draws = np.zeros(len(columns)), np.zeros((self._repeats, len(columns)))
        block = np.column_stack([columns[name] for name in self.names])
        self.sums += block.sum(axis=0)
        for start in range(0, len(keys), _PART):
            part = slice(start, start + _PART)
            self.draws += poisson_weights(keys[part], self._repeats, self._seed).T @ block[part].astype(np.float32)

    def total(self, name: str) -> float:
        return float(self.sums[self.names[name]])

    def drawn(self, name: str) -> Floats:
        """The sum in each draw, (repeats,)."""
        return self.draws[:, self.names[name]]

    def ratio(self, above: str, below: str = "rows") -> Figure:
        """The ratio of two sums with its interval. Raises UsageError if the sum `below` is 0."""
        if not self.total(below):
            raise UsageError("there is no mean: no row has a weight above 0")
        return figure(self.total(above) / self.total(below), self.ratio_draws(above, below))

    def ratio_draws(self, above: str, below: str) -> Floats:
        """The ratio in each draw, (repeats,); nan in draws where the sum `below` is 0."""
        over, under = self.drawn(above), self.drawn(below)
        quotients: Floats = np.divide(over, under, out=np.full(len(over), np.nan), where=under > 0)
        return quotients


def figure(value: float, draws: Floats) -> Figure:
    """`value` with the quantiles of its draws (repeats,); draws that are nan are left out.

    The interval is extended to include the value.
    """
    drawn = draws[np.isfinite(draws)]
    low, high = np.quantile(drawn, [_LEVEL / 2, 1 - _LEVEL / 2]) if len(drawn) else (value, value)
    # Draws are summed in single precision; their rounding must not exclude the value from a narrow interval.
    return Figure(float(value), min(float(low), float(value)), max(float(high), float(value)))


def paired_difference(
    left: ArrayLike, right: ArrayLike, groups: Sequence[object] | None = None, *, repeats: int = REPEATS, seed: int = 0
) -> Figure:
    """The mean of left - right, two losses (n,) of the same rows, with a bootstrap interval over groups."""
    difference = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    keys = group_keys(groups, len(difference))
    return weighted_mean(difference, np.ones(len(difference)), keys, repeats=repeats, seed=seed)


def weighted_mean(sums: Floats, weights: Floats, keys: Keys, *, repeats: int = REPEATS, seed: int = 0) -> Figure:
    """The sum of `sums` (n,) divided by the sum of `weights` (n,), with a bootstrap interval over the groups of `keys`
    (n,)."""
    found = Bootstrap(repeats, seed)
    found.add(keys, {"value": sums, "rows": weights})
    return found.ratio("value")


def paired_error(left: Floats, right: Floats, weights: Floats, keys: Keys) -> tuple[float, float]:
    """The mean of left - right per vote, and its standard error over groups (a ratio of sums, linearised).

    `left` and `right` (n,) are losses summed over the votes of each row; `weights` (n,) are the numbers of votes.
    """
    _, group = np.unique(keys, return_inverse=True)
    difference, votes = np.bincount(group, left - right), np.bincount(group, weights)
    mean = difference.sum() / votes.sum()
    count = len(votes)
    spread = ((difference - mean * votes) ** 2).sum() * count / max(1, count - 1)
    return float(mean), float(np.sqrt(spread) / votes.sum())
