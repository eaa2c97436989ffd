"""Raw scores of pairs and their files: what a scorer says before any outcome model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import atomic_file
from prefcast.errors import FileError, RowError, ScoringError, shown_path
from prefcast.forecasts.predictions import JsonLines, Parquet, Recordable, output_kind, quoted
from prefcast.pairs import Pair, clean
from prefcast.pairs.budget import Budget, Truncation
from prefcast.pairs.formats.fields import Fault, Record, number
from prefcast.pairs.formats.labels import WINNERS, Labels, normalised, three_numbers
from prefcast.pairs.formats.saved import ROW_FIELDS, row_blocks, sound_numbers
from prefcast.pairs.formats.table import Table
from prefcast.scorers.base import SILENT, Meter, Scorer, read_pair
from prefcast.scorers.given import GivenScorer

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "GivenScores",
    "RawScores",
    "column_names",
    "open_score_writer",
    "read_scores",
    "score_blocks",
    "score_pairs",
]

_TEXTS = ("model_a", "model_b", "error")
_TAIL = ("label", "model_a", "model_b", "characters_kept", "characters", "turns_kept", "turns", "error")


@dataclass(frozen=True, eq=False)
class RawScores:
    """What a scorer said of n rows, in their order: `columns` hold float64 (n,), nan where a row failed."""

    ids: list[str | int]
    columns: Mapping[str, NDArray[np.float64]]
    truncations: list[Truncation | None]
    errors: list[RowError | None]
    pairs: list[Pair | None] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def failed(self) -> int:
        return sum(error is not None for error in self.errors)

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        """A dict a row, as the files hold it."""
        for index, id in enumerate(self.ids):
            pair, truncation, error = self.pairs[index], self.truncations[index], self.errors[index]
            yield {
                "id": clean(id) if isinstance(id, str) else id,
                **{name: None if error else float(values[index]) for name, values in self.columns.items()},
                "label": None if pair is None or pair.outcome is None else int(pair.outcome),
                "model_a": pair.model_a if pair else None,
                "model_b": pair.model_b if pair else None,
                "characters_kept": truncation.kept if truncation else None,
                "characters": truncation.total if truncation else None,
                "turns_kept": truncation.turns_kept if truncation else None,
                "turns": truncation.turns_total if truncation else None,
                "error": str(error) if error else None,
            }


def score_pairs(items: Sequence[Pair | RowError], scorer: Scorer, budget: Budget, meter: Meter = SILENT) -> RawScores:
    """Score `items`; a RowError among them and a pair that fails keep their place as errors."""
    errors: list[RowError | None] = [item if isinstance(item, RowError) else None for item in items]
    truncations: list[Truncation | None] = [None] * len(items)
    read, index = [], []
    for position, item in enumerate(items):
        if isinstance(item, Pair):
            pair, truncations[position] = read_pair(item, budget, scorer)
            read.append(pair)
            index.append(position)
    evidence = scorer.evidence(read, meter)
    values = {**evidence.raw, "margin": evidence.margin, "tie": evidence.tie}
    columns = {name: np.full(len(items), np.nan) for name in column_names(scorer)}
    for name, column in columns.items():
        column[index] = values[name]
    for place, (position, pair) in enumerate(zip(index, read, strict=True)):
        if not (np.isfinite(evidence.margin[place]) and np.isfinite(evidence.tie[place])):
            problem = evidence.problems.get(place, f"the scorer {scorer.name} gave evidence that is not finite")
            errors[position] = ScoringError("score", pair.row or position + 1, "", problem, pair.id)
    kept: list[Pair | None] = [item if isinstance(item, Pair) else None for item in items]
    return RawScores([item.id for item in items], columns, truncations, errors, kept)


def column_names(scorer: Scorer) -> tuple[str, ...]:
    """The numbers of each row: what the model gave, then the evidence."""
    return (*scorer.raw_names, "margin", "tie")


class ScoreWriter(Protocol):
    """Takes scores in order, in as many pieces as come."""

    def write(self, scores: Recordable) -> None: ...


class _Csv:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._names = ("id", *names, *_TAIL)
        file.write((",".join(self._names) + "\n").encode())

    def write(self, scores: Recordable) -> None:
        for record in scores.records():
            cells = ("" if record[name] is None else quoted(clean(str(record[name]))) for name in self._names)
            self._file.write((",".join(cells) + "\n").encode())


@contextmanager
def open_score_writer(path: str | os.PathLike[str], names: Sequence[str]) -> Iterator[ScoreWriter]:
    """A writer for `path` by its ending (.csv, .jsonl, .parquet) of the numbers `names` (see `column_names`); the file
    appears whole or not at all.

    Raises UsageError.
    """
    kind = output_kind(path)

    def schema(whole_ids: bool, with_text: bool) -> pyarrow.Schema:
        import pyarrow

        number, whole, text = pyarrow.float64(), pyarrow.int64(), pyarrow.string()
        return pyarrow.schema(
            [
                ("id", whole if whole_ids else text),
                *((name, number) for name in names),
                *((name, text if name in _TEXTS else whole) for name in _TAIL),
            ]
        )

    with atomic_file(path) as file:
        if kind == ".csv":
            yield _Csv(file, names)
        elif kind == ".jsonl":
            yield JsonLines(file, with_text=False)
        else:
            parquet = Parquet(file, False, schema)
            try:
                yield parquet
            finally:
                parquet.close()


# What a file of scores may hold, the first that is there: a forecast, evidence, logits, or a score of each answer.
_SHAPES = (WINNERS, ("margin",), ("logit_a", "logit_b"), ("score_a", "score_b"))
_MORE = {"margin": "tie", "logit_a": "logit_tie"}
_NAMES = ("model_a", "model_b")
# Rounded files hold zeros; a logarithm needs more.
_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class GivenScores:
    """Scores of n rows as evidence: `margin`, `tie` (n,), nan where a row has none; `labels` (n,), -1 where there is none;
    `columns` of the file they were made of. `keys` (n,) are of the first prompts, None
    in a file without; `models` the pair of names of each row, where known."""

    ids: list[str]
    margin: NDArray[np.float64]
    tie: NDArray[np.float64]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64] | None
    models: list[tuple[str | None, str | None]]
    columns: tuple[str, ...]

    @property
    def log_odds(self) -> bool:
        """Whether the evidence is a forecast's log-odds already: it was made of probabilities or of three logits."""
        return len(self.columns) == 3

    @property
    def scored(self) -> NDArray[np.bool_]:
        return np.isfinite(self.margin) & np.isfinite(self.tie)


