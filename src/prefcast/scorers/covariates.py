"""Facts about a pair that any outcome model may use beside a scorer's evidence: cheap, and true to a swap of A and B.

Empty and identical answers are nearly decided cases, near-duplicates tie more, and so do easy prompts: a link learns how
much, instead of fixing it.
"""

from __future__ import annotations

from math import log1p

from prefcast.pairs import Pair
from prefcast.scorers.surface.features import read_texts, vocabulary_overlap

__all__ = ["MARGIN_COVARIATES", "TIE_COVARIATES", "covariates"]

# What a swap negates, and what it leaves alone.
MARGIN_COVARIATES = ("empty",)
TIE_COVARIATES = ("similarity", "identical", "an_empty_answer", "prompt_length", "turns")


def covariates(pair: Pair) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The covariates of a pair, in the order of MARGIN_COVARIATES and TIE_COVARIATES.

    `empty` is 1 where only B is empty, -1 where only A is; `similarity` the Jaccard index of the answers' words;
    `prompt_length` log(1 + characters) of all prompts; `turns` their number's logarithm, log(1 + turns).
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
