"""How often a forecast's most likely answer agrees with people, promised for the forecasts above a threshold.

The threshold is found by fixed-sequence testing on labelled rows that were held out from the fit: Angelopoulos, Bates,
Candes, Jordan and Lei, "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control" (Annals of Applied
Statistics 19, 2025; arXiv 2110.01052), section 2.3; the sequence is that of Bauer, "Multiple testing in clinical trials"
(Statistics in Medicine 10, 1991).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, UsageError, excerpt

__all__ = ["Agreement", "agreement", "check_promise", "last_passed", "lower_bound"]

Floats = NDArray[np.float64]

# Thresholds are tried for the shares 1 / _STEPS, 2 / _STEPS, ..., 1 of the rows.
_STEPS = 50
# A probability that is computed in another way may differ in its last bits: that must not decide about a row.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Agreement:
    """A promise about the rows whose most likely outcome has a probability of at least `threshold`: on average over such
    rows, people choose that outcome with a probability of at least `wanted`.

    A threshold that breaks the promise is found with a probability of at most 1 - `confidence`. `threshold` is None if no
    threshold passed the test. `rows` were held out, one of each first prompt; `kept` of them lie above the threshold, and on
    `agreed` of those people agree.
    """

    wanted: float
    confidence: float
    threshold: float | None
    rows: int
    kept: int
    agreed: int

    @property
    def share(self) -> float:
        """The share of the held-out rows that lie above the threshold."""
        return self.kept / self.rows if self.rows else 0.0

    @property
    def lower_bound(self) -> float:
        """The one-sided lower bound of the agreement above the threshold, of Clopper and Pearson, at `confidence`."""
        return lower_bound(self.agreed, self.kept, self.confidence)

    def keeps(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Which rows (n,) of probabilities (n, 3) the promise is about; the others are for people."""
        if self.threshold is None:
            return np.zeros(len(probabilities), dtype=bool)
        kept: NDArray[np.bool_] = probabilities.max(axis=1) >= self.threshold
        return kept

    @classmethod
    def read(cls, said: Mapping[str, Any], shown: str) -> Self:
        """A promise from a saved folder. Raises ForecasterError."""
        if set(said) != {field.name for field in fields(cls)}:
            raise ForecasterError(f"{shown}: its promise of agreement is not one that this version reads")
        shares = [said["wanted"], said["confidence"], *([] if said["threshold"] is None else [said["threshold"]])]
        counts = [said["rows"], said["kept"], said["agreed"]]
        if not all(
            isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1 for share in shares
        ):
            raise ForecasterError(f"{shown}: its promise of agreement has shares {excerpt(shares)}")
        if not all(type(count) is int for count in counts) or not counts[0] >= counts[1] >= counts[2] >= 0:
            raise ForecasterError(f"{shown}: its promise of agreement has counts {excerpt(counts)}")
        return cls(**said)


def check_promise(wanted: float, confidence: float) -> None:
    """Raise UsageError if the two are not shares strictly between 0 and 1."""
    for name, value in (("--agree", wanted), ("--confidence", confidence)):
        if not 0 < value < 1:
            raise UsageError(f"{name} must be a share between 0 and 1; found {value:g}")


def agreement(
    fitted: tuple[Floats, NDArray[np.bool_]],
    held: tuple[Floats, NDArray[np.bool_]],
    wanted: float,
    confidence: float,
) -> Agreement:
    """The promise that the held-out rows support.

    `fitted` and `held` are, of the rows of the fit and of the rows that were held out, the probability (n,) of the most
    likely outcome and whether people agree (n,). The rows of the fit give the thresholds and the one that is tested first:
    what is chosen without the held-out rows does not weaken the test. From there the thresholds fall until one fails.
    """
    tops, agreed = fitted
    thresholds = np.quantile(tops, 1 - np.arange(1, _STEPS + 1) / _STEPS) - _ROUNDING
    chances = [_chance(tops, agreed, threshold, wanted) for threshold in thresholds]
    first = int(np.argmin(chances))
    thresholds[-1] = 0.0
    passed = last_passed(*held, thresholds[first:].tolist(), wanted, confidence)
    tops, agreed = held
    kept = np.zeros(len(tops), dtype=bool) if passed is None else tops >= passed
    return Agreement(wanted, confidence, passed, len(tops), int(kept.sum()), int(agreed[kept].sum()))


def last_passed(
    tops: Floats, agreed: NDArray[np.bool_], thresholds: Sequence[float], wanted: float, confidence: float
) -> float | None:
    """The last of the falling `thresholds` before the first that fails; None if the first one fails.

    A threshold passes if the exact binomial test rejects, at the level 1 - `confidence`, that people agree with fewer than
    `wanted` of the rows above it: the lower end of Clopper and Pearson's interval (Biometrika 26, 1934) is then above
    `wanted`. `tops` (n,) are the probabilities of the most likely outcomes.
    """
    last = None
    for threshold in thresholds:
        if _chance(tops, agreed, threshold, wanted) > 1 - confidence:
            break
        last = threshold
    return last


def lower_bound(agreed: int, rows: int, confidence: float) -> float:
    """The one-sided lower bound of Clopper and Pearson for a rate, at the confidence."""
    from scipy.special import betaincinv

    return float(betaincinv(agreed, rows - agreed + 1, 1 - confidence)) if agreed else 0.0


def _chance(tops: Floats, agreed: NDArray[np.bool_], threshold: float, wanted: float) -> float:
    """The probability of at least as many agreements above the threshold, if people agree at the rate `wanted`."""
    from scipy.special import bdtrc

    above = tops >= threshold
    rows, good = int(above.sum()), int(agreed[above].sum())
    return float(bdtrc(good - 1, rows, wanted)) if good else 1.0
