"""The shipped parameters in the units of a fit: the centre towards which the fit shrinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.candidate import Candidate
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.outcomes.models import FITTED_MODELS, Link
from prefcast.outcomes.statistics.likelihood import Block, linear, maximise

__all__ = ["Standardised", "best_shipped", "centre", "own_draws"]

Floats = NDArray[np.float64]

# A weak prior on the parameters of another kind of model, so that its fit to the shipped forecasts always converges.
_WEAK = 0.1


class Standardised(Protocol):
    """What a fitter has: its evidence, the sample with its votes, and the means and units of its columns."""

    data: LabelledEvidence
    sample: Floats
    mean: Floats
    unit: Floats

    @property
    def votes(self) -> Floats: ...
    def columns(self, candidate: Candidate) -> tuple[list[int], list[int]]: ...
    def block(self, candidate: Candidate, rows: Floats) -> Block: ...


def best_shipped(fitter: Standardised, members: Sequence[int]) -> int | None:
    """The member towards whose outcome model a fit shrinks: of those that have one, the one with the lowest log loss on the
    sample. None if no member has one."""
    found = [member for member in members if member in fitter.data.shipped]
    return min(found, key=lambda member: _loss(fitter, member)) if found else None


def _loss(fitter: Standardised, member: int) -> float:
    link = fitter.data.shipped[member].as_link(member)
    logs = FITTED_MODELS[link.kind].log_probabilities(*linear(link.theta, *fitter.data.columns(link, fitter.sample)))[0]
    votes = fitter.votes
    return -float(np.where(votes > 0, votes * logs, 0.0).sum())


def centre(fitter: Standardised, candidate: Candidate) -> Floats:
    """The parameters (k,) of the candidate that are nearest to the shipped ones, in the units of the fitter's columns.

    A candidate of another kind has those that come closest to the shipped forecasts of the sample. The other members and
    the covariates have 0.
    """
    member, link = _link(fitter, candidate)
    found = _standardised(fitter, candidate, member, link.theta)
    if candidate.kind == link.kind:
        return found
    m, t, votes = fitter.block(candidate, fitter.sample)
    shipped = FITTED_MODELS[link.kind].log_probabilities(*linear(found, m, t))[0]
    expected: Block = (m, t, np.exp(shipped) * votes.sum(axis=1, keepdims=True))
    basis = np.eye(len(found))[:, found != 0]
    other = FITTED_MODELS[candidate.kind].log_probabilities
    held = np.full(basis.shape[1], _WEAK)
    return maximise(other, lambda: [expected], basis, np.zeros(len(found)), penalty=held, name=candidate.name).theta


def own_draws(fitter: Standardised, candidate: Candidate, repeats: int) -> Floats:
    """How far the draws (repeats, k) of the shipped parameters are from the shipped parameters; 0 for another kind of model."""
    member, link = _link(fitter, candidate)
    if candidate.kind != link.kind:
        return np.zeros((repeats, len(centre(fitter, candidate))))
    drawn = link.draws[np.arange(repeats) % len(link.draws)]
    return _standardised(fitter, candidate, member, drawn) - _standardised(fitter, candidate, member, link.theta)


def _link(fitter: Standardised, candidate: Candidate) -> tuple[int, Link]:
    member = best_shipped(fitter, candidate.members)
    assert member is not None, "the candidate has no member with an outcome model"  # noqa: S101
    return member, fitter.data.shipped[member].as_link(member)


def _standardised(fitter: Standardised, candidate: Candidate, member: int, theta: Floats) -> Floats:
    """Parameters (..., 3) of the member as parameters (..., k) of the candidate, in the units of the columns."""
    margins, ties = fitter.columns(candidate)
    place = candidate.members.index(member)
    margin, tie = margins[place], ties[place]
    out = np.zeros((*theta.shape[:-1], len(margins) + 1 + len(ties)))
    out[..., place] = theta[..., 0] * fitter.unit[margin]
    out[..., len(margins)] = theta[..., 1] + theta[..., 2] * fitter.mean[tie]
    out[..., len(margins) + 1 + place] = theta[..., 2] * fitter.unit[tie]
    return out
