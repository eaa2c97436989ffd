"""Fitting: makes a forecaster from labelled pairs, or from scores with labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.limits import MAX_ROW
from prefcast.base.tables import ShownTable, Tables
from prefcast.errors import FitError, RowError, UsageError
from prefcast.fitting.cards import agreement_said, card_of, cascade_said
from prefcast.fitting.cascade import CascadeFit, fit_cascade
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.gathered import Gathered
from prefcast.fitting.prior_shift import check_share, read_target, shift, shifted, tie_shift
from prefcast.fitting.promises import HELD_OUT, promised
from prefcast.fitting.selection import AS_SHIPPED, Fit, fit_link
from prefcast.fitting.shipped import Shipped
from prefcast.fitting.soft_labels import read_vote_counts, read_weights
from prefcast.forecasts.fitted_rows import InSample
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.resolve import Choice, is_named_model, resolve_fitted
from prefcast.forecasts.scores import read_scores
from prefcast.outcomes.agreement import check_promise
from prefcast.outcomes.models import FITTED_MODELS, FittedModel
from prefcast.pairs import Outcome
from prefcast.pairs.budget import WHOLE, Budget
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.pairs.sources import opened_pairs
from prefcast.runs.loop import Progress
from prefcast.runs.ready import Running, ready_scorer
from prefcast.scorers.base import Scorer, Spent, total_spent
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.cascade.rule import checked_share
from prefcast.scorers.cascade.scorer import CascadeScorer, Tier
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES
from prefcast.scorers.given import GivenScorer
from prefcast.scorers.options import given_values, options_for, which
from prefcast.scorers.registry import DEFAULT, scorer_for

__all__ = ["Fitted", "fit"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted(Tables):
    """A fitted forecaster with the results of the fit: `fit` holds the candidates and figures, `names` the scorers.

    `failed` rows could not be scored and `unlabelled` rows had no label; neither is in the fit. `target_prior` is the
    share of ties to which the tie level was adjusted, None if it was not. `unmatched_votes` counts the rows of the
    votes file whose id is not among the pairs, `restored` the pairs whose evidence was in the store. `paid` is
    what each scorer took that is paid for. `cascade` has the curve of a cascade. `in_sample` counts for each scorer the
    rows that its forecaster was fitted on before, for those that know.
    """

    forecaster: Forecaster
    fit: Fit
    names: tuple[str, ...]
    failed: int
    unlabelled: int
    truncated: int
    rows: int
    first_error: RowError | None
    target_prior: float | None
    unmatched_votes: int = 0
    restored: int = 0
    paid: Mapping[str, Spent] = field(default_factory=dict)
    cascade: CascadeFit | None = None
    in_sample: Mapping[str, InSample] = field(default_factory=dict)

    def tables(self) -> list[ShownTable]:
        """The candidates, and the figures of the one that was chosen."""
        fit = self.fit
        trials = [
            (
                trial.name,
                trial.log_loss,
                trial.over,
                trial.gain if trial.over else None,
                trial.error if trial.over else None,
            )
            for trial in fit.trials
        ]
        figures = [("log loss out of fold", fit.log_loss), ("gain over the class prior", fit.gain)]
        return [
            ShownTable(f"{fit.chosen}, fitted on {fit.rows} labelled pairs", ("figure", "value"), figures),
            ShownTable("candidates", ("candidate", "log loss", "over", "gain", "standard error"), trials),
        ]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the forecaster as a folder. Raises UsageError."""
        self.forecaster.save(folder)


