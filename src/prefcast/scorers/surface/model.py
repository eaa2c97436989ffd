"""The arithmetic of the surface model: evidence is a sum of terms, one or two for each feature.

With z the difference A - B of a response feature in units of its spread, clipped to +-6,

    margin = sum over response features of  linear * z + saturating * tanh(z)
    tie    = sum over response features of  likeness * |tanh(z)|  +  sum over pair features of  weight * u

where u is a standardised pair feature, clipped to the same range. The margin is odd in z, and the tie is even.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError
from prefcast.scorers.surface.features import PAIR_FEATURES, RESPONSE_FEATURES

__all__ = ["CLIP", "SurfaceModel", "rounded"]

Floats = NDArray[np.float64]

CLIP = 6.0
_FORMAT = 1
_RESPONSE_COLUMNS = ("spread", "linear", "saturating", "likeness")
_PAIR_COLUMNS = ("mean", "deviation", "weight")


@dataclass(frozen=True)
class SurfaceModel:
    """The weights: for r response features `spread`, `linear`, `saturating`, `likeness` (r,); for p pair features
    `mean`, `deviation`, `weight` (p,)."""

    spread: Floats
    linear: Floats
    saturating: Floats
    likeness: Floats
    mean: Floats
    deviation: Floats
    weight: Floats

    def design(self, of_a: Floats, of_b: Floats, of_pair: Floats) -> tuple[Floats, Floats, Floats]:
        """Z (n, r), tanh(z) (n, r) and u (n, p) from the features of A, B (n, r) and of the pairs (n, p)."""
        z = np.clip((of_a - of_b) / self.spread, -CLIP, CLIP)
        return z, np.tanh(z), np.clip((of_pair - self.mean) / self.deviation, -CLIP, CLIP)

    def terms(self, of_a: Floats, of_b: Floats, of_pair: Floats) -> tuple[Floats, Floats, Floats]:
        """The terms of the sums: of the margin (n, r), of the tie by response feature (n, r) and by pair feature (n,
        p)."""
        z, bent, u = self.design(of_a, of_b, of_pair)
        return self.linear * z + self.saturating * bent, self.likeness * np.abs(bent), self.weight * u

    def save(self, path: Path) -> None:
        """Write the weights as JSON, six significant digits, each under its feature's name."""
        parts = ("response", _RESPONSE_COLUMNS, RESPONSE_FEATURES), ("pair", _PAIR_COLUMNS, PAIR_FEATURES)
        texts = []
        for part, columns, names in parts:
            weights = zip(*(rounded(getattr(self, column)) for column in columns), strict=True)
            rows = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in zip(names, weights, strict=True)]
            texts.append(f'"{part}": {{"columns": {json.dumps(columns)},\n' + ",\n".join(rows) + "}")
        path.write_text(f'{{"format": {_FORMAT},\n' + ",\n".join(texts) + "}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> SurfaceModel:
        """Read what `save` wrote.

        Raises ForecasterError if it is damaged or made for other features.
        """
        try:
            data = json.loads(read_whole(path).decode())
            if data["format"] != _FORMAT:
                raise ForecasterError(
                    f"{path}: format {data['format']!r} is not one that this version reads ({_FORMAT})"
                )
            response = _columns(data["response"], RESPONSE_FEATURES, len(_RESPONSE_COLUMNS), path)
            pair = _columns(data["pair"], PAIR_FEATURES, len(_PAIR_COLUMNS), path)
        except OSError as error:
            raise ForecasterError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ForecasterError(f"{path}: not a surface model: {type(error).__name__} {error}") from None
        model = cls(*response, *pair)
        if not (model.spread > 0).all() or not (model.deviation > 0).all():
            raise ForecasterError(f"{path}: not a surface model: spread and deviation must be positive")
        return model


def rounded(values: Floats) -> list[Any]:
    """The values with six significant digits, as nested lists."""
    return [float(f"{value:.6g}") if np.ndim(value) == 0 else rounded(value) for value in values]


def _columns(table: dict[str, Any], names: tuple[str, ...], width: int, path: Path) -> Floats:
    found = [name for name in table if name != "columns"]
    if set(found) != set(names):
        odd = sorted(set(found) ^ set(names))
        raise ForecasterError(f"{path}: made for other features than this version computes, e.g. {odd[0]!r}")
    values = np.array([table[name] for name in names], dtype=np.float64)
    if values.shape != (len(names), width) or not np.isfinite(values).all():
        raise ForecasterError(f"{path}: not a surface model: every feature needs {width} finite numbers")
    return values.T