def score_blocks(
    path: Any, *, label_values: Mapping[str, str] | None = None, with_labels: bool = True
) -> Iterator[GivenScores]:
    """Read a file of scores, a block of rows at a time.

    It has `id` and either score_a and score_b (of each answer, higher is better), logit_a, logit_b and perhaps
    logit_tie, margin and perhaps tie (as `prefcast score` writes), or the three probabilities of a forecast; perhaps
    `label` (0, 1, 2, or what `label_values` names), model_a, model_b, prompt and error. Raises FileError.
    """
    with Table(path, ("id", *chain.from_iterable(_SHAPES), *_MORE.values(), *_NAMES, *ROW_FIELDS)) as table:
        names = next((shape for shape in _SHAPES if all(name in table.names for name in shape)), None)
        if names is None:
            raise FileError(
                table.name,
                "holds no scores; expected id and score_a, score_b, or logit_a, logit_b (and logit_tie), or margin "
                f"(and tie), or {', '.join(WINNERS)}",
            )
        table.need("id", otherwise="scores are joined by it")
        more = _MORE.get(names[0])
        wanted = (*names, more) if more is not None and more in table.names else names
        for block in row_blocks(table, Labels(label_values) if with_labels else None):
            values = None if block.failed.any() else sound_numbers(block.records, wanted)
            if values is None:
                values = np.array([_numbers(table, row, record, wanted) for row, record in block])
            models = [(_name(record.get("model_a")), _name(record.get("model_b"))) for record in block.records]
            yield GivenScores(block.ids, *_evidence(values, wanted), block.labels, block.keys, models, wanted)


def read_scores(path: Any) -> GivenScorer:
    """A file of scores as a scorer that finds them by id. Raises FileError."""
    blocks = list(score_blocks(path, with_labels=False))
    where = {id: row for row, id in enumerate(id for block in blocks for id in block.ids)}
    margin, tie = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("margin", "tie"))
    return GivenScorer(blocks[0].columns, where, margin, tie, shown_path(path))


def _name(value: Any) -> str | None:
    return None if value in (None, "") else clean(str(value))


def _numbers(table: Table, row: int, record: Record, names: Sequence[str]) -> Sequence[float]:
    """The numbers of a row; nan for all where it failed or has none."""
    if record.get("error") not in (None, "") or all(record.get(name) in (None, "") for name in names):
        return [float("nan")] * len(names)
    try:
        if tuple(names) != WINNERS:
            return [number(record, name) for name in names]
        found = three_numbers(record) or []
        normalised(found)  # only to see that they are probabilities
        return found
    except Fault as fault:
        raise table.fault(row, fault) from None


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
