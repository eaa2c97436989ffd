"""Drift: how a lower precision changes the scores of the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    log_loss_before: float | None
    log_loss_after: float | None
    log_loss_change: Figure | None


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
    kept = [pairs[index] for index in good.tolist()]
    change = np.abs(y - x)
    labelled = np.array([pair.outcome is not None for pair in kept])
    losses, link = _losses((x, first.tie[good]), (y, second.tie[good]), kept, labelled, outcome)
    return Drift(
        n=len(good),
        failed=len(pairs) - len(good),
        mean=float(change.mean()),
        largest=float(change.max()),
        spread=float(x.std()),
        correlation=float(np.corrcoef(x, y)[0, 1]) if len(good) > 1 and x.std() > 0 and y.std() > 0 else float("nan"),
        flipped=float((np.sign(x) * np.sign(y) < 0).mean()),
        labelled=int(labelled.sum()),
        link=link,
        log_loss_before=None if losses is None else float(losses[0].mean()),
        log_loss_after=None if losses is None else float(losses[1].mean()),
        log_loss_change=None
        if losses is None
        else paired_difference(
            losses[1], losses[0], [pair.prompt[0] for pair, has in zip(kept, labelled, strict=True) if has]
        ),
    )


Evidence = tuple[NDArray[np.float64], NDArray[np.float64]]
Losses = tuple[NDArray[np.float64], NDArray[np.float64]]


def _losses(
    before: Evidence, after: Evidence, pairs: Sequence[Pair], labelled: NDArray[np.bool_], outcome: OutcomeModel | None
) -> tuple[Losses | None, str]:
    """The log losses of the labelled pairs before and after, and the link used; or None and the reason."""
    if labelled.sum() < _LEAST_LABELS:
        return None, f"no log loss: it needs {_LEAST_LABELS} labelled pairs, there are {labelled.sum()}"
    outcomes = np.array([int(pair.outcome) for pair in pairs if pair.outcome is not None])
    (margin, tie), (other_margin, other_tie) = (tuple(part[labelled] for part in each) for each in (before, after))
    link = "with the forecaster's outcome model"
    if outcome is None:
        link = "with a Davidson model fitted to the unquantised margins of the same pairs"
        try:
            outcome = Davidson.fit(margin, tie, outcomes)
        except FitError as error:
            return None, f"no log loss: {error}"
    losses = (
        row_log_loss(outcome.probabilities(margin, tie), outcomes),
        row_log_loss(outcome.probabilities(other_margin, other_tie), outcomes),
    )
    return losses, link
