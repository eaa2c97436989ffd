"""Moving a fitted link to where ties are more or less frequent: how frequent they are there, and how far the tie level moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.selection import Fit
from prefcast.forecasts.forecaster import Forecaster
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.pieces import pieces

__all__ = ["check_share", "drawn_ties", "labelled_ties", "share_of_ties", "shift", "shifted"]

Floats = NDArray[np.float64]

# Davidson and Rao-Kupper level apart, a prior moves by so much at most.
_WIDEST_SHIFT = 20.0
# An estimated share of ties whose 95 % interval is wider than this is no estimate.
_WIDEST_SHARE = 0.3
_TARGET_ROWS = 5000


def drawn_ties(forecaster: Forecaster, pairs: Iterable[Pair | RowError]) -> Floats:
    """Tie probabilities (draws, n) of the first pairs that can be forecast, under each draw of the link."""
    found: list[Floats] = []
    count = 0
    for chunk in pieces(pairs):
        forecasts = forecaster.forecast(chunk)
        good = np.array([error is None for error in forecasts.errors])
        if good.any() and forecasts.link is not None and forecasts.columns is not None:
            m, t = (part[good] for part in forecasts.columns)
            found.append(forecasts.link.drawn(m, t)[:, :, Outcome.TIE])
            count += int(good.sum())
        if count >= _TARGET_ROWS:
            break
    if not found:
        raise UsageError("--target: no row could be forecast")
    return np.concatenate(found, axis=1)


def labelled_ties(found: Fit, evidence: LabelledEvidence, seed: int) -> Floats:
    """Each draw's mean tie probability (draws,) of labelled rows drawn anew, of a block of them where they are many."""
    rows = next(evidence.table.blocks(_TARGET_ROWS))
    m, t = (rows[:, [evidence.place[name] for name in part]] for part in (found.link.margin, found.link.tie))
    rng = np.random.default_rng(seed)
    ties = found.link.drawn(m, t)[:, :, Outcome.TIE]
    return np.array([tie[rng.integers(0, len(tie), len(tie))].mean() for tie in ties])


def share_of_ties(ties: Floats, labelled: Floats, seed: int) -> tuple[float, float, float]:
    """The share of ties where only forecasts are known, with a 95 % interval: the likelihood of a share given tie
    probabilities made for another (Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a
    priori probabilities", Neural Computation 14, 2002), averaged over the draws `ties` (draws, n) of the link. `labelled` (draws,) is each draw's share among the labelled
    rows: a draw with a higher tie level has more ties there too, and only the difference counts.

    Raises UsageError where the interval is wide: then the forecasts do not tell ties apart well enough.
    """
    shares = np.linspace(0.002, 0.998, 250)
    rng, sampled = np.random.default_rng(seed), []
    for tie, before in zip(ties, labelled.tolist(), strict=True):
        logs = np.array(
            [np.log(tie * share / before + (1 - tie) * (1 - share) / (1 - before)).sum() for share in shares]
        )
        likelihood = np.exp(logs - logs.max())
        sampled.append(rng.choice(shares, 20, p=likelihood / likelihood.sum()))
    every = np.concatenate(sampled)
    low, high = np.quantile(every, [0.025, 0.975]).tolist()
    if high - low > _WIDEST_SHARE:
        raise UsageError(
            f"--target: the forecasts do not tell ties apart well enough: the share of ties there may be anything from {low:.0%} to "
            f"{high:.0%}; say it with --target-prior, or fit to more labels"
        )
    return float(np.median(every)), low, high


def check_share(labelled: float) -> None:
    if not 0 < labelled < 1:
        raise UsageError(f"the labels' share of ties is {labelled:g}: it says nothing about ties that could be moved")


def _moved(tie: Floats, before: float, after: float) -> Floats:
    """Tie probabilities (n,) once the share of ties is `after` instead of `before` (Bayes' rule)."""
    up, down = tie * after / before, (1 - tie) * (1 - after) / (1 - before)
    moved: Floats = up / (up + down)
    return moved


def shift(found: Fit, evidence: LabelledEvidence, share: float) -> float:
    """How far the tie level moves when the share of ties is another: for Davidson's model Bayes' rule says so, for
    Rao and Kupper's the mean tie probability of the labelled rows becomes what Bayes' rule makes of it."""
    before = found.shares[Outcome.TIE]
    check_share(before)
    odds = float(np.log(share / (1 - share)) - np.log(before / (1 - before)))
    if found.link.kind == "davidson":
        return odds
    from scipy.optimize import brentq

    places = [[evidence.place[name] for name in part] for part in (found.link.margin, found.link.tie)]

    def ties(by: float) -> Floats:
        """The tie probabilities (n,) of all labelled rows with the level moved."""
        link = found.link.shifted(by)
        blocks = ((rows[:, places[0]], rows[:, places[1]]) for rows in evidence.table.blocks())
        return np.concatenate([link.probabilities(m, t)[:, Outcome.TIE] for m, t in blocks])

    wanted = float(_moved(ties(0.0), before, share).mean())

    def gap(by: float) -> float:
        return float(ties(by).mean()) - wanted

    return float(brentq(gap, -_WIDEST_SHIFT, _WIDEST_SHIFT))


def shifted(forecaster: Forecaster, by: float, share: float) -> Forecaster:
    outcome = replace(forecaster.outcome, level=forecaster.outcome.parameters()["level"] + by)  # type: ignore[type-var]
    link = None if forecaster.link is None else forecaster.link.shifted(by)
    return replace(forecaster, outcome=outcome, link=link, prior_tie=share)
