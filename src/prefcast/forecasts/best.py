"""Best of n: every two of several answers to the same prompt are forecast, and the answers are put in order.

The strength of an answer is the mean of P(it wins) + P(tie) / 2 over the others. That needs no fit, and gives the order of Borda
counts. A Bradley-Terry model is for votes. Forecasts are not votes, and would not support what the model assumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.outputs import Writer, opened_writer, output_kind
from prefcast.forecasts.predictions import Forecast, Forecasts
from prefcast.forecasts.scores import SINGLE_SCORE, RawScores, score_pairs
from prefcast.pairs import Pair, Turn, clean
from prefcast.pairs.formats.candidates import Candidates
from prefcast.pairs.formats.labels import WINNERS
from prefcast.scorers.base import Meter

__all__ = [
    "AnswerRanking",
    "Choice",
    "answer_pairs",
    "choice_kind",
    "choices",
    "open_choice_writer",
    "ranked_answers",
]

# Pairs that are forecast together.
_PIECE = 256


@dataclass(frozen=True, eq=False)
class AnswerRanking:
    """The order of n answers. `strengths` (n,) are from 0 to 1, their mean is 1/2. `order` has the positions of the answers, the
    best first; answers of equal strength keep their places.

    `probabilities` (n, n, 3) are those of row against column in Outcome's order, nan on the diagonal. `leads` (n, n), if they were
    asked for, are the lower ends of the 95 % intervals of P(the row's answer wins) - P(the column's wins).
    """

    order: tuple[int, ...]
    strengths: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    leads: NDArray[np.float64] | None = None

    @property
    def best(self) -> int:
        return self.order[0]

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
    read whole."""

    id: str | int
    candidates: Candidates | None
    ranking: AnswerRanking | None
    truncated: int
    error: RowError | None

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
        }
        if with_text:
            chosen = None if ranking is None or candidates is None else candidates.responses[ranking.best]
            record |= {
                "prompt": None if candidates is None else list(candidates.prompt),
                "response": None if chosen is None else list(chosen),
            }
        yield record


def _pairwise(ranking: AnswerRanking) -> Iterator[dict[str, float]]:
    for i, j in combinations(range(len(ranking.order)), 2):
        a, b, tie = map(float, ranking.probabilities[i, j])
        yield {"a": i, "b": j, WINNERS[0]: a, WINNERS[1]: b, WINNERS[2]: tie}


def choices(
    items: Iterable[Candidates | RowError],
    forecaster: Forecaster,
    progress: Callable[[int], None] | None = None,
    *,
    leads: bool = False,
) -> Iterator[Choice]:
    """The choice for each prompt, in their order. `progress` is called with the number of prompts that are done. With `leads` the
    rankings have them.

    A model that scores single answers reads each answer of a prompt once; another one reads every two of them.
    """
    done = 0

    def chosen(piece: Sequence[Candidates | RowError], pairs: int) -> Iterator[Choice]:
        follow = None if progress is None else lambda within: progress(done + within * len(piece) // max(pairs, 1))
        return _chosen(piece, forecaster, Meter(follow), leads=leads)

    piece: list[Candidates | RowError] = []
    size = 0
    for item in items:
        piece.append(item)
        if isinstance(item, Candidates):
            size += len(item.responses) * (len(item.responses) - 1) // 2
        if size >= _PIECE or len(piece) >= _PIECE:
            yield from chosen(piece, size)
            done += len(piece)
            piece, size = [], 0
    yield from chosen(piece, size)


def _chosen(
    piece: Sequence[Candidates | RowError], forecaster: Forecaster, meter: Meter, *, leads: bool
) -> Iterator[Choice]:
    read = [item for item in piece if isinstance(item, Candidates)]
    compared = _by_answer if _scores_answers(forecaster) else _by_pair
    forecasts = compared(read, forecaster, meter)
    low, high = forecasts.lead_interval() if leads else (np.zeros(0), np.zeros(0))
    # Without the link, whose intervals of single probabilities nobody asks for here.
    every, start = iter(replace(forecasts, link=None)), 0
    for item in piece:
        if isinstance(item, RowError):
            yield Choice(item.id, None, None, 0, item)
            continue
        n = len(item.responses)
        count = n * (n - 1) // 2
        found = list(islice(every, count))
        part = slice(start, start + count)
        start += count
        truncated = sum(each.truncation is not None and each.truncation.truncated for each in found)
        try:
            ranking = ranked_answers(n, found)
        except RowError as error:
            yield Choice(item.id, item, None, truncated, error)
            continue
        if leads:
            least = np.full((n, n), np.nan)
            above = np.triu_indices(n, 1)
            least[above], least.T[above] = low[part], -high[part]
            ranking = replace(ranking, leads=least)
        yield Choice(item.id, item, ranking, truncated, None)


def _by_pair(read: Sequence[Candidates], forecaster: Forecaster, meter: Meter) -> Forecasts:
    """The forecasts of every two answers to each prompt."""
    pairs = (
        answer_pairs(
            each.prompt, each.responses, id=each.id, row=each.row, system=each.system, reference=each.reference
        )
        for each in read
    )
    return forecaster.forecast(chain.from_iterable(pairs), meter)


def _scores_answers(forecaster: Forecaster) -> bool:
    """Whether the scores of single answers are all that the forecaster needs."""
    link = forecaster.link
    return forecaster.scorer.pointwise and (link is None or {*link.margin, *link.tie} <= {"margin", "tie"})


def _by_answer(read: Sequence[Candidates], forecaster: Forecaster, meter: Meter) -> Forecasts:
    """As `_by_pair`, from the score of each answer, which is read as a pair with itself."""
    singles = [
        Pair(tuple(map(Turn, prompt, texts, texts)), id=each.id, row=each.row, system=clean(each.system))
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


def choice_kind(path: str | os.PathLike[str]) -> str:
    """The ending of an output file. Raises UsageError if no writer has it."""
    return output_kind(path, {".csv": "", ".jsonl": " (everything)"})


def open_choice_writer(path: str | os.PathLike[str], *, with_text: bool = False) -> AbstractContextManager[Writer]:
    """A writer of choices for `path`: everything (.jsonl), or a row for each prompt without the strengths of all responses
    (.csv). The file appears whole or not at all. Raises UsageError."""
    names = (
        "id",
        "best",
        "strength",
        "responses",
        "truncated",
        "right",
        "error",
        *(("prompt", "response") if with_text else ()),
    )
    return opened_writer(path, choice_kind(path), names, with_text=with_text)
