"""Two systems compared by votes on some of their pairs, with forecasts of all pairs to help (see `outcomes/statistics/sampled.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, excerpt
from prefcast.outcomes.statistics.bootstrap import Figure
from prefcast.outcomes.statistics.sampled import Sampled, anytime, sampled_means
from prefcast.pairs import Outcome
from prefcast.pairs.formats.side_votes import SideVote, SideVotes

__all__ = ["CategoryVotes", "Voted", "verdict_of", "voted"]

Floats = NDArray[np.float64]
# Fewer rows with votes have no interval worth the name.
FEWEST = 5
_NET, _TIE = np.array([1.0, 0.0]), np.array([0.0, 1.0])
# Win minus loss, and tie, of a vote for each side and of a tie.
_ENDS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])


@dataclass(frozen=True)
class CategoryVotes:
    """The pairs of one category: `net` is RIGHT's win rate minus its loss rate. The intervals of all categories hold together
    in 95 % of cases (Bonferroni). None where there are too few votes."""

    name: str
    pairs: int
    voted: int
    net: Figure | None
    verdict: str


@dataclass(frozen=True)
class Voted:
    """What people prefer on these prompts, from votes on some of them.

    `pairs` were voted on by `votes` votes of `raters` raters (0: the file names none). `win`, `loss`, `tie` and `net` are
    RIGHT's rates, from votes and forecasts together; `alone` is `net` from the votes alone; `always` is an interval of `net`
    that holds however often one looks, if that was asked for. `correlation` is that of forecasts and votes; `worth` is how
    many votes without forecasts would give as narrow an interval. `more` is about how many further pairs would decide, if the
    rates stay as they are; None where that is decided already, or is more than there are pairs. `unmatched` votes have ids
    that no pair has.
    """

    pairs: int
    votes: int
    raters: int
    agreement: float | None
    win: Figure
    loss: Figure
    tie: Figure
    net: Figure
    alone: Figure
    verdict: str
    correlation: float
    worth: int
    more: int | None
    unmatched: int
    skipped: int
    always: Figure | None = None
    categories: tuple[CategoryVotes, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; `net_rate` and `votes_alone` have value, low and high."""
        plain = asdict(self)
        net, alone = plain.pop("net"), plain.pop("alone")
        return {"net_rate": net, "votes_alone": {**alone, "net_rate": alone}, **plain}


@dataclass(frozen=True)
class _Sample:
    """The pairs with votes: their places among all pairs, mean net votes and ties, and inclusion probabilities."""

    places: NDArray[np.int64]
    y: Floats
    inclusion: Floats


def voted(
    ids: Sequence[str],
    probabilities: Floats,
    groups: NDArray[np.uint64],
    given: SideVotes,
    *,
    always: bool = False,
    categories: Mapping[str, str] | None = None,
) -> Voted:
    """The comparison from the forecasts of n pairs (n, 3: LEFT, RIGHT, tie), whose prompts are `groups` (n,), and votes.

    Without inclusion probabilities the votes are a simple random sample of the pairs. Raises UsageError for fewer than
    5 pairs with votes, and where `always` is asked of a sample that was not drawn uniformly.
    """
    place = {id: index for index, id in enumerate(ids)}
    matched = [vote for vote in given.votes if vote.id in place]
    f = np.column_stack([probabilities[:, Outcome.B] - probabilities[:, Outcome.A], probabilities[:, Outcome.TIE]])
    sample = _sampled(matched, place, len(ids))
    if len(sample.places) < FEWEST:
        strange = next((vote.id for vote in given.votes if vote.id not in place), None)
        hint = "" if strange is None else f"; the id {excerpt(strange)} is not among the pairs"
        raise UsageError(
            f"{given.name}: has votes on {len(sample.places)} of the pairs; expected at least {FEWEST}{hint}"
        )
    with_forecasts, alone = (_means(sample, f, groups, use=use) for use in (True, False))
    if with_forecasts.error(_NET) > alone.error(_NET):
        with_forecasts = alone
    net, votes_alone = with_forecasts.interval(_NET), alone.interval(_NET)
    sequence = None if not always else _always(sample, f[:, 0], net.value)
    decided = verdict_of(sequence or net)
    raters = {vote.rater for vote in matched if vote.rater is not None}
    return Voted(
        pairs=len(sample.places),
        votes=len(matched),
        raters=len(raters),
        agreement=_agreement(matched),
        win=_bounded(with_forecasts.interval((_NET - _TIE) / 2), 0.5),
        loss=_bounded(with_forecasts.interval((-_NET - _TIE) / 2), 0.5),
        tie=_bounded(with_forecasts.interval(_TIE), 0.0),
        net=_bounded(net, 0.0, -1.0),
        alone=_bounded(votes_alone, 0.0, -1.0),
        verdict=decided,
        correlation=_correlation(sample, f[:, 0]),
        worth=round(len(sample.places) * (alone.error(_NET) / with_forecasts.error(_NET)) ** 2),
        more=None if decided != "none" else _more(sequence or net, len(sample.places), len(ids)),
        unmatched=len(given.votes) - len(matched),
        skipped=given.skipped,
        always=sequence,
        categories=tuple(_by_category(ids, f, groups, sample, categories)) if categories else (),
    )


