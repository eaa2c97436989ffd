"""Fitting: makes a forecaster from labelled pairs, or from scores with labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FitError, RowError, UsageError, shown_path
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.prior_shift import check_share, drawn_ties, labelled_ties, share_of_ties, shift, shifted
from prefcast.fitting.selection import Fit, fit_link
from prefcast.fitting.soft_labels import read_vote_counts, read_weights
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.resolve import Choice, is_named_model, resolve_scorer
from prefcast.forecasts.scores import RawScores, read_scores, score_blocks, score_pairs
from prefcast.outcomes.models import FITTED_MODELS, Link, drawn_interval
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.budget import WHOLE, Budget
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.labels import LABEL_COLUMNS
from prefcast.pairs.pair import group_key
from prefcast.pairs.pieces import pieces
from prefcast.pairs.sources import opened_pairs
from prefcast.runs.loop import Progress
from prefcast.runs.ready import Running, ready_scorer
from prefcast.scorers.base import SILENT, Meter, Scorer, Spent, total_spent
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES, covariates
from prefcast.scorers.given import GivenScorer
from prefcast.scorers.options import given_values, options_for, which
from prefcast.scorers.registry import DEFAULT, scorer_for

__all__ = ["Fitted", "fit"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A fitted forecaster with the results of the fit: `fit` holds the candidates and figures, `names` the scorers.

    `failed` rows could not be scored and `unlabelled` rows had no label; neither is in the fit. `target_prior` is the
    share of ties to which the tie level was adjusted, None if it was not. `unmatched_votes` counts the rows of the
    votes file whose id is not among the pairs, `restored` the pairs whose evidence was in the store. `paid` is
    what each scorer took that is paid for.
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
) -> Fitted:
    """Fit an outcome model to labelled pairs.

    `source` is what `predict` takes, with labels, or without them if `votes` names a file of vote counts. `model` names
    one scorer or several (an ensemble); the default is `embedded`. `scores` is a file of scores to use in place of a
    model; if it has labels, `source` may be left out. `weights` is a file of row weights. `target_prior` is the share
    of ties in the data where the forecaster will be used; alternatively `target` is unlabelled pairs of that data.

    Raises UsageError, FitError and FileError.
    """
    models = [model] if isinstance(model, str) else list(model or [])
    _check(source, models, scores, target_prior, target, budget, options)
    counts = None if votes is None else read_vote_counts(votes)
    amounts = None if weights is None else read_weights(weights)
    gathered = _Gathered(counts, amounts)
    with ExitStack() as stack:
        if source is None and scores is not None:
            gathered.of_scores(scores, label_values)
            members: list[tuple[Scorer, Budget]] = [(GivenScorer(gathered.columns), WHOLE)]
            names = ["scores"]
        else:
            if scores is not None:
                members, names = [(read_scores(scores), WHOLE)], ["scores"]
            else:
                names = models or [DEFAULT]
                members = _resolved(names, budget, options, more)
            members = [(stack.enter_context(ready_scorer(scorer, running))[0], read) for scorer, read in members]
            with opened_pairs(source, columns, cells, label_values, max_row) as pairs:
                if isinstance(pairs, PairFile) and counts is None and not pairs.may_have_labels:
                    raise UsageError(f"{pairs.name}: nothing to fit: the file has no label columns ({LABEL_COLUMNS})")
                gathered.of_pairs(pairs, members, names, progress)
        if gathered.evidence is None or not len(gathered.evidence):
            raise FitError(
                f"nothing to fit: of {gathered.rows} rows {gathered.failed} failed and {gathered.unlabelled} have no label"
                + (f"; the first that failed: {gathered.first_error}" if gathered.first_error else "")
            )
        found = fit_link(gathered.evidence, seed=seed)
        forecaster = _forecaster(found, members)
        interval = None
        if target is not None:
            with opened_pairs(target, columns, cells, label_values, max_row) as pairs:
                check_share(found.shares[Outcome.TIE])
                ties = drawn_ties(forecaster, pairs)
                interval = share_of_ties(ties, labelled_ties(found, gathered.evidence, seed), seed)
                target_prior = interval[0]
        if target_prior is not None:
            by = shift(found, gathered.evidence, target_prior)
            forecaster = shifted(forecaster, by, target_prior)
        link = found.link if forecaster.link is None else forecaster.link
        how = "unlabelled pairs" if target is not None else "given"
        card = _card(found, link, names, gathered, target_prior, how)
        if interval is not None:
            card["tie_level_moved"] |= {"low": interval[1], "high": interval[2]}
        return Fitted(
            replace(forecaster, scorer=forecaster.scorer.bare(), card=card),
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
        )


def _resolved(
    names: Sequence[str], budget: str | None, options: Any, more: Sequence[str]
) -> list[tuple[Scorer, Budget]]:
    """The scorers. If models of several kinds are named together, an option is for those that have it."""
    kinds = {name: info.options for name in names if is_named_model(name) and (info := scorer_for(name))}
    unknown = [name for name in given_values(options) if not any(name in which(kind) for kind in kinds.values())]
    if kinds and unknown:
        raise UsageError(f"--{unknown[0].replace('_', '-')} is not an option of these models")
    return [
        resolve_scorer(
            Choice(name, budget=budget, options=options_for(kinds[name], options), more=tuple(more))
            if name in kinds
            else Choice(name, budget=budget)
            if kinds
            else Choice(name, budget=budget, options=options, more=tuple(more))
        )
        for name in names
    ]


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


class _Gathered:
    """Collects evidence and votes, row by row."""

    def __init__(self, votes: dict[str, tuple[float, ...]] | None, weights: dict[str, float] | None) -> None:
        self._votes, self._weights = votes, weights
        self.evidence: LabelledEvidence | None = None
        self.rows = self.failed = self.unlabelled = self.truncated = self.matched = 0
        self.first_error: RowError | None = None
        self.columns: tuple[str, ...] = ()
        self.spent = Spent()

    def _vote(self, id: str | int, label: int) -> tuple[float, ...] | None:
        """The votes on a row times its weight; None if it has no votes."""
        if self._votes is not None:
            counts = self._votes.get(str(id))
            self.matched += counts is not None
        else:
            counts = None if label < 0 else tuple(float(outcome == label) for outcome in Outcome)
        if counts is None or self._weights is None:
            return counts
        weight = self._weights.get(str(id))
        if weight is None:
            raise UsageError(f"--weights: id {str(id)!r} has no weight; every labelled row needs one")
        return tuple(weight * count for count in counts)

    def of_scores(self, path: str | os.PathLike[str], label_values: Mapping[str, str] | None) -> None:
        """Collect a file of scores with labels."""
        for block in score_blocks(path, label_values=label_values):
            if self.evidence is None:
                self.evidence = LabelledEvidence(1, log_odds=block.log_odds)
                self.columns = block.columns
            start, n = self.rows, len(block.ids)
            self.rows += n
            self.failed += int((~block.scored).sum())
            if self.first_error is None and not block.scored.all():
                row = int(np.flatnonzero(~block.scored)[0])
                self.first_error = RowError(shown_path(path), start + row + 1, "", "has no scores", block.ids[row])
            keys = np.arange(start, start + n, dtype=np.uint64) if block.keys is None else block.keys
            if self._votes is None and self._weights is None:
                good = block.scored & (block.labels >= 0)
                counts = np.eye(len(Outcome))[block.labels[good]]
            else:
                found = [self._vote(id, label) for id, label in zip(block.ids, block.labels.tolist(), strict=True)]
                good = block.scored & np.array([each is not None for each in found])
                counts = np.array([found[row] for row in np.flatnonzero(good)]).reshape(-1, len(Outcome))
            self.unlabelled += int(block.scored.sum() - good.sum())
            named = [block.models[row] for row in np.flatnonzero(good)] if any(map(any, block.models)) else None
            self.evidence.add(block.margin[good, None], block.tie[good, None], counts, keys[good], models=named)

    def of_pairs(
        self,
        pairs: Iterable[Pair | RowError],
        members: Sequence[tuple[Scorer, Budget]],
        names: Sequence[str],
        progress: Progress | None,
    ) -> None:
        """Score labelled pairs with every member and collect the evidence."""
        log_odds = len(members) == 1 and members[0][0].log_odds
        self.evidence = LabelledEvidence(
            len(members), MARGIN_COVARIATES, TIE_COVARIATES, log_odds=log_odds, names=names
        )
        for chunk in pieces(pairs):
            before, rows, counts = self.rows, list[Pair](), list[tuple[float, ...]]()
            self.rows += len(chunk)
            for item in chunk:
                if isinstance(item, RowError):
                    self._fail(item)
                    continue
                vote = self._vote(item.id, -1 if item.outcome is None else int(item.outcome))
                if vote is None:
                    self.unlabelled += 1
                else:
                    rows.append(item)
                    counts.append(vote)
            if rows:
                follow = partial(_after, progress, before) if progress else None
                meters = [SILENT] * (len(members) - 1) + [Meter(follow, self.spent)]
                scored = zip(members, meters, strict=True)
                found = [score_pairs(rows, scorer, budget, meter, "fit") for (scorer, budget), meter in scored]
                self._add(rows, np.array(counts), found)
            if progress:
                progress(self.rows)

    def _fail(self, error: RowError) -> None:
        self.failed += 1
        self.first_error = self.first_error or error

    def _add(self, rows: list[Pair], counts: Floats, found: Sequence[RawScores]) -> None:
        """Collect the rows that every member could score."""
        good = []
        for row, errors in enumerate(zip(*(scores.errors for scores in found), strict=True)):
            if error := next(filter(None, errors), None):
                self._fail(error)
            else:
                good.append(row)
        if not good or self.evidence is None:
            return
        cut = [[report is not None and report.truncated for report in scores.truncations] for scores in found]
        self.truncated += int(np.any(cut, axis=0)[good].sum())
        kept = [rows[row] for row in good]
        facts = [covariates(pair) for pair in kept]
        self.evidence.add(
            np.column_stack([scores.columns["margin"][good] for scores in found]),
            np.column_stack([scores.columns["tie"][good] for scores in found]),
            counts[good],
            np.array([group_key(pair.prompt[0]) for pair in kept], dtype=np.uint64),
            margin_covariates=np.array([each[0] for each in facts]),
            tie_covariates=np.array([each[1] for each in facts]),
            models=[(pair.model_a, pair.model_b) for pair in kept],
        )


def _after(progress: Progress, before: int, done: int) -> None:
    progress(before + done)


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


def _named(column: str, names: Sequence[str]) -> str:
    """The readable name of a column: margin:0 becomes "margin of surface"."""
    what, colon, member = column.partition(":")
    return f"{what} of {names[int(member)]}" if colon else what


def _card(
    found: Fit, link: Link, names: Sequence[str], gathered: _Gathered, target_prior: float | None, target: str
) -> dict[str, Any]:
    """The description of the fit that is saved in the folder; `link` is the saved link, with the adjusted tie level."""
    low, high = drawn_interval(link.draws)
    columns = tuple(_named(column, names) for column in (*found.link.margin, "level", *found.link.tie))
    card: dict[str, Any] = {
        "fitted_on": {
            "rows": found.rows,
            "votes": found.votes,
            "first_prompts": found.groups,
            "outcome_shares": dict(zip(("a", "b", "tie"), found.shares, strict=True)),
            "failed": gathered.failed,
            "without_a_label": gathered.unlabelled,
            "truncated": gathered.truncated,
        },
        "models": list(names),
        "used": [names[member] for member in found.members] if found.chosen != "prior" else [],
        "useless": [names[member] for member in found.useless],
        "outcome_model": found.chosen,
        "parameters": {
            name: {"value": float(value), "low": float(a), "high": float(b)}
            for name, value, a, b in zip(columns, link.theta, low, high, strict=True)
        },
        "cross_validated": {
            "rows": found.validated,
            "log_loss": asdict(found.log_loss),
            "gain_over_class_prior": asdict(found.gain),
            "better_than_class_prior": found.useful,
        },
        "candidates": [asdict(trial) for trial in found.trials],
    }
    if target_prior is not None:
        card["tie_level_moved"] = {"from": found.shares[Outcome.TIE], "to": target_prior, "target": target}
    return card
