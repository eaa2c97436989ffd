"""The promise of agreement of a fit, from labelled rows that were held out from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import LEAST_LABELS
from prefcast.fitting.selection import OutOfFold
from prefcast.outcomes.agreement import Agreement, agreement

__all__ = ["HELD_OUT", "promised"]

Floats = NDArray[np.float64]

# The share of the first prompts that are held out for the test.
HELD_OUT = 0.5


def promised(
    fitted: OutOfFold,
    held: LabelledEvidence,
    probabilities: Callable[[Floats], Floats],
    promise: tuple[float, float],
    seed: int,
) -> Agreement:
    """The promise (agreement, confidence) that the rows `held` out support; `probabilities` gives those of rows (n, k) of their
    table, and `fitted` those of the rows of the fit, out of fold.

    Of each first prompt one row counts, with one of its votes: the test is about independent answers. Raises FitError if too
    few rows were held out.
    """
    if len(held) < LEAST_LABELS:
        raise FitError(
            f"--agree holds rows out from the fit; {len(held)} are too few, expected at least {LEAST_LABELS}"
        )
    tops, agreed, keys = list[Floats](), list[NDArray[np.bool_]](), list[NDArray[np.uint64]]()
    for rows in held.table.blocks():
        found = _voted(probabilities(rows), held.votes(rows), np.random.default_rng([seed, len(keys)]))
        tops.append(found[0])
        agreed.append(found[1])
        keys.append(held.keys(rows))
    first = np.unique(np.concatenate(keys), return_index=True)[1]
    test = np.concatenate(tops)[first], np.concatenate(agreed)[first]
    chosen = _voted(fitted.probabilities, fitted.votes, np.random.default_rng([seed]))
    return agreement(chosen, test, *promise)


def _voted(p: Floats, votes: Floats, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """The probability of the most likely outcome (n,), and whether a vote that is drawn from the row's votes agrees (n,)."""
    top = p.argmax(axis=1)
    rows = np.arange(len(p))
    share = votes[rows, top] / np.maximum(votes.sum(axis=1), np.finfo(float).tiny)
    return p[rows, top], rng.random(len(p)) < share
