"""Several forecasts of the same rows, compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.metrics import Compared, Difference
from prefcast.outcomes.statistics.bootstrap import Bootstrap, Figure

__all__ = ["LOSSES", "compared"]

Floats = NDArray[np.float64]

LOSSES = ("log_loss", "accuracy", "brier_score")
_LEVEL = 0.05
_ROUNDING = 1e-5


def compared(sums: Bootstrap, names: Sequence[str], n: int) -> Compared | None:
    """The forecast against each of the others, on the `n` rows that all of them have; None if there are none.

    The sums are `rows:both` and, for each loss and each forecast from 0 (the measured one), `loss:0`, `loss:1`, ... on these
    rows. The differences of all forecasts have intervals that hold together: the largest standardised difference of a draw
    is below their width in 95 % of the draws (Westfall and Young, "Resampling-Based Multiple Testing", 1993).
    """
    if not n:
        return None
    every = range(len(names) + 1)
    value = np.array([sums.total(f"log_loss:{each}") for each in every]) / sums.total("rows:both")
    drawn = np.column_stack([sums.ratio_draws(f"log_loss:{each}", "rows:both") for each in every])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    gaps, moved = value[:, None] - value, drawn[:, :, None] - drawn[:, None, :]
    error = moved.std(axis=0) if len(drawn) else np.zeros_like(gaps)
    # Draws are summed in single precision: two forecasts that are the same differ by rounding.
    error = np.where(error > _ROUNDING, error, 0.0)
    far = np.divide(np.abs(moved - gaps), error, out=np.zeros_like(moved), where=error > 0)
    times = float(np.quantile(far.max(axis=(1, 2)), 1 - _LEVEL)) if len(drawn) else 0.0
    # A forecast may be the best if no other is better by more than the width.
    maybe = [all(row) for row in (gaps - times * error <= 0).tolist()]
    others = tuple(
        Difference(
            name,
            n,
            **{what: sums.ratio(f"{what}:minus:{number}", "rows:both") for what in LOSSES},
            theirs=sums.ratio(f"log_loss:{number}", "rows:both"),
            together=_around(float(gaps[0, number]), times * float(error[0, number])),
            may_be_best=maybe[number],
        )
        for number, name in enumerate(names, 1)
    )
    return Compared(n, sums.ratio("log_loss:0", "rows:both"), maybe[0], others)


def _around(value: float, half: float) -> Figure:
    return Figure(value, value - half, value + half)
