"""The votes of an examination: who said what of which pair, from the labels of the rows or from a file of votes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.soft_labels import VOTES, read_vote_counts
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats.side_votes import read_side_votes
from prefcast.pairs.formats.table import Table
from prefcast.pairs.pair import group_key

__all__ = ["Ballots", "VotesFile", "read_votes"]


@dataclass(frozen=True)
class VotesFile:
    """Votes by id: each an outcome, how many people said it, and the rater, if the file names one."""

    name: str
    votes: Mapping[str, list[tuple[Outcome, float, str | None]]]


def read_votes(path: str | os.PathLike[str]) -> VotesFile:
    """Votes from a file of counts (id, votes_a, votes_b, votes_tie) or of single votes (id, winner, perhaps rater).

    Raises FileError.
    """
    with Table(str(path), fields=("id", *VOTES)) as table:
        counts, name = bool(table.names & set(VOTES)), table.name
    found: dict[str, list[tuple[Outcome, float, str | None]]] = {}
    if counts:
        for id, many in read_vote_counts(path).items():
            found[id] = [(outcome, many[outcome], None) for outcome in Outcome if many[outcome]]
    else:
        for vote in read_side_votes(str(path)).votes:
            found.setdefault(vote.id, []).append((vote.outcome, 1.0, vote.rater))
    return VotesFile(name, found)


class Ballots:
    """All votes as a table: the row, the pair (64 bits), whether the pair's greater side is first, the outcome, how many people
    said so, and the rater's number (-1: not named)."""

    def __init__(self, given: VotesFile | None) -> None:
        self._given = given
        self._table = Columns(("row", "key", "turned", "outcome", "count", "rater", "prompt"))
        self._held: list[tuple[float, ...]] = []
        self._numbers: dict[str, int] = {}
        self.matched = 0

    @property
    def raters(self) -> list[str]:
        """The names of the raters, by number."""
        return list(self._numbers)

    def counts(self, pair: Pair) -> list[tuple[Outcome, float, str | None]]:
        """The votes on a row."""
        if self._given is not None:
            return self._given.votes.get(str(pair.id), [])
        return [] if pair.outcome is None else [(pair.outcome, 1.0, None)]

    def see(self, pair: Pair, key: int, rater: str | None, *, turned: bool) -> NDArray[np.float64]:
        """Note the votes on a row. Returns how many said A, B and tie (3,)."""
        totals = np.zeros(len(Outcome))
        both = np.array([key, group_key(pair.prompt[0])], dtype=np.uint64).view(np.float64).tolist()
        votes = self.counts(pair)
        self.matched += bool(votes)
        for outcome, count, name in votes:
            totals[outcome] += count
            who = name if rater is None else rater
            number = -1 if who is None else self._numbers.setdefault(who, len(self._numbers))
            self._held.append((pair.row, both[0], turned, outcome, count, number, both[1]))
        if len(self._held) >= 4096:
            self._store()
        return totals

    def _store(self) -> None:
        if self._held:
            self._table.append(np.array(self._held, dtype=np.float64))
            self._held = []

    def column(self, name: str) -> NDArray[np.float64]:
        """A column (n,) of the table."""
        self._store()
        return self._table.column(name)

    def keys(self, name: str) -> NDArray[np.uint64]:
        """The column `key` or `prompt` (n,)."""
        return self.column(name).view(np.uint64)

    def said(self) -> NDArray[np.int64]:
        """The outcomes (n,) as if every pair's greater side were first, so that exchanged pairs compare."""
        outcome, turned = self.column("outcome").astype(np.int64), self.column("turned") > 0
        found: NDArray[np.int64] = np.where(turned & (outcome < Outcome.TIE), 1 - outcome, outcome)
        return found
