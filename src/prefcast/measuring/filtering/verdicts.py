"""Which rows stay, and why the others go: the file is read once, and then all rows are judged together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError
from prefcast.fitting.fitter import FOLDS, LEAST_LABELS
from prefcast.forecasts.fitted_rows import InSample, Overlap
from prefcast.forecasts.forecaster import Forecaster
from prefcast.measuring.doctor.findings import FoundRow, Places
from prefcast.measuring.doctor.leaks import Leaks
from prefcast.measuring.doctor.repeats import NearRepeats
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.columns import Columns
from prefcast.outcomes.statistics.likelihood import cross_fitted
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import PairFile
from prefcast.pairs.pair import pair_key
from prefcast.pairs.pieces import pieces
from prefcast.runs.jobs import forecasts_of
from prefcast.runs.loop import Tally

__all__ = ["REASONS", "FilterRule", "Verdicts", "judged"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Why a row goes; the first that holds counts. A row that stays has none.
REASONS = ("", "cannot be read", "no forecast", "leak", "unlikely label", "exact duplicate", "near-duplicate")
_STAYS, UNREADABLE, _NO_FORECAST, _LEAK, _UNLIKELY, _EXACT, _NEAR = range(len(REASONS))
_DUPLICATES = ("none", "exact", "near")
_COLUMNS = ("row", "said", "outcome", "key", "a", "b", "tie", "margin", "evidence")
# With this penalty there is a scale also where the scores separate the labels, or no label is a tie.
_PENALTY = 0.1


@dataclass(frozen=True)
class FilterRule:
    """What goes: labels whose probability is below `min_probability`; `duplicates` (none, exact, near) of an earlier row that
    stays, nearly the same pairs by their `similarity` among the first `most` different ones."""

    min_probability: float | None = None
    duplicates: str = "exact"
    similarity: float = 0.8
    most: int = 20_000

    def __post_init__(self) -> None:
        if self.min_probability is not None and not 0 < self.min_probability < 1:
            raise UsageError(f"--min-probability must be above 0 and below 1; found {self.min_probability:g}")
        if self.duplicates not in _DUPLICATES:
            raise UsageError(f"unknown duplicates {self.duplicates!r}; there are {', '.join(_DUPLICATES)}")
        if not 0 < self.similarity <= 1:
            raise UsageError(f"--similarity must be above 0 and at most 1; found {self.similarity:g}")


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Of the n rows that can be read: their numbers `row` (n,) in the source, why each goes, `reason` (n,) (0: it stays), and the
    `probability` (n,) of its label, nan without a label or a forecast. `details` says more of some rows that go.

    `two_sided` says that no label is a tie: then the probability is that of the label against the other side. `labelled` rows have
    a label, `failed` cannot be read or have no forecast. `in_sample` tells of rows that the forecaster was fitted on;
    `contradicting` duplicates have another label than the row that stays.
    """

    row: Ints
    reason: Ints
    probability: Floats
    details: dict[int, str] = field(repr=False)
    two_sided: bool
    labelled: int
    failed: int
    first_error: RowError | None
    in_sample: InSample | None
    contradicting: int = 0
    left_out: int = 0


class _Here(Places):
    """Names rows by their numbers in the whole source."""

    def found(self, finding: str, row: int, detail: str = "", other: int | None = None) -> FoundRow:
        return FoundRow(finding, "", row, row, detail, None, other)


class _Rows:
    """What is kept of each row that can be read."""

    def __init__(self, rule: FilterRule, leaks: Sequence[Leaks]) -> None:
        self.table = Columns(_COLUMNS)
        self.near = NearRepeats(rule.similarity, rule.most) if rule.duplicates == "near" else None
        self._leaks = leaks

    def add(self, pairs: Sequence[Pair], numbers: Floats) -> None:
        """Add rows with their probabilities, margin and tie evidence (n, 5)."""
        keys = [pair_key(pair) for pair in pairs]
        for pair, (key, _) in zip(pairs, keys, strict=True):
            if self.near is not None:
                self.near.see(pair, key)
            for leak in self._leaks:
                leak.see(pair, key)
        outcome = np.array([-1 if pair.outcome is None else int(pair.outcome) for pair in pairs], dtype=np.int64)
        turned = np.array([each for _, each in keys], dtype=bool)
        # As if the greater side were always first: exchanged pairs compare.
        said = np.where(turned & (outcome >= 0) & (outcome < Outcome.TIE), 1 - outcome, outcome)
        bits = np.array([key for key, _ in keys], dtype=np.uint64).view(np.float64)
        self.table.append(np.column_stack([[pair.row for pair in pairs], said, outcome, bits, numbers]))


