"""Leaderboards as files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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
    """Write one line per model, the best first, as .csv or .jsonl. Raises UsageError.

    The fields are those of Standing; with forecasts beside the votes also what the votes alone say (`alone`, `alone_low`,
    `alone_high`); with style control the rating without it and the change (`raw`, `change`, `change_low`, `change_high`). With
    categories a first field `category` names the category; it is empty for the board of all rows.
    """
    kind = standings_kind(path)
    records = list(_records(board))
    if board.categories:
        boards = [("", board), *((each.name, each.board) for each in board.categories)]
        records = [{"category": name, **each} for name, made in boards if made is not None for each in _records(made)]
    if kind == ".csv":
        # A category may have columns that another lacks: there may be votes alone in it.
        names = list(dict.fromkeys(name for record in records for name in record))
        lines = [",".join(names)]
        lines += [",".join(safe_cell(record.get(name, "")) for name in names) for record in records]
    else:
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    _write(lines, path)


def _records(board: Leaderboard) -> Iterator[dict[str, Any]]:
    for place, standing in enumerate(board.standings):
        more: dict[str, Any] = {}
        if board.together is not None:
            alone = board.together.alone[place]
            more = {"alone": alone.value, "alone_low": alone.low, "alone_high": alone.high}
        if board.style is not None:
            raw, change = board.style.shifts[place].raw, board.style.shifts[place].change
            more = {"raw": raw.value, "change": change.value, "change_low": change.low, "change_high": change.high}
        yield asdict(standing) | more


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
