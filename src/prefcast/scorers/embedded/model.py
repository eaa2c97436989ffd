"""From features and vectors to evidence: an additive model whose weights depend on the prompt's topics.

    q = topics · p                                                       (k,)  what the prompt is about
    sum    = Σ (linear + q·linear_by_topic) z + (saturating + q·saturating_by_topic) tanh z      over surface features
           + (vector + q·vector_by_topic) · d
    margin = sum / √(1 + flattening · unlike), and times `turns` for a pair with several turns
    tie    = Σ likeness |tanh z| + Σ (weight + q·weight_by_topic) u + prompt · p

z and u are the surface model's standardised features of the difference A - B and of the pair, d is the difference of the
vectors of A and B, and p is the prompt's vector; both are standardised and clipped. `unlike` says how little the training data
tell about such a difference: it is the variance of the sum under the posterior of the weights (`Doubt`). A swap of A and B negates
the margin and changes neither the tie nor `unlike`. Each row is computed alone, so its bits do not depend on other rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError
from prefcast.scorers.embedded.encoder import Vectors
from prefcast.scorers.surface.features import PAIR_FEATURES, RESPONSE_FEATURES
from prefcast.scorers.surface.model import CLIP, SurfaceModel, rounded

__all__ = ["CLIP", "Doubt", "Terms", "TopicModel", "Topics", "several_turns"]

Floats = NDArray[np.float64]

_FORMAT = 3
_LARGEST = 1e9


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


@dataclass(frozen=True)
class Doubt:
    """How uncertain the weights of a difference are, and what that does to a forecast.

    x = (z, tanh z, `vector_scale` d), with 2 r + h numbers, is the part of the design without topics. The Laplace approximation of the fit
    gives its weights the covariance H⁻¹, H = `penalty` + Xᵀ W X (MacKay, "The evidence framework applied to classification networks",
    Neural Computation 4, 1992). Of XᵀWX the largest k eigenvalues e are kept: `directions` (k, 2 r + h) are their eigenvectors, and
    `share` (k,) is e / (e + penalty). Then xᵀ H⁻¹ x = (|x|² - Σ share (directions · x)²) / penalty. `typical` is its median over the
    rows of the fit with the largest weight, which are votes or close to them, and `unlike` is the variance in that unit. W is taken at
    the tie level 0, and at the scale 1 for every source.

    `flattening` divides margins by √(1 + flattening · unlike), MacKay's approximation of the mean of a sigmoid over a normal
    distribution. `turns` multiplies the margins of pairs with several turns, of which the training data have few.
    """

    directions: Floats
    share: Floats
    penalty: float = 1.0
    vector_scale: float = 0.0
    typical: float = 1.0
    flattening: float = 0.0
    turns: float = 1.0

    @classmethod
    def none(cls, width: int) -> Doubt:
        """The doubt of a model that flattens nothing, for vectors of `width` numbers."""
        return cls(np.zeros((0, 2 * len(RESPONSE_FEATURES) + width)), np.zeros(0))

    def unlike(self, z: Floats, bent: Floats, d: Floats) -> float:
        """The variance of one pair's margin, in units of that of a typical pair: 0 where A and B do not differ."""
        x = np.concatenate([z, bent, self.vector_scale * d])
        # A damaged folder could make it negative.
        return max(0.0, float(x @ x - self.share @ _product(self.directions, x) ** 2)) / (self.penalty * self.typical)

    def factor(self, unlike: Floats, several: NDArray[np.bool_]) -> Floats:
        """What margins are multiplied by, for `unlike` (n,) and whether there are several turns (n,)."""
        found: Floats = np.where(several, self.turns, 1.0) / np.sqrt(1 + self.flattening * unlike)
        return found

    def standard_error(self, unlike: float, factor: float) -> float:
        """The posterior standard error of one pair's flattened margin, beyond that of a typical pair."""
        return factor * sqrt(self.typical * max(0.0, unlike - 1))


class Terms(NamedTuple):
    """The terms of one pair's evidence: of the margin by response feature (r,), of the tie by response feature (r,) and by pair
    feature (p,), and the vectors' own terms of the margin and of the tie. `unlike` is that of `Doubt`, and `error` the
    standard error of the margin."""

    margin: Floats
    likeness: Floats
    pair: Floats
    said_margin: float
    said_tie: float
    unlike: float
    error: float


