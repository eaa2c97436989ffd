"""What every training does with its rows: sources by the names of files, shares of votes, and rows that are held out by prompt."""

from __future__ import annotations

import os
from math import ceil

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.fitter import LEAST_LABELS

__all__ = ["apart", "drawn", "enough", "said_of", "shares", "source_name"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def source_name(path: str | os.PathLike[str]) -> str:
    """The name of the source that a file is: that of the file up to the first dot."""
    return os.path.basename(path).partition(".")[0]  # noqa: PTH119


def shares(counts: Floats) -> Floats:
    """Counts of votes (n, 3) as shares (n, 3); zeros in a row without votes."""
    total = counts.sum(axis=1, keepdims=True)
    found: Floats = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return found


def drawn(groups: Ints, share: float, rng: np.random.Generator) -> Ints:
    """About that share of the groups (k,), at least one."""
    return rng.permutation(groups)[: ceil(share * len(groups))]


def apart(group: Ints, held: Mask) -> Mask:
    """Which rows (n,) may be learned: those of no group (n,) of which a row is in `held` (n,)."""
    found: Mask = ~np.isin(group, group[held])
    return found


def enough(group: Ints, held: Mask) -> bool:
    """Whether an outcome model can be fitted to the rows in `held` (n,): there are enough, of at least two groups."""
    return bool(held.sum() >= LEAST_LABELS) and len(np.unique(group[held])) >= 2


def said_of(learned: int, held: int, left: int, purpose: str) -> str:
    """How many rows are learned, how many are held out for a purpose, and how many are neither."""
    shared = f", {left} left out because those share their prompts" if left else ""
    return f"{learned} pairs to learn from, {held} {purpose}{shared}"
