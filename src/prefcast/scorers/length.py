"""The scorer `length`: only the lengths of the two answers. Other scorers are compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p
from typing import ClassVar

import numpy as np

from prefcast.pairs import Pair
from prefcast.scorers.base import Cost, Evidence, Push, Scorer
from prefcast.scorers.info import ScorerInfo

__all__ = ["LengthScorer"]


class LengthScorer(Scorer):
    """margin = log(1 + characters of A) - log(1 + characters of B); tie = -|margin|, as answers of equal length tie more."""

    name: ClassVar[str] = "length"
    cost = Cost.INSTANT

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        margin = np.array(
            [_log_length(pair.response_a) - _log_length(pair.response_b) for pair in pairs], dtype=np.float64
        )
        return Evidence(margin, -np.abs(margin))

    def explain(self, pair: Pair) -> list[Push]:
        evidence = self.compute([pair])
        characters = ("characters", float(sum(map(len, pair.response_a))), float(sum(map(len, pair.response_b))))
        return [Push("length", float(evidence.margin[0]), float(evidence.tie[0]), (characters,))]


def _log_length(texts: Sequence[str]) -> float:
    return log1p(sum(map(len, texts)))


SCORER = ScorerInfo(LengthScorer.name, f"{__name__}:LengthScorer", "the lengths of the two answers: the floor")
