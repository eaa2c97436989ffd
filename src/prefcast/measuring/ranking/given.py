"""Files beside the rows that are ranked: the votes on them, and how much each counts, by id."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from prefcast.errors import FileError, excerpt, shown_path
from prefcast.fitting.soft_labels import VOTES, read_vote_counts, read_weights
from prefcast.pairs import Outcome
from prefcast.pairs.formats.side_votes import read_side_votes
from prefcast.pairs.formats.table import Table

__all__ = ["Beside", "beside"]

_Path = str | os.PathLike[str]


@dataclass
class Beside:
    """`votes` has how many people said A, B and tie of a row, `inclusion` the probability with which it was drawn to be voted
    on, `weights` how much it counts; all by id, None where no file was given."""

    votes: dict[str, tuple[float, ...]] | None = None
    inclusion: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] | None = None
    votes_name: str = ""
    weights_name: str = ""
    _seen: set[str] = field(default_factory=set)

    @property
    def needs_ids(self) -> bool:
        return self.votes is not None or self.weights is not None

    def of(self, id: str) -> tuple[float, ...] | None:
        """The votes on a row. Raises FileError for the second row of an id: whose votes they are would not be known."""
        found = None if self.votes is None else self.votes.get(id)
        if found is not None and id in self._seen:
            raise FileError(
                self.votes_name, f"has votes on the id {excerpt(id)}, which two rows have; each needs its own"
            )
        if found is not None:
            self._seen.add(id)
        return found

    def weight(self, id: str) -> float:
        """How much a row counts. Raises FileError where the file of weights does not say."""
        if self.weights is None:
            return 1.0
        if (found := self.weights.get(id)) is None:
            raise FileError(self.weights_name, f"the id {excerpt(id)} has no weight; every row needs one")
        return found

    @property
    def unmatched(self) -> int:
        """How many rows of the file of votes have ids that no row has."""
        return len(self.votes or ()) - len(self._seen)


def beside(votes: _Path | None, weights: _Path | None) -> Beside:
    """What the two files say. `votes` has id, votes_a, votes_b, votes_tie; or a vote a row: id, winner (left or model_a, right or
    model_b, tie), perhaps rater and inclusion_probability, as `label` writes it. `weights` has id, weight.

    Raises FileError.
    """
    found = Beside()
    if weights is not None:
        found.weights, found.weights_name = read_weights(weights), shown_path(weights)
    if votes is None:
        return found
    found.votes_name = shown_path(votes)
    with Table(votes, fields=("id", *VOTES)) as table:
        counted = set(VOTES) <= table.names
    if counted:
        found.votes = read_vote_counts(votes)
        return found
    counts: dict[str, list[float]] = {}
    for vote in read_side_votes(votes).votes:
        counts.setdefault(vote.id, [0.0] * len(Outcome))[vote.outcome] += 1
        if vote.inclusion is not None:
            found.inclusion[vote.id] = vote.inclusion
    found.votes = {id: tuple(each) for id, each in counts.items()}
    return found
