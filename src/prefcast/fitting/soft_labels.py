"""Votes and weights of rows, by id: what several people said of a pair, and how much a row counts."""

from __future__ import annotations

import os

from prefcast.errors import FileError, excerpt, shown_path
from prefcast.pairs.formats.fields import Fault, Record, number
from prefcast.pairs.formats.table import Table

__all__ = ["VOTES", "read_strengths", "read_vote_counts", "read_weights"]

_BLOCK_ROWS = 256
_LEAST, _MOST = 1e-9, 1e9
VOTES = ("votes_a", "votes_b", "votes_tie")


def read_vote_counts(path: str | os.PathLike[str]) -> dict[str, tuple[float, ...]]:
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


def read_strengths(path: str | os.PathLike[str]) -> dict[str, float]:
    """How strong each row's preference is, by its id: a file with id and strength (0 or more, 1 is plain).

    Raises FileError.
    """
    return {id: values[0] for id, values in _read(path, ("strength",)).items()}


def _amount(record: Record, column: str) -> float:
    """A number that can be added to others and divided by their sum."""
    found = number(record, column, 0.0)
    if found and not _LEAST <= found <= _MOST:
        raise Fault(
            column, f"is {excerpt(record.get(column))}; expected 0, or a number between {_LEAST:g} and {_MOST:g}"
        )
    return found


def _read(path: str | os.PathLike[str], columns: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    with Table(path, fields=("id", *columns)) as table:
        table.need("id", *columns, otherwise=f"expected id, {', '.join(columns)}")
        for block in table.blocks(_BLOCK_ROWS):
            for row, id, record in zip(*block, strict=True):
                try:
                    values = tuple(_amount(record, column) for column in columns)
                    if columns == VOTES and not sum(values):
                        raise Fault("", "has no vote at all; leave the row out")
                except Fault as fault:
                    raise table.fault(row, fault) from None
                found[id] = values
    return found
