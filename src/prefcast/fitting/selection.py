"""Choosing and fitting a link by cross-validation.

The candidates are tried in order, from simple to complex. A more complex one is taken only if its log loss out of fold
is lower than that of the best so far by more than the standard error of the difference. If a scorer has an outcome model
already, that model ("as shipped") is the first candidate, and the others shrink towards it; the first of them is taken if it
is better at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.centre import best_shipped
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import DRAWS, Candidate, Fitter
from prefcast.outcomes.calibration import Calibration, measure_calibration
from prefcast.outcomes.models import Link
from prefcast.outcomes.statistics.bootstrap import Figure, paired_error, weighted_mean

__all__ = [
    "AS_SHIPPED",
    "Fit",
    "Jury",
    "OutOfFold",
    "OverShipped",
    "Trial",
    "Tried",
    "cross_fitted",
    "davidson_link",
    "fit_link",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

AS_SHIPPED = "as shipped"


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
class OverShipped:
    """The fit beside the outcome model that the scorer had before it ("as shipped"), both out of fold.

    `log_loss` is that of as shipped. `best` is the candidate that was chosen or, if as shipped was `kept`, the best of the
    others. `gain` is the log loss of as shipped minus that of `best`, paired. If `best` was chosen, its rows are forecast by
    the candidate that the other folds would choose, so the gain includes what the choice costs.
    """

    log_loss: Figure
    best: str
    best_log_loss: Figure
    gain: Figure
    kept: bool


@dataclass(frozen=True)
class Fit:
    """The chosen link and the results that led to the choice.

    `rows` have `votes` votes in `groups` first prompts; `shares` are the shares of the outcomes. `log_loss` is that of
    the chosen link out of fold on `validated` rows; `gain` is the log loss of the prior minus it, paired. `useful`
    says whether the interval of the gain is above 0. `members` are the scorers that the link uses, `useless` those
    that do not improve it. `over_shipped` is None if no member had an outcome model before.
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
    over_shipped: OverShipped | None = None

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
    shipped = best_shipped(fitter, members)
    plain = members == (0,) and data.log_odds and shipped is None
    best = Candidate("as given", "davidson", (0,), fixed=True) if plain else prior
    if shipped is not None:
        best = Candidate(AS_SHIPPED, data.shipped[shipped].outcome.kind, (shipped,), shipped=True)
    ladder = [best, *_ladder(fitter, members, prior if plain else None, shrunk=shipped is not None)]
    tried.first(best)
    best = _climbed(tried, ladder, slice(None), note=True)
    logs, over = tried.log_probabilities(best), None
    if shipped is not None:
        logs, over = _over_shipped(tried, ladder, best)
    loss, weights = tried.loss_of(logs), tried.weights
    used = () if best.blank else best.members
    if best.blank:
        useless = tuple(range(data.members)) if data.members > 1 else ()
    elif best.shipped:
        useless = tuple(member for member in range(data.members) if member not in used)
    return Fit(
        link=fitter.link(best, repeats, seed),
        chosen=best.name,
        trials=tuple(tried.trials),
        members=used or (0,),
        useless=useless,
        member_links=tuple(
            fitter.link(Candidate(f"member {member}", "davidson", (member,), shrunk=member in data.shipped), 0, seed)
            for member in used
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
            np.exp(logs),
            fitter.votes,
            fitter.keys,
            fitter.sample[:, data.place["model_a"]],
            fitter.sample[:, data.place["model_b"]],
        ),
        out_of_fold=OutOfFold(np.exp(logs), fitter.votes, fitter.keys),
        jury=_jury(tried, best, used) if data.members > 1 else None,
        over_shipped=over,
    )


def _climbed(tried: Tried, ladder: Sequence[Candidate], rows: Bools | slice, *, note: bool = False) -> Candidate:
    """The candidate that these rows of the sample choose; `note` keeps the trials."""
    best = ladder[0]
    for candidate in ladder[1:]:
        gain, error = tried.gain(candidate, best, rows)
        # Half the standard error is enough against the prior: the penalty keeps the link of worthless evidence near the
        # prior, and the interval of the gain shows whether the evidence helps. Any gain is enough for Davidson's model, the
        # second candidate, over as shipped: it has moved no further than the labels prove. A larger threshold gains less and does
        # no less harm (benchmarks/as_shipped.py).
        needed = 0.0 if best.shipped and candidate == ladder[1] else error / 2 if best.blank else error
        taken = gain > needed
        if note:
            tried.next(candidate, best, (gain, error), taken)
        best = candidate if taken else best
    return best


