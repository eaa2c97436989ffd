"""Two tiers of a cascade with a known truth. `cascade.py` and the tests use them.

The log-odds q of a vote and its tie level t are normal. Each tier sees both with normal noise of its own. So the distribution
of q and t given the first tier's evidence is normal too, and the expected gain of asking the second tier can be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.cascade import CascadeFit
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.outcomes.models import Davidson
from prefcast.scorers.cascade.rule import FACTS, features

__all__ = ["KINDS", "Tiers", "draw", "evidence", "expected_gain", "losses"]

Floats = NDArray[np.float64]
Random = np.random.Generator

_SPREAD, _TIES, _LEVEL = 1.5, 0.7, -0.2
_TIE_NOISE = 1.0, 0.5


@dataclass(frozen=True)
class Noise:
    """The standard deviation of each tier's noise on easy and on hard prompts; inf where a tier knows nothing."""

    first: tuple[float, float]
    second: tuple[float, float]


# even: the second tier is better everywhere. hard: the first tier is weak on half of the prompts, which are longer. mixed: also,
# the second tier is better on those alone. useless: the second tier knows nothing.
KINDS = {
    "even": Noise((1.5, 1.5), (0.7, 0.7)),
    "hard": Noise((0.5, 2.5), (0.7, 0.7)),
    "mixed": Noise((0.5, 2.5), (2.5, 0.5)),
    "useless": Noise((1.5, 1.5), (np.inf, np.inf)),
}


@dataclass(frozen=True)
class Tiers:
    """n rows: the evidence of both tiers, facts, true probabilities (n, 3) and votes (n,); `hard` (n,) are the hard prompts."""

    kind: str
    columns: dict[str, Floats]
    p: Floats
    votes: NDArray[np.int64]
    hard: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.p)


def draw(kind: str, n: int, random: Random) -> Tiers:
    """n rows of a kind."""
    hard = random.random(n) < 0.5
    q, t = _SPREAD * random.standard_normal(n), _TIES * random.standard_normal(n)
    p = _truth(q, t)
    facts = {name: random.random(n) for name in FACTS}
    facts |= {"prompt_length": np.where(hard, 6.0, 3.0) + 0.5 * random.standard_normal(n)}
    facts |= {name: np.zeros(n) for name in ("identical", "an_empty_answer")}
    columns = {**facts, **_seen(kind, 0, q, t, hard, random), **_seen(kind, 1, q, t, hard, random)}
    votes = (random.random(n)[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)
    return Tiers(kind, columns, p, votes, hard)


def _truth(q: Floats, t: Floats) -> Floats:
    p: Floats = np.exp(Davidson.log_probabilities(q, _LEVEL + t)[0])
    return p


def _noise(kind: str, tier: int, hard: NDArray[np.bool_]) -> Floats:
    easy, difficult = (KINDS[kind].first, KINDS[kind].second)[tier]
    return np.where(hard, difficult, easy)


def _seen(kind: str, tier: int, q: Floats, t: Floats, hard: NDArray[np.bool_], random: Random) -> dict[str, Floats]:
    """What a tier says of rows."""
    noise = _noise(kind, tier, hard)
    margin, tie = random.standard_normal(len(q)), random.standard_normal(len(q))
    if np.isfinite(noise).all():
        margin, tie = q + noise * margin, t + _TIE_NOISE[tier] * tie
    return {f"margin:{tier}": margin, f"tie:{tier}": tie}


def evidence(rows: Tiers) -> LabelledEvidence:
    """The rows as labelled evidence, each a prompt of its own."""
    data, columns = LabelledEvidence(2, facts=FACTS, names=("first", "second")), rows.columns
    margin, tie = (np.column_stack([columns[f"{what}:{tier}"] for tier in range(2)]) for what in ("margin", "tie"))
    facts = np.column_stack([columns[name] for name in FACTS])
    data.add(margin, tie, np.eye(3)[rows.votes], np.arange(len(rows), dtype=np.uint64), facts=facts)
    return data


def losses(found: CascadeFit, columns: dict[str, Floats], p: Floats) -> tuple[Floats, Floats]:
    """The expected log losses (n,) of the first tier alone and of both, if the outcomes have the probabilities p (n, 3)."""
    first, both = (
        -(p * Davidson.log_probabilities(*each.log_odds(columns))[0]).sum(axis=1) for each in (found.alone, found.both)
    )
    return first, both


def expected_gain(found: CascadeFit, rows: Tiers, random: Random, draws: int = 100) -> tuple[dict[str, Floats], Floats]:
    """The rule's features of the rows, and the gain (n,) that is expected from asking the second tier, given all that is known
    before: the mean over draws of the truth and of the second tier."""
    columns, total = rows.columns, np.zeros(len(rows))
    noise = _noise(rows.kind, 0, rows.hard)
    q_share, t_share = _SPREAD**2 / (_SPREAD**2 + noise**2), _TIES**2 / (_TIES**2 + _TIE_NOISE[0] ** 2)
    for _ in range(draws):
        q = q_share * columns["margin:0"] + np.sqrt(q_share) * noise * random.standard_normal(len(rows))
        t = t_share * columns["tie:0"] + np.sqrt(t_share) * _TIE_NOISE[0] * random.standard_normal(len(rows))
        again = columns | _seen(rows.kind, 1, q, t, rows.hard, random)
        first, both = losses(found, again, _truth(q, t))
        total += first - both
    return features(*found.alone.log_odds(columns), columns), total / draws
