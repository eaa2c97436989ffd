"""The outcome model that a forecaster had before the fit ("as shipped"), in the units of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.models import FITTED_MODELS, FittedModel, Link
from prefcast.outcomes.statistics.likelihood import Block, linear, maximise

if TYPE_CHECKING:
    from prefcast.fitting.fitter import Candidate, Fitter

__all__ = ["Shipped", "best_shipped", "centre", "own_draws"]

Floats = NDArray[np.float64]

# A weak prior on the parameters of another kind of model, so that its fit to the shipped forecasts always converges.
_WEAK = 0.1


@dataclass(frozen=True)
class Shipped:
    """The outcome model of a forecaster before the fit. `link` has its draws, None if it has none; `prior_tie` is its share
    of ties."""

    outcome: FittedModel
    link: Link | None
    prior_tie: float

    def as_link(self, member: int) -> Link:
        """The outcome model as a link of the columns of this member; without draws of its own it has one, itself."""
        link, theta = self.link, np.array([self.outcome.scale, self.outcome.level, self.outcome.tie_weight])
        drawn = link is not None and (link.margin, link.tie) == (("margin",), ("tie",)) and len(link.draws) > 0
        draws = link.draws if link is not None and drawn else theta[None, :]
        return Link(self.outcome.kind, (f"margin:{member}",), (f"tie:{member}",), theta, draws)


def best_shipped(fitter: Fitter, members: Sequence[int]) -> int | None:
    """The member towards whose outcome model a fit shrinks: of those that have one, the one with the lowest log loss on the
    sample. None if no member has one."""
    found = [member for member in members if member in fitter.data.shipped]
    return min(found, key=lambda member: _loss(fitter, member)) if found else None


def _loss(fitter: Fitter, member: int) -> float:
    link = fitter.data.shipped[member].as_link(member)
    logs = FITTED_MODELS[link.kind].log_probabilities(*linear(link.theta, *fitter.data.columns(link, fitter.sample)))[0]
    votes = fitter.votes
    return -float(np.where(votes > 0, votes * logs, 0.0).sum())


def centre(fitter: Fitter, candidate: Candidate) -> Floats:
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


def own_draws(fitter: Fitter, candidate: Candidate, repeats: int) -> Floats:
    """How far the draws (repeats, k) of the shipped parameters are from the shipped parameters; 0 for another kind of model."""
    member, link = _link(fitter, candidate)
    if candidate.kind != link.kind:
        return np.zeros((repeats, len(centre(fitter, candidate))))
    drawn = link.draws[np.arange(repeats) % len(link.draws)]
    return _standardised(fitter, candidate, member, drawn) - _standardised(fitter, candidate, member, link.theta)


def _link(fitter: Fitter, candidate: Candidate) -> tuple[int, Link]:
    member = best_shipped(fitter, candidate.members)
    assert member is not None, "the candidate has no member with an outcome model"  # noqa: S101
    return member, fitter.data.shipped[member].as_link(member)


def _standardised(fitter: Fitter, candidate: Candidate, member: int, theta: Floats) -> Floats:
    """Parameters (..., 3) of the member as parameters (..., k) of the candidate, in the units of the columns."""
    margins, ties = fitter.columns(candidate)
    place = candidate.members.index(member)
    margin, tie = margins[place], ties[place]
    out = np.zeros((*theta.shape[:-1], len(margins) + 1 + len(ties)))
    out[..., place] = theta[..., 0] * fitter.unit[margin]
    out[..., len(margins)] = theta[..., 1] + theta[..., 2] * fitter.mean[tie]
    out[..., len(margins) + 1 + place] = theta[..., 2] * fitter.unit[tie]
    return out
