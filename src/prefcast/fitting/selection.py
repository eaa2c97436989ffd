"""Choosing and fitting a link by cross-validation.

The candidates are tried in order, from simple to complex. A more complex one is taken only if its log loss out of fold
is lower than that of the best so far by more than the standard error of the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import DRAWS, Candidate, Fitter
from prefcast.outcomes.calibration import Calibration, measure_calibration
from prefcast.outcomes.models import Link
from prefcast.outcomes.statistics.bootstrap import Figure, paired_error, weighted_mean

__all__ = ["Fit", "Trial", "cross_fitted", "davidson_link", "fit_link"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """The cross-validation of a candidate: `gain` is the log loss of `over`, the best before it, minus its own log loss;
    `error` is the standard error of that gain."""

    name: str
    log_loss: float
    over: str | None
    gain: float
    error: float
    taken: bool


@dataclass(frozen=True)
class Fit:
    """The chosen link and the results that led to the choice.

    `rows` have `votes` votes in `groups` first prompts; `shares` are the shares of the outcomes. `log_loss` is that of
    the chosen link out of fold on `validated` rows; `gain` is the log loss of the prior minus it, paired. `useful`
    says whether the interval of the gain is above 0. `members` are the scorers that the link uses, `useless` those
    that do not improve it.
    """

    link: Link
    chosen: str
    trials: tuple[Trial, ...]
    members: tuple[int, ...]
    useless: tuple[int, ...]
    member_links: tuple[Link, ...]
    rows: int
    votes: float
    groups: int
    validated: int
    shares: tuple[float, float, float]
    log_loss: Figure
    gain: Figure
    calibration: Calibration

    @property
    def useful(self) -> bool:
        return self.gain.low > 0


def fit_link(data: LabelledEvidence, *, repeats: int = DRAWS, seed: int = 0) -> Fit:
    """Choose the link of `data` by cross-validation grouped by first prompt, and fit it.

    Raises FitError if there are fewer than LEAST_LABELS rows or a fit does not converge.
    """
    fitter = Fitter(data)
    weights = fitter.votes.sum(axis=1)
    losses: dict[Candidate, Floats] = {}
    logs: dict[Candidate, Floats] = {}

    def loss(candidate: Candidate) -> Floats:
        """Losses (n,) of the candidate out of fold, each summed over the votes of a row."""
        if candidate not in losses:
            log_p = fitter.out_of_fold(candidate)
            logs[candidate] = log_p
            losses[candidate] = -np.where(fitter.votes > 0, fitter.votes * log_p, 0.0).sum(axis=1)
        return losses[candidate]

    def better(candidate: Candidate, best: Candidate) -> Trial:
        gain, error = paired_error(loss(best), loss(candidate), weights, fitter.keys)
        value = float(loss(candidate).sum() / weights.sum())
        # Half the standard error is enough against the prior: the penalty keeps the link of worthless evidence near the
        # prior, and the interval of the gain shows whether the evidence helps.
        return Trial(candidate.name, value, best.name, gain, error, bool(gain > (error / 2 if best.blank else error)))

    prior = Candidate("prior", "davidson", (0,), blank=True)
    best = prior
    trials: list[Trial] = []
    members, useless = _members(fitter, loss, trials)
    plain = members == (0,) and data.log_odds
    if plain:
        best = Candidate("as given", "davidson", (0,), fixed=True)
    trials.append(Trial(best.name, float(loss(best).sum() / weights.sum()), None, 0.0, 0.0, True))
    for candidate in _ladder(fitter, members, prior if plain else None):
        trial = better(candidate, best)
        trials.append(trial)
        best = candidate if trial.taken else best
    used = () if best.blank else members
    if best.blank:
        useless = tuple(range(data.members)) if data.members > 1 else ()
    p = np.exp(logs[best])
    return Fit(
        link=fitter.link(best, repeats, seed),
        chosen=best.name,
        trials=tuple(trials),
        members=used or (0,),
        useless=useless,
        member_links=tuple(
            fitter.link(Candidate(f"member {member}", "davidson", (member,)), 0, seed) for member in used
        )
        if len(used) > 1
        else (),
        rows=fitter.rows,
        votes=fitter.weight,
        groups=fitter.groups,
        validated=len(fitter.sample),
        shares=tuple((fitter.mass / fitter.weight).tolist()),
        log_loss=weighted_mean(losses[best], weights, fitter.keys),
        gain=weighted_mean(loss(prior) - losses[best], weights, fitter.keys),
        calibration=measure_calibration(
            p,
            fitter.votes,
            fitter.keys,
            fitter.sample[:, data.place["model_a"]],
            fitter.sample[:, data.place["model_b"]],
        ),
    )


def davidson_link(data: LabelledEvidence, *, repeats: int = DRAWS, seed: int = 0) -> Link:
    """Davidson's model of the evidence of all members, with the draws of its bootstrap, without selection."""
    return Fitter(data).link(Candidate("davidson", "davidson", tuple(range(data.members))), repeats, seed)


