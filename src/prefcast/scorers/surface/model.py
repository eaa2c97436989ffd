"""The surface model's arithmetic: features -> evidence, as sums of terms that can be read one by one.

With z the difference A - B of a response feature in units of its spread, clipped to +-6,

    margin = sum over response features of  linear * z + saturating * tanh(z)
    tie    = sum over response features of  likeness * |tanh(z)|  +  sum over pair features of  weight * u

where u is a standardised pair feature, clipped alike. The margin is odd and the tie even in z by construction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError
from prefcast.scorers.surface.features import PAIR_FEATURES, RESPONSE_FEATURES

__all__ = ["SurfaceModel"]

Floats = NDArray[np.float64]

_CLIP = 6.0
_FORMAT = 1


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
        z = np.clip((of_a - of_b) / self.spread, -_CLIP, _CLIP)
        return z, np.tanh(z), np.clip((of_pair - self.mean) / self.deviation, -_CLIP, _CLIP)

    def terms(self, of_a: Floats, of_b: Floats, of_pair: Floats) -> tuple[Floats, Floats, Floats]:
        """The terms of the sums: of the margin (n, r), of the tie by response feature (n, r) and by pair feature (n,
        p)."""
        z, bent, u = self.design(of_a, of_b, of_pair)
        return self.linear * z + self.saturating * bent, self.likeness * np.abs(bent), self.weight * u

    def save(self, path: Path) -> None:
        """Write the weights as JSON, six significant digits, each under its feature's name."""
        response = {
            name: [_rounded(column[i]) for column in self._response_columns()]
            for i, name in enumerate(RESPONSE_FEATURES)
        }
        pair = {
            name: [_rounded(column[i]) for column in (self.mean, self.deviation, self.weight)]
            for i, name in enumerate(PAIR_FEATURES)
        }
        lines = [f'{{"format": {_FORMAT},', '"response": {"columns": ["spread", "linear", "saturating", "likeness"],']
        lines += [",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in response.items()) + "},"]
        lines += ['"pair": {"columns": ["mean", "deviation", "weight"],']
        lines += [",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in pair.items()) + "}}"]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _response_columns(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.spread, self.linear, self.saturating, self.likeness

    @classmethod
    def load(cls, path: Path) -> SurfaceModel:
        """Read what `save` wrote.

        Raises ForecasterError if it is damaged or made for other features.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != _FORMAT:
                raise ForecasterError(
                    f"{path}: format {data['format']!r} is not one that this version reads ({_FORMAT})"
                )
            response = _columns(data["response"], RESPONSE_FEATURES, 4, path)
            pair = _columns(data["pair"], PAIR_FEATURES, 3, path)
        except OSError as error:
            raise ForecasterError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ForecasterError(f"{path}: not a surface model: {type(error).__name__} {error}") from None
        model = cls(*response, *pair)
        if not (model.spread > 0).all() or not (model.deviation > 0).all():
            raise ForecasterError(f"{path}: not a surface model: spread and deviation must be positive")
        return model


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _columns(table: dict[str, Any], names: tuple[str, ...], width: int, path: Path) -> Floats:
    found = [name for name in table if name != "columns"]
    if set(found) != set(names):
        odd = sorted(set(found) ^ set(names))
        raise ForecasterError(f"{path}: made for other features than this version computes, e.g. {odd[0]!r}")
    values = np.array([table[name] for name in names], dtype=np.float64)
    if values.shape != (len(names), width) or not np.isfinite(values).all():
        raise ForecasterError(f"{path}: not a surface model: every feature needs {width} finite numbers")
    return values.T
