"""Adjusting a fitted link to data with another share of ties: tests whether that describes the data, estimates the share, and says
how far the tie level moves.

The method holds if the target differs from the labelled pairs only in its share of ties ("label shift"). If it differs in
anything else, the estimate may be far off, and the forecasts become worse. So the move is refused if no mixture of the labelled ties
and of the other labelled pairs describes the target. A move that is not refused is shrunk and bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.fitting.evidence import LabelledEvidence, spun
from prefcast.fitting.selection import Fit, OutOfFold
from prefcast.forecasts.forecaster import Forecaster
from prefcast.outcomes.models import Link
from prefcast.outcomes.statistics.bootstrap import Figure, figure, poisson_weights, weighted_mean
from prefcast.outcomes.statistics.mixture import mixture_test
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.pair import group_key
from prefcast.pairs.pieces import pieces
from prefcast.scorers.cascade.rule import LENGTHS, facts_of
from prefcast.scorers.covariates import TIE_COVARIATES, covariates

__all__ = ["Target", "TieShift", "check_share", "read_target", "shift", "shifted", "target_of", "tie_shift"]

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

# The largest change of the tie level.
_WIDEST_SHIFT = 20.0
# An estimated share of ties is refused if its 95 % interval is wider than this.
_WIDEST_SHARE = 0.3
# It is also refused if the interval is wider than this in log-odds. Near 0 and 1 an uncertain share has a narrow interval.
_WIDEST_ODDS = 2.0
# The odds of a tie change at most by this factor.
LARGEST_FACTOR = 4.0
# The test refuses a target that is such a mixture in this share of cases.
SIZE = 0.05
# With fewer first prompts the bootstrap of the test has no known size.
LEAST_PROMPTS = 20
_TARGET_ROWS = 5000
# The test compares every row with every other one.
_TESTED_ROWS = 2000
_DRAWS = 200
_BISECTIONS = 30
_LEAST_SHARE = 0.002


@dataclass(frozen=True, eq=False)
class Target:
    """Rows with their forecasts: `ties` (draws, n) under each draw of the link, `features` (n, d) of the pairs, which an exchange
    of A and B does not change, and the `keys` (n,) of their first prompts."""

    ties: Floats
    features: Floats
    keys: Keys


@dataclass(frozen=True)
class TieShift:
    """What unlabelled pairs say of their share of ties.

    `labelled` is the share among the labels, `estimate` that of the target, and `share` the one to which the tie level moves:
    the estimate shrunk by its error; `bounded` says whether it was bounded too. `p_value` is that of the test whether the
    target differs in its share of ties alone. `log_loss` is what the moved forecasts are expected to have on the target,
    `gain` how much less that is than without the move; both are of the labelled rows out of fold, with the ties weighted.
    """

    labelled: float
    estimate: Figure
    share: float
    bounded: bool
    p_value: float
    rows: int
    groups: int
    log_loss: Figure
    gain: Figure

    def to_dict(self) -> dict[str, Any]:
        """The figures as they are saved."""
        return asdict(self)


def read_target(forecaster: Forecaster, pairs: Iterable[Pair | RowError]) -> Target:
    """The first 5,000 pairs that can be forecast. Raises UsageError if there is none."""
    ties, features, keys = list[Floats](), list[Floats](), list[int]()
    for chunk in pieces(pairs):
        forecasts = forecaster.forecast(chunk)
        good = np.flatnonzero([error is None for error in forecasts.errors])
        if len(good) and forecasts.link is not None and forecasts.columns is not None:
            m, t = (part[good] for part in forecasts.columns)
            kept = [pair for row in good if (pair := forecasts.pairs[row]) is not None]
            facts = np.array([(*covariates(pair)[1], *facts_of(pair)) for pair in kept])
            ties.append(forecasts.link.drawn(m, t)[:, :, Outcome.TIE])
            features.append(np.column_stack([_log_odds(forecasts.link.probabilities(m, t)), facts]))
            keys += [group_key(pair.prompt[0]) for pair in kept]
        if len(keys) >= _TARGET_ROWS:
            break
    if not keys:
        raise UsageError("--target: no row could be forecast")
    return Target(np.concatenate(ties, axis=1), np.concatenate(features), np.array(keys, dtype=np.uint64))


def _log_odds(p: Floats) -> Floats:
    """What a forecast (n, 3) says of ties and of how unequal the answers are, as log-odds (n, 2)."""
    tiny = np.finfo(float).tiny
    a, b, tie = (np.maximum(p[:, outcome], tiny) for outcome in (Outcome.A, Outcome.B, Outcome.TIE))
    return np.column_stack([np.log(tie) - np.log(a + b), np.abs(np.log(a) - np.log(b))])


def target_of(link: Link, evidence: LabelledEvidence) -> tuple[Target, Floats]:
    """The first 5,000 rows of a table of evidence, as a Target, and their votes (n, 3)."""
    rows = next(evidence.table.blocks(_TARGET_ROWS))
    m, t = evidence.columns(link, rows)
    facts = rows[:, [evidence.place[name] for name in (*TIE_COVARIATES, *LENGTHS)]]
    features = np.column_stack([_log_odds(link.probabilities(m, t)), facts])
    return Target(link.drawn(m, t)[:, :, Outcome.TIE], features, evidence.keys(rows)), evidence.votes(rows)


def tie_shift(found: Fit, evidence: LabelledEvidence, target: Target, seed: int) -> TieShift:
    """Test whether `target` differs from the labelled pairs in its share of ties alone, and estimate that share.

    Raises UsageError if it differs in more, if there are too few first prompts to test that, or if the forecasts do not predict
    ties well enough.
    """
    before = found.shares[Outcome.TIE]
    check_share(before)
    labelled, votes = target_of(found.link, evidence)
    prompts = [len(np.unique(each.keys)) for each in (labelled, target)]
    if min(prompts) < LEAST_PROMPTS:
        raise UsageError(
            f"--target: the test whether the target differs in its share of ties alone needs {LEAST_PROMPTS} first prompts among "
            f"the labelled pairs and in the target; found {prompts[0]} and {prompts[1]}; label pairs of the target, or give its "
            "share of ties with --target-prior"
        )
    p_value = _tested(labelled, votes, target, seed)
    if p_value <= SIZE:
        raise UsageError(
            f"--target: the target differs from the labelled pairs in more than its share of ties (p = {p_value:.3f}), so that share "
            "cannot be estimated from forecasts, and the forecasts could become worse; label some pairs of the target and fit to them"
        )
    draws = _drawn_shares(labelled, votes.sum(axis=1), target, seed)
    estimate = figure(float(np.median(draws)), draws)
    if estimate.high - estimate.low > _WIDEST_SHARE or _odds(estimate.high) - _odds(estimate.low) > _WIDEST_ODDS:
        raise UsageError(
            "--target: the forecasts do not predict ties well enough to estimate the share of ties: its 95 % interval is "
            f"{estimate.low:.0%} to {estimate.high:.0%}; give the share with --target-prior, or fit to more labels"
        )
    change = _odds(estimate.value) - _odds(before)
    error = float(np.std(_odds(draws)))
    shrunk = change * change**2 / (change**2 + error**2) if change else 0.0
    largest = float(np.log(LARGEST_FACTOR))
    share = float(1 / (1 + np.exp(-(_odds(before) + np.clip(shrunk, -largest, largest)))))
    figures = _expected(found.out_of_fold, before, share, estimate.value)
    bounded, rows = abs(shrunk) > largest, len(target.keys)
    return TieShift(before, estimate, share, bool(bounded), p_value, rows, prompts[1], *figures)


def _odds(share: Any) -> Any:
    return np.log(share) - np.log1p(-share)


def _tested(labelled: Target, votes: Floats, target: Target, seed: int) -> float:
    """The p value of "the target is a mixture of the labelled ties and the other labelled pairs"."""
    some, others = _some(labelled.keys), _some(target.keys)
    second = np.column_stack([votes[:, [Outcome.A, Outcome.B]].sum(axis=1), votes[:, Outcome.TIE]])
    found = mixture_test(
        labelled.features[some],
        second[some],
        labelled.keys[some],
        target.features[others],
        target.keys[others],
        seed=seed,
    )
    return found.p_value


def _some(keys: Keys) -> NDArray[np.intp]:
    """The rows of random groups, at most _TESTED_ROWS."""
    return np.sort(np.argsort(spun(keys), kind="stable")[:_TESTED_ROWS])


def _drawn_shares(labelled: Target, weights: Floats, target: Target, seed: int) -> Floats:
    """The share of ties in the target (draws,), estimated under each draw of the link and of the first prompts.

    Each is the share with the highest likelihood, given tie probabilities that were made for another share (Saerens, Latinne
    and Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities", Neural Computation 14, 2002). A
    draw with a higher tie level has more ties among the labelled rows too, so only the difference between the two matters.
    """
    place = np.arange(_DRAWS) % len(target.ties)
    here = poisson_weights(labelled.keys, _DRAWS, seed).T * weights
    there = poisson_weights(target.keys, _DRAWS, seed).T.astype(np.float64)
    kept = (here.sum(axis=1) > 0) & (there.sum(axis=1) > 0)
    place, here, there = place[kept], here[kept], there[kept]
    before = ((labelled.ties[place] * here).sum(axis=1) / here.sum(axis=1))[:, None]
    up, down = target.ties[place] / before, (1 - target.ties[place]) / (1 - before)
    low, high = np.full(len(place), _LEAST_SHARE), np.full(len(place), 1 - _LEAST_SHARE)
    # The log-likelihood is concave in the share.
    for _ in range(_BISECTIONS):
        share = (low + high) / 2
        rises = (there * (up - down) / (share[:, None] * up + (1 - share[:, None]) * down)).sum(axis=1) > 0
        low, high = np.where(rises, share, low), np.where(rises, high, share)
    return np.asarray((low + high) / 2)


def _expected(rows: OutOfFold, before: float, share: float, estimate: float) -> tuple[Figure, Figure]:
    """The log loss that is expected on a target with the estimated share if the tie level is moved to `share`, and its gain."""
    weights = np.array([(1 - estimate) / (1 - before)] * 2 + [estimate / before])
    moved = rows.probabilities * np.array([(1 - share) / (1 - before)] * 2 + [share / before])
    moved /= moved.sum(axis=1, keepdims=True)
    logs = [np.log(np.maximum(each, np.finfo(float).tiny)) for each in (rows.probabilities, moved)]
    still, after = (-(rows.votes * weights * log).sum(axis=1) for log in logs)
    counts = (rows.votes * weights).sum(axis=1)
    return weighted_mean(after, counts, rows.keys), weighted_mean(still - after, counts, rows.keys)


def check_share(labelled: float) -> None:
    if not 0 < labelled < 1:
        raise UsageError(
            f"the share of ties among the labels is {labelled:g}; expected a share between 0 and 1 to adjust the tie level"
        )


def shift(found: Fit, evidence: LabelledEvidence, share: float) -> float:
    """The change of the tie level for another `share` of ties.

    For Davidson's model it follows from Bayes' rule. For Rao and Kupper's model it is the change that gives the
    labelled rows the mean tie probability that Bayes' rule gives.
    """
    before = found.shares[Outcome.TIE]
    check_share(before)
    odds = float(np.log(share / (1 - share)) - np.log(before / (1 - before)))
    if found.link.kind == "davidson":
        return odds
    from scipy.optimize import brentq

    def ties(by: float) -> Floats:
        """The tie probabilities (n,) of all labelled rows with `by` added to the tie level."""
        link = found.link.shifted(by)
        blocks = (evidence.columns(link, rows) for rows in evidence.table.blocks())
        return np.concatenate([link.probabilities(m, t)[:, Outcome.TIE] for m, t in blocks])

    now = ties(0.0)
    # Bayes' rule, for each row.
    up, down = now * share / before, (1 - now) * (1 - share) / (1 - before)
    wanted = float((up / (up + down)).mean())
    return float(brentq(lambda by: float(ties(by).mean()) - wanted, -_WIDEST_SHIFT, _WIDEST_SHIFT))


def shifted(forecaster: Forecaster, by: float, share: float) -> Forecaster:
    outcome = replace(forecaster.outcome, level=forecaster.outcome.parameters()["level"] + by)  # type: ignore[type-var]
    link = None if forecaster.link is None else forecaster.link.shifted(by)
    return replace(forecaster, outcome=outcome, link=link, prior_tie=share)
