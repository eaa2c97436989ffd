"""Files of votes on two systems' answers: which of the two sides a person preferred, perhaps several people a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefcast.errors import FileError, RowError
from prefcast.pairs import Outcome
from prefcast.pairs.formats.fields import Fault, Record, absent, number
from prefcast.pairs.formats.labels import Labels
from prefcast.pairs.formats.table import Table

__all__ = ["SideVote", "SideVotes", "read_side_votes"]

# Also as they are called in files of pairs, where A is the left system.
_SIDES = {
    **dict.fromkeys(("left", "a", "A", "model_a"), "a"),
    **dict.fromkeys(("right", "b", "B", "model_b"), "b"),
    **dict.fromkeys(("tie", "both_bad", "bothbad", "tie (bothbad)"), "tie"),
}


@dataclass(frozen=True)
class SideVote:
    """One vote: A is the left system, B the right one. `inclusion` is the probability with which the pair was drawn to be voted
    on, if the file says so."""

    id: str
    outcome: Outcome
    rater: str | None = None
    inclusion: float | None = None


@dataclass(frozen=True)
class SideVotes:
    """The votes of a file, in its order, and the rows without one (skipped pairs)."""

    name: str
    votes: Sequence[SideVote]
    skipped: int = 0


def _outcome(record: Record, labels: Labels) -> Outcome | None:
    """The vote of a row; `first` says which side answer 1 is."""
    said = str(record.get("winner")).strip()
    if said not in ("1", "2", "1.0", "2.0"):
        return labels.of(record, forecasts=False)
    if (first := record.get("first")) not in ("left", "right"):
        raise Fault("winner", f"is {said}, but the column first does not say which side answer 1 is (left or right)")
    return Outcome.A if (said[0] == "1") == (first == "left") else Outcome.B


def read_side_votes(source: Any, columns: Mapping[str, str] | None = None) -> SideVotes:
    """The votes of a file: `id`, `winner` (left, right or tie), perhaps `rater` and `inclusion_probability`. With the column
    `first`, as `label` writes it, a winner may also be 1 or 2.

    A row without a winner was skipped. Raises FileError for a vote that cannot be read, for a rater with two votes on one
    pair, and for two inclusion probabilities of one pair.
    """
    labels = Labels(_SIDES)
    found: list[SideVote] = []
    skipped = 0
    first: dict[tuple[str, str], int] = {}
    inclusions: dict[str, tuple[float | None, int]] = {}
    with Table(source, columns, fields=("id", "winner", "rater", "first", "inclusion_probability")) as table:
        table.need("id", "winner", otherwise="expected id, winner (left, right, tie), perhaps rater")
        for row, record in table.rows():
            if isinstance(record, RowError):
                raise FileError(record.file, record.problem, record.row)
            if table.textual and not any(record.values()):
                continue
            id = str(table.id_of(record, row))
            try:
                outcome = None if absent(record.get("winner")) else _outcome(record, labels)
                rater = None if absent(record.get("rater")) else str(record.get("rater"))
                given = "inclusion_probability" in table.names and not absent(record.get("inclusion_probability"))
                inclusion = number(record, "inclusion_probability", 0.0) if given else None
                if inclusion is not None and not 0 < inclusion <= 1:
                    raise Fault("inclusion_probability", f"is {inclusion:g}; expected a number above 0 and at most 1")
                if (same := inclusions.setdefault(id, (inclusion, row)))[0] != inclusion:
                    raise Fault("inclusion_probability", f"is not that of row {same[1]}, which has the same id")
                if outcome is None:  # a skipped pair
                    skipped += 1
                    continue
                if rater is not None and (other := first.setdefault((id, rater), row)) != row:
                    raise Fault("rater", f"voted on this id in row {other} already")
            except Fault as fault:
                raise table.fault(row, fault) from None
            found.append(SideVote(id, outcome, rater, inclusion))
        name = table.name
    if not found:
        raise FileError(name, "has no votes; expected left, right or tie in the column winner")
    said = sum(vote.inclusion is not None for vote in found)
    if 0 < said < len(found):
        raise FileError(name, "has an inclusion_probability in some rows only; give it in every row, or in none")
    return SideVotes(name, found, skipped)
