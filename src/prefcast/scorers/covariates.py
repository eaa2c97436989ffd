"""Covariates of a pair, which an outcome model may use beside a scorer's evidence.

Empty answers nearly always lose, identical answers nearly always tie, and similar answers and easy prompts give more
ties. A fit estimates how much each covariate matters.
"""

from __future__ import annotations

from math import expm1, log1p

from prefcast.pairs import Pair
from prefcast.scorers.surface.features import read_texts, vocabulary_overlap

__all__ = ["MARGIN_COVARIATES", "TIE_COVARIATES", "covariates", "plain_covariate"]

# A swap of A and B negates the first ones and does not change the others.
MARGIN_COVARIATES = ("empty",)
TIE_COVARIATES = ("similarity", "identical", "an_empty_answer", "prompt_length", "turns")


_LOGARITHMS = ("prompt_length", "turns")


def plain_covariate(name: str, value: float) -> float:
    """What an explanation shows of a covariate: a count and not its logarithm."""
    return float(round(expm1(value))) if name in _LOGARITHMS else value


def covariates(pair: Pair) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The covariates of a pair, in the order of MARGIN_COVARIATES and TIE_COVARIATES.

    `empty` is 1 if only B is empty and -1 if only A is. `similarity` is the Jaccard index of the answers' words.
    `prompt_length` is log(1 + characters of all prompts), and `turns` is log(1 + number of turns).
    """
    a, b = read_texts(pair.response_a), read_texts(pair.response_b)
    no_a, no_b = not a.text.strip(), not b.text.strip()
    prompt = sum(map(len, pair.prompt))
    symmetric = (
        vocabulary_overlap(a, b),
        float(pair.response_a == pair.response_b),
        float(no_a or no_b),
        log1p(prompt),
        log1p(len(pair.turns)),
    )
    return (float(no_b) - float(no_a),), symmetric
