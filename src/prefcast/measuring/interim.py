"""What may be said of a comparison while people still vote on it.

The interval of a comparison holds at the number of votes that was planned. Who looks after every vote and stops as soon as it
excludes 0 is wrong far more often. So before the planned number there is only the interval that holds at every moment, and that
one needs a uniform draw (`outcomes/statistics/sampled.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.voted import FEWEST, voted
from prefcast.outcomes.statistics.bootstrap import Figure
from prefcast.outcomes.statistics.raters import Alike, alike
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats.side_votes import SideVote, SideVotes
from prefcast.pairs.formats.vote_files import SIDES, Vote
from prefcast.pairs.pair import group_key

__all__ = ["Interim", "Population", "Said", "Underway"]

_OUTCOMES = dict(zip(SIDES, (Outcome.A, Outcome.B, Outcome.TIE), strict=True))


@dataclass(frozen=True)
class Population:
    """All n pairs, the drawn ones among them: their ids, forecasts `p` (n, 3) and prompts (n,), as `voted` takes them."""

    ids: Sequence[str]
    p: NDArray[np.float64]
    groups: NDArray[np.uint64]

    @classmethod
    def of(cls, pairs: Sequence[Pair], p: NDArray[np.float64]) -> Population:
        """The population of these pairs and their forecasts."""
        groups = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
        return cls([str(pair.id) for pair in pairs], p, groups)


@dataclass(frozen=True)
class Said:
    """What may be said of the preference. `net` is RIGHT's wins minus its losses; the rates are None before the planned number.
    `always` tells that `net` holds at every moment. `more`: see `Voted`."""

    net: Figure
    verdict: str
    always: bool
    more: int | None
    win: Figure | None
    loss: Figure | None
    tie: Figure | None


@dataclass(frozen=True)
class Interim:
    """How far a vote is.

    `pairs` were drawn. `voted` have votes, `skipped` were skipped by every rater, the others wait. `counted` are the pairs with
    votes that `said` counts: all of them at the planned number, before that those in front of the first that waits. `raters`
    maps each name to its votes and its skips. `said` is None where nothing may be said yet, and `why` tells the reason: `few`
    votes, or `waiting` for the planned number.
    """

    pairs: int
    voted: int
    skipped: int
    votes: int
    raters: Mapping[str, tuple[int, int]]
    alike: Alike
    counted: int
    said: Said | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


class Underway:
    """A vote that is under way: all pairs, and the drawn ones with their inclusion probabilities, in the order
    of the draw."""

    def __init__(self, population: Population, inclusion: Mapping[str, float], *, uniform: bool) -> None:
        self._population, self._inclusion, self._uniform = population, inclusion, uniform

    def interim(self, given: Sequence[Mapping[str, Vote]]) -> Interim:
        """Where it stands; `given` maps raters to votes, for each drawn pair."""
        raters = sorted({rater for votes in given for rater in votes})
        counts = np.array([[_sides(votes).count(side) for side in SIDES] for votes in given], dtype=np.int64)
        voted_on = counts.any(axis=1)
        skipped = [bool(votes) and len(votes) == len(raters) for votes in given] & ~voted_on
        open_ = np.flatnonzero(~(voted_on | skipped)).tolist()
        # Votes come in the order of the draw only up to the first pair that somebody still has to vote on.
        end = open_[0] if open_ else len(given)
        counted = int(voted_on[:end].sum())
        why = "waiting" if open_ and not self._uniform else "few" if counted < FEWEST else ""
        return Interim(
            pairs=len(given),
            voted=int(voted_on.sum()),
            skipped=int(skipped.sum()),
            votes=int(counts.sum()),
            raters={rater: _work(votes[rater] for votes in given if rater in votes) for rater in raters},
            alike=alike(counts),
            counted=counted,
            said=None if why else self._said(given[:end], always=bool(open_)),
            why=why,
        )

    def _said(self, given: Sequence[Mapping[str, Vote]], *, always: bool) -> Said:
        votes = []
        for id, each in zip(self._inclusion, given, strict=False):
            # A second vote would change what was counted before, which the interval for every moment does not allow.
            said = sorted(((vote.at, rater, vote.winner) for rater, vote in each.items() if vote.winner))
            votes += [
                SideVote(id, _OUTCOMES[side], rater, self._inclusion[id])
                for _, rater, side in said[: 1 if always else None]
            ]
        of = self._population
        found = voted(of.ids, of.p, of.groups, SideVotes("the votes", votes), always=always)
        if found.always is not None:
            return Said(found.always, found.verdict, True, found.more, None, None, None)
        return Said(found.net, found.verdict, False, found.more, found.win, found.loss, found.tie)


def _sides(votes: Mapping[str, Vote]) -> list[str]:
    return [vote.winner for vote in votes.values()]


def _work(votes: Iterable[Vote]) -> tuple[int, int]:
    """How many votes a rater gave, and how many pairs the rater skipped."""
    kinds = Counter(bool(vote.winner) for vote in votes)
    return kinds[True], kinds[False]