def verdict_of(net: Figure) -> str:
    """`right` or `left` if an interval of win minus loss excludes 0, otherwise `none`."""
    return "right" if net.low > 0 else "left" if net.high < 0 else "none"


def _sampled(votes: Sequence[SideVote], place: Mapping[str, int], rows: int) -> _Sample:
    """Several votes on one pair are one observation: their mean."""
    by_pair: dict[int, list[SideVote]] = {}
    for vote in votes:
        by_pair.setdefault(place[vote.id], []).append(vote)
    y = np.zeros((len(by_pair), 2))
    inclusion = np.empty(len(by_pair))
    for index, several in enumerate(by_pair.values()):
        outcomes = [vote.outcome for vote in several]
        y[index, 0] = (outcomes.count(Outcome.B) - outcomes.count(Outcome.A)) / len(outcomes)
        y[index, 1] = outcomes.count(Outcome.TIE) / len(outcomes)
        said = several[0].inclusion
        inclusion[index] = len(by_pair) / rows if said is None else said
    return _Sample(np.array(list(by_pair), dtype=np.int64), y, inclusion)


def _means(sample: _Sample, f: Floats, groups: NDArray[np.uint64], *, use: bool) -> Sampled:
    _, place = np.unique(groups[sample.places], return_inverse=True)
    return sampled_means(sample.y, f[sample.places], f.mean(axis=0), sample.inclusion, place, ends=_ENDS, use=use)


def _bounded(found: Figure, shift: float, least: float = 0.0) -> Figure:
    value, low, high = (float(np.clip(each + shift, least, 1.0)) for each in (found.value, found.low, found.high))
    return Figure(value, low, high)


def _always(sample: _Sample, f: Floats, value: float) -> Figure:
    if np.ptp(sample.inclusion) > 1e-9:
        raise UsageError(
            "--anytime needs votes on pairs that were drawn uniformly; the inclusion probabilities differ (prefcast label --uniform)"
        )
    low, high = anytime(sample.y[:, 0], f[sample.places], float(f.mean()), len(f))
    return Figure(value, min(float(low[-1]), value), max(float(high[-1]), value))


def _correlation(sample: _Sample, f: Floats) -> float:
    y, own = sample.y[:, 0], f[sample.places]
    w = 1 / sample.inclusion
    y, own = y - np.average(y, weights=w), own - np.average(own, weights=w)
    spread = float(np.sqrt(np.average(y**2, weights=w) * np.average(own**2, weights=w)))
    return 0.0 if spread < 1e-12 else float(np.average(y * own, weights=w)) / spread


def _more(net: Figure, voted: int, rows: int) -> int | None:
    """How many more pairs until the interval excludes 0, as it narrows with the root of their number."""
    half = (net.high - net.low) / 2
    if abs(net.value) < half / 100:
        return None
    needed = ceil(voted * (half / abs(net.value)) ** 2) - voted
    return None if voted + needed > rows else max(1, needed)


def _agreement(votes: Sequence[SideVote]) -> float | None:
    """How often two raters of one pair agree; None where no pair has two."""
    counts: dict[str, Counter[Outcome]] = {}
    for vote in votes:
        counts.setdefault(vote.id, Counter())[vote.outcome] += 1
    same = sum(n * (n - 1) for each in counts.values() for n in each.values())
    both = sum(each.total() * (each.total() - 1) for each in counts.values())
    return same / both if both else None


def _by_category(
    ids: Sequence[str], f: Floats, groups: NDArray[np.uint64], sample: _Sample, categories: Mapping[str, str]
) -> list[CategoryVotes]:
    of = np.array([categories.get(id, "") for id in ids])
    names = sorted(set(of.tolist()))
    enough = {name for name in names if (of[sample.places] == name).sum() >= FEWEST}
    level = 1 - 0.05 / max(1, len(enough))
    found = []
    for name in names:
        rows, mine = of == name, of[sample.places] == name
        net = None
        if name in enough:
            _, place = np.unique(groups[sample.places[mine]], return_inverse=True)
            chosen = sample.y[mine], f[sample.places[mine]], f[rows].mean(axis=0), sample.inclusion[mine], place
            both = [sampled_means(*chosen, ends=_ENDS, use=use) for use in (True, False)]
            net = _bounded(min(both, key=lambda means: means.error(_NET)).interval(_NET, level), 0.0, -1.0)
        found.append(CategoryVotes(name, int(rows.sum()), int(mine.sum()), net, "" if net is None else verdict_of(net)))
    return found
