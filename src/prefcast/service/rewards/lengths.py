"""How rewards go with the length and the look of answers, within groups of one prompt.

All figures are of differences within a group: what a prompt asks for does not enter. Sums over each group are kept, and groups are
the clusters of every standard error, since the answers of one group are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atanh, isfinite, log2, nan, sqrt, tanh

import numpy as np
from numpy.typing import NDArray

from prefcast.scorers.surface.features import style_counts

__all__ = ["LOOKS", "STANDARD_LENGTH", "Correlation", "Slope", "Sums", "doublings", "looks_of"]

Floats = NDArray[np.float64]

LOOKS = ("length", "lists", "headers", "bold")
# Corrections for length leave an answer of so many characters as it is.
STANDARD_LENGTH = 1000
# Below this share of the largest sum of squares a sum is rounding.
_ROUNDING = 1e-20


@dataclass(frozen=True)
class Correlation:
    """A correlation within groups, with its 95 % interval over groups; nan if it is not defined, the ends if there are fewer than
    two groups that tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Slope:
    """The change of the reward when the length doubles, within groups, with its 95 % interval over `groups` groups of together `n`
    samples. `error` is the standard error."""

    value: float
    low: float
    high: float
    error: float
    n: int
    groups: int

    @property
    def shrunken(self) -> float:
        """The value times max(0, 1 - (error / value)^2): a slope that cannot be told from 0 is taken for 0 (the positive part of
        the estimator of James and Stein, 1961)."""
        if not (isfinite(self.value) and isfinite(self.error)) or not self.value:
            return 0.0
        return self.value * max(0.0, 1 - (self.error / self.value) ** 2)


def doublings(characters: int) -> float:
    """The length as log2((1 + characters) / 1001): 0 for 1,000 characters, and 1 more for twice as many."""
    return log2((1 + characters) / (1 + STANDARD_LENGTH))


def looks_of(answer: str) -> tuple[float, ...]:
    """The length in doublings, and log2(1 + number) of list items, headers and bold passages."""
    characters, *counts = style_counts([answer])
    return doublings(characters), *(log2(1 + count) for count in counts)


@dataclass(frozen=True)
class Sums:
    """Sums over each of G groups of the products of deviations from the group's mean. `n` (G,); `xx` and `xy` (G, k) for k looks;
    `yy` (G,) of the rewards."""

    n: Floats
    xx: Floats
    xy: Floats
    yy: Floats

    @classmethod
    def of(cls, groups: Sequence[object], x: Floats, y: Floats) -> Sums:
        """From the groups (n,), looks (n, k) and rewards (n,) of n samples. Groups of one say nothing and are left out."""
        numbers: dict[object, int] = {}
        index = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.intp)
        count = len(numbers)
        z = np.column_stack([x, y])
        size = _sums(index, np.ones((len(index), 1)), count)
        z = z - (_sums(index, z, count) / size)[index]
        square, product = _sums(index, z * z, count), _sums(index, z * z[:, -1:], count)
        told = size[:, 0] > 1
        return cls(size[told, 0], square[told, :-1], product[told, :-1], square[told, -1])

    @classmethod
    def joined(cls, parts: Sequence[Sums]) -> Sums:
        """The groups of all parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("n", "xx", "xy", "yy")))

    def _three(self, look: int) -> tuple[float, float, float]:
        return float(self.xx[:, look].sum()), float(self.xy[:, look].sum()), float(self.yy.sum())

    def correlation(self, look: int = 0) -> Correlation:
        """The correlation of a look with the rewards within groups, pooled over the groups.

        The interval comes from the linear effect of each group on the correlation, on Fisher's z scale, with Student's t of G - 1
        degrees of freedom.
        """
        xx, xy, yy = self._three(look)
        if not (xx > 0 and yy > _ROUNDING):
            return Correlation(nan, nan, nan)
        r = max(-1.0, min(1.0, xy / sqrt(xx * yy)))
        count = int(((self.xx[:, look] > 0) | (self.yy > 0)).sum())
        if count < 2:
            return Correlation(r, nan, nan)
        if 1 - abs(r) < 1e-12:
            return Correlation(r, r, r)
        effects = self.xy[:, look] / sqrt(xx * yy) - r / 2 * (self.xx[:, look] / xx + self.yy / yy)
        error = sqrt(count / (count - 1) * float((effects**2).sum())) / (1 - r * r)
        half = _quantile(count - 1) * error
        return Correlation(r, tanh(atanh(r) - half), tanh(atanh(r) + half))

    def slope(self) -> Slope:
        """The slope of the rewards on the length within groups. The standard error is the larger one of two: the usual one, and the
        one over groups (Liang and Zeger, 1986)."""
        n, groups = int(self.n.sum()), len(self.n)
        xx, xy, yy = self._three(0)
        if not xx > 0:
            return Slope(nan, nan, nan, nan, n, groups)
        value = xy / xx
        free = n - groups - 1
        usual = sqrt(max(0.0, yy - value * xy) / free / xx) if free > 0 else nan
        if groups < 2:
            return Slope(value, nan, nan, usual, n, groups)
        scores = self.xy[:, 0] - value * self.xx[:, 0]
        error = max(usual, sqrt(groups / (groups - 1) * float((scores**2).sum())) / xx)
        half = _quantile(groups - 1) * error
        return Slope(value, value - half, value + half, error, n, groups)


def _sums(index: NDArray[np.intp], values: Floats, count: int) -> Floats:
    """The sums (count, k) of the rows of `values` (n, k) with each index."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def _quantile(free: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(free, 0.975))
