"""Moves the weights of an embedded forecaster towards a person's own pairs, if that is worth it.

How far they move is chosen on pairs that the forecaster does not know: on those of `dev/`, because they are what the forecaster is
for, or else by cross-validation on the pairs to learn from. The outcome model is then fitted to the pairs that are held out. The
figures are on the same pairs: each pair is forecast with an outcome model, and with a choice, that the other folds make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil, inf
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.selection import AS_SHIPPED, Fit, cross_fitted, fit_link
from prefcast.fitting.shipped import Shipped
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.forecasts.forecaster import Forecaster
from prefcast.measuring.metrics import row_log_loss
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.outcomes.models import FITTED_MODELS, FittedModel
from prefcast.outcomes.statistics.bootstrap import Figure, paired_difference, paired_error, weighted_mean
from prefcast.pairs import Outcome, Pair
from prefcast.scorers.embedded import EmbeddedScorer
from prefcast.scorers.embedded.model import TopicModel
from prefcast.training.fit import Rows, evidence, fit, refit, unlike
from prefcast.training.shared import plain_figure
from prefcast.training.splits import enough

__all__ = ["LEAST_ROWS", "Move", "Prepared", "chosen_hold", "fold_of", "moved", "out_of_fold"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

# The penalties of moving that are tried, in multiples of the penalty of a fit from nothing; with the first no weight moves.
HOLDS = (inf, 30.0, 10.0, 3.0, 1.0)
FOLDS = 5
# With fewer pairs there is no figure. The difference of two forecasts' log losses varies by 0.1 to 0.2 from pair to pair, so that the
# interval of a gain would be wider than 0.02 to each side, and no training has gained so much.
LEAST_ROWS = 100
# More pairs do not change a choice or a figure, and take longer.
_MOST_ROWS = 50_000


@dataclass(frozen=True)
class Prepared:
    """n pairs that are ready for a fit: those in `learned` (n,) are for the weights, those in `link` (n,) for the outcome model.
    `group` (n,) numbers the groups of first prompts, `outcome` (n,) is the label, `names` are those of the sources."""

    pairs: list[Pair]
    rows: Rows
    learned: Mask
    link: Mask
    group: Ints
    outcome: Ints
    names: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """The cross-validation of a penalty: `gain` is the log loss of not moving minus its own, `error` the standard error."""

    hold: float
    log_loss: float
    gain: float
    error: float


@dataclass(frozen=True)
class Move:
    """How far the weights move: the penalty is `hold` times that of a fit from nothing, inf if they stay.

    The penalties were tried on `rows` pairs with `groups` groups of first prompts; `held` says that these are the pairs that are held
    out. `gain` is the log loss of not moving minus that of moving. If the weights move, each pair is forecast with the penalty that
    the other folds choose, so the gain includes what the choice costs. If they stay, it is the gain of the best penalty. None if there
    were too few pairs to try. `by_source` is that gain with its standard error for each source. `each` (rows,) are the penalties that
    the other folds choose.
    """

    hold: float
    rows: int
    groups: int
    trials: tuple[Trial, ...] = ()
    gain: Figure | None = None
    held: bool = False
    by_source: tuple[tuple[str, int, float, float], ...] = ()
    each: tuple[float, ...] = ()

    def said(self, name: str) -> str:
        """The choice in one line; `name` is that of the start."""
        if self.gain is None:
            return (
                f"the weights stay: {self.rows} pairs to learn from are new to {name}, and fewer than {LEAST_ROWS} do not show whether "
                "moving them helps"
            )
        better = self.gain.value >= 0
        low, high = (self.gain.low, self.gain.high) if better else (-self.gain.high, -self.gain.low)
        size = f"{'better' if better else 'worse'} by {abs(self.gain.value):.4f} [{low:.4f}, {high:.4f}]"
        where = "held out" if self.held else "to learn from"
        on = f"cross-validated on {self.rows} pairs {where}, {self.groups} first prompts"
        if self.hold < inf:
            return f"the weights move, with {self.hold:g} times the usual penalty: {size} than not moved ({on})"
        within = ", which is within the error" if better else ""
        return f"moving the weights is not worth it: at best {size} than not moved{within} ({on})"

    def to_dict(self) -> dict[str, Any]:
        """For a card; None stands for the weights that stay."""
        trials = [{**asdict(each), "hold": None if each.hold == inf else each.hold} for each in self.trials]
        gain = None if self.gain is None else plain_figure(self.gain)
        hold = None if self.hold == inf else self.hold
        sources = {name: {"n": n, "gain": gain, "error": error} for name, n, gain, error in self.by_source}
        found = {"hold": hold, "n": self.rows, "prompts": self.groups, "held_out": self.held, "gain": gain}
        return {**found, "by_source": sources, "trials": trials}

    def by_source_said(self) -> str | None:
        """The gain for each source, if there are several."""
        if len(self.by_source) < 2:
            return None
        return "gain by source: " + ", ".join(
            f"{name} {gain:+.4f} ± {error:.4f} (n = {n})" for name, n, gain, error in self.by_source
        )


def moved(
    start: Forecaster, name: str, data: Prepared, decide: Mask, tell: Callable[[str], None]
) -> tuple[Forecaster | None, dict[str, Any]]:
    """The forecaster `start`, which is called `name`, moved towards pairs that it does not know, and the figures. None if neither
    other weights nor another outcome model are better. `decide` (n,) are the pairs that may choose how far the weights move."""
    scorer = cast(EmbeddedScorer, start.scorer)
    data = replace(data, link=_at_most(data.link, data.group))
    tell("choosing how far the weights move")
    move = _chosen(scorer.model, data, decide)
    said = [move.said(name), *filter(None, [move.by_source_said()])]
    for line in said:
        tell(line)
    model = scorer.model if move.hold == inf else refit(scorer.model, data.rows.where(data.learned), move.hold)
    figures: dict[str, Any] = {"move": {**move.to_dict(), "said": said}}
    held, outcome, group = data.rows.where(data.link), data.outcome[data.link], data.group[data.link]
    found, made = None, replace(start, scorer=scorer.of_model(model), agreement=None)
    after = evidence(model, held)
    p = start.outcome.probabilities(*after)
    if enough(data.group, data.link):
        tell("fitting the outcome model")
        found = _linked(start, name, after, data)
        made, p = _with_link(made, found), found.out_of_fold.probabilities.copy()
        # Where the other folds choose another penalty, the figures are for that one.
        for hold in {*(move.each if move.held else ())} - {move.hold}:
            other = scorer.model if hold == inf else refit(scorer.model, data.rows.where(data.learned), hold)
            theirs = np.array(move.each) == hold
            p[theirs] = _linked(start, name, evidence(other, held), data).out_of_fold.probabilities[theirs]
    else:
        tell(f"the outcome model stays: {len(outcome)} pairs are held out for it")
    if len(outcome) >= LEAST_ROWS:
        before = start.outcome.probabilities(*evidence(scorer.model, held))
        figures["cross_fitted"] = _figures(before, p, outcome, group.tolist())
    else:
        figures["no_figure"] = (
            f"no figure: {len(outcome)} held-out pairs are new to {name}, and with fewer than {LEAST_ROWS} its interval would be wider "
            "than any gain"
        )
    stays = found is None or found.chosen == AS_SHIPPED
    figures["outcome_model"] = "as it was" if found is None or stays else found.chosen
    if move.hold == inf and stays:
        return None, figures
    fits = data.link if move.hold == inf else data.learned | data.link
    fitted = FittedRows.of(pair for pair, is_in in zip(data.pairs, fits, strict=True) if is_in)
    return replace(made, fitted_rows=fitted.joined(start.fitted_rows)), figures


def out_of_fold(
    rows: Rows, folds: int, group: Ints, masks: tuple[Mask, Mask], make: Callable[[Rows], TopicModel] = fit
) -> tuple[Floats, Floats, Floats]:
    """Margin, tie and `unlike` (n,) of some rows, each from a model that `make` fits to others. `masks` (n,) are the rows that are
    learned, and those that get evidence: theirs is from the learned rows without the fold of their first prompt."""
    learned, tested = masks
    fold = fold_of(group, folds)
    margin, tie, far = (np.zeros(len(group)) for _ in range(3))
    for number in range(folds):
        test = tested & (fold == number)
        if test.any():
            model, rest = make(rows.where(learned & ~test)), rows.where(test)
            margin[test], tie[test] = evidence(model, rest)
            far[test] = unlike(model, rest)
    return margin, tie, far


def fold_of(group: Ints, folds: int, seed: int = 0) -> Ints:
    """The fold (n,) of rows by their groups (n,)."""
    found: Ints = np.random.default_rng(seed).integers(0, folds, int(group.max()) + 1)[group]
    return found


def _at_most(rows: Mask, group: Ints) -> Mask:
    """The rows in a mask (n,), or if they are too many, those of a random sample of the groups (n,)."""
    found: Mask = rows & (fold_of(group, max(1, ceil(rows.sum() / _MOST_ROWS)), seed=1) == 0)
    return found


def chosen_hold(losses: Floats, keys: NDArray[np.uint64]) -> int:
    """Which of k penalties is chosen by their losses (k, n), from the one that moves no weight to the one that moves them most: the
    first whose log loss is no more than a standard error above the lowest."""
    best, ones = int(losses.mean(axis=1).argmin()), np.ones(losses.shape[1])
    for number in range(best):
        worse, error = paired_error(losses[number], losses[best], ones, keys)
        if worse <= error:
            return number
    return best


def _chosen(model: TopicModel, data: Prepared, decide: Mask) -> Move:
    """How far the weights move, by the pairs in `decide` (n,): those of `dev/`, or if there are too few, those to learn from."""
    learned_from = np.unique(data.rows.source[data.learned])
    held = not np.isin(data.rows.source[data.link], learned_from).any() and int(data.link.sum()) >= LEAST_ROWS
    tested = data.link if held else _at_most(data.learned & decide, data.group)
    group = data.group[tested]
    keys, folds = group.astype(np.uint64), fold_of(data.group, FOLDS)[tested]
    n, groups = int(tested.sum()), len(np.unique(group))
    if n < LEAST_ROWS or len(np.unique(folds)) < FOLDS:
        return Move(inf, n, groups)
    found = [evidence(model, data.rows.where(tested))]
    for hold in HOLDS[1:]:
        make = partial(refit, model, hold=hold)
        if held:
            found.append(evidence(make(data.rows.where(data.learned)), data.rows.where(tested)))
        else:
            every = out_of_fold(data.rows, FOLDS, data.group, (data.learned, tested), make)
            found.append((every[0][tested], every[1][tested]))
    margin, tie = (np.column_stack([each[part] for each in found]) for part in range(2))
    labelled, votes = LabelledEvidence(len(HOLDS)), data.rows.target[tested]
    labelled.add(margin, tie, votes, keys)
    losses = np.array([row_log_loss(cross_fitted(labelled, (number,)), votes) for number in range(len(HOLDS))])
    ones = np.ones(n)
    trials = [
        Trial(hold, float(loss.mean()), *paired_error(losses[0], loss, ones, keys))
        for hold, loss in zip(HOLDS, losses, strict=True)
    ]
    best, each = chosen_hold(losses, keys), np.empty(n, dtype=np.int64)
    for fold in range(FOLDS):
        each[folds == fold] = chosen_hold(losses[:, folds != fold], keys[folds != fold])
    after = losses[each, np.arange(n)] if best else losses[1 + int(losses[1:].mean(axis=1).argmin())]
    sources = []
    for number in np.unique(data.rows.source[tested]).tolist():
        of = data.rows.source[tested] == number
        gain, error = paired_error(losses[0][of], after[of], ones[of], keys[of])
        sources.append((data.names[number], int(of.sum()), round(gain, 4), round(error, 4)))
    gain_of_all = weighted_mean(losses[0] - after, ones, keys)
    holds = tuple(HOLDS[number] for number in each.tolist())
    return Move(HOLDS[best], n, groups, tuple(trials), gain_of_all, held, tuple(sources), holds)


def _linked(start: Forecaster, name: str, found: tuple[Floats, Floats], data: Prepared) -> Fit:
    """The outcome model of the evidence of the held-out pairs, shrunk towards that of the start, or that of the start itself."""
    shipped = {}
    if isinstance(start.outcome, FittedModel):
        shipped[0] = Shipped(start.outcome, start.link, start.prior_tie)
    labelled = LabelledEvidence(1, names=(name,), shipped=shipped)
    models = [(pair.model_a, pair.model_b) for pair, held in zip(data.pairs, data.link, strict=True) if held]
    votes, keys = np.eye(len(Outcome))[data.outcome[data.link]], data.group[data.link].astype(np.uint64)
    labelled.add(found[0][:, None], found[1][:, None], votes, keys, models=models)
    return fit_link(labelled)


def _with_link(made: Forecaster, found: Fit) -> Forecaster:
    """The forecaster with another outcome model."""
    if found.chosen == AS_SHIPPED:
        return made
    calibration = found.calibration
    before = made.calibration
    if before is not None and (calibration.source != "models" or calibration.net < before.net):
        # The rows do not name their models, or few of them do. The start's error for whole systems is known, and it is large.
        calibration = replace(calibration, net=before.net, tie=before.tie, source=before.source, n=before.n)
    link = found.link.renamed({"margin:0": "margin", "tie:0": "tie"})
    outcome = FITTED_MODELS[link.kind](*map(float, link.theta))
    return replace(
        made, outcome=outcome, prior_tie=round(found.shares[Outcome.TIE], 4), link=link, calibration=calibration
    )


def _figures(before: Floats, after: Floats, outcome: Ints, groups: list[int]) -> dict[str, Any]:
    """The figures of the start, and of what was made of it, on the held-out pairs."""
    found, start = (evaluate_probabilities(each, outcome, groups) for each in (after, before))
    gain = paired_difference(row_log_loss(before, outcome), row_log_loss(after, outcome), groups)
    return {
        "n": found.n,
        "prompts": found.groups,
        "log_loss": plain_figure(found.scores.log_loss),
        "accuracy": plain_figure(found.scores.accuracy),
        "brier_score": plain_figure(found.scores.brier_score),
        "log_loss_of_start": plain_figure(start.scores.log_loss),
        "log_loss_of_class_prior": plain_figure(found.baselines["class_prior"].log_loss),
        "gain_over_start": plain_figure(gain),
    }
