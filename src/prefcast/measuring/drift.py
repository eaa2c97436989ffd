"""Drift: how a lower precision changes the scores of the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefcast.errors import FitError, UsageError
from prefcast.measuring.metrics import Figure, row_log_loss
from prefcast.outcomes.models import Davidson, OutcomeModel
from prefcast.outcomes.statistics.bootstrap import paired_difference
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.scorers.base import Scorer, read_pair

__all__ = ["Drift", "measure_drift"]

_LEAST_LABELS = 30


@dataclass(frozen=True)
class Drift:
    """How the margins of n pairs changed: `mean` and `largest` absolute change, `spread` (the standard deviation of the
    margins before), `correlation`, and `flipped` (the share of pairs whose margin changed its sign).

    `log_loss_before`, `log_loss_after` and `log_loss_change` (with a paired bootstrap interval over prompts) are None
    if fewer than 30 pairs have labels. `link` says how margins were turned into probabilities.
    """

    n: int
    failed: int
    mean: float
    largest: float
    spread: float
    correlation: float
    flipped: float
    labelled: int
    link: str
    log_loss_before: float | None = None
    log_loss_after: float | None = None
    log_loss_change: Figure | None = None


def measure_drift(
    pairs: Sequence[Pair], before: Scorer, after: Scorer, budget: Budget, outcome: OutcomeModel | None = None
) -> Drift:
    """Score `pairs` with the unquantised scorer `before` and with `after`.

    Without `outcome`, both margins are turned into probabilities by a Davidson model that is fitted to the unquantised
    margins of the same pairs. `before` is closed before `after` is used. Raises UsageError if no pair could be scored
    by both.
    """
    read = [read_pair(pair, budget, before)[0] for pair in pairs]
    first = before.evidence(read)
    # Both together may not fit on a device.
    before.close()
    second = after.evidence(read)
    good = np.flatnonzero(np.isfinite(first.margin) & np.isfinite(second.margin))
    if not len(good):
        raise UsageError("no pair could be scored in both precisions; prefcast score shows the errors")
    x, y = first.margin[good], second.margin[good]
    change = np.abs(y - x)
    labelled = [index for index in good.tolist() if pairs[index].outcome is not None]
    drift = Drift(
        n=len(good),
        failed=len(pairs) - len(good),
        mean=float(change.mean()),
        largest=float(change.max()),
        spread=float(x.std()),
        correlation=float(np.corrcoef(x, y)[0, 1]) if len(good) > 1 and x.std() > 0 and y.std() > 0 else float("nan"),
        flipped=float((np.sign(x) * np.sign(y) < 0).mean()),
        labelled=len(labelled),
        link="with the forecaster's outcome model",
    )
    if len(labelled) < _LEAST_LABELS:
        return replace(drift, link=f"no log loss: it needs {_LEAST_LABELS} labelled pairs, there are {len(labelled)}")
    outcomes = np.array([pairs[index].outcome for index in labelled], dtype=np.int64)
    if outcome is None:
        drift = replace(drift, link="with a Davidson model fitted to the unquantised margins of the same pairs")
        try:
            outcome = Davidson.fit(first.margin[labelled], first.tie[labelled], outcomes)
        except FitError as error:
            return replace(drift, link=f"no log loss: {error}")
    old, new = (
        row_log_loss(outcome.probabilities(each.margin[labelled], each.tie[labelled]), outcomes)
        for each in (first, second)
    )
    return replace(
        drift,
        log_loss_before=float(old.mean()),
        log_loss_after=float(new.mean()),
        log_loss_change=paired_difference(new, old, [pairs[index].prompt[0] for index in labelled]),
    )
