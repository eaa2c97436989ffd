"""Adjusting a fitted link to data with another share of ties: estimates that share, and how far the tie level moves."""

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

# The largest change of the tie level.
_WIDEST_SHIFT = 20.0
# An estimated share of ties is refused if its 95 % interval is wider than this.
_WIDEST_SHARE = 0.3
_TARGET_ROWS = 5000


def drawn_ties(forecaster: Forecaster, pairs: Iterable[Pair | RowError]) -> Floats:
    """Tie probabilities (draws, n) under each draw of the link, for the first n pairs that can be forecast."""
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
    """For each draw of the link, the mean tie probability (draws,) of a bootstrap sample of the first labelled rows."""
    rows = next(evidence.table.blocks(_TARGET_ROWS))
    m, t = evidence.columns(found.link, rows)
    rng = np.random.default_rng(seed)
    ties = found.link.drawn(m, t)[:, :, Outcome.TIE]
    return np.array([tie[rng.integers(0, len(tie), len(tie))].mean() for tie in ties])


def share_of_ties(ties: Floats, labelled: Floats, seed: int) -> tuple[float, float, float]:
    """The share of ties in unlabelled data, with a 95 % interval, estimated from forecasts.

    `ties` (draws, n) are the tie probabilities under each draw of the link. The estimate uses the likelihood of a share
    given tie probabilities that were made for another share (Saerens, Latinne and Decaestecker, "Adjusting the outputs
    of a classifier to new a priori probabilities", Neural Computation 14, 2002), averaged over the draws. `labelled`
    (draws,) is the share among the labelled rows in each draw: a draw with a higher tie level has more ties there too,
    so only the difference between the two matters.

    Raises UsageError if the interval is too wide, that is, if the forecasts do not predict ties well enough.
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
            "--target: the forecasts do not predict ties well enough to estimate the share of ties: its 95 % interval is "
            f"{low:.0%} to {high:.0%}; give the share with --target-prior, or fit to more labels"
        )
    return float(np.median(every)), low, high


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
