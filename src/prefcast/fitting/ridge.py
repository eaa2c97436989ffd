"""Ridge regression whose penalty is chosen by generalised cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ridge"]

Floats = NDArray[np.float64]

_PENALTIES = np.logspace(0, 6, 25)


def ridge(columns: Mapping[str, Floats], wanted: Floats, weights: Floats, names: Sequence[str]) -> dict[str, float]:
    """The coefficients of the named columns (n,) for `wanted` (n,), without the constant; `weights` (n,) are those of rows.

    The columns are standardised, and a column that does not vary has no coefficient. The penalty is that with the lowest
    score of Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a good ridge parameter"
    (Technometrics 21, 1979).
    """
    total = weights.sum()
    x = np.column_stack([columns[name] for name in names])
    mean = weights @ x / total
    spread = np.sqrt(weights @ (x - mean) ** 2 / total)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(mean))
    if not varies.any():
        return {}
    root = np.sqrt(weights)[:, None]
    u, size, v = np.linalg.svd(root * ((x - mean)[:, varies] / spread[varies]), full_matrices=False)
    y = root[:, 0] * (wanted - weights @ wanted / total)
    along = u.T @ y
    rest = float(y @ y - along @ along)
    best, chosen = np.inf, _PENALTIES[-1]
    for penalty in _PENALTIES:
        shrunk = penalty / (size**2 + penalty)
        # One degree of freedom is the constant's.
        freedom = total - 1 - float((1 - shrunk).sum())
        score = (rest + float(((shrunk * along) ** 2).sum())) / freedom**2 if freedom > 0 else np.inf
        if score < best:
            best, chosen = score, penalty
    found = v.T @ (size / (size**2 + chosen) * along) / spread[varies]
    kept = [name for name, each in zip(names, varies, strict=True) if each]
    return dict(zip(kept, found.tolist(), strict=True))