def cross_fitted(data: LabelledEvidence, members: tuple[int, ...]) -> Floats:
    """Probabilities (n, 3) by Davidson's model of the evidence of these members, each row by a fit to the other folds.

    With more than 200,000 rows the result is for a sample of the rows.
    """
    return np.exp(Fitter(data).out_of_fold(Candidate("davidson", "davidson", members)))


def _ladder(fitter: Fitter, members: tuple[int, ...], first: Candidate | None) -> list[Candidate]:
    """The candidates after the first, from simple to complex."""
    data = fitter.data
    ladder = [] if first is None else [first]
    tie_varies = any(fitter.varies[data.place[f"tie:{member}"]] for member in members)
    if len(members) == 1:
        ladder.append(Candidate("temperature and tie level", "davidson", members, tied=True))
    if tie_varies or len(members) > 1:
        ladder.append(Candidate("davidson", "davidson", members))
    ladder.append(Candidate("rao-kupper", "rao-kupper", members))
    if any(fitter.varies[data.place[name]] for name in (*data.margin_covariates, *data.tie_covariates)):
        ladder.append(Candidate("davidson with covariates", "davidson", members, covariates=True))
    return ladder


def _members(
    fitter: Fitter, loss: Callable[[Candidate], Floats], trials: list[Trial]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The members of the ensemble, and the scorers that are left out.

    The best scorer is first. The scorer that helps most is added as long as its gain is above the standard error and
    its weight is positive.
    """
    rest = list(range(fitter.data.members))
    if len(rest) == 1:
        return (0,), ()
    weights = fitter.votes.sum(axis=1)

    def candidate(members: tuple[int, ...]) -> Candidate:
        return Candidate(" + ".join(fitter.data.names[member] for member in members), "davidson", members)

    chosen: tuple[int, ...] = (min(rest, key=lambda member: loss(candidate((member,))).sum()),)
    first = candidate(chosen)
    trials.append(Trial(first.name, float(loss(first).sum() / weights.sum()), None, 0.0, 0.0, True))
    rest.remove(chosen[0])
    while rest:
        tried = {member: candidate(tuple(sorted((*chosen, member)))) for member in rest}
        member = min(rest, key=lambda one: loss(tried[one]).sum())
        old, new = loss(candidate(chosen)), loss(tried[member])
        gain, error = paired_error(old, new, weights, fitter.keys)
        found = fitter.fit(tried[member], fitter.sample)
        taken = bool(gain > error and (found.theta[: len(chosen) + 1] > 0).all())
        trials.append(
            Trial(tried[member].name, float(new.sum() / weights.sum()), candidate(chosen).name, gain, error, taken)
        )
        if not taken:
            break
        chosen = tuple(sorted((*chosen, member)))
        rest.remove(member)
    return chosen, tuple(rest)
