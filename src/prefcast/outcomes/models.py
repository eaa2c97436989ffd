"""Outcome models: from evidence (margin, tie) to probabilities (n, 3) in Outcome's order.

Every model computes A and B by one formula with opposite signs of the margin. So exchanging A and B, which negates the
margin, exchanges the two columns exactly. The models do not depend on the source of the evidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from statistics import NormalDist
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcast.errors import FitError, UsageError
from prefcast.outcomes.statistics.likelihood import linear, maximise
from prefcast.pairs import Outcome

__all__ = [
    "FITTED_MODELS",
    "OUTCOME_MODELS",
    "Davidson",
    "Link",
    "MarginSign",
    "NotebookRule",
    "OutcomeModel",
    "RaoKupper",
]

Floats = NDArray[np.float64]

_COLUMNS = len(Outcome)
_QUANTILES = (0.025, 0.975)
# In standardised units, over all rows. Below this value some parameter has a standard error above 3, which is no
# estimate.
_LEAST_INFORMATION = 0.1


class OutcomeModel(ABC):
    """Turns evidence into probabilities."""

    kind: ClassVar[str]

    @abstractmethod
    def _weights(self, margin: Floats, tie: Floats) -> tuple[Floats, Floats, Floats]:
        """Unnormalised, non-negative weights of A, B and tie, each of shape (n,)."""

    def probabilities(self, margin: ArrayLike, tie: ArrayLike = 0.0) -> Floats:
        """Probabilities (n, 3), rows summing to 1, of `margin` (n,) and `tie` (n,) or a scalar.

        Raises UsageError on a value that is not finite or on shapes that do not fit.
        """
        margin = np.atleast_1d(np.asarray(margin, dtype=np.float64))
        tie = np.asarray(tie, dtype=np.float64)
        if margin.ndim != 1 or tie.shape not in ((), margin.shape):
            raise UsageError(f"margin must have shape (n,) and tie the same; found {margin.shape} and {tie.shape}")
        if not (np.isfinite(margin).all() and np.isfinite(tie).all()):
            raise UsageError("margin and tie must be finite")
        with np.errstate(all="ignore"):
            a, b, t = self._weights(margin, np.broadcast_to(tie, margin.shape))
            total = (a + b) + t
            p = np.stack([a / total, b / total, t / total], axis=1)
        if not np.isfinite(p).all():
            raise UsageError(f"{self} gives no finite probabilities: a parameter or the evidence is too large")
        return p

    def parameters(self) -> dict[str, float]:
        """The parameters by name, as they are saved."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class FittedModel(OutcomeModel):
    """An outcome model with three parameters, fitted by maximum likelihood.

    `scale` turns the margin into log-odds, `level` sets how frequent ties are, and `tie_weight` how strongly the tie
    evidence changes that.
    """

    scale: float = 1.0
    level: float = 0.0
    tie_weight: float = 1.0

    @staticmethod
    @abstractmethod
    def log_probabilities(s: Floats, t: Floats) -> tuple[Floats, Floats, Floats]:
        """Log-probabilities (n, 3) given s = scale * margin and t = level + tie_weight * tie, and their derivatives by s
        and by t, (n, 3) each."""

    def _weights(self, margin: Floats, tie: Floats) -> tuple[Floats, Floats, Floats]:
        log_p = self.log_probabilities(self.scale * margin, self.level + self.tie_weight * tie)[0]
        p = np.exp(log_p)
        return p[:, 0], p[:, 1], p[:, 2]

    @classmethod
    def fit(cls, margin: ArrayLike, tie: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """The maximum-likelihood model of `outcomes` (n,), which are Outcome's values, given margin and tie, both (n,).

        `weights` (n,) are non-negative weights of the rows. tie_weight is 0 if the tie evidence does not vary. Raises
        FitError if an outcome never occurs, if the margins separate the outcomes, or if the fit does not converge.
        """
        m = np.asarray(margin, dtype=np.float64)
        t = np.asarray(tie, dtype=np.float64)
        y = np.asarray(outcomes, dtype=np.int64)
        w = np.ones(len(m)) if weights is None else np.asarray(weights, dtype=np.float64)
        if m.ndim != 1 or not m.shape == t.shape == y.shape == w.shape:
            raise UsageError(
                f"margin, tie, outcomes and weights must all have shape (n,); found {m.shape}, {t.shape}, {y.shape}, {w.shape}"
            )
        if not all(np.isfinite(values).all() for values in (m, t, w)) or (w < 0).any():
            raise UsageError("margin, tie and weights must be finite, weights not negative")
        if ((y < 0) | (y >= _COLUMNS)).any():
            raise UsageError("outcomes must be 0 (A), 1 (B) or 2 (tie)")
        mass = np.bincount(y, w, _COLUMNS)
        if not mass.all():
            never = ", ".join(outcome.name for outcome in Outcome if not mass[outcome])
            raise FitError(f"cannot fit {cls.__name__}: this outcome never occurs among the {len(y)} labels: {never}")
        # The inputs are standardised, so that one tolerance suits the scale of every reward model. A constant column gets
        # coefficient 0.
        m_unit = float(np.sqrt(np.average(m * m, weights=w)))
        t_mean = float(np.average(t, weights=w))
        t_unit = float(np.sqrt(np.average((t - t_mean) ** 2, weights=w)))
        varies = np.array([m_unit > 0, True, t_unit > 1e-12 * max(1.0, abs(t_mean))])
        m_unit, t_unit = m_unit if varies[0] else 1.0, t_unit if varies[2] else 1.0
        block = (m / m_unit)[:, None], ((t - t_mean) / t_unit)[:, None], np.eye(_COLUMNS)[y] * w[:, None]
        found = maximise(cls.log_probabilities, lambda: [block], np.eye(3)[:, varies], np.zeros(3), name=cls.__name__)
        if float(np.linalg.eigvalsh(found.information)[0]) < _LEAST_INFORMATION:
            raise FitError(
                f"the fit of {cls.__name__} to {len(y)} labels did not converge: the evidence separates the outcomes "
                "perfectly, or an outcome is too rare; more labels are needed"
            )
        scale, level, tie_weight = found.theta / (m_unit, 1.0, t_unit)
        return cls(float(scale), float(level - tie_weight * t_mean), float(tie_weight))


@dataclass(frozen=True)
class Davidson(FittedModel):
    """P(A) : P(B) : P(tie) = exp(s/2) : exp(-s/2) : exp(t), with s = scale * margin and t = level + tie_weight * tie.

    Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments", JASA 65 (1970);
    exp(level) is his nu.
    """

    kind: ClassVar[str] = "davidson"

    @staticmethod
    def log_probabilities(s: Floats, t: Floats) -> tuple[Floats, Floats, Floats]:
        z = np.stack([s / 2, -s / 2, t], axis=1)
        z = z - z.max(axis=1, keepdims=True)
        a, b, c = np.exp(z).T
        log_p = z - np.log((a + b) + c)[:, None]
        p_a, p_b, p_t = np.exp(log_p).T
        half = (p_a - p_b) / 2
        return log_p, np.stack([0.5 - half, -0.5 - half, -half], axis=1), np.stack([-p_t, -p_t, 1 - p_t], axis=1)


@dataclass(frozen=True)
class RaoKupper(FittedModel):
    """P(A) = sigmoid(s - eta), P(B) = sigmoid(-s - eta), P(tie) = 1 - P(A) - P(B).

    s = scale * margin, eta = softplus(level + tie_weight * tie) > 0.

    Rao and Kupper, "Ties in paired-comparison experiments: a generalization of the Bradley-Terry model", JASA 62 (1967);
    exp(eta) is their theta.
    """

    kind: ClassVar[str] = "rao-kupper"

    @staticmethod
    def log_probabilities(s: Floats, t: Floats) -> tuple[Floats, Floats, Floats]:
        # The derivative of eta is sigmoid(t). Below t = -700 exp underflows, and P(tie) is too small for a float.
        t = np.maximum(t, -700.0)
        eta, eta_slope = np.logaddexp(0.0, t), np.exp(-np.logaddexp(0.0, -t))
        log_a, log_b = -np.logaddexp(0.0, eta - s), -np.logaddexp(0.0, eta + s)
        # P(tie) = (theta^2 - 1) P(A) P(B), in logs: log(expm1(2 eta)) = 2 eta + log(-expm1(-2 eta)).
        log_t = 2 * eta + np.log(-np.expm1(-2 * eta)) + (log_a + log_b)
        not_a, not_b = np.exp(-np.logaddexp(0.0, s - eta)), np.exp(-np.logaddexp(0.0, -s - eta))
        by_s = np.stack([not_a, -not_b, not_a - not_b], axis=1)
        by_eta = np.stack([-not_a, -not_b, 2 / -np.expm1(-2 * eta) - not_a - not_b], axis=1)
        return np.stack([log_a, log_b, log_t], axis=1), by_s, by_eta * eta_slope[:, None]


@dataclass(frozen=True)
class NotebookRule(OutcomeModel):
    """The rule of the notebook: a margin below 0.08 in size is a tie; otherwise a softmax from which 0.0002 is taken
    for the tie.

    The rule ignores the tie evidence. For margins above about 9.2 the subtraction in the notebook gives a negative
    probability; here it is set to 0 and the row is normalised.
    """

    kind: ClassVar[str] = "notebook"

    def _weights(self, margin: Floats, tie: Floats) -> tuple[Floats, Floats, Floats]:
        near = np.abs(margin) < 0.08
        # softmax(sA, sB)[0] = sigmoid(margin), in a form that cannot overflow.
        a = np.where(near, 0.00005, np.maximum(0.0, np.exp(-np.logaddexp(0.0, -margin)) - 0.0001))
        b = np.where(near, 0.00005, np.maximum(0.0, np.exp(-np.logaddexp(0.0, margin)) - 0.0001))
        return a, b, np.where(near, 0.9999, 0.0002)


@dataclass(frozen=True)
class MarginSign(OutcomeModel):
    """The answer that the margin prefers, for a model without an outcome model: 1 or 0, a half where the margin is 0.

    These are no probabilities: nobody fitted them. They say which answer is preferred.
    """

    kind: ClassVar[str] = "margin-sign"

    def _weights(self, margin: Floats, tie: Floats) -> tuple[Floats, Floats, Floats]:
        return (1 + np.sign(margin)) / 2, (1 - np.sign(margin)) / 2, np.zeros_like(margin)


FITTED_MODELS: dict[str, type[FittedModel]] = {model.kind: model for model in (Davidson, RaoKupper)}
OUTCOME_MODELS: dict[str, type[Davidson] | type[RaoKupper] | type[NotebookRule]] = {
    model.kind: model for model in (Davidson, RaoKupper, NotebookRule)
}


@dataclass(frozen=True)
class Link:
    """A fitted link, in the units of the evidence.

    `margin` and `tie` name its columns. `theta` (k,) holds the coefficients of the margin columns, the level, and the
    coefficients of the tie columns. `draws` (repeats, k) holds the same for each draw of the bootstrap over groups.
    """

    kind: str
    margin: tuple[str, ...]
    tie: tuple[str, ...]
    theta: Floats
    draws: Floats

    def probabilities(self, m: Floats, t: Floats) -> Floats:
        """Probabilities (n, 3) given the margin columns m (n, p) and the tie columns t (n, q)."""
        p: Floats = np.exp(FITTED_MODELS[self.kind].log_probabilities(*linear(self.theta, m, t))[0])
        return p

    def drawn(self, m: Floats, t: Floats, error: Floats | None = None) -> Floats:
        """Probabilities (repeats, n, 3) under each draw. With the standard errors `error` (n,) of the first margin column, each draw
        is there twice, with a margin that is by as much larger and smaller: (2 repeats, n, 3)."""
        p = m.shape[1]
        # The columns are summed one by one: the rounding of a matrix product may depend on the number of rows.
        s = sum(self.draws[:, k, None] * m[:, k] for k in range(p))
        tie = self.draws[:, p, None] + sum(self.draws[:, p + 1 + k, None] * t[:, k] for k in range(t.shape[1]))
        s, tie = (np.broadcast_to(part, (len(self.draws), len(m))) for part in (s, tie))
        if error is not None:
            # Both signs, so that exchanging A and B mirrors the interval exactly.
            off = self.draws[:, :1] * _half_normal(len(self.draws))[:, None] * error
            s, tie = np.concatenate([s + off, s - off]), np.concatenate([tie, tie])
        log_p = FITTED_MODELS[self.kind].log_probabilities(s.ravel(), tie.ravel())[0]
        drawn: Floats = np.exp(log_p).reshape(len(s), len(m), len(Outcome))
        return drawn

    def interval(self, m: Floats, t: Floats, error: Floats | None = None) -> tuple[Floats, Floats]:
        """The 2.5 % and 97.5 % quantiles (n, 3) of the probabilities over the draws."""
        return drawn_interval(self.drawn(m, t, error))

    def lead_interval(self, m: Floats, t: Floats, error: Floats | None = None) -> tuple[Floats, Floats]:
        """The 2.5 % and 97.5 % quantiles (n,) of P(A) - P(B) over the draws."""
        drawn = self.drawn(m, t, error)
        return drawn_interval(drawn[:, :, Outcome.A] - drawn[:, :, Outcome.B])

    def renamed(self, names: Mapping[str, str]) -> Link:
        """The same link with other names of columns."""
        margin, tie = (tuple(names.get(name, name) for name in part) for part in (self.margin, self.tie))
        return replace(self, margin=margin, tie=tie)

    def shifted(self, by: float) -> Link:
        """The same link with `by` added to the tie level."""
        place = len(self.margin)
        theta, draws = self.theta.copy(), self.draws.copy()
        theta[place] += by
        draws[:, place] += by
        return replace(self, theta=theta, draws=draws)


def _half_normal(count: int) -> Floats:
    """So many quantiles of |x| for a standard normal x, in an order that has nothing to do with that of draws."""
    found = np.array([NormalDist().inv_cdf(0.5 + (k + 0.5) / (2 * count)) for k in range(count)])
    return found[np.random.default_rng(0).permutation(count)]


def drawn_interval(draws: Floats) -> tuple[Floats, Floats]:
    """The 2.5 % and 97.5 % quantiles over the first axis of `draws` (repeats, ...).

    The k-th smallest of B draws is the k / (B + 1) quantile (Davison and Hinkley, "Bootstrap Methods and their
    Application", 1997, section 5.2). NumPy's default quantiles of 200 draws would give a 94 % interval.
    """
    low, high = np.quantile(draws, _QUANTILES, axis=0, method="weibull")
    return low, high


def outcome_model(kind: str, parameters: dict[str, float]) -> OutcomeModel:
    """The outcome model of this kind with these saved parameters. Raises UsageError if they do not belong together."""
    model = OUTCOME_MODELS.get(kind)
    if model is None:
        raise UsageError(f"unknown outcome model {kind!r}; the known ones are {', '.join(OUTCOME_MODELS)}")
    names = [field.name for field in fields(model)]
    if set(parameters) != set(names) or not all(
        isinstance(value, int | float) and np.isfinite(value) for value in parameters.values()
    ):
        raise UsageError(
            f"the outcome model {kind} needs finite numbers for {', '.join(sorted(names)) or 'nothing'}; found {parameters}"
        )
    return model(**parameters)
