"""The likelihoods that a reward model is trained under, in torch: Davidson and Rao-Kupper, for which ties are data, and Bradley-Terry.

The formulas are those of `prefcast.outcomes.models`; a test compares the two and checks the gradients by finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid, softplus

from prefcast.pairs import Outcome

__all__ = ["LIKELIHOODS", "Link", "cross_entropy", "log_probabilities", "shares_of_ties", "softened"]

LIKELIHOODS = ("davidson", "rao-kupper", "bradley-terry")
# The tie level of a source without ties: the chance of a tie is then below 1e-12.
_NO_TIES = -30.0


def log_probabilities(likelihood: str, s: Tensor, t: Tensor) -> Tensor:
    """Log-probabilities (n, 3) given s (n,), the scaled margin, and t (n,), level and tie evidence.

    Davidson (1970) and Rao and Kupper (1967), as in `prefcast.outcomes.models`. Bradley-Terry (1952) has no ties: its third column
    is 0 and must have no weight.
    """
    if likelihood == "davidson":
        return log_softmax(torch.stack((s / 2, -s / 2, t), 1), 1)
    if likelihood == "bradley-terry":
        return torch.stack((logsigmoid(s), logsigmoid(-s), torch.zeros_like(s)), 1)
    eta = softplus(t.clamp(min=_NO_TIES))
    log_a, log_b = -softplus(eta - s), -softplus(eta + s)
    log_t = 2 * eta + torch.log(-torch.expm1(-2 * eta)) + log_a + log_b
    return torch.stack((log_a, log_b, log_t), 1)


def cross_entropy(target: Tensor, log_p: Tensor) -> Tensor:
    """-sum(target * log p) of each row (n,); `target` (n, 3) are shares of outcomes."""
    return -(target * log_p).sum(1)


def softened(log_p: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (n, 3) at a temperature: p ** (1 / temperature), normalised (Hinton, Vinyals and Dean, "Distilling the
    knowledge in a neural network", 2015)."""
    return log_softmax(log_p / temperature, 1)


class Link(nn.Module):
    """From evidence to log-probabilities, with a scale and a tie level for each source.

    A tie level begins where the model without any preference gives the source's share of ties. `tieless` sources have no
    ties: their level stays below any that matters.
    """

    tieless: Tensor

    def __init__(self, likelihood: str, shares: Sequence[float]) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.log_scale = nn.Parameter(torch.zeros(len(shares), dtype=torch.float64))
        levels = [_level(likelihood, share) for share in shares]
        self.level = nn.Parameter(torch.tensor(levels, dtype=torch.float64))
        self.register_buffer("tieless", torch.tensor([share <= 0 for share in shares]), persistent=False)

    def forward(self, margin: Tensor, tie: Tensor, source: Tensor, demanded: Tensor | None = None) -> Tensor:
        """Log-probabilities (n, 3) of evidence (n,), (n,) of rows of the sources (n,). `demanded` (n,) is taken from the scaled
        margin: a margin that a preference must have (Touvron and others, "Llama 2", 2023, section 3.2.2)."""
        s = margin * self.log_scale.exp()[source]
        if demanded is not None:
            s = s - demanded
        level = torch.where(self.tieless[source], _NO_TIES, tie + self.level[source])
        return log_probabilities(self.likelihood, s, level)

    def figures(self) -> dict[str, list[float]]:
        """Scale and tie level of each source."""
        return {"scale": self.log_scale.detach().exp().tolist(), "level": self.level.detach().tolist()}


def _level(likelihood: str, share: float) -> float:
    """The level at which the chance of a tie between equal answers is `share`."""
    share = min(max(share, 0.005), 0.99)
    if likelihood == "rao-kupper":
        return math.log(math.expm1(math.log((1 + share) / (1 - share))))
    return math.log(2 * share / (1 - share))


def shares_of_ties(target: NDArray[np.float64], source: NDArray[np.int64], sources: int) -> list[float]:
    """The share of ties of each source; 0 for one without any."""
    ties = np.bincount(source, target[:, Outcome.TIE], sources)
    total = np.bincount(source, target.sum(axis=1), sources)
    return [float(each) for each in ties / np.maximum(total, 1e-9)]
