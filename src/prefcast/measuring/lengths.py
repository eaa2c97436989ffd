"""The baseline of the lengths of the answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prefcast.measuring.metrics import NAMES
from prefcast.measuring.metrics.measure import FOLDS
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.columns import Columns
from prefcast.outcomes.statistics.likelihood import Folded, cross_fitted

__all__ = ["with_lengths"]

_PENALTY = np.array([1.0, 0.1, 1.0])


def with_lengths(table: Columns) -> Columns:
    """The table with the probabilities of a Davidson link on the lengths of the answers, fitted out of fold."""
    length, weight, key = (table.names.index(name) for name in ("length", "weight", "key"))
    shares = [table.names.index(f"share_{name}") for name in NAMES]

    def folded() -> Iterator[Folded]:
        for rows in table.blocks():
            m, votes = rows[:, [length]], rows[:, shares] * rows[:, [weight]]
            yield (m, -np.abs(m), votes), rows[:, key].copy().view(np.uint64) % np.uint64(FOLDS)

    out = Columns([*table.names, *(f"length_{name}" for name in NAMES)])
    found = cross_fitted(Davidson.log_probabilities, folded, FOLDS, np.eye(3), np.zeros(3), penalty=_PENALTY)
    for rows, log_p in zip(table.blocks(), found, strict=True):
        out.append(np.column_stack([rows, np.exp(log_p)]))
    return out
