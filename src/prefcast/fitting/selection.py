"""Choosing and fitting a link by cross-validation.

The candidates are tried in order, from simple to complex. A more complex one is taken only if its log loss out of fold
is lower than that of the best so far by more than the standard error of the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import DRAWS, Candidate, Fitter
from prefcast.outcomes.calibration import Calibration, measure_calibration
from prefcast.outcomes.models import Link
from prefcast.outcomes.statistics.bootstrap import Figure, paired_error, weighted_mean

__all__ = ["Fit", "Jury", "OutOfFold", "Trial", "Tried", "cross_fitted", "davidson_link", "fit_link"]

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


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Probabilities (n, 3) of rows by fits to other rows, with their votes (n, 3) and group keys (n,)."""

    probabilities: Floats
    votes: Floats
    keys: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Jury:
    """What the members of an ensemble are worth: `lost` is the log loss that the ensemble loses without a member, paired and
    out of fold. `margin` and `tie` (k, k) are the correlations between the evidence of all k scorers, 0 where one does not
    vary; those of the margin are around 0, where a swap of A and B leaves them unchanged."""

    lost: dict[int, Figure]
    margin: Floats
    tie: Floats


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
    out_of_fold: OutOfFold = field(repr=False)
    jury: Jury | None = None

    @property
    def useful(self) -> bool:
        return self.gain.low > 0


def fit_link(data: LabelledEvidence, *, repeats: int = DRAWS, seed: int = 0) -> Fit:
    """Choose the link of `data` by cross-validation grouped by first prompt, and fit it.

    Raises FitError if there are fewer than LEAST_LABELS rows or a fit does not converge.
    """
    fitter = Fitter(data)
    tried = Tried(fitter)
    prior = Candidate("prior", "davidson", (0,), blank=True)
    members, useless = _members(tried)
    plain = members == (0,) and data.log_odds
    best = Candidate("as given", "davidson", (0,), fixed=True) if plain else prior
    tried.first(best)
    for candidate in _ladder(fitter, members, prior if plain else None):
        gain, error = tried.gain(candidate, best)
        # Half the standard error is enough against the prior: the penalty keeps the link of worthless evidence near the
        # prior, and the interval of the gain shows whether the evidence helps.
        taken = gain > (error / 2 if best.blank else error)
        tried.next(candidate, best, (gain, error), taken)
        best = candidate if taken else best
    loss, weights = tried.loss(best), tried.weights
    used = () if best.blank else members
    if best.blank:
        useless = tuple(range(data.members)) if data.members > 1 else ()
    return Fit(
        link=fitter.link(best, repeats, seed),
        chosen=best.name,
        trials=tuple(tried.trials),
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
        log_loss=weighted_mean(loss, weights, fitter.keys),
        gain=weighted_mean(tried.loss(prior) - loss, weights, fitter.keys),
        calibration=measure_calibration(
            np.exp(tried.logs[best]),
            fitter.votes,
            fitter.keys,
            fitter.sample[:, data.place["model_a"]],
            fitter.sample[:, data.place["model_b"]],
        ),
        out_of_fold=OutOfFold(np.exp(tried.logs[best]), fitter.votes, fitter.keys),
        jury=_jury(tried, best, used) if data.members > 1 else None,
    )


def _jury(tried: Tried, best: Candidate, used: tuple[int, ...]) -> Jury:
    """What each member of `best` is worth, and how alike the evidence of all scorers is."""
    fitter, lost = tried.fitter, dict[int, Figure]()
    for member in used:
        others = tuple(each for each in used if each != member)
        without = replace(best, name=f"without {member}", members=others or (0,), blank=not others)
        lost[member] = weighted_mean(tried.loss(without) - tried.loss(best), tried.weights, fitter.keys)
    members = range(fitter.data.members)
    return Jury(lost, *(fitter.correlations([f"{what}:{member}" for member in members]) for what in ("margin", "tie")))


class Tried:
    """The candidates that were tried, with their log-probabilities out of fold."""

    def __init__(self, fitter: Fitter) -> None:
        self.fitter, self.weights = fitter, fitter.votes.sum(axis=1)
        self.logs: dict[Candidate, Floats] = {}
        self.trials: list[Trial] = []

    def loss(self, candidate: Candidate) -> Floats:
        """Losses (n,) of the candidate out of fold, each summed over the votes of a row."""
        if candidate not in self.logs:
            self.logs[candidate] = self.fitter.out_of_fold(candidate)
        votes = self.fitter.votes
        losses: Floats = -np.where(votes > 0, votes * self.logs[candidate], 0.0).sum(axis=1)
        return losses

    def gain(self, candidate: Candidate, best: Candidate) -> tuple[float, float]:
        """The gain of the candidate over the best so far, and its standard error."""
        return paired_error(self.loss(best), self.loss(candidate), self.weights, self.fitter.keys)

    def first(self, candidate: Candidate) -> None:
        """Note the candidate that others are compared with."""
        value = float(self.loss(candidate).sum() / self.weights.sum())
        self.trials.append(Trial(candidate.name, value, None, 0.0, 0.0, True))

    def next(self, candidate: Candidate, best: Candidate, gain: tuple[float, float], taken: bool) -> None:
        """Note a candidate that was compared with the best so far."""
        value = float(self.loss(candidate).sum() / self.weights.sum())
        self.trials.append(Trial(candidate.name, value, best.name, *gain, taken))


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


def _members(tried: Tried) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The members of the ensemble, and the scorers that are left out.

    The best scorer is first. The scorer that helps most is added as long as its gain is above the standard error and
    its weight is positive.
    """
    fitter = tried.fitter
    rest = list(range(fitter.data.members))
    if len(rest) == 1:
        return (0,), ()

    def candidate(*members: int) -> Candidate:
        return Candidate(" + ".join(fitter.data.names[member] for member in members), "davidson", members)

    chosen: tuple[int, ...] = (min(rest, key=lambda member: tried.loss(candidate(member)).sum()),)
    tried.first(candidate(*chosen))
    rest.remove(chosen[0])
    while rest:
        new = {member: candidate(*sorted((*chosen, member))) for member in rest}
        member = min(rest, key=lambda one: tried.loss(new[one]).sum())
        gain, error = tried.gain(new[member], candidate(*chosen))
        found = fitter.fit(new[member], fitter.sample)
        taken = bool(gain > error and (found.theta[: len(chosen) + 1] > 0).all())
        tried.next(new[member], candidate(*chosen), (gain, error), taken)
        if not taken:
            break
        chosen = new[member].members
        rest.remove(member)
    return chosen, tuple(rest)
