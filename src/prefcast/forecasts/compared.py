"""The forecasts of every two answers to each prompt. A model with a score for each answer scores each answer once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

import numpy as np

from prefcast.forecasts.answers import pairs_of
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecasts
from prefcast.forecasts.scores import SINGLE_SCORE, RawScores, score_pairs
from prefcast.pairs import Pair, Turn, clean
from prefcast.pairs.formats.candidates import Candidates
from prefcast.scorers.base import Meter

__all__ = ["compared", "scores_answers"]


def compared(read: Sequence[Candidates], forecaster: Forecaster, meter: Meter) -> Forecasts:
    """The forecasts of every two answers to each prompt, in the order of `answer_pairs`."""
    return (_by_answer if scores_answers(forecaster) else _by_pair)(read, forecaster, meter)


def _by_pair(read: Sequence[Candidates], forecaster: Forecaster, meter: Meter) -> Forecasts:
    """The forecasts of every two answers to each prompt."""
    return forecaster.forecast(chain.from_iterable(map(pairs_of, read)), meter)


def scores_answers(forecaster: Forecaster) -> bool:
    """Whether the scores of single answers are all that the forecaster needs."""
    link = forecaster.link
    scorer = forecaster.scorer
    return (
        scorer.pointwise
        and "score_a" in scorer.raw_names
        and (link is None or {*link.margin, *link.tie} <= {"margin", "tie"})
    )


def _by_answer(read: Sequence[Candidates], forecaster: Forecaster, meter: Meter) -> Forecasts:
    """As `_by_pair`, from the score of each answer, which is read as a pair with itself."""
    singles = [
        Pair(
            tuple(map(Turn, prompt, texts, texts)),
            id=each.id,
            row=each.row,
            system=clean(each.system),
            reference=each.reference,
        )
        for each in read
        for prompt in [tuple(map(clean, each.prompt))]
        for texts in (tuple(map(clean, response)) for response in each.responses)
    ]
    scores = score_pairs(singles, forecaster.scorer, forecaster.budget, meter, "forecast", single=True)
    score = scores.columns[SINGLE_SCORE]
    a, b, start = list[int](), list[int](), 0
    for each in read:
        end = start + len(each.responses)
        left, right = zip(*combinations(range(start, end), 2), strict=True)
        a += left
        b += right
        start = end
    margin = score[a] - score[b] + 0.0
    cuts, errors = scores.truncations, scores.errors
    of_pairs = RawScores(
        [singles[i].id for i in a],
        {"margin": margin, "tie": np.where(np.isfinite(margin), 0.0, np.nan)},
        [cuts[j] if (cut := cuts[i]) is None or not cut.truncated else cut for i, j in zip(a, b, strict=True)],
        [errors[i] or errors[j] for i, j in zip(a, b, strict=True)],
        [None] * len(a),
    )
    return forecaster.of_scores(of_pairs)
