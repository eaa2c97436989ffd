"""Fits of one form of link: with a penalty, out of fold, and with the draws of its bootstrap.

`selection` chooses the form.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError
from prefcast.fitting.candidate import Candidate
from prefcast.fitting.centre import centre, own_draws
from prefcast.fitting.evidence import LabelledEvidence, spun
from prefcast.fitting.shrinkage import Shrunken, power_of, shrunken
from prefcast.outcomes.models import FITTED_MODELS, Link
from prefcast.outcomes.statistics.bootstrap import poisson_weights
from prefcast.outcomes.statistics.columns import BLOCK
from prefcast.outcomes.statistics.likelihood import Block, Optimum, cross_fitted, linear, maximise
from prefcast.pairs import Outcome

__all__ = ["DRAWS", "FOLDS", "LEAST_LABELS", "Candidate", "Fitter", "expanded"]

Floats = NDArray[np.float64]

FOLDS = 10
# A fit needs at least so many rows.
LEAST_LABELS = 20
_LARGEST = 1e100
_log = logging.getLogger("prefcast")
DRAWS = 200
# Cross-validation uses at most so many rows; more would not change the choice.
_CROSS_VALIDATED = 200_000
# Up to this number of rows every draw is fitted anew; with more rows, one Newton step from the optimum is as good.
_REFITTED = 5_000
# The priors of the standardised coefficients are standard normal: the information of about one vote. Without them a
# coefficient may be infinite, for example with 50 labels.
_PENALTY = 1.0
_LEVEL_PENALTY = 0.1


class Fitter:
    """The data of a fit, with the units that standardise its columns."""

    def __init__(self, data: LabelledEvidence) -> None:
        self.data = data
        votes = [data.place[name] for name in ("votes_a", "votes_b", "votes_tie")]
        self._votes = slice(votes[0], votes[-1] + 1)
        first = votes[0]
        weight, sums, squares, extreme = 0.0, np.zeros(first), np.zeros(first), np.zeros(first)
        squared = 0.0
        self.mass = np.zeros(len(Outcome))
        rows = 0
        keys = []
        for block in data.table.blocks():
            each = block[:, self._votes].sum(axis=1)
            weight += each.sum()
            squared += float((each**2).sum())
            extreme = np.maximum(extreme, np.abs(block[:, :first]).max(axis=0, initial=0.0))
            if extreme.max(initial=0.0) > _LARGEST:
                raise FitError(f"a score is {extreme.max():.3g}; the largest allowed size is {_LARGEST:g}")
            sums += each @ block[:, :first]
            squares += each @ block[:, :first] ** 2
            self.mass += block[:, self._votes].sum(axis=0)
            rows += int((each > 0).sum())
            keys.append(np.unique(block[:, data.place["key"]].copy().view(np.uint64)))
        self.rows, self.weight = rows, weight
        self.groups = len(np.unique(np.concatenate(keys))) if keys else 0
        if rows < LEAST_LABELS:
            raise FitError(f"a fit needs at least {LEAST_LABELS} labelled pairs that could be scored; there are {rows}")
        if self.groups < 2:
            raise FitError(
                "a fit needs labelled pairs with different first prompts; all of these have the same first prompt"
            )
        # Kish's effective sample size: with extreme weights a few rows may decide everything.
        effective = weight**2 / squared
        if effective < LEAST_LABELS:
            raise FitError(
                f"with these weights the labels count as {effective:.1f} rows; a fit needs at least {LEAST_LABELS}"
            )
        mean = sums / weight
        antisymmetric = [data.place[f"margin:{member}"] for member in range(data.members)]
        antisymmetric += [data.place[name] for name in data.margin_covariates]
        mean[antisymmetric] = 0.0
        spread = np.sqrt(np.maximum(squares / weight - mean**2, 0.0))
        self.varies = spread > 1e-9 * extreme
        # One row may outweigh all others.
        for member in range(data.members):
            column = data.place[f"margin:{member}"]
            if self.varies[column] and extreme[column] ** 2 > 0.5 * squares[column] * (rows / weight):
                _log.warning(
                    "%s: one score gap is %.3g and outweighs all others together; check whether it is correct",
                    data.names[member],
                    extreme[column],
                )
            elif not self.varies[column]:
                _log.warning(
                    "%s: the two scores of every pair are equal; they say nothing about the preferences",
                    data.names[member],
                )
        self.mean, self.unit = mean, np.where(self.varies, spread, 1.0)
        self.sample = self._sampled()
        # Basis, offset and power of the likelihood of each candidate that shrinks.
        self._around: dict[Candidate, tuple[Floats, Floats, float]] = {}

    def _sampled(self) -> Floats:
        """The rows for cross-validation: all rows, or all rows of a random sample of groups."""
        share = _CROSS_VALIDATED / max(1, len(self.data))
        place, kept = self.data.place["key"], []
        for block in self.data.table.blocks():
            if share < 1:
                mixed = spun(block[:, place].copy().view(np.uint64))
                block = block[(mixed >> np.uint64(32)).astype(np.float64) < share * 2**32]  # noqa: PLW2901
            kept.append(block)
        return np.concatenate(kept)

    @property
    def keys(self) -> NDArray[np.uint64]:
        return self.sample[:, self.data.place["key"]].copy().view(np.uint64)

    @property
    def votes(self) -> Floats:
        return self.sample[:, self._votes]

    def columns(self, candidate: Candidate) -> tuple[list[int], list[int]]:
        """The places of the candidate's antisymmetric and symmetric columns."""
        place = self.data.place
        margin = [place[f"margin:{member}"] for member in candidate.members]
        tie = [place[f"tie:{member}"] for member in candidate.members]
        if candidate.covariates:
            margin += [place[name] for name in self.data.margin_covariates]
            tie += [place[name] for name in self.data.tie_covariates]
        return margin, tie

    def basis(self, candidate: Candidate) -> tuple[Floats, Floats, Floats]:
        """Basis, offset and penalties of the candidate's parameters, in the units of the columns."""
        margin, tie = self.columns(candidate)
        size = len(margin) + 1 + len(tie)
        level = len(margin)
        offset = np.zeros(size)
        if candidate.blank:
            return np.eye(size)[:, [level]], offset, np.array([_LEVEL_PENALTY])
        if candidate.shipped:
            return np.zeros((size, 0)), centre(self, candidate), np.zeros(0)
        if candidate.fixed:
            offset[0], offset[2] = self.unit[margin[0]], self.unit[tie[0]]
            offset[1] = self.mean[tie[0]]
            return np.zeros((size, 0)), offset, np.zeros(0)
        if candidate.tied:
            scale = np.zeros(size)
            scale[0] = 1.0
            if self.varies[tie[0]]:
                # The coefficient is that of the tie evidence itself, not of its distance from the mean.
                scale[1:] = self.mean[tie[0]] / self.unit[margin[0]], self.unit[tie[0]] / self.unit[margin[0]]
            return np.column_stack([scale, np.eye(size)[level]]), offset, np.array([_PENALTY, _LEVEL_PENALTY])
        free = [index for index, column in enumerate(margin) if self.varies[column]]
        free += [level] + [level + 1 + index for index, column in enumerate(tie) if self.varies[column]]
        if candidate.shrunk:
            # The penalties are those of `shrunken`.
            return np.eye(size)[:, free], centre(self, candidate), np.zeros(len(free))
        penalty = np.array([_LEVEL_PENALTY if index == level else _PENALTY for index in free])
        return np.eye(size)[:, free], offset, penalty

    def shrink(self, candidate: Candidate, rows: Floats | None = None) -> Shrunken:
        """The fit of a candidate that shrinks, to `rows`, by default to the whole table. Raises FitError."""
        link = FITTED_MODELS[candidate.kind].log_probabilities
        if candidate not in self._around:
            basis, offset, _ = self.basis(candidate)
            power = power_of(link, self.block(candidate, self.sample), self.keys, basis, offset)
            self._around[candidate] = basis, offset, power
        return shrunken(link, partial(self._blocks, candidate, rows), *self._around[candidate], candidate.name)

    def _blocks(self, candidate: Candidate, rows: Floats | None = None) -> Iterable[Block]:
        if rows is not None:
            return [self.block(candidate, rows)]
        return (self.block(candidate, block) for block in self.data.table.blocks())

    def block(self, candidate: Candidate, rows: Floats) -> Block:
        margin, tie = self.columns(candidate)
        return (
            rows[:, margin] / self.unit[margin],
            (rows[:, tie] - self.mean[tie]) / self.unit[tie],
            rows[:, self._votes],
        )

    def fit(self, candidate: Candidate, rows: Floats | None = None, start: Floats | None = None) -> Optimum:
        """The candidate's optimum on `rows`, by default on the whole table."""
        if candidate.shrunk:
            return self.shrink(candidate, rows).optimum
        basis, offset, penalty = self.basis(candidate)
        link, blocks = FITTED_MODELS[candidate.kind].log_probabilities, partial(self._blocks, candidate, rows)
        return maximise(link, blocks, basis, offset, penalty=penalty, start=start, name=candidate.name)

    def correlations(self, names: Sequence[str]) -> Floats:
        """The correlations (k, k) of columns of the sample, weighted by votes; 0 for a column that does not vary."""
        places = [self.data.place[name] for name in names]
        columns = (self.sample[:, places] - self.mean[places]) * np.sqrt(self.votes.sum(axis=1))[:, None]
        size = np.sqrt((columns**2).sum(axis=0))
        size[~self.varies[places]] = np.inf
        found: Floats = (columns.T @ columns) / np.outer(size, size)
        return found

    def folds(self) -> NDArray[np.int64]:
        """The fold (n,) of each row of the sample.

        Groups are dealt to the folds in the order of their mixed keys, so that all folds have about as many groups.
        """
        return np.unique(spun(self.keys), return_inverse=True)[1] % FOLDS

    def out_of_fold(self, candidate: Candidate) -> Floats:
        """Log-probabilities (n, 3) of the rows of the sample, each by the candidate fitted to the other folds."""
        basis, offset, penalty = self.basis(candidate)
        link, block = FITTED_MODELS[candidate.kind].log_probabilities, self.block(candidate, self.sample)
        if candidate.shrunk:
            (m, t, _), fold = block, self.folds()
            log_p = np.empty((len(m), len(Outcome)))
            for number in np.unique(fold):
                held = fold == number
                theta = self.shrink(candidate, self.sample[~held]).optimum.theta
                log_p[held] = link(*linear(theta, m[held], t[held]))[0]
            return log_p
        folded = [(block, self.folds())]
        return next(cross_fitted(link, lambda: folded, FOLDS, basis, offset, penalty=penalty, name=candidate.name))

    def link(self, candidate: Candidate, repeats: int, seed: int) -> Link:
        """The candidate fitted to all rows, with the draws of its bootstrap, in the units of the evidence."""
        if candidate.shipped:
            (member,) = candidate.members
            found = self.data.shipped[member].as_link(member)
            return found if repeats else replace(found, draws=found.draws[:0])
        shrunk = self.shrink(candidate) if candidate.shrunk else None
        optimum = self.fit(candidate) if shrunk is None else shrunk.optimum
        margin, tie = self.columns(candidate)
        draws = np.zeros((0, len(optimum.theta)))
        if repeats:
            drawn = (
                self._draws(candidate, optimum, repeats, seed)
                if shrunk is None
                else self._shrunk_draws(candidate, shrunk, repeats, seed)
            )
            draws = optimum.theta + expanded(self.groups) * (drawn - optimum.theta)
        unit = np.concatenate([self.unit[margin], [1.0], self.unit[tie]])
        level = len(margin)

        def natural(theta: Floats) -> Floats:
            out: Floats = theta / unit
            out[..., level] -= out[..., level + 1 :] @ self.mean[tie]
            return out

        names = self.data.table.names
        return Link(
            candidate.kind,
            tuple(names[index] for index in margin),
            tuple(names[index] for index in tie),
            natural(optimum.theta),
            natural(draws),
        )

    def _draws(self, candidate: Candidate, optimum: Optimum, repeats: int, seed: int) -> Floats:
        """Parameters (repeats, k) under the bootstrap over groups, widened for few groups.

        The penalty would make the bootstrap draws too narrow. So each draw has a prior around its own centre, which is
        drawn from the prior (for linear models the draws then vary like the posterior: Newton, Polson and Xu,
        "Weighted Bayesian bootstrap for scalable posterior distributions", Canadian Journal of Statistics 49, 2021;
        Osband and others, "Randomized prior functions for deep reinforcement learning", 2018). The draws are widened by
        the factor of Hesterberg's expanded interval ("What teachers should know about the bootstrap", The American
        Statistician 69, 2015).
        """
        basis, _, penalty = self.basis(candidate)
        if not basis.shape[1]:
            return np.tile(optimum.theta, (repeats, 1))
        centres = np.random.default_rng(seed).standard_normal((repeats, len(penalty))) / np.sqrt(penalty)
        return self._around_centres(candidate, optimum, penalty, centres, np.arange(repeats), seed)

    def _shrunk_draws(self, candidate: Candidate, found: Shrunken, repeats: int, seed: int) -> Floats:
        """The same for a fit that shrinks: each draw has one of its widths, and a draw of the shipped parameters as centre."""
        basis, offset, power = self._around[candidate]
        rng = np.random.default_rng(seed)
        width = rng.choice(len(found.parts), repeats, p=[part.weight for part in found.parts])
        normal, own = rng.standard_normal((repeats, basis.shape[1])), own_draws(self, candidate, repeats)
        drawn: Floats = offset + own
        for number, part in enumerate(found.parts):
            which = np.flatnonzero(width == number)
            if number and len(which):
                penalty = np.full(basis.shape[1], part.penalty)
                centres = own[which] @ basis + normal[which] / np.sqrt(penalty)
                drawn[which] = self._around_centres(candidate, part.optimum, penalty, centres, which, seed, power)
        return drawn

    def _around_centres(
        self,
        candidate: Candidate,
        optimum: Optimum,
        penalty: Floats,
        centres: Floats,
        which: NDArray[np.intp],
        seed: int,
        power: float = 1.0,
    ) -> Floats:
        """The parameters (r, k) of the bootstrap draws `which` (r,), each with a prior around its own of `centres` (r, f)."""
        basis, offset, _ = self.basis(candidate)
        link = FITTED_MODELS[candidate.kind].log_probabilities
        drawn = np.tile(optimum.theta, (len(which), 1))
        if len(self.data) <= _REFITTED:
            rows = np.concatenate(list(self.data.table.blocks()))
            weights = poisson_weights(self.data.keys(rows), int(which.max()) + 1, seed)
            m, t, votes = self.block(candidate, rows)
            for place, (draw, centre) in enumerate(zip(which, centres, strict=True)):
                drawn_votes = power * votes * weights[:, draw, None]
                if drawn_votes.any():
                    blocks: list[Block] = [(m, t, drawn_votes)]
                    around, start = offset + basis @ centre, optimum.free - centre
                    found = maximise(link, partial(list, blocks), basis, around, penalty=penalty, start=start)
                    drawn[place] = found.theta
            return drawn
        slopes = penalty * centres
        for block in self.data.table.blocks(BLOCK):
            m, t, counts = self.block(candidate, block)
            _, by_s, by_t = link(*linear(optimum.theta, m, t))
            of_s, of_t = (counts * by_s).sum(axis=1), (counts * by_t).sum(axis=1)
            score = np.concatenate([of_s[:, None] * m, of_t[:, None], of_t[:, None] * t], axis=1) @ basis
            weights = poisson_weights(self.data.keys(block), int(which.max()) + 1, seed)[:, which]
            slopes += power * ((weights - 1).T @ score)
        steps = np.linalg.solve(optimum.information, slopes.T).T
        drawn[:] = offset + (optimum.free + steps) @ basis.T
        return drawn


def expanded(groups: int) -> float:
    """The factor by which the 95 % interval of a mean of so many numbers is wider than its bootstrap interval.

    It is the ratio of Student's quantile to the normal quantile, times sqrt(groups / (groups - 1)).
    """
    from scipy.special import stdtrit

    return float(stdtrit(groups - 1, 0.975) / stdtrit(np.inf, 0.975) * np.sqrt(groups / (groups - 1)))
