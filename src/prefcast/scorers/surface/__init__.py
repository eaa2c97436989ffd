"""The instant scorer: features of the texts into a small additive model that explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.pairs import Pair
from prefcast.scorers.base import Evidence, Push, Scorer
from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.surface.features import (
    COUNTS,
    GROUPS,
    PAIR_FEATURES,
    PAIR_GROUPS,
    RESPONSE_FEATURES,
    UNREADABLE,
    pair_features,
)
from prefcast.scorers.surface.model import SurfaceModel

__all__ = ["SurfaceScorer", "feature_arrays", "pushes"]

Floats = NDArray[np.float64]

_FILE = "surface.json"


def feature_arrays(pairs: Sequence[Pair]) -> tuple[Floats, Floats, Floats]:
    """Features of A and of B, both (n, r), and of the pairs (n, p)."""
    rows = [pair_features(pair.turns) for pair in pairs]
    widths = (len(RESPONSE_FEATURES), len(RESPONSE_FEATURES), len(PAIR_FEATURES))
    a, b, both = (
        np.array([row[column] for row in rows], dtype=np.float64).reshape(len(rows), width)
        for column, width in enumerate(widths)
    )
    return a, b, both


class SurfaceScorer(Scorer):
    """Evidence from the surface of the texts.

    `margin` is about the log-odds of A against B, `tie` those of a tie, before calibration.
    """

    name: ClassVar[str] = "surface"
    files: ClassVar[tuple[str, ...]] = (_FILE,)

    def __init__(self, model: SurfaceModel) -> None:
        self.model = model

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        cls._check_unmoved(folder, moved)
        return cls(SurfaceModel.load(folder / _FILE))

    def save(self, folder: Path) -> None:
        self.model.save(folder / _FILE)

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        margin, likeness, both = self.model.terms(*feature_arrays(pairs))
        # Sums along a row, not matrix products: a row's bits do not depend on its neighbours.
        return Evidence(margin.sum(axis=1), likeness.sum(axis=1) + both.sum(axis=1))

    def explain(self, pair: Pair) -> list[Push]:
        a, b, both = feature_arrays([pair])
        margin, likeness, shared = (terms[0] for terms in self.model.terms(a, b, both))
        return pushes(a[0], b[0], both[0], margin, likeness, shared)


def pushes(a: Floats, b: Floats, both: Floats, margin: Floats, likeness: Floats, shared: Floats) -> list[Push]:
    """One pair's terms by group, the strongest first: features of A and B (r,) and of the pair (p,), terms of the margin (r,),
    of the tie by response feature (r,) and by pair feature (p,)."""
    found = []
    for name, features in GROUPS.items():
        index = [RESPONSE_FEATURES.index(feature) for feature in features]
        values = tuple(
            _value(RESPONSE_FEATURES[i], float(a[i]), float(b[i]))
            for i in index
            if a[i] != b[i] and RESPONSE_FEATURES[i] not in UNREADABLE
        )
        found.append(Push(name, float(margin[index].sum()), float(likeness[index].sum()), values))
    for name, features in PAIR_GROUPS.items():
        index = [PAIR_FEATURES.index(feature) for feature in features]
        values = tuple(
            _value(PAIR_FEATURES[i], float(both[i]), float(both[i]))
            for i in index
            if both[i] and PAIR_FEATURES[i] not in UNREADABLE
        )
        found.append(Push(name, 0.0, float(shared[index].sum()), values))
    return sorted(found, key=lambda push: -(abs(push.margin) + abs(push.tie)))


def _value(name: str, a: float, b: float) -> tuple[str, float, float]:
    """A feature as a person reads it: counts as counts."""
    if name == "words":
        return name, round((10 * a) ** 2), round((10 * b) ** 2)
    return (name, round(np.expm1(a), 1), round(np.expm1(b), 1)) if name in COUNTS else (name, a, b)


SCORER = ScorerInfo(
    SurfaceScorer.name,
    f"{__name__}:SurfaceScorer",
    "features of the texts into a small additive model; explains itself; instant",
    files=SurfaceScorer.files,
)