def judged(
    file: PairFile,
    rule: FilterRule,
    *,
    forecaster: Forecaster | None = None,
    scaled: bool = True,
    leaks: Sequence[Leaks] = (),
    on_error: str = "keep",
    progress: Callable[[int], None] | None = None,
) -> Verdicts:
    """Judge the rows of a file. With a `forecaster` the labels have probabilities; if it is not `scaled`, a scale is fitted to the
    labels. `leaks` are the files that must share no prompt with this one.

    Raises FileError, UsageError for too few labels to fit a scale, and with `on_error="stop"` the first RowError.
    """
    rows, tally = _Rows(rule, leaks), Tally()
    overlap = Overlap(None if forecaster is None else forecaster.fitted_rows)
    for pairs, numbers in _read(file, forecaster, tally, on_error, progress):
        overlap.add(pairs)
        if pairs:
            rows.add(pairs, numbers)
    column = rows.table.column
    outcome = column("outcome").astype(np.int64)
    two_sided = not (outcome == Outcome.TIE).any()
    p = np.column_stack([column(name) for name in ("a", "b", "tie")])
    if not scaled:
        p = _scaled(column("margin"), column("evidence"), outcome, column("key").view(np.uint64))
    probability = _of_labels(p, outcome, two_sided=two_sided)
    reason = np.zeros(len(outcome), dtype=np.int64)
    if rule.min_probability is not None:
        reason[probability < rule.min_probability] = _UNLIKELY
    row, details = column("row").astype(np.int64), dict[int, str]()
    for leak in leaks:
        for found in leak.rows(_Here(file, keep=False)):
            reason[np.searchsorted(row, found.row)] = _LEAK
            details.setdefault(found.row, f"{found.detail}: row {found.other_row} of {found.other_file}")
    if forecaster is not None:
        reason[~np.isfinite(p[:, 0])] = _NO_FORECAST
    contradicting = 0
    if rule.duplicates != "none":
        edges = (
            []
            if rows.near is None
            else [(each.row, each.other_row or 0) for each in rows.near.rows(_Here(file, keep=False))]
        )
        contradicting = _without_duplicates(row, column("key").view(np.uint64), column("said"), edges, reason, details)
    return Verdicts(
        row,
        reason,
        probability,
        details,
        two_sided,
        int((outcome >= 0).sum()),
        tally.failed,
        tally.first,
        overlap.found,
        contradicting,
        max((leak.left_out for leak in leaks), default=0),
    )


def _read(
    file: PairFile, forecaster: Forecaster | None, tally: Tally, on_error: str, progress: Callable[[int], None] | None
) -> Iterator[tuple[list[Pair], Floats]]:
    """The rows that can be read, in pieces, with probabilities, margin and tie evidence (n, 5); nan without a forecast."""
    if forecaster is None:
        for piece in pieces(file):
            for error in (item for item in piece if isinstance(item, RowError)):
                if on_error == "stop":
                    raise error
                tally.failed, tally.first = tally.failed + 1, tally.first or error
            tally.rows += len(piece)
            if progress is not None:
                progress(tally.rows)
            good = [item for item in piece if isinstance(item, Pair)]
            yield good, np.full((len(good), 5), np.nan)
        return
    for found in forecasts_of(file, forecaster, tally, on_error, progress):
        numbers = np.column_stack([found.probabilities, found.margin, found.tie])
        numbers[[error is not None for error in found.errors]] = np.nan
        places = [place for place, pair in enumerate(found.pairs) if pair is not None]
        yield [pair for pair in found.pairs if pair is not None], numbers[places]


def _scaled(margin: Floats, tie: Floats, outcome: Ints, key: NDArray[np.uint64]) -> Floats:
    """Probabilities (n, 3) by Davidson's model, whose scale and tie level are fitted to the labels, each row's to the other folds;
    nan without scores."""
    good = np.isfinite(margin) & np.isfinite(tie)
    labelled = int((good & (outcome >= 0)).sum())
    if labelled < LEAST_LABELS:
        raise UsageError(
            f"the scores have no scale of their own, and {labelled} of the rows have scores and a label; at least "
            f"{LEAST_LABELS} are needed to fit one (or give probabilities)"
        )
    m, t, said = margin[good], tie[good] - tie[good].mean(), outcome[good]
    columns = [values / (float(np.sqrt((values**2).mean())) or 1.0) for values in (m, t)]
    votes = np.eye(len(Outcome))[said] * (said >= 0)[:, None]
    block = columns[0][:, None], columns[1][:, None], votes
    found = cross_fitted(
        Davidson.log_probabilities,
        lambda: [(block, key[good] % FOLDS)],
        FOLDS,
        np.eye(3),
        np.zeros(3),
        penalty=np.full(3, _PENALTY),
        name="the scale of the scores",
    )
    p = np.full((len(margin), len(Outcome)), np.nan)
    p[good] = np.exp(next(found))
    return p


def _of_labels(p: Floats, outcome: Ints, *, two_sided: bool) -> Floats:
    """The probability (n,) of each label; nan without one."""
    found = np.full(len(outcome), np.nan)
    labelled = np.flatnonzero(outcome >= 0)
    found[labelled] = p[labelled, outcome[labelled]]
    if two_sided and len(labelled):
        sides = p[labelled, Outcome.A] + p[labelled, Outcome.B]
        found[labelled] = np.divide(found[labelled], sides, out=np.full(len(labelled), 0.5), where=sides != 0)
        found[labelled[~np.isfinite(sides)]] = np.nan
    return found


def _without_duplicates(
    row: Ints,
    key: NDArray[np.uint64],
    said: Floats,
    edges: Iterable[tuple[int, int]],
    reason: Ints,
    details: dict[int, str],
) -> int:
    """Of each group of duplicates keep the first row that stays otherwise. Returns how many that go have another label than it."""
    _, group = np.unique(key, return_inverse=True)
    root = np.arange(len(np.unique(group)) if len(group) else 0)

    def found(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = int(root[number])
        return number

    for one, other in edges:
        left, right = (found(int(group[np.searchsorted(row, each)])) for each in (one, other))
        root[max(left, right)] = min(left, right)
    first: dict[int, int] = {}
    contradicting = 0
    for place in np.flatnonzero(reason == _STAYS).tolist():
        keeper = first.setdefault(found(int(group[place])), place)
        if keeper != place:
            same = key[place] == key[keeper]
            reason[place] = _EXACT if same else _NEAR
            other = same and said[place] != said[keeper]
            contradicting += bool(other)
            details[int(row[place])] = f"of row {row[keeper]}" + (", with another label" if other else "")
    return contradicting
