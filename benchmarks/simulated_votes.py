"""Votes that are drawn from Davidson's model, so that the truth is known. `outcomes.py` uses them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.evidence import LabelledEvidence
from prefcast.outcomes.models import Davidson, Link

__all__ = ["LEVEL", "Floats", "Ints", "Random", "evidence", "said", "truth", "voted"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Random = np.random.Generator

# How likely a tie is, as Davidson's model has it.
LEVEL = -0.2


def truth(log_odds: Floats) -> Floats:
    """The true probabilities (n, 3)."""
    return np.exp(Davidson.log_probabilities(log_odds, np.full(len(log_odds), LEVEL))[0])


def voted(p: Floats, random: Random) -> Ints:
    """An outcome (n,) of each row of probabilities (n, 3)."""
    drawn: Ints = (random.random(len(p))[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)
    return drawn


def evidence(margin: Floats, outcomes: Ints, groups: Ints) -> LabelledEvidence:
    data = LabelledEvidence(1)
    data.add(margin[:, None], np.zeros((len(margin), 1)), np.eye(3)[outcomes], groups.astype(np.uint64))
    return data


def said(link: Link, margin: Floats) -> Floats:
    return link.probabilities(margin[:, None], np.zeros((len(margin), 1)))
