"""Fitting a cascade: a readout for the first tier and one for both, the rule that chooses the pairs of the second tier, and
the curve of the log loss against the share of those pairs.

Everything that the curve shows is out of fold: for each fold the readouts, the rules and the thresholds are fitted to the
other folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.fitter import DRAWS, FOLDS, Candidate, Fitter, expanded
from prefcast.fitting.ridge import ridge
from prefcast.fitting.selection import Fit, OutOfFold, Trial, Tried
from prefcast.outcomes.calibration import measure_calibration
from prefcast.outcomes.models import Davidson, Link
from prefcast.outcomes.statistics.bootstrap import REPEATS, Bootstrap, Figure, paired_error, weighted_mean
from prefcast.outcomes.statistics.likelihood import linear
from prefcast.scorers.cascade.rule import FACTS, FEATURES, MARGIN_ALONE, Readout, Rule, features
from prefcast.scorers.cascade.scorer import ESCALATED, raw_columns

__all__ = ["SHARE", "CascadeFit", "CurvePoint", "fit_cascade"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# The share of the pairs that the second tier scores if nobody says otherwise.
SHARE = 0.3
_GRID = tuple(step / 10 for step in range(11))
# Of the draws. The folds of a cross-validation share rows, which makes its intervals too narrow (Bates, Hastie and Tibshirani,
# "Cross-validation: what does it estimate and how well does it do it?", JASA 119, 2024); with this level the bands hold in
# about 95 % of simulations (benchmarks/cascade.py).
_LEVEL = 0.97
# So many standard errors above 0 is the lower end of a one-sided 95 % interval.
_SURE = 1.645


@dataclass(frozen=True)
class CurvePoint:
    """The cascade at one `share`, out of fold: the share that the thresholds gave (`realised`), the log loss, the gain over
    the first tier alone, and the cost of a pair, if the costs of the tiers are known.

    The intervals are bands: with a probability of about 95 % the whole curve lies in them.
    """

    share: float
    realised: float
    log_loss: Figure
    gain: Figure
    cost: float | None


@dataclass(frozen=True)
class CascadeFit:
    """A fitted cascade. `fit` has the figures at `share`, with the trials of the readouts; its link describes both readouts.

    `rules` are the trials of the rules: log losses are means over the shares between 0 and 1. `cost` is that of a pair in the
    first and in the second tier.
    """

    alone: Readout
    both: Readout
    rule: Rule
    share: float
    curve: tuple[CurvePoint, ...]
    rules: tuple[Trial, ...]
    fit: Fit
    cost: tuple[float, float] | None

    def probabilities(self, columns: Mapping[str, Floats]) -> Floats:
        """The forecasts (n, 3) of rows, given the columns (n,) of their evidence and facts by name."""
        first, both = (Davidson.log_probabilities(*each.log_odds(columns))[0] for each in (self.alone, self.both))
        picked = self.rule.chosen(features(*self.alone.log_odds(columns), columns), self.share)
        p: Floats = np.exp(np.where(picked[:, None], both, first))
        return p


# What a rule is fitted to: features (n,) by name, log-probabilities (n, 3) of the first tier and of both, and votes (n, 3).
Learner = Callable[[Mapping[str, Floats], Floats, Floats, Floats], Mapping[str, float]]


def _by_margin(found: Mapping[str, Floats], first: Floats, both: Floats, votes: Floats) -> Mapping[str, float]:
    return MARGIN_ALONE


def _by_change(found: Mapping[str, Floats], first: Floats, both: Floats, votes: Floats) -> Mapping[str, float]:
    """The expected divergence of the forecast of both tiers from that of the first: the gain that a calibrated second tier
    expects. Unlike the gain itself it has no noise of labels."""
    divergence = (np.exp(both) * (both - first)).sum(axis=1)
    return ridge(found, divergence, votes.sum(axis=1), FEATURES)


def _by_gain(found: Mapping[str, Floats], first: Floats, both: Floats, votes: Floats) -> Mapping[str, float]:
    """The expected gain in log loss."""
    weights = votes.sum(axis=1)
    gain = (votes * (both - first)).sum(axis=1) / np.where(weights > 0, weights, 1.0)
    return ridge(found, gain, weights, FEATURES)


_PLAIN = "by margin alone"
_RULES: dict[str, Learner] = {
    _PLAIN: _by_margin,
    "by expected change": _by_change,
    "by expected gain": _by_gain,
}


def fit_cascade(
    data: LabelledEvidence,
    *,
    share: float | None = None,
    target: float | None = None,
    cost: tuple[float, float] | None = None,
    repeats: int = DRAWS,
    seed: int = 0,
) -> CascadeFit:
    """Fit a cascade to the evidence of two tiers, with the FACTS of each row.

    `share` is the share of the pairs for the second tier; with `target` it is the smallest of 0, 0.1, ..., 1 whose log loss is
    at most that. Raises FitError if no share reaches the target, and as `fit_link` does.
    """
    fitter = Fitter(data)
    tried = Tried(fitter)
    tiers = [_chosen(tried, "first tier", (0,)), _chosen(tried, "second tier", (1,), (0, 1))]
    shares = sorted({*_GRID, *([] if share is None else [share])})
    folded = _Folded(fitter, tiers, shares)
    wanted = SHARE if share is None and target is None else share
    name, rules = _best_rule(folded, wanted)
    losses, picked = folded.by_chosen(wanted)
    more = _of_the_fit(folded, rules, losses, sum(_free(fitter, tier) for tier in tiers))
    curve = _curve(folded, (losses, picked), more, cost, seed)
    share = _reaching(curve, target) if wanted is None else wanted
    at = shares.index(share)
    links = [fitter.link(tier, repeats, seed) for tier in tiers]
    readouts = [_readout(link) for link in links]
    prior = tried.loss(Candidate("prior", "davidson", (0,), blank=True))
    keys, weights, votes = fitter.keys, folded.weights, fitter.votes
    p = np.exp(np.where(picked[:, at, None], folded.both, folded.first))
    named = [fitter.sample[:, data.place[model]] for model in ("model_a", "model_b")]
    fit = Fit(
        link=_joined(links, readouts),
        chosen="cascade",
        trials=tuple(tried.trials),
        members=(0, 1),
        useless=(),
        member_links=(),
        rows=fitter.rows,
        votes=fitter.weight,
        groups=fitter.groups,
        validated=len(fitter.sample),
        shares=tuple((fitter.mass / fitter.weight).tolist()),
        log_loss=weighted_mean(losses[:, at], weights, keys),
        gain=weighted_mean(prior - losses[:, at], weights, keys),
        calibration=measure_calibration(p, votes, keys, *named),
        out_of_fold=OutOfFold(p, votes, keys),
    )
    return CascadeFit(readouts[0], readouts[1], folded.rule(name), share, curve, rules, fit, cost)


def _chosen(tried: Tried, name: str, members: tuple[int, ...], more: tuple[int, ...] = ()) -> Candidate:
    """Davidson's model of these members, with `more` members and with covariates if these help by more than the standard
    error. As in an ensemble, no margin has a weight below 0."""
    fitter = tried.fitter
    best = Candidate(name, "davidson", members)
    tried.first(best)
    facts = (*fitter.data.margin_covariates, *fitter.data.tie_covariates)
    varies = any(fitter.varies[fitter.data.place[each]] for each in facts)
    steps: list[dict[str, Any]] = [{"name": "both tiers", "members": more}] if more else []
    for step in [*steps, *([{"covariates": True}] if varies else [])]:
        candidate = replace(best, **{"name": f"{best.name}, covariates", **step})
        gain, error = tried.gain(candidate, best)
        scales = fitter.fit(candidate, fitter.sample).theta[: len(candidate.members)]
        taken = bool(gain > error and (scales > 0).all())
        tried.next(candidate, best, (gain, error), taken)
        best = candidate if taken else best
    return best


class _Folded:
    """The forecasts of both tiers out of fold, and for each rule which rows it would choose and what they would lose."""

    def __init__(self, fitter: Fitter, tiers: Sequence[Candidate], shares: Sequence[float]) -> None:
        self.fitter, self.tiers, self.shares = fitter, tiers, shares
        rows, votes, fold = fitter.sample, fitter.votes, fitter.folds()
        n = len(rows)
        self.weights, self.votes = votes.sum(axis=1), votes
        self.facts = {name: rows[:, fitter.data.place[name]] for name in FACTS}
        self._blocks = [fitter.block(tier, rows)[:2] for tier in tiers]
        self.fold = fold
        self.first, self.both = np.zeros((n, 3)), np.zeros((n, 3))
        self.picked = {name: np.zeros((n, len(shares)), dtype=bool) for name in _RULES}
        starts = [fitter.fit(tier, rows).free for tier in tiers]
        for number in range(FOLDS):
            held = fold == number
            if not held.any() or held.all():
                continue
            thetas = [fitter.fit(tier, rows[~held], start).theta for tier, start in zip(tiers, starts, strict=True)]
            found, first, both = self._read(thetas)
            self.first[held], self.both[held] = first[held], both[held]
            for name, learn in _RULES.items():
                weights = learn(_rows(found, ~held), first[~held], both[~held], votes[~held])
                scores = Rule.score(weights, found)
                rule = Rule.of(name, weights, scores[~held])
                for place, share in enumerate(shares):
                    self.picked[name][held, place] = scores[held] > rule.threshold(share)
        losses = [_loss(votes, logs) for logs in (self.first, self.both)]
        self.losses = {
            name: np.where(picked, losses[1][:, None], losses[0][:, None]) for name, picked in self.picked.items()
        }

    def _read(self, thetas: Sequence[Floats]) -> tuple[dict[str, Floats], Floats, Floats]:
        """The features (n,) of all rows, and the log-probabilities (n, 3) of the first tier and of both."""
        odds = [linear(theta, *block) for theta, block in zip(thetas, self._blocks, strict=True)]
        first, both = (Davidson.log_probabilities(*each)[0] for each in odds)
        return features(*odds[0], self.facts), first, both

    def by_chosen(self, share: float | None) -> tuple[Floats, Bools]:
        """The losses and the choices (n, shares) by the rule that the rows of the other folds would choose: the rows of a
        fold have no part in the choice of the rule that they are measured with."""
        losses, picked = np.zeros_like(self.losses[_PLAIN]), np.zeros_like(self.picked[_PLAIN])
        for number in range(FOLDS):
            held = self.fold == number
            if held.any():
                name = _PLAIN if held.all() else _best_rule(self, share, ~held)[0]
                losses[held], picked[held] = self.losses[name][held], self.picked[name][held]
        return losses, picked

    def rule(self, name: str) -> Rule:
        """The rule fitted to all rows of the sample."""
        found, first, both = self._read([self.fitter.fit(tier, self.fitter.sample).theta for tier in self.tiers])
        weights = _RULES[name](found, first, both, self.votes)
        return Rule.of(name, weights, Rule.score(weights, found))


def _rows(found: Mapping[str, Floats], wanted: Bools) -> dict[str, Floats]:
    return {name: values[wanted] for name, values in found.items()}


def _loss(votes: Floats, logs: Floats) -> Floats:
    """The log loss (n,) of each row, summed over its votes."""
    losses: Floats = -np.where(votes > 0, votes * logs, 0.0).sum(axis=1)
    return losses


def _best_rule(
    folded: _Folded, share: float | None, rows: Bools | slice = slice(None)
) -> tuple[str, tuple[Trial, ...]]:
    """The rule with the lowest mean log loss over the shares between 0 and 1, by some rows of the sample, and the trials.

    A fitted rule is taken if the one-sided 95 % interval of its gain over the margin alone is above 0, and if it is no worse
    at `share`.
    """
    inner = [place for place, each in enumerate(folded.shares) if 0 < each < 1]
    at = inner if share is None else [folded.shares.index(share)]
    weights, keys = folded.weights[rows], folded.fitter.keys[rows]
    losses = {name: each[rows] for name, each in folded.losses.items()}
    means = {name: each[:, inner].mean(axis=1) for name, each in losses.items()}
    total = weights.sum()
    trials = [Trial(_PLAIN, float(means[_PLAIN].sum() / total), None, 0.0, 0.0, True)]
    best = _PLAIN
    for name in [each for each in _RULES if each != _PLAIN]:
        gain, error = paired_error(means[_PLAIN], means[name], weights, keys)
        worse = losses[name][:, at].sum() > losses[_PLAIN][:, at].sum()
        taken = bool(gain > _SURE * error and not worse and means[name].sum() < means[best].sum())
        trials.append(Trial(name, float(means[name].sum() / total), _PLAIN, gain, error, taken))
        best = name if taken else best
    return best, tuple(trials)


def _of_the_fit(folded: _Folded, rules: Sequence[Trial], losses: Floats, parameters: int) -> Floats:
    """The variance (shares,) of the log loss of new pairs that comes from the fit: another sample of labels would give other
    `parameters` of the readouts, other thresholds, and perhaps another rule.

    The log loss of k fitted parameters exceeds the least possible one by a chi-squared number with k degrees of freedom over
    2 n (Wilks, Annals of Mathematical Statistics 9, 1938), with the variance k / (2 n^2). The share of new pairs above a
    threshold has the variance share (1 - share) / n. The gain of a fitted rule over the margin alone is about normal, which
    gives the probability that the rule is taken.
    """
    from scipy.special import ndtr

    shares, total, groups = np.array(folded.shares), folded.weights.sum(), folded.fitter.groups
    slopes = np.gradient(-losses.sum(axis=0) / total, shares)
    best = max(rules[1:], key=lambda trial: trial.gain)
    taken = float(ndtr(best.gain / best.error - _SURE)) if best.error else 0.0
    apart = (folded.losses[best.name] - folded.losses[_PLAIN]).sum(axis=0) / total
    found: Floats = (
        parameters / (2 * groups**2) + slopes**2 * shares * (1 - shares) / groups + taken * (1 - taken) * apart**2
    )
    return found


def _curve(
    folded: _Folded, chosen: tuple[Floats, Bools], more: Floats, cost: tuple[float, float] | None, seed: int
) -> tuple[CurvePoint, ...]:
    """The curve of the losses and choices (n, shares); `more` are variances (shares,) beside those of the bootstrap."""
    shares, (losses, picked), keys = folded.shares, chosen, folded.fitter.keys
    total, n = folded.weights.sum(), len(losses)
    sums = Bootstrap(REPEATS, seed)
    parts = {"loss": losses, "gain": losses[:, [0]] - losses}
    columns = {f"{part} {place}": values[:, place] for part, values in parts.items() for place in range(len(shares))}
    sums.add(keys, {**columns, "rows": folded.weights})
    bands = {}
    for part in parts:
        names = [f"{part} {place}" for place in range(len(shares))]
        values = np.array([sums.total(each) / total for each in names])
        draws = np.column_stack([sums.ratio_draws(each, "rows") for each in names])
        bands[part] = _band(values, draws, more, expanded(folded.fitter.groups), seed)
    realised = picked.sum(axis=0) / n
    return tuple(
        CurvePoint(
            share,
            float(realised[place]),
            bands["loss"][place],
            bands["gain"][place],
            None if cost is None else cost[0] + float(realised[place]) * cost[1],
        )
        for place, share in enumerate(shares)
    )


def _band(values: Floats, draws: Floats, more: Floats, wider: float, seed: int) -> list[Figure]:
    """A band around `values` (k,), from their bootstrap draws (repeats, k), to which normal noise with `more` variances (k,)
    is added. It is as many standard errors wide everywhere as hold all values of most draws (Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, section 4.2.4; the factor `wider` is for few groups)."""
    draws = draws[np.isfinite(draws).all(axis=1)]
    # What is 0 by definition has no error.
    varies = draws.std(axis=0) > 0
    noise = np.random.default_rng(seed).standard_normal(draws.shape) * np.where(varies, np.sqrt(more), 0.0)
    off = np.abs(draws + noise - values)
    spread = (draws + noise).std(axis=0)
    most = (off[:, varies] / spread[varies]).max(axis=1, initial=0.0)
    half = wider * (np.quantile(most, _LEVEL) if len(most) else 0.0) * spread
    return [Figure(value, value - by, value + by) for value, by in zip(values.tolist(), half.tolist(), strict=True)]


def _reaching(curve: Sequence[CurvePoint], target: float | None) -> float:
    """The smallest share whose log loss is at most `target`. Raises FitError."""
    for point in curve:
        if target is not None and point.log_loss.value <= target:
            return point.share
    best = min(curve, key=lambda point: point.log_loss.value)
    raise FitError(
        f"--target-logloss {target:g}: no share of the pairs reaches it; the lowest log loss is {best.log_loss}, at share "
        f"{best.share:g}"
    )


def _free(fitter: Fitter, tier: Candidate) -> int:
    return int(fitter.basis(tier)[0].shape[1])


def _readout(link: Link) -> Readout:
    values = link.theta.tolist()
    level = len(link.margin)
    return Readout(
        dict(zip(link.margin, values[:level], strict=True)),
        dict(zip(link.tie, values[level + 1 :], strict=True)),
        values[level],
    )


def _joined(links: Sequence[Link], readouts: Sequence[Readout]) -> Link:
    """One link of the cascade's raw numbers: those of the readout that does not apply are 0."""
    names = [raw_columns(readout, which) for which, readout in enumerate(readouts)]

    def parts(values: Floats) -> Floats:
        first, both = (values[..., : len(links[0].theta)], values[..., len(links[0].theta) :])
        cuts = [len(link.margin) for link in links]
        levels = [part[..., cut : cut + 1] for part, cut in zip((first, both), cuts, strict=True)]
        joined: Floats = np.concatenate(
            [
                first[..., : cuts[0]],
                both[..., : cuts[1]],
                levels[0],
                first[..., cuts[0] + 1 :],
                both[..., cuts[1] + 1 :],
                levels[1] - levels[0],
            ],
            axis=-1,
        )
        return joined

    return Link(
        "davidson",
        (*names[0][0], *names[1][0]),
        (*names[0][1], *names[1][1], ESCALATED),
        parts(np.concatenate([link.theta for link in links])),
        parts(np.concatenate([link.draws for link in links], axis=1)),
    )
