"""Maximum-likelihood fits of links from evidence to votes, by Newton's method over blocks of rows.

A row has antisymmetric columns m (p,) and symmetric ones t (q,); with the coefficients theta = (b, level, c)

    s = m . b,   tie = level + t . c,   log-probabilities of (A, B, tie) = link(s, tie).

The rows are read once per step, so they may be kept on disk. The link function is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError

__all__ = ["Block", "Folded", "LinkFunction", "Optimum", "cross_fitted", "linear", "maximise"]

Floats = NDArray[np.float64]

# (s, t) -> log-probabilities (n, 3), their derivatives by s (n, 3) and by t (n, 3)
LinkFunction = Callable[[Floats, Floats], tuple[Floats, Floats, Floats]]
# m (n, p), t (n, q), votes (n, 3)
Block = tuple[Floats, Floats, Floats]
# a block with the fold (n,) of each row
Folded = tuple[Block, NDArray[Any]]

_STEPS = 100
_HALVINGS = 40
_TOLERANCE = 1e-9
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Optimum:
    """The maximum of the likelihood: all parameters `theta` (k,), the free parameters `free` (f,), the `information`
    (f, f) in the free parameters with the penalty, the number of votes, and the `loss`: minus the log-likelihood, plus the penalty."""

    theta: Floats
    free: Floats
    information: Floats
    votes: float
    loss: float


def linear(theta: Floats, m: Floats, t: Floats) -> tuple[Floats, Floats]:
    """s and tie, (n,) each, given the columns m (n, p) and t (n, q)."""
    p = m.shape[1]
    return m @ theta[:p], theta[p] + t @ theta[p + 1 :]


def maximise(
    link: LinkFunction,
    blocks: Callable[[], Iterable[Block]],
    basis: Floats,
    offset: Floats,
    *,
    penalty: Floats | None = None,
    start: Floats | None = None,
    name: str = "the link",
) -> Optimum:
    """The theta = offset + basis @ free that maximises sum(votes * log P) - sum(penalty * free^2) / 2.

    `basis` (k, f) selects the free parameters or couples parameters; `penalty` (f,) keeps the free ones near 0. The
    expected information is used in place of the Hessian (for Davidson's model they are equal). Raises FitError if the
    fit does not converge.
    """
    free = np.zeros(basis.shape[1]) if start is None else start.copy()
    hold = np.zeros(basis.shape[1]) if penalty is None else penalty
    loss, slope, information, votes = _evaluate(link, blocks, basis, offset, free, hold)
    if not votes:
        raise FitError(f"cannot fit {name}: there are no votes")
    for _ in range(_STEPS):
        if np.abs(slope).max(initial=0.0) <= _TOLERANCE * votes:
            return Optimum(offset + basis @ free, free, information, votes, loss)
        try:
            step = np.asarray(np.linalg.solve(information, slope), dtype=np.float64)
        except np.linalg.LinAlgError:
            raise FitError("the fit did not converge: the data do not determine every parameter") from None
        for _ in range(_HALVINGS):
            tried = _evaluate(link, blocks, basis, offset, free - step, hold)
            # Near the optimum the losses differ only by rounding; then the gradient decides.
            if tried[0] <= loss + _ROUNDING * abs(loss):
                break
            step = step / 2
        else:
            break
        free = free - step
        loss, slope, information, votes = tried
    size = float(np.abs(slope).max()) / votes
    if not size <= 100 * _TOLERANCE:
        raise FitError(f"the fit of {name} to {votes:g} labels did not converge (gradient {size:.1e})")
    return Optimum(offset + basis @ free, free, information, votes, loss)


def cross_fitted(
    link: LinkFunction,
    blocks: Callable[[], Iterable[Folded]],
    folds: int,
    basis: Floats,
    offset: Floats,
    *,
    penalty: Floats | None = None,
    name: str = "the link",
) -> Iterator[Floats]:
    """The log-probabilities (n, 3) of the rows of each block; each row's theta is fitted to the other folds.

    If the other folds have no rows, theta is `offset`. Raises FitError as `maximise` does.
    """
    thetas, start = [offset] * folds, None
    for fold in range(folds):

        def others(fold: int = fold) -> Iterator[Block]:
            for (m, t, votes), of in blocks():
                yield _rows(m, of != fold), _rows(t, of != fold), votes[of != fold]

        if any(len(m) for m, _, _ in others()):
            found = maximise(link, others, basis, offset, penalty=penalty, start=start, name=name)
            start, thetas[fold] = found.free, found.theta
    for (m, t, _), of in blocks():
        log_p = np.empty((len(m), 3))
        for fold, theta in enumerate(thetas):
            log_p[of == fold] = link(*linear(theta, _rows(m, of == fold), _rows(t, of == fold)))[0]
        yield log_p


def _rows(columns: Floats, wanted: NDArray[np.bool_]) -> Floats:
    """The rows of `columns` (n, p) that are `wanted` (n,), column by column in memory as `columns` are: rounding depends on that."""
    return np.compress(wanted, columns.T, axis=1).T


def _evaluate(
    link: LinkFunction, blocks: Callable[[], Iterable[Block]], basis: Floats, offset: Floats, free: Floats, hold: Floats
) -> tuple[float, Floats, Floats, float]:
    """The loss, its gradient and information in the free parameters, and the number of votes."""
    theta = offset + basis @ free
    loss, votes, size = 0.0, 0.0, len(theta)
    slope, information = np.zeros(size), np.zeros((size, size))
    for m, t, counts in blocks():
        rows, p = len(m), m.shape[1]
        log_p, by_s, by_t = link(*linear(theta, m, t))
        each = counts.sum(axis=1)
        # An outcome without votes adds 0, also where its log-probability is -inf.
        loss -= float(np.where(counts > 0, counts * log_p, 0.0).sum())
        votes += float(each.sum())
        of_s, of_t = m, np.concatenate([np.ones((rows, 1)), t], axis=1)
        slope[:p] -= of_s.T @ (counts * by_s).sum(axis=1)
        slope[p:] -= of_t.T @ (counts * by_t).sum(axis=1)
        expected = np.exp(log_p) * each[:, None]
        ss, st, tt = (
            (expected * left * right).sum(axis=1) for left, right in ((by_s, by_s), (by_s, by_t), (by_t, by_t))
        )
        information[:p, :p] += of_s.T @ (ss[:, None] * of_s)
        information[:p, p:] += of_s.T @ (st[:, None] * of_t)
        information[p:, p:] += of_t.T @ (tt[:, None] * of_t)
        information[p:, :p] = information[:p, p:].T
    loss += float(hold @ free**2) / 2
    return loss, basis.T @ slope + hold * free, basis.T @ information @ basis + np.diag(hold), votes
