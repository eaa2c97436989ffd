"""Files in which people vote on pairs. They are blind: the two answers stand in random order. An existing file is extended, and
its votes stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcast.base.files import atomic_file
from prefcast.errors import FileError, RowError, UsageError, shown_path
from prefcast.pairs.formats.fields import absent
from prefcast.pairs.formats.separated import csv_line
from prefcast.pairs.formats.table import Table
from prefcast.pairs.pair import Pair

__all__ = ["COLUMNS", "Ballot", "ballots_of", "begun", "write_ballots"]

COLUMNS = ("id", "prompt", "answer_1", "answer_2", "winner", "rater", "first", "inclusion_probability")
_KINDS = (".csv", ".jsonl")
# A spreadsheet would run a cell that begins so as a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Ballot:
    """A pair to vote on. `first` says whether answer 1 is the left system's or the right one's."""

    pair: Pair
    first: str
    inclusion: float


def ballots_of(pairs: Sequence[Pair], inclusion: Sequence[float], seed: int) -> list[Ballot]:
    """Each pair with its answers in an order that depends on the seed and its id alone."""
    found = []
    for pair, probability in zip(pairs, inclusion, strict=True):
        digest = hashlib.blake2b(f"side\0{seed}\0{pair.id}".encode("utf-8", "surrogatepass"), digest_size=1).digest()
        found.append(Ballot(pair, ("left", "right")[digest[0] & 1], float(probability)))
    return found


def begun(path: Path) -> dict[str, dict[str, str]]:
    """What was voted in a file that `write_ballots` wrote: id -> winner and rater. Empty where there is no such file.

    Raises UsageError for a file of another kind, which is never overwritten, and for another ending.
    """
    if path.suffix.lower() not in _KINDS:
        raise UsageError(f"{shown_path(path)}: pairs to vote on are written as .csv or .jsonl")
    if not path.exists():
        return {}
    found: dict[str, dict[str, str]] = {}
    try:
        with Table(str(path), fields=COLUMNS) as table:
            table.need(*COLUMNS)
            for _, id, record in table.identified():
                if isinstance(record, RowError):
                    raise FileError(record.file, record.problem, record.row)
                found[str(id)] = {
                    name: "" if absent(record.get(name)) else str(record.get(name))
                    for name in ("winner", "rater", "first")
                }
    except FileError as error:
        raise UsageError(
            f"{shown_path(path)}: exists and is not a file of pairs to vote on; name another one ({error.problem})"
        ) from None
    return found


def write_ballots(path: Path, ballots: Sequence[Ballot], voted: Mapping[str, Mapping[str, str]]) -> None:
    """Write pairs to vote on, as .csv or .jsonl, with what was voted before."""
    kind = path.suffix.lower()
    rows = [_row(ballot, voted.get(str(ballot.pair.id), {}), plain=kind == ".csv") for ballot in ballots]
    if kind == ".csv":
        lines = [csv_line(COLUMNS), *(csv_line(row[name] for name in COLUMNS) for row in rows)]
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    with atomic_file(path) as file:
        file.write("".join(lines).encode("utf-8", "backslashreplace"))


def _row(ballot: Ballot, before: Mapping[str, str], *, plain: bool) -> dict[str, Any]:
    pair = ballot.pair
    sides = {"left": pair.response_a, "right": pair.response_b}
    first = before.get("first") or ballot.first
    second = "right" if first == "left" else "left"
    texts = {"prompt": pair.prompt, "answer_1": sides[first], "answer_2": sides[second]}
    return {
        "id": pair.id,
        **{name: _cell(turns) if plain else list(turns) for name, turns in texts.items()},
        "winner": before.get("winner", ""),
        "rater": before.get("rater", ""),
        "first": first,
        "inclusion_probability": float(f"{ballot.inclusion:.12g}"),
    }


def _cell(turns: Sequence[str]) -> str:
    """One turn as it is, several numbered; no spreadsheet runs it."""
    text = turns[0] if len(turns) == 1 else "\n\n".join(f"[{number}] {turn}" for number, turn in enumerate(turns, 1))
    return f"'{text}" if text.startswith(_FORMULAS) else text
