"""Best of n: several answers to the same prompts, every two of them forecast, in order.

The rule: an answer's strength is its mean win share over the others, P(it wins) + P(tie) / 2. That needs no fit and is the
order of Borda counts; on forecasts, which are no votes, a Bradley-Terry model would assume more than it could learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.pairs import Pair, Turn, clean
from prefcast.predictions import Forecast

__all__ = ["AnswerRanking", "answer_pairs", "ranked_answers"]


@dataclass(frozen=True, eq=False)
class AnswerRanking:
    """n answers, as they came: `strengths` (n,), from 0 to 1, mean 1/2; `order` has their positions, the best first, equal
    ones as they came.

    `probabilities` (n, n, 3) are those of row against column in Outcome's order, nan on the diagonal.
    """

    order: tuple[int, ...]
    strengths: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def best(self) -> int:
        return self.order[0]


def answer_pairs(
    prompt: str | Sequence[str], responses: Sequence[str | Sequence[str]], *, id: str | int = 0, row: int = 0
) -> list[Pair]:
    """Every two of n answers as a pair, the earlier as A: n (n - 1) / 2, in the order of itertools.combinations.

    An answer has as many turns as the prompt. Raises UsageError for fewer than two answers.
    """
    if len(responses) < 2:
        raise UsageError(f"expected at least two responses, found {len(responses)}")
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    texts = [(response,) if isinstance(response, str) else tuple(response) for response in responses]
    for number, each in enumerate(texts, 1):
        if len(each) != len(prompts):
            raise UsageError(f"response {number} has {len(each)} turns, the prompt {len(prompts)}; they must be equal")
    prompts = tuple(map(clean, prompts))
    cleaned = [tuple(map(clean, each)) for each in texts]
    return [Pair(tuple(map(Turn, prompts, a, b)), id=id, row=row) for a, b in combinations(cleaned, 2)]


def ranked_answers(n: int, forecasts: Sequence[Forecast]) -> AnswerRanking:
    """The order of n answers from the forecasts of `answer_pairs`.

    Raises the RowError of the first forecast that failed, its field naming the two answers.
    """
    probabilities = np.full((n, n, 3), np.nan)
    for (i, j), forecast in zip(combinations(range(n), 2), forecasts, strict=True):
        if forecast.error is not None:
            fault = forecast.error
            raise RowError(fault.file, fault.row, f"responses {i + 1} and {j + 1}", fault.problem, fault.id)
        a, b, tie = forecast.probabilities
        probabilities[i, j], probabilities[j, i] = (a, b, tie), (b, a, tie)
    strengths = np.nanmean(probabilities[:, :, 0] + probabilities[:, :, 2] / 2, axis=1)
    order = sorted(range(n), key=lambda index: -strengths[index])
    return AnswerRanking(tuple(order), strengths, probabilities)