def fit(
    source: Any = None,
    *,
    model: str | Sequence[str] | None = None,
    scores: str | os.PathLike[str] | None = None,
    votes: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    target_prior: float | None = None,
    target: Any = None,
    budget: str | None = None,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    options: Any = None,
    more: Sequence[str] = (),
    running: Running | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    then: str | None = None,
    share: float | None = None,
    cost: tuple[float, float] | None = None,
    target_logloss: float | None = None,
    agree: float | None = None,
    confidence: float = 0.95,
) -> Fitted:
    """Fit an outcome model to labelled pairs.

    `source` is what `predict` takes, with labels, or without them if `votes` names a file of vote counts. `model` names
    one scorer or several (an ensemble); the default is `embedded`. `scores` is a file of scores to use in place of a
    model; if it has labels, `source` may be left out. `weights` is a file of row weights. `target_prior` is the share
    of ties in the data where the forecaster will be used; alternatively `target` is unlabelled pairs of that data.

    With `then`, a second model, the forecaster is a cascade: `model` scores every pair, and `then` scores a `share` of the
    pairs (default 0.3), or the smallest share whose log loss is at most `target_logloss`. `cost` is that of a pair in the
    first and in the second tier. With `agree`, half of the first prompts are held out from the fit, and the forecaster knows
    from which probability on its most likely answer agrees with people at least that often, at the `confidence`.

    Raises UsageError, FitError and FileError.
    """
    models = [model] if isinstance(model, str) else list(model or [])
    _check(source, models, scores, target_prior, target, budget, options)
    _check_cascade(models, then, share, cost, target_logloss, scores, target_prior, target)
    _check_promise(agree, confidence, weights, target_prior, target)
    counts = None if votes is None else read_vote_counts(votes)
    amounts = None if weights is None else read_weights(weights)
    gathered = Gathered(counts, amounts)
    with ExitStack() as stack:
        if source is None and scores is not None:
            gathered.of_scores(scores, label_values)
            members: list[tuple[Scorer, Budget]] = [(GivenScorer(gathered.columns), WHOLE)]
            names, shipped = ["scores"], dict[int, Shipped]()
        else:
            if scores is not None:
                members, names, shipped = [(read_scores(scores), WHOLE)], ["scores"], {}
            else:
                names = [*(models or [DEFAULT]), *([] if then is None else [then])]
                members, shipped = _resolved(names, budget, options, more)
            members = [(stack.enter_context(ready_scorer(scorer, running))[0], read) for scorer, read in members]
            with opened_pairs(source, columns, cells, label_values, max_row) as pairs:
                if isinstance(pairs, PairFile) and counts is None and not pairs.may_have_labels:
                    raise UsageError(f"{pairs.name}: nothing to fit: the file has no label columns ({LABEL_COLUMNS})")
                gathered.of_pairs(pairs, members, names, progress, shipped)
        if gathered.evidence is None or not len(gathered.evidence):
            raise FitError(
                f"nothing to fit: of {gathered.rows} rows {gathered.failed} failed and {gathered.unlabelled} have no label"
                + (f"; the first that failed: {gathered.first_error}" if gathered.first_error else "")
            )
        wanted = None if then is None else {"share": share, "target": target_logloss, "cost": cost}
        promise = None if agree is None else (agree, confidence)
        evidence, found, cascade, forecaster = _fitted(gathered.evidence, members, wanted, promise, seed)
        moved: dict[str, Any] | None = None
        if target is not None:
            with opened_pairs(target, columns, cells, label_values, max_row) as pairs:
                check_share(found.shares[Outcome.TIE])
                ties = tie_shift(found, evidence, read_target(forecaster, pairs), seed)
                target_prior = ties.share
                moved = {"to": target_prior, "target": "unlabelled pairs", **ties.to_dict()}
        elif target_prior is not None:
            moved = {"to": target_prior, "target": "given"}
        if target_prior is not None:
            forecaster = shifted(forecaster, shift(found, evidence, target_prior), target_prior)
        card = card_of(found, found.link if forecaster.link is None else forecaster.link, names, gathered, moved)
        if cascade is not None:
            card["cascade"] = cascade_said(cascade, names)
        if forecaster.agreement is not None:
            card["agreement"] = agreement_said(forecaster.agreement)
        return Fitted(
            replace(forecaster, scorer=forecaster.scorer.bare(), card=card, fitted_rows=gathered.fitted_rows),
            found,
            tuple(names),
            gathered.failed,
            gathered.unlabelled,
            gathered.truncated,
            gathered.rows,
            gathered.first_error,
            target_prior,
            0 if counts is None else len(counts) - gathered.matched,
            gathered.spent.kept,
            {name: total_spent(scorer) for name, (scorer, _) in zip(names, members, strict=True)},
            cascade,
            gathered.in_sample,
        )