def _over_shipped(tried: Tried, ladder: Sequence[Candidate], best: Candidate) -> tuple[Floats, OverShipped]:
    """The log-probabilities (n, 3) of the rows, each by the candidate that the other folds choose, and what they gain.

    If as shipped was chosen, the log-probabilities are its own.
    """
    shipped, fitter = ladder[0], tried.fitter
    if kept := best == shipped:
        best = min(ladder[1:], key=lambda candidate: tried.loss(candidate).sum())
        logs = tried.log_probabilities(best)
    else:
        logs, fold = np.empty((len(fitter.sample), 3)), fitter.folds()
        for number in np.unique(fold):
            held = fold == number
            logs[held] = tried.log_probabilities(_climbed(tried, ladder, ~held))[held]
    before, after = tried.loss(shipped), tried.loss_of(logs)
    figures = [weighted_mean(each, tried.weights, fitter.keys) for each in (before, after, before - after)]
    over = OverShipped(figures[0], best.name, figures[1], figures[2], kept)
    return (tried.log_probabilities(shipped) if kept else logs), over


def _jury(tried: Tried, best: Candidate, used: tuple[int, ...]) -> Jury:
    """What each member of `best` is worth, and how alike the evidence of all scorers is."""
    fitter, lost = tried.fitter, dict[int, Figure]()
    for member in used:
        others = tuple(each for each in used if each != member)
        shrunk = any(each in fitter.data.shipped for each in others)
        without = replace(
            best,
            name=f"without {member}",
            members=others or (0,),
            blank=not others,
            shrunk=shrunk and not best.blank,
            shipped=False,
        )
        lost[member] = weighted_mean(tried.loss(without) - tried.loss(best), tried.weights, fitter.keys)
    members = range(fitter.data.members)
    return Jury(lost, *(fitter.correlations([f"{what}:{member}" for member in members]) for what in ("margin", "tie")))


class Tried:
    """The candidates that were tried, with their log-probabilities out of fold."""

    def __init__(self, fitter: Fitter) -> None:
        self.fitter, self.weights = fitter, fitter.votes.sum(axis=1)
        self.logs: dict[Candidate, Floats] = {}
        self.trials: list[Trial] = []

    def log_probabilities(self, candidate: Candidate) -> Floats:
        """Log-probabilities (n, 3) of the rows by the candidate, out of fold."""
        if candidate not in self.logs:
            self.logs[candidate] = self.fitter.out_of_fold(candidate)
        return self.logs[candidate]

    def loss(self, candidate: Candidate) -> Floats:
        """Losses (n,) of the candidate out of fold, each summed over the votes of a row."""
        return self.loss_of(self.log_probabilities(candidate))

    def loss_of(self, logs: Floats) -> Floats:
        """Losses (n,) of log-probabilities (n, 3), each summed over the votes of a row."""
        votes = self.fitter.votes
        losses: Floats = -np.where(votes > 0, votes * logs, 0.0).sum(axis=1)
        return losses

    def gain(self, candidate: Candidate, best: Candidate, rows: Bools | slice = slice(None)) -> tuple[float, float]:
        """The gain of the candidate over the best so far on some rows of the sample, and its standard error."""
        losses = (self.loss(best)[rows], self.loss(candidate)[rows])
        return paired_error(*losses, self.weights[rows], self.fitter.keys[rows])

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


def _ladder(fitter: Fitter, members: tuple[int, ...], first: Candidate | None, *, shrunk: bool) -> list[Candidate]:
    """The candidates after the first, from simple to complex."""
    data = fitter.data
    ladder = [] if first is None else [first]
    tie_varies = any(fitter.varies[data.place[f"tie:{member}"]] for member in members)
    if len(members) == 1 and not shrunk:
        ladder.append(Candidate("temperature and tie level", "davidson", members, tied=True))
    if tie_varies or len(members) > 1 or shrunk:
        ladder.append(Candidate("davidson", "davidson", members, shrunk=shrunk))
    ladder.append(Candidate("rao-kupper", "rao-kupper", members, shrunk=shrunk))
    if any(fitter.varies[data.place[name]] for name in (*data.margin_covariates, *data.tie_covariates)):
        ladder.append(Candidate("davidson with covariates", "davidson", members, covariates=True, shrunk=shrunk))
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
        name = " + ".join(fitter.data.names[member] for member in members)
        shrunk = any(member in fitter.data.shipped for member in members)
        return Candidate(name, "davidson", members, shrunk=shrunk)

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
