"""The figures of the rows of a table, with their bootstrap, in one pass.

The bootstrap needs only sums over rows: all figures but two are ratios of such sums, the calibration error is a
function of them, and the AUC is approximated by them to first order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcast.errors import UsageError
from prefcast.measuring.metrics import (
    HISTOGRAM,
    NAMES,
    SMALL_SLICE,
    Baseline,
    Bin,
    Difference,
    Evaluation,
    Scores,
    Slice,
    row_accuracy,
    row_brier,
    row_favourites,
    row_log_loss,
    row_pairwise,
)
from prefcast.outcomes.calibration import BINS, folded_normal_mean
from prefcast.outcomes.statistics.bootstrap import REPEATS, Bootstrap, Figure, figure, group_keys
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome

__all__ = ["FOLDS", "MeasuredRows", "evaluate_probabilities", "measure"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 10
_LOSSES = ("log_loss", "accuracy", "brier_score")
_FIGURES = (*_LOSSES, "gain")
_IN_BINS = ("rows", "forecast", "happened", "variance")


@dataclass(frozen=True)
class MeasuredRows:
    """The input of `measure`: a table with the columns COLUMNS, and further columns that these fields name.

    `baselines` names triples of columns with probabilities (`length` is `length_a`, `length_b` and `length_tie`).
    `other` is the name of another forecast, whose probabilities are in `other_a`, `other_b` and `other_tie` (nan means
    that there is none). `slices` gives, for each column of codes, the name of each code.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("a", "b", "tie", "label", "key")

    table: Columns
    baselines: tuple[str, ...] = ()
    other: str | None = None
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    resampled: str = "prompts"


def measure(rows: MeasuredRows, *, repeats: int = REPEATS, seed: int = 0) -> Evaluation:
    """The figures of `rows`. Memory grows by a few numbers per row. Raises UsageError if there are no rows."""
    table = rows.table
    if not len(table):
        raise UsageError("no labelled row has a forecast: nothing to evaluate")
    key = table.column("key").view(np.uint64)
    plan = _Plan(rows, table.column("label").astype(np.int64), key)
    sums = Bootstrap(repeats, seed)
    confusion = np.zeros((len(Outcome), len(Outcome)))
    margins = np.zeros((len(Outcome), len(HISTOGRAM) - 1))
    start = 0
    for block in table.blocks():
        p, here = block[:, :3], slice(start, start + len(block))
        y, start = plan.label[here], start + len(block)
        sums.add(key[here], plan.columns(block, y, key[here]))
        np.add.at(confusion, y, row_favourites(p))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.nan_to_num(np.log(p[:, 0]) - np.log(p[:, 1]), posinf=np.inf, neginf=-np.inf)
        ratio = np.clip(ratio, HISTOGRAM[0], HISTOGRAM[-1])
        for outcome in Outcome:
            margins[outcome] += np.histogram(ratio[y == outcome], HISTOGRAM)[0]
    n = len(table)
    return Evaluation(
        n=n,
        groups=len(np.unique(key)),
        scores=_scores(sums, plan.bins),
        baselines={
            "uniform": _uniform(sums),
            **{base: _baseline(sums, base) for base in plan.baselines},
        },
        outcome_shares={name: float((plan.label == index).sum() / n) for index, name in enumerate(NAMES)},
        reliability={name: _reliability(sums, name, plan.bins) for name in NAMES},
        confusion=tuple(map(tuple, confusion.tolist())),
        margins={name: tuple(margins[index].astype(int).tolist()) for index, name in enumerate(NAMES)},
        slices=tuple(_slice(sums, rows, kind, code) for kind, code in plan.slices),
        against=None if rows.other is None else _difference(sums, rows.other),
        resampled=rows.resampled,
    )


