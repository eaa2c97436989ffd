"""Raters who disagree with everybody: they agree with the other raters of the same pairs less often than those do."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import numpy as np

from prefcast.errors import printable
from prefcast.measuring.doctor.ballots import Ballots
from prefcast.measuring.doctor.findings import Finding, FoundRow, Places
from prefcast.measuring.doctor.sides import holm

__all__ = ["Raters"]

_SHOWN = 3


class Raters:
    """Compares each rater's votes with the other votes on the same pairs.

    For each vote of a rater there is the share of the other people's votes on that pair that say the same. The null
    hypothesis is that the sum of a rater's shares is that of a rater who agrees as often as two others do. A sum of shares
    varies less than a count of agreements (it is smaller in the convex order: Hoeffding, "Probability inequalities for sums
    of bounded random variables", Journal of the American Statistical Association 58, 1963), so the binomial test of the
    rounded sum is careful. Holm's method keeps the probability of one wrongly named rater below 5 %.
    """

    def __init__(self, votes: Ballots) -> None:
        self._votes = votes
        self._named: set[int] = set()

    def findings(self) -> Iterator[Finding]:
        """Raters who disagree."""
        from scipy.special import bdtr

        names = self._votes.raters
        if not names:
            yield Finding("raters who disagree", 0, 0, "not measured: no column names the rater (--rater COLUMN)")
            return
        _, group = np.unique(self._votes.keys("key"), return_inverse=True)
        said, count = self._votes.said(), self._votes.column("count")
        rater = self._votes.column("rater").astype(np.int64)
        totals = np.zeros((int(group.max()) + 1, 3))
        np.add.at(totals, (group, said), count)
        # What each rater said of each pair: a second vote on a pair is not another person's.
        _, own = np.unique(np.column_stack([group, rater]), axis=0, return_inverse=True)
        own = own.reshape(-1)
        mine = np.zeros((int(own.max()) + 1, 3))
        np.add.at(mine, (own, said), count)
        others = totals[group] - mine[own]
        others[rater < 0] = totals[group][rater < 0] - np.eye(3)[said[rater < 0]] * count[rater < 0][:, None]
        known = others.sum(axis=1)
        share = np.where(known > 0, others[np.arange(len(said)), said] / np.maximum(known, 1), 0.0)
        compared = (known > 0) & (rater >= 0)
        if not compared.any():
            text = f"not measured: no pair has votes of two of the {len(names):,} raters"
            yield Finding("raters who disagree", 0, len(names), text)
            return
        n = np.bincount(rater[compared], minlength=len(names))
        agreed = np.bincount(rater[compared], share[compared], minlength=len(names))
        tested = np.flatnonzero(n)
        chances = []
        for each in tested.tolist():
            rest = n.sum() - n[each]
            usual = (agreed.sum() - agreed[each]) / rest if rest else 0.0
            chances.append(float(bdtr(min(ceil(agreed[each]), int(n[each])), int(n[each]), usual)) if rest else 1.0)
        marked = [int(each) for each, bad in zip(tested, holm(chances), strict=True) if bad]
        marked.sort(key=lambda each: agreed[each] / n[each])
        self._named = set(marked)
        everyone = float(agreed.sum() / n.sum())
        text = f"none of {len(tested):,}; two raters of one pair agree in {100 * everyone:.0f} %"
        if marked:
            shown = ", ".join(
                f"{printable(names[each])[:40]} agrees in {100 * agreed[each] / n[each]:.0f} % of {n[each]:,}"
                for each in marked[:_SHOWN]
            )
            more = ", ..." if len(marked) > _SHOWN else ""
            text = (
                f"{len(marked):,} of {len(tested):,} agree less than the {100 * everyone:.0f} % of all: {shown}{more}"
            )
        figures = {
            "agreement": everyone,
            "raters": [
                {"rater": names[each], "votes": int(n[each]), "agreement": float(agreed[each] / n[each])}
                for each in marked
            ],
        }
        yield Finding("raters who disagree", len(marked), len(tested), text, figures)

    def rows(self, places: Places) -> Iterator[FoundRow]:
        """The rows on which these raters voted."""
        if not self._named:
            return
        names = self._votes.raters
        for row, rater in zip(self._votes.column("row"), self._votes.column("rater"), strict=True):
            if int(rater) in self._named:
                yield places.found("raters who disagree", int(row), f"rater {printable(names[int(rater)])}")
