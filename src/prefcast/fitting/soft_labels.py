"""Votes and weights of rows, by id: what several people said of a pair, and how much a row counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite
from typing import Any

from prefcast.errors import FileError, RowError, excerpt, shown_path
from prefcast.pairs.formats.containers import open_records

__all__ = ["VOTES", "read_votes", "read_weights"]

VOTES = ("votes_a", "votes_b", "votes_tie")


def read_votes(path: str | os.PathLike[str]) -> dict[str, tuple[float, ...]]:
    """How many people said A, B and tie, by the row's id: a file with id, votes_a, votes_b, votes_tie.

    Raises FileError.
    """
    return _read(path, VOTES)


def read_weights(path: str | os.PathLike[str]) -> dict[str, float]:
    """How much each row counts against the others, by its id: a file with id and weight; on average a row counts 1.

    Raises FileError.
    """
    found = {id: values[0] for id, values in _read(path, ("weight",)).items()}
    total = sum(found.values())
    if not total:
        raise FileError(shown_path(path), "every weight is 0; expected some rows to count")
    return {id: weight * len(found) / total for id, weight in found.items()}


def _read(path: str | os.PathLike[str], columns: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    with open_records(path) as records:
        for name in ("id", *columns):
            if name not in records.columns:
                raise FileError(records.name, f"column '{name}' is missing; expected id, {', '.join(columns)}")
        for row, record in records:
            if isinstance(record, RowError):
                raise FileError(records.name, record.problem, row)
            id = record.get("id")
            if id in (None, ""):
                raise FileError(records.name, "id is missing; every row needs one", row)
            if str(id) in found:
                raise FileError(records.name, f"id {excerpt(str(id))} is there twice; expected it once", row)
            values = tuple(_count(record, column, records.name, row) for column in columns)
            if columns == VOTES and not sum(values):
                raise FileError(records.name, "has no vote at all; leave the row out", row)
            found[str(id)] = values
    if not found:
        raise FileError(records.name, "has no rows; expected at least one")
    return found


def _count(record: Mapping[str, Any], column: str, name: str, row: int) -> float:
    value = record.get(column)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not isfinite(number) or number < 0:
        raise FileError(name, f"{column} is {excerpt(value)}; expected a number, 0 or more", row)
    return number