class _Plan:
    """The sums that a measurement needs, and what each block adds to them."""

    def __init__(self, rows: MeasuredRows, label: Ints, key: NDArray[np.uint64]) -> None:
        table = rows.table
        self.rows, self.label = rows, label
        self.place = {name: index for index, name in enumerate(table.names)}
        self.edges = {name: _bin_edges(table.column(name)) for name in NAMES}
        by_fold = [np.bincount(label[key % np.uint64(FOLDS) == fold], minlength=len(Outcome)) for fold in range(FOLDS)]
        self.prior = _cross_fitted_prior(np.stack(by_fold))
        self.chance = _Placements(table.column("a"), table.column("b"), label)
        self.bins = [(name, index) for name in NAMES for index in range(len(self.edges[name]) + 1)]
        self.slices = _shown_slices(rows)
        self.baselines = ("class_prior", *rows.baselines)

    def columns(self, block: Floats, y: Ints, key: NDArray[np.uint64]) -> dict[str, Floats]:
        """What each row of a block adds to each of the sums, (m,) each."""
        p = block[:, :3]
        losses = _losses(p, y)
        columns: dict[str, Floats] = {"rows": np.ones(len(block)), **losses}
        decisive, pairwise = (y != Outcome.TIE).astype(np.float64), row_pairwise(p, y)
        columns |= {"decisive": decisive, "pairwise": pairwise}
        for outcome in Outcome:
            mask = (y == outcome).astype(np.float64)
            columns[f"rows:{NAMES[outcome]}"] = mask
            columns |= {f"{what}:{NAMES[outcome]}": losses[what] * mask for what in ("log_loss", "accuracy")}
        for base in self.baselines:
            q = self.prior[key % np.uint64(FOLDS)] if base == "class_prior" else self._triple(block, base)
            columns |= {f"{what}:{base}": values for what, values in _losses(q, y).items()}
            columns[f"pairwise:{base}"] = row_pairwise(q, y)
            columns[f"gain:{base}"] = columns[f"log_loss:{base}"] - losses["log_loss"]
        columns["auc:a"], columns["auc:b"] = self.chance.of(p, y)
        for column, name in enumerate(NAMES):
            said, hit = p[:, column], (y == column).astype(np.float64)
            position: Ints = np.searchsorted(self.edges[name], np.asarray(said), side="right")
            for index in range(len(self.edges[name]) + 1):
                inside = (position == index).astype(np.float64)
                parts = (inside, inside * said, inside * hit, inside * said * (1 - said))
                columns |= {f"{what}:{name}:{index}": part for what, part in zip(_IN_BINS, parts, strict=True)}
        for kind, code in self.slices:
            inside = (block[:, self.place[f"slice:{kind}"]] == code).astype(np.float64)
            columns[f"rows:{kind}:{code}"] = inside
            columns[f"log_loss:{kind}:{code}"] = inside * losses["log_loss"]
            columns[f"gain:{kind}:{code}"] = inside * columns["gain:class_prior"]
            columns[f"decisive:{kind}:{code}"] = inside * decisive
            columns[f"pairwise:{kind}:{code}"] = inside * pairwise
        if self.rows.other is not None:
            theirs = self._triple(block, "other")
            there = np.asarray(np.isfinite(theirs).all(axis=1))
            columns["rows:other"] = there.astype(np.float64)
            other = _losses(np.where(there[:, None], theirs, 1 / 3), y)
            columns |= {f"{what}:other": (losses[what] - other[what]) * there for what in _LOSSES}
        return columns

    def _triple(self, block: Floats, name: str) -> Floats:
        return block[:, [self.place[f"{name}_{outcome}"] for outcome in NAMES]]


def _losses(p: Floats, y: Ints) -> dict[str, Floats]:
    return {"log_loss": row_log_loss(p, y), "accuracy": row_accuracy(p, y), "brier_score": row_brier(p, y)}


def _bin_edges(values: Floats) -> Floats:
    """The inner edges of bins of equal mass; equal values are in one bin, so there may be fewer than 10 bins."""
    values.sort()
    starts = np.arange(1, BINS) * len(values) // BINS
    edges = np.unique(values[starts])
    inner: Floats = edges[edges > values[0]]
    return inner


def _cross_fitted_prior(by_fold: NDArray[np.int64]) -> Floats:
    """For each fold, the shares of the outcomes in the other folds, with one row added to each outcome.

    A and B get the same share.
    """
    others = by_fold.sum(axis=0) - by_fold + 1.0
    side = (others[:, Outcome.A] + others[:, Outcome.B]) / 2
    shares = np.column_stack([side, side, others[:, Outcome.TIE]])
    normalised: Floats = shares / shares.sum(axis=1, keepdims=True)
    return normalised


