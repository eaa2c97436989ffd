"""From comparisons of two to the probability of being the best of n.

Answer i is preferred to answer j with probability r_ij, in which a tie is shared equally: r_ij = P(i wins) + P(tie) / 2. The
probabilities p of being the best, which sum to 1, are those for which p_i / (p_i + p_j) is nearest to r_ij in the sense of

    minimise over p:  the sum over compared i, j of (r_ji p_i - r_ij p_j)^2,  where the sum of p is 1.

That is the second method of Wu, Lin and Weng ("Probability Estimates for Multi-class Classification by Pairwise Coupling", Journal of
Machine Learning Research 5, 2004). It is one linear system: there are no draws, and p is not negative. If r_ij = p_i / (p_i + p_j) for
some p (Bradley and Terry; Luce), p is found exactly, also from a part of the comparisons that connects all answers. For two answers p_1 = r_12.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_of_n"]

Floats = NDArray[np.float64]
# A preference that is certain would leave the other answers' probabilities undetermined.
_LEAST = 1e-9


def best_of_n(preferred: Floats) -> Floats:
    """The probability (n,) of each of n answers to be the best, from `preferred` (n, n): that of row against column, with half of a
    tie; nan where two were not compared. The comparisons must connect all answers."""
    n = len(preferred)
    if n == 1:
        return np.ones(1)
    compared = np.isfinite(preferred)
    np.fill_diagonal(compared, val=False)
    r = np.where(compared, np.clip(np.nan_to_num(preferred), _LEAST, 1 - _LEAST), 0.0)
    # The quadratic form: sum of r_ji^2 on the diagonal, -r_ji r_ij beside it.
    form = -r.T * r
    np.fill_diagonal(form, (r.T**2).sum(axis=1))
    system = np.zeros((n + 1, n + 1))
    system[:n, :n], system[:n, n], system[n, :n] = form, 1.0, 1.0
    found = np.linalg.solve(system, np.append(np.zeros(n), 1.0))[:n]
    found = np.maximum(found, 0.0)
    shares: Floats = found / found.sum()
    return shares
