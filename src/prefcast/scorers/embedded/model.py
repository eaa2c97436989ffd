"""From features and vectors to evidence: an additive model whose weights depend on the prompt's topics.

    q = topics · p                                                       (k,)  what the prompt is about
    margin = Σ (linear + q·linear_by_topic) z + (saturating + q·saturating_by_topic) tanh z      over surface features
           + (vector + q·vector_by_topic) · d
    tie    = Σ likeness |tanh z| + Σ (weight + q·weight_by_topic) u + prompt · p

z and u are the surface model's standardised features of the difference A - B and of the pair, d is the difference of the
vectors of A and B, and p is the prompt's vector; both are standardised and clipped. A swap of A and B negates the margin
and does not change the tie. Each row is computed alone, so its bits do not depend on other rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError
from prefcast.scorers.embedded.encoder import Vectors
from prefcast.scorers.surface.features import PAIR_FEATURES, RESPONSE_FEATURES
from prefcast.scorers.surface.model import CLIP, SurfaceModel, rounded

__all__ = ["CLIP", "Terms", "TopicModel", "Topics"]

Floats = NDArray[np.float64]

_FORMAT = 2


@dataclass(frozen=True)
class Topics:
    """The weights of the vectors, for vectors of h numbers, k topics, r response features and p pair features: `spread`,
    `mean`, `deviation`, `vector`, `prompt` (h,); `topics`, `vector_by_topic` (k, h); `linear_by_topic`,
    `saturating_by_topic` (k, r); `weight_by_topic` (k, p)."""

    spread: Floats
    mean: Floats
    deviation: Floats
    vector: Floats
    prompt: Floats
    topics: Floats
    vector_by_topic: Floats
    linear_by_topic: Floats
    saturating_by_topic: Floats
    weight_by_topic: Floats

    def standardised(self, prompt: Floats, a: Floats, b: Floats) -> tuple[Floats, Floats]:
        """D and p (..., h) of vectors (..., h)."""
        d = np.clip((a - b) / self.spread, -CLIP, CLIP)
        return d, np.clip((prompt - self.mean) / self.deviation, -CLIP, CLIP)


class Terms(NamedTuple):
    """The terms of one pair's evidence: of the margin by response feature (r,), of the tie by response feature (r,) and by pair
    feature (p,), and the vectors' own terms of the margin and of the tie."""

    margin: Floats
    likeness: Floats
    pair: Floats
    said_margin: float
    said_tie: float


@dataclass(frozen=True)
class TopicModel:
    """The weights of the surface features and those of the vectors."""

    surface: SurfaceModel
    topics: Topics

    def terms(self, of_a: Floats, of_b: Floats, of_pair: Floats, vectors: Vectors) -> Terms:
        """The terms of one pair from its surface features (r,), (r,), (p,) and its vectors."""
        s, t = self.surface, self.topics
        z, bent, u = s.design(of_a, of_b, of_pair)
        d, p = t.standardised(*vectors)
        q = t.topics @ p
        return Terms(
            (s.linear + q @ t.linear_by_topic) * z + (s.saturating + q @ t.saturating_by_topic) * bent,
            s.likeness * np.abs(bent),
            (s.weight + q @ t.weight_by_topic) * u,
            float((t.vector + q @ t.vector_by_topic) @ d),
            float(t.prompt @ p),
        )

    def save(self, path: Path, **said: object) -> None:
        """Write the weights of the vectors as JSON, six significant digits, with the facts in `said`."""
        arrays = {part.name: rounded(getattr(self.topics, part.name)) for part in fields(Topics)}
        lines = [f'"{name}": {json.dumps(value)}' for name, value in {"format": _FORMAT, **said, **arrays}.items()]
        path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, surface: SurfaceModel, width: int) -> tuple[TopicModel, dict[str, object]]:
        """The model that `save` wrote for vectors of `width` numbers, and the other facts in the file.

        Raises ForecasterError for a file that is damaged or has other features.
        """
        try:
            data = json.loads(read_whole(path).decode())
            if data["format"] != _FORMAT:
                raise ForecasterError(f"{path}: format {data['format']!r} is not one that this version reads")
            arrays = {part.name: np.array(data.pop(part.name), dtype=np.float64) for part in fields(Topics)}
        except OSError as error:
            raise ForecasterError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ForecasterError(f"{path}: damaged: {type(error).__name__}: {error}") from None
        k = len(arrays["topics"])
        r, p = len(RESPONSE_FEATURES), len(PAIR_FEATURES)
        shapes = {"topics": (k, width), "vector_by_topic": (k, width), "weight_by_topic": (k, p)}
        shapes |= dict.fromkeys(("linear_by_topic", "saturating_by_topic"), (k, r))
        for name, array in arrays.items():
            expected = shapes.get(name, (width,))
            if array.shape != expected or not np.isfinite(array).all():
                raise ForecasterError(
                    f"{path}: {name}: expected {' x '.join(map(str, expected))} finite numbers, found {array.shape}"
                )
        if not (arrays["spread"] > 0).all() or not (arrays["deviation"] > 0).all():
            raise ForecasterError(f"{path}: damaged: spread and deviation must be positive")
        return cls(surface, Topics(**arrays)), data