def _resolved(
    names: Sequence[str], budget: str | None, options: Any, more: Sequence[str]
) -> tuple[list[tuple[Scorer, Budget]], dict[int, Shipped]]:
    """The scorers, and the outcome models of those that have one. If models of several kinds are named together, an option is
    for those that have it."""
    kinds = {name: info.options for name in names if is_named_model(name) and (info := scorer_for(name))}
    unknown = [name for name in given_values(options) if not any(name in which(kind) for kind in kinds.values())]
    if kinds and unknown:
        raise UsageError(f"--{unknown[0].replace('_', '-')} is not an option of these models")
    found = [
        resolve_fitted(
            Choice(name, budget=budget, options=options_for(kinds[name], options), more=tuple(more))
            if name in kinds
            else Choice(name, budget=budget)
            if kinds
            else Choice(name, budget=budget, options=options, more=tuple(more))
        )
        for name in names
    ]
    shipped = {
        place: Shipped(made.outcome, made.link, made.prior_tie, made.fitted_rows)
        for place, (_, _, made) in enumerate(found)
        if made is not None and isinstance(made.outcome, FittedModel)
    }
    return [(scorer, read) for scorer, read, _ in found], shipped


def _check(
    source: Any,
    models: Sequence[str],
    scores: Any,
    target_prior: float | None,
    target: Any,
    budget: str | None,
    options: Any,
) -> None:
    if scores is not None and models:
        raise UsageError("give either models or --scores, not both")
    if source is None and scores is None:
        raise UsageError("name a file of labelled pairs, or give --scores FILE, a file with labels")
    if len(set(models)) < len(models):
        raise UsageError("a model is named twice; name each model once")
    if target_prior is not None and target is not None:
        raise UsageError("--target estimates what --target-prior sets; give only one of them")
    if target_prior is not None and not 0 < target_prior < 1:
        raise UsageError(f"--target-prior must be a share of ties between 0 and 1; found {target_prior}")
    if scores is not None and (budget is not None or given_values(options)):
        raise UsageError("with --scores nothing is scored: leave out the options of scoring (--budget, --dtype, ...)")
    if target is not None and scores is not None:
        raise UsageError("--target needs models to score it; with --scores give the share of ties: --target-prior")


def _fitted(
    evidence: LabelledEvidence,
    members: Sequence[tuple[Scorer, Budget]],
    cascade: Mapping[str, Any] | None,
    promise: tuple[float, float] | None,
    seed: int,
) -> tuple[LabelledEvidence, Fit, CascadeFit | None, Forecaster]:
    """The evidence without what was held out for the `promise`, the fit to it, and the forecaster."""
    held = None
    if promise is not None:
        evidence, held = evidence.split(HELD_OUT, seed)
    if cascade is None:
        tiers, found = None, fit_link(evidence, seed=seed)
        forecaster = _forecaster(found, members)
        if found.chosen == AS_SHIPPED:
            # A row that fails has the prior that it had before the fit.
            forecaster = replace(forecaster, prior_tie=evidence.shipped[found.members[0]].prior_tie)
    else:
        tiers = fit_cascade(evidence, **cascade, seed=seed)
        found, forecaster = tiers.fit, _cascade(tiers, members)
    if held is not None and promise is not None:
        read = partial(_probabilities, evidence, found, tiers)
        forecaster = replace(forecaster, agreement=promised(found.out_of_fold, held, read, promise, seed))
    return evidence, found, tiers, forecaster


