"""What a fit is made of: evidence and votes, collected row by row."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError, shown_path
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.shipped import Shipped
from prefcast.forecasts.fitted_rows import FittedRows, InSample, Overlap, hashes_of
from prefcast.forecasts.scores import RawScores, score_blocks, score_pairs
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.pair import group_key
from prefcast.pairs.pieces import pieces
from prefcast.runs.loop import Progress
from prefcast.scorers.base import SILENT, Meter, Scorer, Spent
from prefcast.scorers.cascade.rule import LENGTHS, facts_of
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES, covariates

__all__ = ["Gathered"]

Floats = NDArray[np.float64]


class Gathered:
    """Collects evidence and votes, row by row."""

    def __init__(self, votes: dict[str, tuple[float, ...]] | None, weights: dict[str, float] | None) -> None:
        self._votes, self._weights = votes, weights
        self.evidence: LabelledEvidence | None = None
        self.rows = self.failed = self.unlabelled = self.truncated = self.matched = 0
        self.first_error: RowError | None = None
        self.columns: tuple[str, ...] = ()
        self.spent = Spent()
        self._hashes = array("Q")
        self._before: tuple[FittedRows, ...] = ()
        self._overlaps: dict[str, Overlap] = {}

    @property
    def fitted_rows(self) -> FittedRows | None:
        """The rows that were collected, and those that the members were fitted on before; None if the rows had no texts."""
        if not self._hashes:
            return None
        found = FittedRows.of_hashes(np.array(self._hashes, dtype=np.uint64).reshape(-1, 2))
        for before in self._before:
            found = found.joined(before)
        return found

    @property
    def in_sample(self) -> dict[str, InSample]:
        """How many of the rows each member was fitted on, for those that know."""
        return {name: found for name, overlap in self._overlaps.items() if (found := overlap.found) is not None}

    def _vote(self, id: str | int, label: int) -> tuple[float, ...] | None:
        """The votes on a row times its weight; None if it has no votes."""
        if self._votes is not None:
            counts = self._votes.get(str(id))
            self.matched += counts is not None
        else:
            counts = None if label < 0 else tuple(float(outcome == label) for outcome in Outcome)
        if counts is None or self._weights is None:
            return counts
        weight = self._weights.get(str(id))
        if weight is None:
            raise UsageError(f"--weights: id {str(id)!r} has no weight; every labelled row needs one")
        return tuple(weight * count for count in counts)

    def of_scores(self, path: str | os.PathLike[str], label_values: Mapping[str, str] | None) -> None:
        """Collect a file of scores with labels."""
        for block in score_blocks(path, label_values=label_values):
            if self.evidence is None:
                self.evidence = LabelledEvidence(1, log_odds=block.log_odds)
                self.columns = block.columns
            start, n = self.rows, len(block.ids)
            self.rows += n
            self.failed += int((~block.scored).sum())
            if self.first_error is None and not block.scored.all():
                row = int(np.flatnonzero(~block.scored)[0])
                self.first_error = RowError(shown_path(path), start + row + 1, "", "has no scores", block.ids[row])
            keys = np.arange(start, start + n, dtype=np.uint64) if block.keys is None else block.keys
            if self._votes is None and self._weights is None:
                good = block.scored & (block.labels >= 0)
                counts = np.eye(len(Outcome))[block.labels[good]]
            else:
                found = [self._vote(id, label) for id, label in zip(block.ids, block.labels.tolist(), strict=True)]
                good = block.scored & np.array([each is not None for each in found])
                counts = np.array([found[row] for row in np.flatnonzero(good)]).reshape(-1, len(Outcome))
            self.unlabelled += int(block.scored.sum() - good.sum())
            named = [block.models[row] for row in np.flatnonzero(good)] if any(map(any, block.models)) else None
            self.evidence.add(block.margin[good, None], block.tie[good, None], counts, keys[good], models=named)

    def of_pairs(
        self,
        pairs: Iterable[Pair | RowError],
        members: Sequence[tuple[Scorer, Budget]],
        names: Sequence[str],
        progress: Progress | None,
        shipped: Mapping[int, Shipped] | None = None,
    ) -> None:
        """Score labelled pairs with every member and collect the evidence; `shipped` are the members' outcome models, and the rows
        that they were fitted on."""
        log_odds = len(members) == 1 and members[0][0].log_odds
        self.evidence = LabelledEvidence(
            len(members),
            MARGIN_COVARIATES,
            TIE_COVARIATES,
            log_odds=log_odds,
            names=names,
            facts=LENGTHS,
            shipped=shipped,
        )
        fitted = {names[place]: each.fitted_rows for place, each in (shipped or {}).items()}
        self._before = tuple(filter(None, fitted.values()))
        self._overlaps = {name: Overlap(rows) for name, rows in fitted.items()}
        for chunk in pieces(pairs):
            before, rows, counts = self.rows, list[Pair](), list[tuple[float, ...]]()
            self.rows += len(chunk)
            for item in chunk:
                if isinstance(item, RowError):
                    self._fail(item)
                    continue
                vote = self._vote(item.id, -1 if item.outcome is None else int(item.outcome))
                if vote is None:
                    self.unlabelled += 1
                else:
                    rows.append(item)
                    counts.append(vote)
            if rows:
                follow = partial(_after, progress, before) if progress else None
                meters = [SILENT] * (len(members) - 1) + [Meter(follow, self.spent)]
                scored = zip(members, meters, strict=True)
                found = [score_pairs(rows, scorer, budget, meter, "fit") for (scorer, budget), meter in scored]
                self._add(rows, np.array(counts), found)
            if progress:
                progress(self.rows)

    def _fail(self, error: RowError) -> None:
        self.failed += 1
        self.first_error = self.first_error or error

    def _add(self, rows: list[Pair], counts: Floats, found: Sequence[RawScores]) -> None:
        """Collect the rows that every member could score."""
        good = []
        for row, errors in enumerate(zip(*(scores.errors for scores in found), strict=True)):
            if error := next(filter(None, errors), None):
                self._fail(error)
            else:
                good.append(row)
        if not good or self.evidence is None:
            return
        cut = [[report is not None and report.truncated for report in scores.truncations] for scores in found]
        self.truncated += int(np.any(cut, axis=0)[good].sum())
        kept = [rows[row] for row in good]
        facts = [covariates(pair) for pair in kept]
        both = hashes_of(kept)
        self._hashes.extend(both.ravel().tolist())
        for overlap in self._overlaps.values():
            overlap.add_hashes(both)
        self.evidence.add(
            np.column_stack([scores.columns["margin"][good] for scores in found]),
            np.column_stack([scores.columns["tie"][good] for scores in found]),
            counts[good],
            np.array([group_key(pair.prompt[0]) for pair in kept], dtype=np.uint64),
            margin_covariates=np.array([each[0] for each in facts]),
            tie_covariates=np.array([each[1] for each in facts]),
            models=[(pair.model_a, pair.model_b) for pair in kept],
            facts=np.array([facts_of(pair) for pair in kept]),
        )


def _after(progress: Progress, before: int, done: int) -> None:
    progress(before + done)
