"""The scorer `surface`: features of the texts and a small additive model that can be explained."""

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
    """The features of A and of B, both (n, r), and of the pairs (n, p)."""
    rows = [pair_features(pair.turns) for pair in pairs]
    widths = (len(RESPONSE_FEATURES), len(RESPONSE_FEATURES), len(PAIR_FEATURES))
    a, b, both = (
        np.array([row[column] for row in rows], dtype=np.float64).reshape(len(rows), width)
        for column, width in enumerate(widths)
    )
    return a, b, both


class SurfaceScorer(Scorer):
    """Evidence from the surface of the texts. Before calibration `margin` is about the log-odds of A against B, and `tie`
    about the log-odds of a tie."""

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
        # Sums along a row, not matrix products: the bits of a row do not depend on other rows.
        return Evidence(margin.sum(axis=1), likeness.sum(axis=1) + both.sum(axis=1))

    def explain(self, pair: Pair) -> list[Push]:
        a, b, both = feature_arrays([pair])
        margin, likeness, shared = (terms[0] for terms in self.model.terms(a, b, both))
        return pushes(a[0], b[0], both[0], margin, likeness, shared)


def pushes(a: Floats, b: Floats, both: Floats, margin: Floats, likeness: Floats, shared: Floats) -> list[Push]:
    """The sums of one pair's terms by group, the strongest first.

    The arguments are the features of A and B (r,) and of the pair (p,), the terms of the margin (r,), and those of the tie
    by response feature (r,) and by pair feature (p,).
    """
    found = []
    for name, features in GROUPS.items():
        index = [RESPONSE_FEATURES.index(feature) for feature in features]
        values = _values(features, a[index], b[index], a[index] != b[index])
        found.append(Push(name, float(margin[index].sum()), float(likeness[index].sum()), values))
    for name, features in PAIR_GROUPS.items():
        index = [PAIR_FEATURES.index(feature) for feature in features]
        values = _values(features, both[index], both[index], both[index] != 0)
        found.append(Push(name, 0.0, float(shared[index].sum()), values))
    return sorted(found, key=lambda push: -(abs(push.margin) + abs(push.tie)))


def _values(
    names: Sequence[str], a: Floats, b: Floats, shown: NDArray[np.bool_]
) -> tuple[tuple[str, float, float], ...]:
    """The features that are `shown` and readable, as a person reads them."""
    return tuple(
        _value(name, float(of_a), float(of_b))
        for name, of_a, of_b, is_shown in zip(names, a, b, shown, strict=True)
        if is_shown and name not in UNREADABLE
    )


def _value(name: str, a: float, b: float) -> tuple[str, float, float]:
    """A feature with its count in place of the logarithm or the root."""
    if name == "words":
        return name, round((10 * a) ** 2), round((10 * b) ** 2)
    if name == "turns":
        return name, round(np.exp(a)), round(np.exp(b))
    return (name, round(np.expm1(a), 1), round(np.expm1(b), 1)) if name in COUNTS else (name, a, b)


SCORER = ScorerInfo(
    SurfaceScorer.name,
    f"{__name__}:SurfaceScorer",
    "features of the texts into a small additive model; explains itself; fast",
    files=SurfaceScorer.files,
)
