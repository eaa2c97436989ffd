"""Raw scores: the numbers that a scorer gives, before an outcome model is applied. Scoring pairs, and files of scores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError, RowError, ScoringError, shown_path
from prefcast.forecasts.outputs import TAIL, Rows, Writer, opened_writer, output_kind
from prefcast.pairs import Pair, clean
from prefcast.pairs.budget import Budget, Truncation
from prefcast.pairs.formats.labels import WINNERS, Labels
from prefcast.pairs.formats.saved import ROW_FIELDS, numbers, row_blocks
from prefcast.pairs.formats.table import Table
from prefcast.scorers.base import SILENT, Meter, Scorer, gathered, read_pair
from prefcast.scorers.given import CHOSEN, GivenScorer

__all__ = [
    "SINGLE_SCORE",
    "GivenScores",
    "RawScores",
    "column_names",
    "open_score_writer",
    "read_scores",
    "score_blocks",
    "score_pairs",
    "scorer_of",
]


# The one number of a single answer.
SINGLE_SCORE = "score"


@dataclass(frozen=True, eq=False)
class RawScores(Rows):
    """The numbers of n rows, in their order. `columns` has, by name, what the scorer gave (n,); nan where a row failed."""

    ids: list[str | int]
    columns: Mapping[str, NDArray[np.float64]]
    truncations: list[Truncation | None]
    errors: list[RowError | None]
    pairs: list[Pair | None] = field(repr=False)

    def _numbers(self) -> Mapping[str, list[float | None]]:
        return {name: self._known(values) for name, values in self.columns.items()}

    def array(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The named columns side by side (n, k)."""
        return np.array([self.columns[name] for name in names]).T.reshape(len(self), len(names))


def score_pairs(
    items: Iterable[Pair | RowError],
    scorer: Scorer,
    budget: Budget,
    meter: Meter = SILENT,
    verb: str = "score",
    *,
    single: bool = False,
) -> RawScores:
    """Score the part of each pair that `budget` lets through. A RowError among the items keeps its place. A pair without finite
    evidence gets a ScoringError, which names `verb` in the place of a file. With `single` the pairs are single answers, each beside itself, and have one score."""
    items = list(items)
    pairs = [item if isinstance(item, Pair) else None for item in items]
    errors = [item if isinstance(item, RowError) else None for item in items]
    truncations: list[Truncation | None] = [None] * len(items)
    read: dict[int, Pair] = {}
    for position, pair in enumerate(pairs):
        if pair is not None:
            read[position], truncations[position] = found = read_pair(pair, budget, scorer)
            if single:
                truncations[position] = _of_one(found[1], pair, found[0])
    given = scorer.evidence(list(read.values()), meter)
    evidence = gathered(len(items), scorer.raw_names, [(list(read), given)])
    columns = {**evidence.raw, "margin": evidence.margin, "tie": evidence.tie}
    if single:
        columns = {SINGLE_SCORE: evidence.raw["score_a"]}
    bad = ~(np.isfinite(evidence.margin) & np.isfinite(evidence.tie))
    for values in columns.values():
        values[bad] = np.nan
    for position, pair in read.items():
        if bad[position]:
            problem = evidence.problems.get(position, f"the scorer {scorer.name} gave evidence that is not finite")
            errors[position] = ScoringError(verb, pair.row or position + 1, "", problem, pair.id)
    return RawScores([item.id for item in items], columns, truncations, errors, pairs)


def _of_one(truncation: Truncation, pair: Pair, read: Pair) -> Truncation:
    """How much was read of a single answer and its prompt, without the answer's double."""
    total, kept = (sum(len(turn.prompt) + len(turn.response_a) for turn in each.turns) for each in (pair, read))
    return replace(truncation, kept=min(kept, total), total=total)


def column_names(scorer: Scorer) -> tuple[str, ...]:
    """The names of the numbers of each row: what the model gave, then the evidence."""
    return (*scorer.raw_names, "margin", "tie")


def open_score_writer(path: str | os.PathLike[str], names: Sequence[str]) -> AbstractContextManager[Writer]:
    """A writer of the numbers `names` (see `column_names`) for `path`, which ends in .csv, .jsonl or .parquet. The file appears
    whole or not at all. Raises UsageError."""
    return opened_writer(path, output_kind(path), ("id", *names, *TAIL), names)


