"""The input of a fit: rows of evidence with their votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError
from prefcast.fitting.shipped import Shipped
from prefcast.outcomes.models import Link
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs.pair import group_key

__all__ = ["LabelledEvidence", "spun"]

Floats = NDArray[np.float64]


class LabelledEvidence:
    """A growing table of rows of evidence with their votes.

    Each of the `members` scorers, called `names`, gives a margin and a tie. `margin_covariates` are further
    antisymmetric columns, `tie_covariates` further symmetric ones. `facts` are columns that no link uses.
    """

    def __init__(
        self,
        members: int,
        margin_covariates: Sequence[str] = (),
        tie_covariates: Sequence[str] = (),
        *,
        log_odds: bool = False,
        names: Sequence[str] | None = None,
        facts: Sequence[str] = (),
        shipped: Mapping[int, Shipped] | None = None,
    ) -> None:
        self.members = members
        self.names = tuple(names) if names is not None else tuple(f"scorer {number + 1}" for number in range(members))
        self.margin_covariates = tuple(margin_covariates)
        self.tie_covariates = tuple(tie_covariates)
        # Whether the evidence of the only member is already the log-odds of a forecast.
        self.log_odds = log_odds
        # The outcome models of the members that were fitted before.
        self.shipped = dict(shipped or {})
        self.facts = tuple(facts)
        names = [f"{what}:{member}" for what in ("margin", "tie") for member in range(members)]
        names += [*self.margin_covariates, *self.tie_covariates, "votes_a", "votes_b", "votes_tie", "key"]
        self.table = Columns([*names, "model_a", "model_b", *self.facts])
        self.place = {name: index for index, name in enumerate(self.table.names)}

    def add(
        self,
        margin: Floats,
        tie: Floats,
        votes: Floats,
        keys: NDArray[np.uint64],
        *,
        margin_covariates: Floats | None = None,
        tie_covariates: Floats | None = None,
        models: Sequence[tuple[str | None, str | None]] | None = None,
        facts: Floats | None = None,
    ) -> None:
        """Add n rows: margin and tie (n, members), votes (n, 3), group keys (n,), covariates, names of the models, facts.

        Raises UsageError if a value is not finite or a vote is below 0.
        """
        n = len(margin)
        more = [np.zeros((n, 0)) if part is None else part for part in (margin_covariates, tie_covariates)]
        values = np.concatenate([margin, tie, *more, votes], axis=1)
        facts = np.zeros((n, 0)) if facts is None else facts
        if not (np.isfinite(values).all() and np.isfinite(facts).all()) or (votes < 0).any():
            raise UsageError("margin, tie, covariates and votes must be finite, votes not negative")
        # A model is identified by 52 bits of the hash of its name, which a float holds exactly.
        numbers = {
            model: np.nan if model is None else float(group_key(model) >> 12)
            for model in chain.from_iterable(models or ())
        }
        named = np.array([[numbers[a], numbers[b]] for a, b in models]) if models else np.full((n, 2), np.nan)
        self.table.append(np.column_stack([values, keys.view(np.float64), named, facts]))

    def split(self, share: float, seed: int) -> tuple[LabelledEvidence, LabelledEvidence]:
        """The rows in two tables, the second with about that share of the groups. A group is whole in one of them."""
        parts = []
        for _ in range(2):
            part = copy(self)
            part.table = Columns(self.table.names)
            parts.append(part)
        for block in self.table.blocks():
            # Mixed twice: folds and samples are made of keys that are mixed once.
            held = spun(spun(self.keys(block)) ^ np.uint64(seed)) < np.uint64(share * 2**64)
            for part, rows in zip(parts, (~held, held), strict=True):
                part.table.append(block[rows])
        return parts[0], parts[1]

    def keys(self, rows: Floats) -> NDArray[np.uint64]:
        """The group keys (n,) of n rows of the table."""
        return rows[:, self.place["key"]].copy().view(np.uint64)

    def votes(self, rows: Floats) -> Floats:
        """The votes (n, 3) of n rows of the table."""
        return rows[:, [self.place[name] for name in ("votes_a", "votes_b", "votes_tie")]]

    def columns(self, link: Link, rows: Floats) -> tuple[Floats, Floats]:
        """The margin columns (n, p) and the tie columns (n, q) of a link, of n rows of the table."""
        margin, tie = (rows[:, [self.place[name] for name in part]] for part in (link.margin, link.tie))
        return margin, tie

    def __len__(self) -> int:
        return len(self.table)


def spun(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of the keys: keys may be row numbers, and consecutive rows must not go to folds in order."""
    with np.errstate(over="ignore"):
        z = (keys + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
