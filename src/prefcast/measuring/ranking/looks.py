"""What the answers of voted rows look like, row by row: style is controlled for in the likelihood of each row.

In memory a row takes 80 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.ranking.cells import in_order
from prefcast.pairs.formats.fields import Record
from prefcast.pairs.formats.shapes import Shape
from prefcast.scorers.surface.features import style_counts

__all__ = ["COVARIATES", "LookRows", "Styles", "look_of"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COVARIATES = ("length", "list items", "headings", "bold")


@dataclass(frozen=True, eq=False)
class Styles:
    """The n voted rows of k models: `left` and `right` (n,), the models of A and B as positions in `models`; `sums` (3, n), the
    votes for A, for B and for a tie; `group` (n,), the keys of their groups; `look` (n, 4), by how much A has more of each of
    COVARIATES, as a share of what both have: (a - b) / (a + b), 0 where neither has any."""

    models: tuple[str, ...]
    left: Ints
    right: Ints
    sums: Floats
    group: NDArray[np.uint64]
    look: Floats

    def only(self, models: Sequence[str]) -> Styles:
        """The rows between these models, which are in order."""
        number = {model: index for index, model in enumerate(models)}
        place = np.array([number.get(model, -1) for model in self.models])
        left, right = place[self.left], place[self.right]
        kept = (left >= 0) & (right >= 0)
        return Styles(tuple(models), left[kept], right[kept], self.sums[:, kept], self.group[kept], self.look[kept])


class LookRows:
    """Collects rows."""

    def __init__(self) -> None:
        self._sides, self._groups = array("l"), array("Q")
        self._counts, self._looks = array("d"), array("d")

    def add(self, group: int, models: tuple[int, int], counts: Sequence[float], look: Sequence[float]) -> None:
        self._groups.append(group)
        self._sides.extend(models)
        self._counts.extend(counts)
        self._looks.extend(look)

    def in_order(self, numbers: dict[str, int]) -> Styles:
        names, place = in_order(numbers)
        sides = place[np.array(self._sides, np.int64)].reshape(-1, 2)
        counts = np.array(self._counts).reshape(-1, 3).T
        groups = np.array(self._groups, np.uint64)
        looks = np.array(self._looks).reshape(-1, len(COVARIATES))
        # The order of the rows, and who was A, do not affect the result.
        turned = sides[:, 0] > sides[:, 1]
        sides[turned] = sides[turned][:, ::-1]
        counts[:2, turned] = counts[1::-1, turned]
        looks[turned] *= -1
        order = np.lexsort((*looks.T, *counts, sides[:, 1], sides[:, 0], groups))
        return Styles(names, sides[order, 0], sides[order, 1], counts[:, order], groups[order], looks[order])


def look_of(shape: Shape, record: Record, *, plain: bool) -> tuple[float, ...]:
    """The row of `Styles.look`. Raises Fault where the texts cannot be read."""
    turns = shape.read(record, plain).turns
    a, b = (style_counts([turn.texts[side] for turn in turns]) for side in (1, 2))
    return tuple((of_a - of_b) / (of_a + of_b) if of_a + of_b else 0.0 for of_a, of_b in zip(a, b, strict=True))