class _Placements:
    """The contribution of each decisive row to the AUC: the share of the rows that the other side won that it outranks."""

    def __init__(self, a: Floats, b: Floats, label: NDArray[np.int64]) -> None:
        preferred = _preferred(a, b)
        self._won = {side: np.sort(preferred[label == side]) for side in (Outcome.A, Outcome.B)}

    def of(self, p: Floats, label: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """For rows that A won, the share of B's rows below them; for rows that B won, the share of A's rows above them.

        Both are 0 for all other rows.
        """
        value = _preferred(p[:, 0], p[:, 1])
        out = []
        for side, other in ((Outcome.A, Outcome.B), (Outcome.B, Outcome.A)):
            ranked = self._won[other]
            if not len(ranked):
                out.append(np.zeros(len(p)))
                continue
            below = (np.searchsorted(ranked, value, "left") + np.searchsorted(ranked, value, "right")) / 2
            share = below / len(ranked) if side == Outcome.A else 1 - below / len(ranked)
            out.append(np.where(label == side, share, 0.0))
        return out[0], out[1]


def _preferred(a: Floats, b: Floats) -> Floats:
    total = a + b
    chance: Floats = np.divide(a, total, out=np.full(len(total), 0.5), where=total > 0)
    return chance


def _scores(sums: Bootstrap, bins: Sequence[tuple[str, int]]) -> Scores:
    plain, debiased = (_calibration_error(sums, bins, debias) for debias in (False, True))
    there = [name for name in NAMES if sums.total(f"rows:{name}")]
    auc = None
    if {"a", "b"} <= set(there):
        value = sums.total("auc:a") / sums.total("rows:a")
        # To first order (Hajek's projection) the AUC of a draw is the sum of the two mean contributions, minus the value.
        draws = sums.ratio_draws("auc:a", "rows:a") + sums.ratio_draws("auc:b", "rows:b") - value
        auc = figure(value, draws)
    return Scores(
        log_loss=sums.ratio("log_loss"),
        accuracy=sums.ratio("accuracy"),
        brier_score=sums.ratio("brier_score"),
        log_loss_by_outcome={name: sums.ratio(f"log_loss:{name}", f"rows:{name}") for name in there},
        expected_calibration_error=debiased,
        expected_calibration_error_plain=plain,
        tie_recall=sums.ratio("accuracy:tie", "rows:tie") if "tie" in there else None,
        auc=auc,
        pairwise_accuracy=_pairwise(sums),
        decisive=int(sums.total("decisive")),
    )


def _pairwise(sums: Bootstrap, of: str = "", among: str = "") -> Figure | None:
    """The pairwise accuracy of a forecast on the decisive rows of a slice; None where there is none."""
    below = f"decisive{among}"
    return sums.ratio(f"pairwise{of or among}", below) if sums.total(below) else None


def _baseline(sums: Bootstrap, name: str) -> Baseline:
    log_loss, accuracy, brier, gain = (sums.ratio(f"{what}:{name}") for what in _FIGURES)
    return Baseline(log_loss, accuracy, brier, gain, _pairwise(sums, f":{name}"))


def _calibration_error(sums: Bootstrap, bins: Sequence[tuple[str, int]], debias: bool) -> Figure:
    """The expected calibration error averaged over the outcomes.

    If d is the true gap of a bin, its estimate is approximately normal around d with variance s^2, and the mean of the
    absolute value is that of the folded normal. Twice the absolute estimate minus the mean of the folded normal at the
    estimate removes the bias to first order.
    """
    rows, gap, noise = (np.zeros((len(sums.draws) + 1, len(bins))) for _ in range(3))
    for column, (name, index) in enumerate(bins):
        parts = [f"{what}:{name}:{index}" for what in ("rows", "happened", "forecast", "variance")]
        n, hit, said, variance = (np.append(sums.total(part), sums.drawn(part)) for part in parts)
        full = n > 0
        rows[:, column] = n
        gap[full, column] = (hit - said)[full] / n[full]
        noise[full, column] = np.sqrt(np.maximum(variance, 0.0)[full]) / n[full]
    error = np.abs(gap)
    if debias:
        # A draw has the noise of the sample and its own noise.
        noise[1:] *= np.sqrt(2)
        error = 2 * error - folded_normal_mean(gap, noise)
    every = rows.sum(axis=1)
    values = np.divide((rows * error).sum(axis=1), every, out=np.full(len(every), np.nan), where=every > 0)
    value, draws = values[0], values[1:]
    # On average the error of a draw is above that of the sample because of its own noise; the interval is moved back.
    draws = draws - (np.nanmean(draws) - value)
    return figure(max(0.0, value), np.maximum(0.0, draws))


def _uniform(sums: Bootstrap) -> Baseline:
    """The baseline of equal probabilities, whose loss is the same for every row."""
    third = np.full((1, 3), 1 / 3)
    label = np.zeros(1, dtype=np.int64)
    loss = float(row_log_loss(third, label)[0])
    own = sums.ratio("log_loss")
    log_loss, accuracy, brier = (Figure(each, each, each) for each in (loss, 1 / 3, float(row_brier(third, label)[0])))
    pairwise = Figure(0.5, 0.5, 0.5) if sums.total("decisive") else None
    return Baseline(log_loss, accuracy, brier, Figure(loss - own.value, loss - own.high, loss - own.low), pairwise)


def _reliability(sums: Bootstrap, name: str, bins: Sequence[tuple[str, int]]) -> tuple[Bin, ...]:
    found = []
    for outcome, index in bins:
        n = sums.total(f"rows:{name}:{index}") if outcome == name else 0
        if n:
            observed = sums.ratio(f"happened:{name}:{index}", f"rows:{name}:{index}")
            found.append(Bin(int(n), sums.total(f"forecast:{name}:{index}") / n, observed))
    return tuple(found)


def _shown_slices(rows: MeasuredRows) -> list[tuple[str, int]]:
    """The codes of each kind to show: all, or the 20 with most rows."""
    shown: list[tuple[str, int]] = []
    for kind, names in rows.slices.items():
        codes = rows.table.column(f"slice:{kind}")
        counts = np.bincount(codes[codes >= 0].astype(np.int64), minlength=len(names))
        most = [code for code in np.argsort(-counts, kind="stable")[:20].tolist() if counts[code]]
        shown += [(kind, code) for code in (sorted(most) if len(names) <= 20 else most)]
    return shown


def _slice(sums: Bootstrap, rows: MeasuredRows, kind: str, code: int) -> Slice:
    n = int(sums.total(f"rows:{kind}:{code}"))
    loss, gain = (sums.ratio(f"{what}:{kind}:{code}", f"rows:{kind}:{code}") for what in ("log_loss", "gain"))
    among = f":{kind}:{code}"
    pairwise, decisive = _pairwise(sums, among=among), int(sums.total(f"decisive{among}"))
    return Slice(kind, rows.slices[kind][code], n, loss, gain, n < SMALL_SLICE, pairwise, decisive)


def _difference(sums: Bootstrap, name: str) -> Difference | None:
    n = int(sums.total("rows:other"))
    if not n:
        return None
    return Difference(name, n, **{what: sums.ratio(f"{what}:other", "rows:other") for what in _LOSSES})


def evaluate_probabilities(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Evaluation:
    """Figures of `probabilities` (n, 3) against `outcomes` (n,) in Outcome's values.

    The bootstrap resamples `groups` (n hashable values; by default each row is a group). Raises UsageError if the
    shapes do not fit, a row does not sum to 1 within 1e-6, a label is not 0, 1 or 2, or there is no row.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(outcomes, dtype=np.int64)
    if p.ndim != 2 or p.shape[1] != len(Outcome) or y.shape != (len(p),):
        raise UsageError(f"probabilities must have shape (n, 3) and outcomes (n,); found {p.shape} and {y.shape}")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=1), 1.0, rtol=0, atol=1e-6)):
        raise UsageError("probabilities must be finite, not negative, and sum to 1 in every row")
    if ((y < 0) | (y >= len(Outcome))).any():
        raise UsageError("outcomes must be 0 (A), 1 (B) or 2 (tie)")
    if groups is not None and len(groups) != len(p):
        raise UsageError(f"groups must have shape (n,); found {len(groups)} for {len(p)} rows")
    table = Columns(MeasuredRows.COLUMNS)
    table.append(np.column_stack([p, y, group_keys(groups, len(p)).view(np.float64)]))
    return measure(MeasuredRows(table, resampled="rows" if groups is None else "prompts"), repeats=repeats, seed=seed)
