"""How far raters who voted on the same things agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alike", "alike"]


@dataclass(frozen=True)
class Alike:
    """How many of the things have two votes or more (`things`); of two votes on one thing, how many such couples there are
    (`couples`) and how many of them are the same (`same`); and Krippendorff's `alpha`: 1 where all agree, 0 where the votes
    agree as often as chance would have it. None where it is undefined: no couple, or every vote the same."""

    things: int
    couples: int
    same: int
    alpha: float | None


def alike(counts: NDArray[np.int64]) -> Alike:
    """The agreement of votes, given how many votes of each kind every thing has (n, k).

    Alpha is that for nominal data, with things that have any number of votes: Krippendorff, "Computing Krippendorff's
    Alpha-Reliability" (2011), section C.
    """
    each = counts.sum(axis=1)
    counts, each = counts[each >= 2], each[each >= 2]
    alike_two = (counts * (counts - 1)).sum(axis=1)
    couples, same = int((each * (each - 1)).sum()) // 2, int(alike_two.sum()) // 2
    kinds = counts.sum(axis=0)
    n = int(kinds.sum())
    chance = int((kinds * (kinds - 1)).sum())
    alpha = None
    if couples and chance < n * (n - 1):
        observed = float((alike_two / (each - 1)).sum())
        alpha = ((n - 1) * observed - chance) / (n * (n - 1) - chance)
    return Alike(len(each), couples, same, alpha)
