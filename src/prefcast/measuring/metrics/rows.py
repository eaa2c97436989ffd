"""The rows that are measured: a table, and what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.metrics import NAMES
from prefcast.outcomes.statistics.columns import Columns

__all__ = ["MeasuredRows", "given_rows"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredRows:
    """The input of `measure`: a table with the columns COLUMNS, and further columns that these fields name.

    `a`, `b` and `tie` are the probabilities; `share_a`, `share_b` and `share_tie` the shares of the row's `votes` (1 and two
    0 for a label), `weight` says how much the row counts. `key` is that of the first prompt, `pair` that of the texts:
    rows with the same texts are votes on one pair.

    `baselines` names triples of columns with probabilities (`length` is `length_a`, `length_b` and `length_tie`).
    `others` are the names of other forecasts, whose probabilities are in `other0_a`, `other0_b`, `other0_tie`, `other1_a`, ...
    (nan means that there is none). `slices` gives, for each column of codes, the name of each code.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *NAMES,
        *(f"share_{name}" for name in NAMES),
        "votes",
        "weight",
        "key",
        "pair",
    )

    table: Columns
    baselines: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    resampled: str = "prompts"

    def shares(self, block: Floats) -> Floats:
        """The shares of the votes (m, 3) of m rows of the table."""
        return block[:, 3:6]


def given_rows(
    p: Floats,
    share: Floats,
    keys: NDArray[np.uint64],
    *,
    votes: Floats | None = None,
    weight: Floats | None = None,
    pairs: NDArray[np.uint64] | None = None,
) -> Floats:
    """The columns COLUMNS (n, 10) of n rows. By default a row has one vote, the weight 1, and is a pair of its own."""
    n = len(p)
    ones = np.ones(n)
    own = (np.arange(n, dtype=np.uint64) if pairs is None else pairs).view(np.float64)
    return np.column_stack(
        [p, share, ones if votes is None else votes, ones if weight is None else weight, keys.view(np.float64), own]
    )
