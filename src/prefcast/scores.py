"""Raw scores of pairs and their files: what a scorer says before any outcome model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from prefcast.budget import Budget, Truncation
from prefcast.errors import RowError, ScoringError
from prefcast.files import atomic_file
from prefcast.forecaster import read_pair
from prefcast.pairs import Pair, clean
from prefcast.predictions import JsonLines, Parquet, output_kind, quoted
from prefcast.scorers import Scorer

if TYPE_CHECKING:
    import pyarrow

__all__ = ["RawScores", "open_score_writer", "score_pairs"]

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


def score_pairs(items: Sequence[Pair | RowError], scorer: Scorer, budget: Budget) -> RawScores:
    """Score `items`; a RowError among them and a pair that fails keep their place as errors."""
    errors: list[RowError | None] = [item if isinstance(item, RowError) else None for item in items]
    truncations: list[Truncation | None] = [None] * len(items)
    read, index = [], []
    for position, item in enumerate(items):
        if isinstance(item, Pair):
            pair, truncations[position] = read_pair(item, budget, scorer)
            read.append(pair)
            index.append(position)
    evidence = scorer.evidence(read)
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

    def write(self, scores: RawScores) -> None: ...


class _Csv:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._names = ("id", *names, *_TAIL)
        file.write((",".join(self._names) + "\n").encode())

    def write(self, scores: RawScores) -> None:
        for record in scores.records():
            cells = ("" if record[name] is None else quoted(clean(str(record[name]))) for name in self._names)
            self._file.write((",".join(cells) + "\n").encode())


@contextmanager
def open_score_writer(path: str | os.PathLike[str], scorer: Scorer) -> Iterator[ScoreWriter]:
    """A writer for `path` by its ending (.csv, .jsonl, .parquet); the file appears whole or not at all.

    Raises UsageError.
    """
    kind = output_kind(path)
    names = column_names(scorer)

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
