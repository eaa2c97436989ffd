"""Several answers to one prompt: every two of them as pairs, their order, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.forecasts.predictions import Forecast
from prefcast.outcomes.statistics.coupling import best_of_n
from prefcast.pairs import Pair, Turn, clean
from prefcast.pairs.formats.candidates import Candidates
from prefcast.pairs.formats.labels import WINNERS
from prefcast.pairs.formats.shapes import BESIDE

__all__ = ["AnswerRanking", "Choice", "answer_pairs", "pairs_of", "ranked_answers"]


@dataclass(frozen=True, eq=False)
class AnswerRanking:
    """The order of n answers. `strengths` (n,) are from 0 to 1, their mean is 1/2. `order` has the positions of the answers, the
    best first; answers of equal strength keep their places.

    `probabilities` (n, n, 3) are those of row against column in Outcome's order, nan on the diagonal and where two answers were not
    compared. `leads` (n, n), if they were asked for, are the lower ends of the 95 % intervals of P(the row's answer wins) - P(the
    column's wins).
    """

    order: tuple[int, ...]
    strengths: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    leads: NDArray[np.float64] | None = None

    @property
    def best(self) -> int:
        return self.order[0]

    @property
    def preferred(self) -> NDArray[np.float64]:
        """P(row wins) + P(tie) / 2 against column (n, n); nan where two were not compared."""
        shares: NDArray[np.float64] = self.probabilities[:, :, 0] + self.probabilities[:, :, 2] / 2
        return shares

    def best_probabilities(self) -> NDArray[np.float64]:
        """The probability (n,) of each answer to be the best of n. They sum to 1; `outcomes.statistics.coupling` has the formula."""
        return best_of_n(self.preferred)

    def right(self, among: frozenset[int]) -> float:
        """The share of the answers of the highest strength that are `among` those that people found best: 1 or 0 unless
        several have it."""
        first = [position for position in self.order if self.strengths[position] == self.strengths[self.best]]
        return sum(position in among for position in first) / len(first)


def answer_pairs(
    prompt: str | Sequence[str],
    responses: Sequence[str | Sequence[str]],
    *,
    id: str | int = 0,
    row: int = 0,
    system: str = "",
    reference: str | None = None,
) -> list[Pair]:
    """Every two of n answers as a pair, with the earlier answer as A. There are n (n - 1) / 2, in the order of
    itertools.combinations.

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
    return [
        Pair(tuple(map(Turn, prompts, a, b)), id=id, row=row, system=system, reference=reference)
        for a, b in combinations(cleaned, 2)
    ]


def ranked_answers(n: int, forecasts: Sequence[Forecast]) -> AnswerRanking:
    """The order of n answers from the forecasts of `answer_pairs`.

    Raises the RowError of the first forecast that failed. Its field names the two answers.
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


@dataclass(frozen=True)
class Choice:
    """The choice among the candidates of one prompt, or the `error` that prevented it. `truncated` counts the pairs that were not
    read whole. `more` has what was asked for beside the choice, by the name of its column."""

    id: str | int
    candidates: Candidates | None
    ranking: AnswerRanking | None
    truncated: int
    error: RowError | None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[str | int]:
        return [self.id]

    @property
    def right(self) -> float | None:
        """Whether the choice is one of the answers that people found best: 1 or 0, or a share where several answers have
        the highest strength. None where the file does not say, or the choice failed."""
        if self.ranking is None or self.candidates is None or not self.candidates.right:
            return None
        return self.ranking.right(self.candidates.right)

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        """The one record of the .jsonl file: positions counted from 0, `pairwise` in the order of itertools.combinations."""
        ranking, candidates = self.ranking, self.candidates
        record: dict[str, Any] = {
            "id": self.id,
            "best": None if ranking is None else ranking.best,
            "strength": None if ranking is None else float(ranking.strengths[ranking.best]),
            "responses": None if candidates is None else len(candidates.responses),
            "order": None if ranking is None else list(ranking.order),
            "strengths": None if ranking is None else ranking.strengths.tolist(),
            "pairwise": None if ranking is None else list(_pairwise(ranking)),
            "truncated": self.truncated,
            "right": self.right,
            "error": None if self.error is None else str(self.error),
            **self.more,
        }
        if with_text:
            chosen = None if ranking is None or candidates is None else candidates.responses[ranking.best]
            beside = (None, None) if candidates is None else (candidates.system or None, candidates.reference)
            record |= {
                "prompt": None if candidates is None else list(candidates.prompt),
                "response": None if chosen is None else list(chosen),
                **dict(zip(BESIDE, beside, strict=True)),
            }
        yield record


def _pairwise(ranking: AnswerRanking) -> Iterator[dict[str, float]]:
    for i, j in combinations(range(len(ranking.order)), 2):
        a, b, tie = map(float, ranking.probabilities[i, j])
        if np.isnan(a):
            continue
        yield {"a": i, "b": j, WINNERS[0]: a, WINNERS[1]: b, WINNERS[2]: tie}


def pairs_of(item: Candidates) -> list[Pair]:
    """Every two answers of a row as pairs."""
    return answer_pairs(
        item.prompt, item.responses, id=item.id, row=item.row, system=item.system, reference=item.reference
    )
