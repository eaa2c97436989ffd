"""Best of n: every two of several answers to the same prompt are forecast, and the answers are put in order.

The strength of an answer is the mean of P(it wins) + P(tie) / 2 over the others. That needs no fit, and gives the order of Borda
counts. A Bradley-Terry model is for votes. Forecasts are not votes, and would not support what the model assumes.

`forecasts.fewer` makes the same choice with fewer comparisons; `Asked` says what else is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from prefcast.errors import RowError, UsageError
from prefcast.forecasts.answers import AnswerRanking, Choice, answer_pairs, pairs_of, ranked_answers
from prefcast.forecasts.fewer import fewer_choices
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.outputs import Writer, opened_writer, output_kind
from prefcast.outcomes.models import MarginSign
from prefcast.pairs.formats.candidates import Candidates
from prefcast.pairs.formats.shapes import BESIDE
from prefcast.scorers.base import Meter
from prefcast.scorers.singly import reads_singly, singly

__all__ = [
    "AnswerRanking",
    "Asked",
    "Choice",
    "answer_pairs",
    "choice_kind",
    "choices",
    "open_choice_writer",
    "ranked_answers",
]

# Pairs that are forecast together.
_PIECE = 256


@dataclass(frozen=True)
class Asked:
    """What is computed beside the choice.

    With `adaptive` as few comparisons are made as the choice needs (`forecasts.fewer`), and `comparisons` is their number. With
    `probabilities` each answer has a probability to be the best of n. With `threshold` the best answer is compared with the
    row's reference answer: `no_better` is the probability that people do not prefer it to the reference, and `none_good` says
    whether that is at least `threshold`.
    """

    adaptive: bool = False
    probabilities: bool = False
    threshold: float | None = None

    @property
    def names(self) -> dict[str, str]:
        """The columns in a record, and the kinds of file that have them."""
        return {
            **({"comparisons": ".csv .jsonl"} if self.adaptive else {}),
            **({"probability": ".csv .jsonl", "probabilities": ".jsonl"} if self.probabilities else {}),
            **({"no_better": ".csv .jsonl", "none_good": ".csv .jsonl"} if self.threshold is not None else {}),
        }

    def check(self, forecaster: Forecaster) -> None:
        """Raises UsageError for a threshold that is no probability, and for a model without probabilities where they are needed."""
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(f"--threshold: expected a probability between 0 and 1, found {self.threshold:g}")
        needed = "--probabilities" if self.probabilities else "--threshold" if self.threshold is not None else None
        if needed is not None and isinstance(forecaster.outcome, MarginSign):
            raise UsageError(
                f"{needed} needs probabilities, and no outcome model was fitted to this model: it only ranks. Fit one with "
                "prefcast fit LABELLED --model MODEL -o DIR and use --forecaster DIR"
            )


def choices(
    items: Iterable[Candidates | RowError],
    forecaster: Forecaster,
    progress: Callable[[int], None] | None = None,
    asked: Asked | None = None,
    *,
    leads: bool = False,
) -> Iterator[Choice]:
    """The choice for each prompt, in their order. `progress` is called with the number of prompts that are done. With `leads` the
    rankings have them, unless `asked` is adaptive. A model with a score for each answer scores each answer of a prompt once.

    Raises UsageError if `asked` does not fit the forecaster.
    """
    asked = asked or Asked()
    asked.check(forecaster)
    forecaster = replace(forecaster, scorer=singly(forecaster.scorer))
    done = 0

    def chosen(piece: Sequence[Candidates | RowError], pairs: int) -> Iterator[Choice]:
        follow = None if progress is None else lambda within: progress(done + within * len(piece) // max(pairs, 1))
        meter = Meter(follow)
        if asked.adaptive and not reads_singly(forecaster.scorer):
            found = fewer_choices(piece, forecaster, meter)
        else:
            found = _chosen(piece, forecaster, meter, leads=leads)
            if asked.adaptive:
                found = map(_scored_once, found)
        return _completed(found, forecaster, asked)

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
    forecasts = forecaster.forecast(chain.from_iterable(map(pairs_of, read)), meter)
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


def _scored_once(choice: Choice) -> Choice:
    """The choice with as many comparisons as cost what the scores of its answers did: one for two answers."""
    if choice.candidates is None:
        return choice
    return replace(choice, more={"comparisons": (len(choice.candidates.responses) + 1) // 2})


def _completed(found: Iterable[Choice], forecaster: Forecaster, asked: Asked) -> Iterator[Choice]:
    """The choices with what was asked for beside them."""
    if not asked.names:
        yield from found
        return
    nothing = dict.fromkeys(asked.names)
    made = [replace(choice, more=nothing | dict(choice.more)) for choice in found]
    if asked.threshold is not None:
        made = list(_beside_reference(made, forecaster, asked.threshold))
    for choice in made:
        if asked.probabilities and choice.ranking is not None:
            shares = choice.ranking.best_probabilities()
            said = {"probability": float(shares[choice.ranking.best]), "probabilities": shares.tolist()}
            yield replace(choice, more={**choice.more, **said})
        else:
            yield choice


def _beside_reference(found: Sequence[Choice], forecaster: Forecaster, threshold: float) -> Iterator[Choice]:
    """The choices with the forecast of the best answer against the row's reference answer."""
    pairs = [
        answer_pairs(
            item.prompt,
            [best := item.responses[choice.ranking.best], (*best[:-1], item.reference)],
            id=item.id,
            row=item.row,
            system=item.system,
            reference=item.reference,
        )[0]
        for choice in found
        if choice.ranking is not None and (item := choice.candidates) is not None and item.reference is not None
    ]
    forecasts = iter(forecaster.forecast(pairs))
    for choice in found:
        item = choice.candidates
        if choice.ranking is None or item is None:
            yield choice
            continue
        error: RowError | None = None
        if item.reference is None:
            error = RowError(
                "best", item.row, "reference", "is missing; --threshold compares the best answer with it", item.id
            )
        else:
            forecast = next(forecasts)
            error = forecast.error
            no_better = 1 - forecast.probabilities[0]
        if error is not None:
            yield replace(choice, ranking=None, error=error, more=dict.fromkeys(choice.more))
        else:
            said = {"no_better": no_better, "none_good": no_better >= threshold}
            yield replace(choice, more={**choice.more, **said})


def choice_kind(path: str | os.PathLike[str]) -> str:
    """The ending of an output file. Raises UsageError if no writer has it."""
    return output_kind(path, {".csv": "", ".jsonl": " (everything)"})


def open_choice_writer(
    path: str | os.PathLike[str], *, with_text: bool = False, asked: Asked | None = None
) -> AbstractContextManager[Writer]:
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
        *(name for name, kinds in (asked or Asked()).names.items() if ".csv" in kinds),
        *(("prompt", "response", *BESIDE) if with_text else ()),
    )
    return opened_writer(path, choice_kind(path), names, with_text=with_text)