def _check_cascade(
    models: Sequence[str],
    then: str | None,
    share: float | None,
    cost: tuple[float, float] | None,
    target: float | None,
    *others: Any,
) -> None:
    """Raise UsageError for settings that do not go together. `others` are those that a cascade does not have."""
    if then is None:
        if share is not None or cost is not None or target is not None:
            raise UsageError("--share, --cost and --target-logloss are for a cascade: name its second tier with --then")
        return
    if len(models) > 1:
        raise UsageError("the first tier of a cascade is one model: give --model once")
    if then in (models or [DEFAULT]):
        raise UsageError("--then names the first tier's model; name another model")
    if any(other is not None for other in others):
        raise UsageError("--then does not go with --scores, --target or --target-prior")
    if share is not None and target is not None:
        raise UsageError("--target-logloss chooses the share; leave --share out")
    if share is not None:
        checked_share(share)
    if cost is not None and not (all(0 <= each < float("inf") for each in cost) and cost[1] > 0):
        raise UsageError("--cost must be two numbers FIRST/SECOND, the second above 0, like 1/50")


def _check_promise(agree: float | None, confidence: float, *others: Any) -> None:
    if agree is None:
        return
    check_promise(agree, confidence)
    if any(other is not None for other in others):
        raise UsageError(
            "--agree does not go with --weights, --target or --target-prior: the promise is about these rows"
        )


def _probabilities(evidence: LabelledEvidence, found: Fit, cascade: CascadeFit | None, rows: Floats) -> Floats:
    """The forecasts (n, 3) of n rows of a table of evidence."""
    if cascade is None:
        return found.link.probabilities(*evidence.columns(found.link, rows))
    return cascade.probabilities({name: rows[:, place] for name, place in evidence.place.items()})


def _cascade(found: CascadeFit, members: Sequence[tuple[Scorer, Budget]]) -> Forecaster:
    tiers = [Tier(scorer, budget) for scorer, budget in members]
    return Forecaster(
        CascadeScorer(tiers, found.alone, found.both, found.rule, found.share),
        FITTED_MODELS["davidson"](1.0, 0.0, 1.0),
        WHOLE,
        found.fit.shares[Outcome.TIE],
        link=found.fit.link,
        calibration=found.fit.calibration,
    )


def _forecaster(found: Fit, members: Sequence[tuple[Scorer, Budget]]) -> Forecaster:
    """The forecaster of a fit: one scorer with its link, or a blend of several scorers whose weights are the link's."""
    link, model = found.link, FITTED_MODELS[found.link.kind]
    weight = dict(zip((*link.margin, "level", *link.tie), link.theta.tolist(), strict=True))
    facts = {name: weight[name] for name in (*MARGIN_COVARIATES, *TIE_COVARIATES) if name in weight}
    prior_tie = found.shares[Outcome.TIE]
    if len(found.members) == 1 and not facts:
        member = found.members[0]
        scorer, budget = members[member]
        outcome = model(weight[f"margin:{member}"], weight["level"], weight[f"tie:{member}"])
        named = link.renamed({f"margin:{member}": "margin", f"tie:{member}": "tie"})
        return Forecaster(scorer, outcome, budget, prior_tie, link=named, calibration=found.calibration)
    parts = []
    renamed: dict[str, str] = {}
    for number, member in enumerate(found.members):
        renamed |= {f"{what}:{member}": f"{what}:{number}" for what in ("margin", "tie")}
        alone = FITTED_MODELS["davidson"](*found.member_links[number].theta.tolist()) if found.member_links else None
        parts.append(Member(*members[member], weight[f"margin:{member}"], weight[f"tie:{member}"], alone))
    return Forecaster(
        BlendScorer(parts, facts),
        model(1.0, weight["level"], 1.0),
        WHOLE,
        prior_tie,
        link=link.renamed(renamed),
        calibration=found.calibration,
    )