# The columns that a file of scores may have. The first that are there count: a forecast, evidence, logits, scores of the answers.
_SHAPES = (WINNERS, ("margin",), ("logit_a", "logit_b"), ("score_a", "score_b"), CHOSEN)
_MORE = {"margin": "tie", "logit_a": "logit_tie"}
_NAMES = ("model_a", "model_b")
# Rounded probabilities may be 0, which has no logarithm.
_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class GivenScores:
    """Scores of n rows as evidence: `margin` and `tie` (n,) are nan, and `labels` (n,) -1, for a row without them. `columns` are those
    of the file that the evidence was made of. `keys` (n,) are of the first prompts, None if the file has no prompts. `models` has
    the two names of each row, if they are known."""

    ids: list[str]
    margin: NDArray[np.float64]
    tie: NDArray[np.float64]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64] | None
    models: list[tuple[str | None, str | None]]
    columns: tuple[str, ...]

    @property
    def log_odds(self) -> bool:
        """Whether the evidence is the log-odds of a forecast: it was made of probabilities or of three logits."""
        return len(self.columns) == 3

    @property
    def scored(self) -> NDArray[np.bool_]:
        return np.isfinite(self.margin) & np.isfinite(self.tie)


def score_blocks(
    path: Any, *, label_values: Mapping[str, str] | None = None, with_labels: bool = True
) -> Iterator[GivenScores]:
    """Read a file of scores, a block of rows at a time.

    It has `id` and one of these: score_a and score_b (of each answer, higher is better); score_chosen and score_rejected (a row
    without a label then says that A was chosen); logit_a, logit_b and perhaps logit_tie;
    margin and perhaps tie (as `prefcast score` writes them); the three probabilities of a forecast. It may have `label` (0, 1, 2,
    or a word of `label_values`), model_a, model_b, prompt and error. Raises FileError.
    """
    fields = ("id", *chain.from_iterable(_SHAPES), *_MORE.values(), *_NAMES, *ROW_FIELDS)
    with Table(path, fields=fields) as table:
        names = next((shape for shape in _SHAPES if all(name in table.names for name in shape)), None)
        if names is None:
            raise FileError(
                table.name,
                "has no scores; expected id and score_a, score_b, or score_chosen, score_rejected, or logit_a, logit_b (and logit_tie), or margin "
                f"(and tie), or {', '.join(WINNERS)}",
            )
        table.need("id", otherwise="scores are joined by it")
        more = _MORE.get(names[0])
        wanted = (*names, more) if more is not None and more in table.names else names
        for block in row_blocks(table, Labels(label_values) if with_labels else None):
            values = numbers(table, block, wanted, gaps=True)
            margin, tie = _evidence(values, wanted)
            labels = block.labels
            if wanted == CHOSEN:
                labels = np.where(labels < 0, 0, labels)
                margin = margin * np.array([1.0, -1.0, np.nan])[labels]
            models = [(_name(record.get("model_a")), _name(record.get("model_b"))) for record in block.records]
            yield GivenScores(block.ids, margin, tie, labels, block.keys, models, wanted)


def read_scores(path: Any) -> GivenScorer:
    """A file of scores as a scorer that finds them by id. Raises FileError."""
    return scorer_of(list(score_blocks(path, with_labels=False)), path)


def scorer_of(blocks: Sequence[GivenScores], path: Any) -> GivenScorer:
    """The blocks of a file of scores as a scorer that finds them by id."""
    where = {id: row for row, id in enumerate(id for block in blocks for id in block.ids)}
    margin, tie = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("margin", "tie"))
    return GivenScorer(blocks[0].columns, where, margin, tie, shown_path(path))


def _name(value: Any) -> str | None:
    return None if value in (None, "") else clean(str(value))


def _evidence(values: NDArray[np.float64], names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Margin and tie (n,) of the columns (n, k)."""
    if names[0] == "margin":
        return values[:, 0], values[:, 1] if len(names) > 1 else np.where(np.isfinite(values[:, 0]), 0.0, np.nan)
    if names[0] == WINNERS[0]:
        values = np.log(np.maximum(values, _LEAST_PROBABILITY))
    margin = values[:, 0] - values[:, 1]
    if values.shape[1] == 3:
        return margin, values[:, 2] - (values[:, 0] + values[:, 1]) / 2
    return margin, np.where(np.isfinite(margin), 0.0, np.nan)