@dataclass(frozen=True)
class TopicModel:
    """The weights of the surface features and those of the vectors, and how uncertain they are."""

    surface: SurfaceModel
    topics: Topics
    doubt: Doubt

    def terms(self, of_a: Floats, of_b: Floats, of_pair: Floats, vectors: Vectors) -> Terms:
        """The terms of one pair from its surface features (r,), (r,), (p,) and its vectors."""
        s, t = self.surface, self.topics
        z, bent, u = s.design(of_a, of_b, of_pair)
        d, p = t.standardised(*vectors)
        q = _product(t.topics, p)
        unlike = self.doubt.unlike(z, bent, d)
        factor = float(self.doubt.factor(np.array(unlike), several_turns(of_pair)))
        return Terms(
            factor * ((s.linear + q @ t.linear_by_topic) * z + (s.saturating + q @ t.saturating_by_topic) * bent),
            s.likeness * np.abs(bent),
            (s.weight + q @ t.weight_by_topic) * u,
            factor * float((t.vector + _product(t.vector_by_topic.T, q)) @ d),
            float(t.prompt @ p),
            unlike,
            self.doubt.standard_error(unlike, factor),
        )

    def save(self, path: Path, **said: object) -> None:
        """Write the weights of the vectors as JSON, six significant digits, with the facts in `said`."""
        numbers = {
            part.name: rounded(value) if np.ndim(value) else float(f"{value:.6g}")
            for holder in (self.topics, self.doubt)
            for part in fields(holder)
            for value in [getattr(holder, part.name)]
        }
        lines = [f'"{name}": {json.dumps(value)}' for name, value in {"format": _FORMAT, **said, **numbers}.items()]
        path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, surface: SurfaceModel, width: int) -> tuple[TopicModel, dict[str, object]]:
        """The model that `save` wrote for vectors of `width` numbers, and the other facts in the file.

        Raises ForecasterError for a file that is damaged or has other features.
        """
        try:
            data = json.loads(read_whole(path).decode())
            if data["format"] != _FORMAT:
                earlier = " (an earlier version wrote it: train it again)" if data["format"] in (1, 2) else ""
                raise ForecasterError(f"{path}: format {data['format']!r} is not one that this version reads{earlier}")
            arrays, doubt = (
                {part.name: np.array(data.pop(part.name), dtype=np.float64) for part in fields(kind)}
                for kind in (Topics, Doubt)
            )
        except OSError as error:
            raise ForecasterError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ForecasterError(f"{path}: damaged: {type(error).__name__}: {error}") from None
        k = sum(arrays["topics"].shape[:1])
        r, p = len(RESPONSE_FEATURES), len(PAIR_FEATURES)
        shapes: dict[str, tuple[int, ...]] = {
            "topics": (k, width),
            "vector_by_topic": (k, width),
            "weight_by_topic": (k, p),
        }
        shapes |= dict.fromkeys(("linear_by_topic", "saturating_by_topic"), (k, r))
        x = 2 * r + width
        if not doubt["directions"].size:
            doubt["directions"] = np.zeros((0, x))
        kept = sum(doubt["directions"].shape[:1])
        shapes |= dict.fromkeys(doubt, ()) | {"directions": (kept, x), "share": (kept,)}
        for name, array in {**arrays, **doubt}.items():
            expected = shapes.get(name, (width,))
            if array.shape != expected or not np.isfinite(array).all():
                numbers = f"{' x '.join(map(str, expected))} finite numbers" if expected else "a finite number"
                raise ForecasterError(f"{path}: {name}: expected {numbers}, found {array.shape}")
        positive = (arrays["spread"], arrays["deviation"], doubt["penalty"], doubt["typical"], doubt["turns"])
        if not all((values > 0).all() for values in positive):
            raise ForecasterError(f"{path}: damaged: spread, deviation, penalty, typical and turns must be positive")
        if not all((values >= 0).all() for values in (doubt["flattening"], doubt["share"])):
            raise ForecasterError(f"{path}: damaged: flattening and share must not be negative")
        unit = doubt["penalty"] * doubt["typical"]
        # Out of these bounds a damaged folder's numbers would not be finite.
        sized = (
            max(np.abs(doubt["directions"]).max(initial=0.0), abs(doubt["vector_scale"]), doubt["flattening"])
            < _LARGEST
        )
        if not (1 / _LARGEST < unit < _LARGEST and sized) or (doubt["share"] > 1).any():
            raise ForecasterError(
                f"{path}: damaged: directions, share, vector_scale, penalty, typical or flattening is too large or too small"
            )
        plain = {name: float(value) for name, value in doubt.items() if name not in ("directions", "share")}
        return cls(surface, Topics(**arrays), Doubt(doubt["directions"], doubt["share"], **plain)), data


def several_turns(of_pair: Floats) -> NDArray[np.bool_]:
    """Whether pairs have several turns, by their pair features (..., p)."""
    found: NDArray[np.bool_] = of_pair[..., PAIR_FEATURES.index("several_turns")] > 0
    return found


def _product(matrix: Floats, vector: Floats) -> Floats:
    """The product of a matrix (n, k) and a vector (k,). A numerical library's own sums depend on its number of threads."""
    found: Floats = np.einsum("nk,k->n", matrix, vector)
    return found
