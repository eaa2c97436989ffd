"""Leaderboards as files."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from prefcast.base.files import atomic_file, checked_ending
from prefcast.forecasts.outputs import safe_cell

if TYPE_CHECKING:
    from prefcast.measuring.ranking import Leaderboard

__all__ = ["matrix_kind", "standings_kind", "write_matrix", "write_standings"]


def standings_kind(path: str | os.PathLike[str]) -> str:
    """The extension of a file of standings. Raises UsageError if it is not supported."""
    return checked_ending(path, "a leaderboard", ".csv", ".jsonl")


def matrix_kind(path: str | os.PathLike[str]) -> str:
    """The extension of a file of win rates. Raises UsageError if it is not supported."""
    return checked_ending(path, "the matrix of win rates", ".csv")


def write_standings(board: Leaderboard, path: str | os.PathLike[str]) -> None:
    """Write one line per model, the best first, with the fields of Standing, as .csv or .jsonl. Raises UsageError."""
    kind = standings_kind(path)
    records = [asdict(standing) for standing in board.standings]
    if kind == ".csv":
        lines = [",".join(each.name for each in fields(board.standings[0]))]
        lines += [",".join(map(safe_cell, record.values())) for record in records]
    else:
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    _write(lines, path)


def write_matrix(board: Leaderboard, path: str | os.PathLike[str]) -> None:
    """Write every model against every other as CSV. Raises UsageError.

    The columns are `model`, `opponent`, `votes` (the number of votes between them), and the share of these votes that
    the model won, a tie counting as half: `observed` (empty if there are no votes) and `predicted`.
    """
    matrix_kind(path)
    lines = ["model,opponent,votes,observed,predicted"]
    for i, model in enumerate(board.models):
        for j, opponent in enumerate(board.models):
            if i != j:
                votes, observed, predicted = board.meetings[i, j], board.observed[i, j], board.predicted[i, j]
                cells = (model, opponent, int(votes), "" if math.isnan(observed) else float(observed), float(predicted))
                lines.append(",".join(map(safe_cell, cells)))
    _write(lines, path)


def _write(lines: list[str], path: str | os.PathLike[str]) -> None:
    with atomic_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode("utf-8"))
