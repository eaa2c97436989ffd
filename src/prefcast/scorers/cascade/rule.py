"""Which pairs the second tier of a cascade scores: a score of each pair, from what is known before the second tier is asked.

Every feature is the same when A and B are exchanged, so a pair and its swap have the same score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log1p
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, UsageError
from prefcast.outcomes.models import Davidson
from prefcast.pairs import Pair
from prefcast.scorers.covariates import TIE_COVARIATES
from prefcast.scorers.members import finite

__all__ = [
    "FACTS",
    "FEATURES",
    "LENGTHS",
    "MARGIN_ALONE",
    "STEPS",
    "Readout",
    "Rule",
    "checked_share",
    "facts_of",
    "features",
]

Floats = NDArray[np.float64]

# What the rule knows of a pair besides the first tier's evidence: the covariates of a tie, and two lengths.
LENGTHS = ("answers_length", "length_difference")
FACTS = (*TIE_COVARIATES, *LENGTHS)
# Facts that may say where the first tier is weak: each has a feature of its own beside the information about the margin.
_WEAK = ("similarity", "prompt_length", "turns", *LENGTHS)
FEATURES = (
    "size",
    "tie",
    "margin_information",
    "tie_information",
    *FACTS,
    *(f"margin_information*{name}" for name in _WEAK),
)
MARGIN_ALONE = {"size": -1.0}
# The rule's thresholds are kept for the shares 0, 1 / STEPS, ..., 1.
STEPS = 100
# Scores are rounded: the last bits of a logarithm may depend on the machine.
_DECIMALS = 9
_LARGEST = 1e6


def facts_of(pair: Pair) -> tuple[float, float]:
    """The logarithm of the length of both answers in characters, and the size of the difference of their logarithms."""
    a, b = (sum(map(len, texts)) for texts in (pair.response_a, pair.response_b))
    return log1p(a + b), abs(log1p(a) - log1p(b))


def features(margin: Floats, tie: Floats, facts: Mapping[str, Floats]) -> dict[str, Floats]:
    """The features (n,) of n pairs, by name, given the first tier's forecast in log-odds (n,) and FACTS (n,).

    `margin_information` is (pA + pB - (pA - pB)^2) / 4 and `tie_information` is pT (1 - pT): the Fisher information of an
    outcome about the margin and about the tie level in Davidson's model. A small change of the log-odds changes the
    forecast by about half the squared change times this information, in nats (Kullback, "Information Theory and
    Statistics", 1959, section 2.6).
    """
    size = np.minimum(np.abs(margin), _LARGEST)
    a, b, t = np.exp(Davidson.log_probabilities(margin, tie)[0]).T
    information = ((a + b) - (a - b) ** 2) / 4
    found = {
        "size": size,
        "tie": np.clip(tie, -_LARGEST, _LARGEST),
        "margin_information": information,
        "tie_information": t * (1 - t),
    }
    found |= {name: facts[name] for name in FACTS}
    return found | {f"margin_information*{name}": information * facts[name] for name in _WEAK}


@dataclass(frozen=True)
class Readout:
    """From columns of evidence to the log-odds of a forecast by Davidson's model.

    `margin` and `tie` are the weights of the antisymmetric and of the symmetric columns, `level` the tie level.
    """

    margin: Mapping[str, float]
    tie: Mapping[str, float]
    level: float

    def log_odds(self, columns: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """The margin and the tie (n,) of columns (n,). Sums column by column: a row's bits do not depend on other rows."""
        n = len(next(iter(columns.values())))
        margin, tie = np.zeros(n), np.full(n, self.level)
        for name, weight in self.margin.items():
            margin = margin + weight * columns[name]
        for name, weight in self.tie.items():
            tie = tie + weight * columns[name]
        return margin, tie

    def said(self) -> dict[str, Any]:
        return {"margin": dict(self.margin), "tie": dict(self.tie), "level": self.level}

    @classmethod
    def read(cls, said: Any, margin: Sequence[str], tie: Sequence[str], file: str) -> Self:
        """What `said` wrote. Raises ForecasterError if it names other columns than `margin` and `tie`."""
        found = [{str(name): finite(weight, file) for name, weight in said[kind].items()} for kind in ("margin", "tie")]
        if not (set(found[0]) <= set(margin) and set(found[1]) <= set(tie)):
            raise ForecasterError(f"{file}: names evidence that the tiers do not give")
        return cls(found[0], found[1], finite(said["level"], file))


@dataclass(frozen=True)
class Rule:
    """The score of a pair is the sum of `weights` times features; the second tier scores the pairs with the highest scores.

    `thresholds` (STEPS + 1,): above thresholds[k] lay the share k / STEPS of the labelled pairs. A threshold does not
    depend on the pairs that are forecast, so neither their batches nor their order change which of them are chosen.
    """

    name: str
    weights: Mapping[str, float]
    thresholds: tuple[float, ...]

    @staticmethod
    def score(weights: Mapping[str, float], found: Mapping[str, Floats]) -> Floats:
        """The scores (n,) of features (n,)."""
        total = np.zeros(len(found["size"]))
        for name, weight in weights.items():
            total = total + weight * found[name]
        rounded: Floats = np.round(total, _DECIMALS)
        return rounded

    @classmethod
    def of(cls, name: str, weights: Mapping[str, float], scores: Floats) -> Self:
        """The rule with thresholds at the quantiles of the `scores` (n,) of labelled pairs."""
        at = np.quantile(scores, 1 - np.arange(STEPS + 1) / STEPS)
        return cls(name, dict(weights), tuple(at.tolist()))

    def threshold(self, share: float) -> float:
        """The score above which the second tier is asked, for a share from 0 to 1."""
        if share in (0, 1):
            return np.inf if share == 0 else -np.inf
        return float(np.interp(share, np.arange(STEPS + 1) / STEPS, self.thresholds))

    def chosen(self, found: Mapping[str, Floats], share: float) -> NDArray[np.bool_]:
        """Which pairs (n,) the second tier scores. A pair that the first tier could not score is not among them."""
        scores = self.score(self.weights, found)
        picked: NDArray[np.bool_] = np.isfinite(scores) & (scores > self.threshold(share))
        return picked

    def said(self) -> dict[str, Any]:
        return {"name": self.name, "weights": dict(self.weights), "thresholds": list(self.thresholds)}

    @classmethod
    def read(cls, said: Any, file: str) -> Self:
        """What `said` wrote. Raises ForecasterError."""
        weights = {str(name): finite(weight, file) for name, weight in said["weights"].items()}
        thresholds = tuple(finite(value, file) for value in said["thresholds"])
        if not set(weights) <= set(FEATURES) or not isinstance(said["name"], str):
            raise ForecasterError(f"{file}: its rule is not one of this version")
        if len(thresholds) != STEPS + 1 or any(low > high for high, low in pairwise(thresholds)):
            raise ForecasterError(f"{file}: its rule needs {STEPS + 1} thresholds, the highest first")
        return cls(said["name"], weights, thresholds)


def checked_share(share: float) -> float:
    """The share. Raises UsageError if it is not from 0 to 1."""
    if not 0 <= share <= 1:
        raise UsageError(f"--share must be a share of the pairs from 0 to 1; found {share:g}")
    return share
