"""For every kind of training: the joint fit of margin and tie evidence, figures and versions for a card."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.bootstrap import Figure

__all__ = ["fit_weights", "plain_figure", "versions"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def fit_weights(
    margin: Floats,
    tie: Floats,
    source: Ints,
    target: Floats,
    weight: Floats,
    tieless: NDArray[np.bool_],
    penalty: float,
    offset: tuple[Floats, Floats] | None = None,
    scaled: NDArray[np.bool_] | None = None,
) -> tuple[Floats, Floats]:
    """The weights of the margin's design (n, d) and of the tie's (n, k), with a free tie level for each source. `target` (n, 3) are
    shares of outcomes. Rows that are `tieless` have no tie. `offset` is evidence (n,), (n,) to which the designs add. The margins of
    the rows that are `scaled` are multiplied by a free number of their source, so that such a source teaches a direction but not how
    sure a forecast is.

    Minimises -sum(weight * target * log P) + penalty / 2 * |weights|^2, to which each log(scale) adds half its square. Without free
    scales that is convex. Raises FitError unless it converges.
    """
    from scipy.optimize import minimize

    d, k, sources = margin.shape[1], tie.shape[1], int(source.max()) + 1
    free = np.zeros(0, dtype=np.int64) if scaled is None else np.unique(source[scaled])
    known_margin, known_tie = (0.0, 0.0) if offset is None else offset
    wanted = weight[:, None] * target

    def objective(theta: Floats) -> tuple[float, Floats]:
        by_margin, by_tie = theta[:d], theta[d : d + k]
        level, log_scale = theta[d + k : d + k + sources], np.zeros(sources)
        log_scale[free] = theta[d + k + sources :]
        scale = np.exp(log_scale)[source]
        s = scale * (known_margin + margin @ by_margin)
        log_p, by_s, by_t = Davidson.log_probabilities(
            s, np.where(tieless, -np.inf, known_tie + tie @ by_tie + level[source])
        )
        slope_s, slope_t = -(wanted * by_s).sum(axis=1), np.where(tieless, 0.0, -(wanted * by_t).sum(axis=1))
        loss = penalty / 2 * (by_margin @ by_margin + by_tie @ by_tie) + 0.01 * (level @ level)
        loss += log_scale @ log_scale / 2
        gradient = [
            margin.T @ (scale * slope_s) + penalty * by_margin,
            tie.T @ slope_t + penalty * by_tie,
            np.bincount(source, slope_t, sources) + 0.02 * level,
            (np.bincount(source, slope_s * s, sources) + log_scale)[free],
        ]
        # The logarithm may be that of 0 if the target is 0.
        return float(loss - (wanted * np.where(wanted > 0, log_p, 0.0)).sum()), np.concatenate(gradient)

    found = minimize(
        objective,
        np.zeros(d + k + sources + len(free)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-3},
    )
    if not found.success:
        raise FitError(f"the fit did not converge: {found.message}")
    return found.x[:d], found.x[d : d + k]


def plain_figure(figure: Figure) -> dict[str, float]:
    """A figure for a card."""
    return {"value": round(figure.value, 4), "low": round(figure.low, 4), "high": round(figure.high, 4)}


def versions(*names: str) -> dict[str, str]:
    """The versions of packages, for a card."""
    return {name: version(name) for name in names}
