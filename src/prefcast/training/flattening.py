"""How much a forecast is flattened where the training data tell little about a pair (`Doubt` of the embedded model)."""

from __future__ import annotations

from dataclasses import replace
from math import exp, expm1, log1p
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.models import Davidson
from prefcast.scorers.embedded.model import Doubt, TopicModel, several_turns
from prefcast.training.fit import Rows

__all__ = ["Flattening", "flattened", "flattening"]

Floats = NDArray[np.float64]

_MOST = 10.0
# Of pairs with several turns there are few: the logarithm of their factor is held at 0 by as much as about ten votes would.
_PRIOR = 10.0


class Flattening(NamedTuple):
    """`flattening` and `turns` of a `Doubt`."""

    size: float = 0.0
    turns: float = 1.0

    def of(self, margin: Floats, unlike: Floats, rows: Rows) -> Floats:
        """The margins (n,) of `rows`, flattened."""
        doubt = replace(Doubt.none(0), flattening=self.size, turns=self.turns)
        return margin * doubt.factor(unlike, several_turns(rows.pair))


def flattening(evidence: tuple[Floats, ...], rows: Rows, used: NDArray[np.bool_]) -> Flattening:
    """The flattening, at most 10, under which the rows in `used` (n,) are likeliest. `evidence` is their margin, tie and `unlike`
    (n,), out of fold and not flattened. Each source has an outcome model of its own. Raises FitError."""
    from scipy.optimize import minimize

    margin, tie, unlike = evidence
    outcome = rows.target.argmax(axis=1)
    sources = [used & (rows.source == number) for number in np.unique(rows.source[used]).tolist()]
    # An outcome model takes some rows of each outcome.
    sources = [of for of in sources if np.bincount(outcome[of], minlength=3).min() >= 10]

    def loss(theta: Floats) -> float:
        m, total = (
            Flattening(expm1(theta[0]), exp(theta[1])).of(margin, unlike, rows),
            _PRIOR / 2 * float(theta[1]) ** 2,
        )
        for of in sources:
            p = Davidson.fit(m[of], tie[of], outcome[of]).probabilities(m[of], tie[of])
            total -= float(np.log(p[np.arange(len(p)), outcome[of]]).sum())
        return total

    if not sources:
        return Flattening()
    bounds = [(0.0, log1p(_MOST)), (-2.0, 1.0)]
    found = minimize(loss, [0.3, 0.0], method="L-BFGS-B", bounds=bounds, options={"eps": 1e-4})
    return Flattening(expm1(float(found.x[0])), exp(float(found.x[1])))


def flattened(model: TopicModel, by: Flattening) -> TopicModel:
    """The model with this flattening."""
    return replace(model, doubt=replace(model.doubt, flattening=by.size, turns=by.turns))
