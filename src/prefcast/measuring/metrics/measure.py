"""The figures of the rows of a table, with their bootstrap, in one pass.

The bootstrap needs only sums over rows: all figures but two are ratios of such sums, the calibration error is a
function of them, and the AUC is approximated by them to first order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcast.errors import UsageError
from prefcast.measuring.metrics import (
    HISTOGRAM,
    NAMES,
    SMALL_SLICE,
    Baseline,
    Bin,
    Evaluation,
    Scores,
    Slice,
    row_accuracy,
    row_brier,
    row_favourites,
    row_log_loss,
    row_pairwise,
)
from prefcast.measuring.metrics.binned import Binned, bin_edges
from prefcast.measuring.metrics.people import PeopleLimit, people_limit
from prefcast.measuring.metrics.rows import MeasuredRows, given_rows
from prefcast.measuring.metrics.several import LOSSES, compared
from prefcast.outcomes.statistics.bootstrap import REPEATS, Bootstrap, Figure, figure, group_keys
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome

__all__ = ["FOLDS", "MeasuredRows", "evaluate_probabilities", "measure"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 10
_FIGURES = (*LOSSES, "gain")


# With fewer pairs that have several votes, how well people agree is not known.
_LEAST_PAIRS = 30


def measure(rows: MeasuredRows, *, repeats: int = REPEATS, seed: int = 0) -> Evaluation:
    """The figures of `rows`. Memory grows by a few numbers per row. Raises UsageError if there are no rows."""
    table = rows.table
    if not len(table):
        raise UsageError("no labelled row has a forecast: nothing to evaluate")
    key = table.column("key").view(np.uint64)
    votes = _Votes(rows)
    plan = _Plan(rows, key, votes)
    sums = Bootstrap(repeats, seed)
    confusion = np.zeros((len(Outcome), len(Outcome)))
    margins = np.zeros((len(Outcome), len(HISTOGRAM) - 1))
    start = both = decisive = 0
    for block in table.blocks():
        p, here = block[:, :3], slice(start, start + len(block))
        start += len(block)
        columns = plan.columns(block, here)
        sums.add(key[here], columns)
        counted = rows.shares(block) * block[:, [plan.place["weight"]]]
        confusion += counted.T @ row_favourites(p)
        decisive += int((rows.shares(block)[:, :2].sum(axis=1) > 0).sum())
        both += int((columns["rows:both"] > 0).sum()) if rows.others else 0
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.nan_to_num(np.log(p[:, 0]) - np.log(p[:, 1]), posinf=np.inf, neginf=-np.inf)
        ratio = np.clip(ratio, HISTOGRAM[0], HISTOGRAM[-1])
        for outcome in Outcome:
            margins[outcome] += np.histogram(ratio, HISTOGRAM, weights=counted[:, outcome])[0]
    groups = len(np.unique(key))
    whole = np.array_equal(margins, margins.round())
    return Evaluation(
        n=len(table),
        groups=groups,
        scores=_scores(sums, plan.binned, decisive, grouped=groups < len(table), soft=votes.soft),
        baselines={
            "uniform": _uniform(sums),
            **{base: _baseline(sums, base) for base in plan.baselines},
        },
        outcome_shares={name: sums.total(f"rows:{name}") / sums.total("rows") for name in NAMES},
        reliability={name: _reliability(sums, name, plan.binned.bins) for name in NAMES},
        confusion=tuple(map(tuple, confusion.tolist())),
        margins={
            name: tuple((margins[index].astype(int) if whole else margins[index]).tolist())
            for index, name in enumerate(NAMES)
        },
        slices=tuple(
            _slice(sums, rows, kind, code, n) for kind, code, n in plan.slices if sums.total(f"rows:{kind}:{code}")
        ),
        compared=compared(sums, rows.others, both) if rows.others else None,
        resampled=rows.resampled,
        people=votes.limit(key, sums),
        weighted=votes.weighted,
    )


class _Votes:
    """The votes on each pair; rows with the same texts are votes on one pair."""

    def __init__(self, rows: MeasuredRows) -> None:
        table = rows.table
        votes, weight = table.column("votes"), table.column("weight")
        self.soft, self.weighted = bool((votes != 1).any()), bool((weight != 1).any())
        self.several, self.part = False, np.zeros(0)
        keys = table.column("pair").view(np.uint64)
        # Most tables have one vote on each pair: no more is held of these.
        if not self.soft and len(np.unique(keys)) == len(keys):
            return
        _, self._first, pair = np.unique(keys, return_index=True, return_inverse=True)
        self._counts = np.zeros((len(self._first), len(Outcome)))
        start = 0
        for block in table.blocks():
            here = slice(start, start + len(block))
            np.add.at(self._counts, pair[here], rows.shares(block) * votes[here, None])
            start += len(block)
        totals = self._counts.sum(axis=1)
        several = totals >= 2
        if several.sum() >= _LEAST_PAIRS:
            self.several = True
            # What each row counts, (n,), if each pair with several votes counts once.
            self.part = np.where(several, 1 / np.maximum(totals, 1), 0.0)[pair] * votes

    def limit(self, key: NDArray[np.uint64], sums: Bootstrap) -> PeopleLimit | None:
        """The limit that agreement sets, for pairs with several votes."""
        if not self.several:
            return None
        return people_limit(self._counts, key[self._first], sums.ratio("log_loss:people", "rows:people"))


class _Plan:
    """The sums that a measurement needs, and what each block adds to them."""

    def __init__(self, rows: MeasuredRows, key: NDArray[np.uint64], votes: _Votes) -> None:
        table = rows.table
        self.rows, self.fold, self.votes = rows, (key % np.uint64(FOLDS)).astype(np.int64), votes
        self.place = {name: index for index, name in enumerate(table.names)}
        self.binned = Binned({name: bin_edges(table.column(name)) for name in NAMES}, len(table))
        by_fold = np.zeros((FOLDS, len(Outcome)))
        start = 0
        for block in table.blocks():
            counted = rows.shares(block) * block[:, [self.place["weight"]]]
            np.add.at(by_fold, self.fold[start : start + len(block)], counted)
            start += len(block)
        self.prior = _cross_fitted_prior(by_fold)
        self.chance = _Placements(rows)
        self.slices = _shown_slices(rows)
        self.baselines = ("class_prior", *rows.baselines)

    def columns(self, block: Floats, here: slice) -> dict[str, Floats]:
        """What each row of a block, which are the rows `here` of the table, adds to each of the sums, (m,) each."""
        p, share, weight = block[:, :3], self.rows.shares(block), block[:, self.place["weight"]]
        losses = {what: values * weight for what, values in _losses(p, share).items()}
        columns: dict[str, Floats] = {"rows": weight, **losses}
        decisive, pairwise = weight * share[:, :2].sum(axis=1), weight * row_pairwise(p, share)
        columns |= {"decisive": decisive, "pairwise": pairwise}
        for outcome in Outcome:
            only = np.zeros_like(share)
            only[:, outcome] = share[:, outcome]
            columns[f"rows:{NAMES[outcome]}"] = weight * share[:, outcome]
            columns[f"log_loss:{NAMES[outcome]}"] = weight * row_log_loss(p, only)
            columns[f"accuracy:{NAMES[outcome]}"] = weight * row_accuracy(p, only)
        for base in self.baselines:
            q = self.prior[self.fold[here]] if base == "class_prior" else self._triple(block, base)
            columns |= {f"{what}:{base}": values * weight for what, values in _losses(q, share).items()}
            columns[f"pairwise:{base}"] = weight * row_pairwise(q, share)
            columns[f"gain:{base}"] = columns[f"log_loss:{base}"] - losses["log_loss"]
        columns["auc:a"], columns["auc:b"] = self.chance.of(p, share * weight[:, None])
        columns |= self.binned.columns(p, share, weight)
        for kind, code, _ in self.slices:
            inside = (block[:, self.place[f"slice:{kind}"]] == code).astype(np.float64)
            columns[f"rows:{kind}:{code}"] = inside * weight
            columns[f"log_loss:{kind}:{code}"] = inside * losses["log_loss"]
            columns[f"gain:{kind}:{code}"] = inside * columns["gain:class_prior"]
            columns[f"decisive:{kind}:{code}"] = inside * decisive
            columns[f"pairwise:{kind}:{code}"] = inside * pairwise
        if self.votes.several:
            part = self.votes.part[here]
            columns |= {"rows:people": part, "log_loss:people": row_log_loss(p, share) * part}
        return columns | (self._of_others(block, share, weight, losses) if self.rows.others else {})

    def _of_others(self, block: Floats, share: Floats, weight: Floats, losses: dict[str, Floats]) -> dict[str, Floats]:
        """The losses of the other forecasts, on the rows that all forecasts have."""
        every = [self._triple(block, f"other{number}") for number in range(len(self.rows.others))]
        there: NDArray[np.bool_] = np.asarray(np.isfinite(np.concatenate(every, axis=1)).all(axis=1))
        columns = {"rows:both": weight * there, "log_loss:0": losses["log_loss"] * there}
        for number, theirs in enumerate(every, 1):
            other = _losses(np.where(there[:, None], theirs, 1 / 3), share)
            columns[f"log_loss:{number}"] = other["log_loss"] * weight * there
            columns |= {f"{what}:minus:{number}": (losses[what] - other[what] * weight) * there for what in LOSSES}
        return columns

    def _triple(self, block: Floats, name: str) -> Floats:
        return block[:, [self.place[f"{name}_{outcome}"] for outcome in NAMES]]


def _losses(p: Floats, share: Floats) -> dict[str, Floats]:
    return {"log_loss": row_log_loss(p, share), "accuracy": row_accuracy(p, share), "brier_score": row_brier(p, share)}


def _cross_fitted_prior(by_fold: Floats) -> Floats:
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

    def __init__(self, rows: MeasuredRows) -> None:
        table = rows.table
        preferred, weight = _preferred(table.column("a"), table.column("b")), table.column("weight")
        order = np.argsort(preferred, kind="stable")
        self._won = []
        for name in ("share_a", "share_b"):
            counted = (table.column(name) * weight)[order]
            there = counted > 0
            self._won.append((preferred[order][there], np.append(0.0, counted[there].cumsum())))

    def of(self, p: Floats, counted: Floats) -> tuple[Floats, Floats]:
        """For votes that A won, the share of B's below them; for votes that B won, the share of A's above them.

        Both are 0 for all others. `counted` (n, 3) are the weights of the votes.
        """
        value = _preferred(p[:, 0], p[:, 1])
        out = []
        for side, other in ((Outcome.A, Outcome.B), (Outcome.B, Outcome.A)):
            ranked, weights = self._won[other]
            if not len(ranked):
                out.append(np.zeros(len(p)))
                continue
            places = (np.searchsorted(ranked, value, end) for end in ("left", "right"))
            below = sum(weights[place] for place in places) / 2 / weights[-1]
            out.append((below if side == Outcome.A else 1 - below) * counted[:, side])
        return out[0], out[1]


def _preferred(a: Floats, b: Floats) -> Floats:
    total = a + b
    chance: Floats = np.divide(a, total, out=np.full(len(total), 0.5), where=total > 0)
    return chance


def _scores(sums: Bootstrap, binned: Binned, decisive: int, *, grouped: bool, soft: bool) -> Scores:
    error, p_value, test = binned.figures(sums, grouped=grouped, soft=soft)
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
        expected_calibration_error=error,
        expected_calibration_error_plain=_plain_calibration_error(sums, binned.bins),
        tie_recall=sums.ratio("accuracy:tie", "rows:tie") if "tie" in there else None,
        auc=auc,
        pairwise_accuracy=_pairwise(sums),
        decisive=decisive,
        calibration_p_value=p_value,
        calibration_test=test,
    )


def _pairwise(sums: Bootstrap, of: str = "", among: str = "") -> Figure | None:
    """The pairwise accuracy of a forecast on the decisive rows of a slice; None where there is none."""
    below = f"decisive{among}"
    return sums.ratio(f"pairwise{of or among}", below) if sums.total(below) else None


def _baseline(sums: Bootstrap, name: str) -> Baseline:
    log_loss, accuracy, brier, gain = (sums.ratio(f"{what}:{name}") for what in _FIGURES)
    return Baseline(log_loss, accuracy, brier, gain, _pairwise(sums, f":{name}"))


def _plain_calibration_error(sums: Bootstrap, bins: Sequence[tuple[str, int]]) -> Figure:
    """The expected calibration error averaged over the outcomes, with the noise in it."""
    rows, error = (np.zeros((len(sums.draws) + 1, len(bins))) for _ in range(2))
    for column, (name, index) in enumerate(bins):
        parts = [f"{what}:{name}:{index}" for what in ("rows", "happened", "forecast")]
        n, hit, said = (np.append(sums.total(part), sums.drawn(part)) for part in parts)
        rows[:, column], error[:, column] = n, np.abs(hit - said)
    every = rows.sum(axis=1)
    values = np.divide(error.sum(axis=1), every, out=np.full(len(every), np.nan), where=every > 0)
    # On average the error of a draw is above that of the sample because of its own noise; the interval is moved back.
    draws = values[1:] - (np.nanmean(values[1:]) - values[0])
    return figure(values[0], np.maximum(0.0, draws))


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
            found.append(Bin(round(n), sums.total(f"forecast:{name}:{index}") / n, observed))
    return tuple(found)


def _shown_slices(rows: MeasuredRows) -> list[tuple[str, int, int]]:
    """The codes of each kind to show, with their numbers of rows: all, or the 20 with most rows."""
    shown: list[tuple[str, int, int]] = []
    for kind, names in rows.slices.items():
        codes = rows.table.column(f"slice:{kind}")
        counts = np.bincount(codes[codes >= 0].astype(np.int64), minlength=len(names))
        most = [code for code in np.argsort(-counts, kind="stable")[:20].tolist() if counts[code]]
        shown += [(kind, code, int(counts[code])) for code in (sorted(most) if len(names) <= 20 else most)]
    return shown


def _slice(sums: Bootstrap, rows: MeasuredRows, kind: str, code: int, n: int) -> Slice:
    among = f":{kind}:{code}"
    loss, gain = (sums.ratio(f"{what}{among}", f"rows{among}") for what in ("log_loss", "gain"))
    pairwise, decisive = _pairwise(sums, among=among), round(sums.total(f"decisive{among}"))
    return Slice(kind, rows.slices[kind][code], n, loss, gain, n < SMALL_SLICE, pairwise, decisive)


def evaluate_probabilities(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    weights: ArrayLike | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Evaluation:
    """Figures of `probabilities` (n, 3) against `outcomes`: labels (n,) in Outcome's values, or counts of votes (n, 3).

    The bootstrap resamples `groups` (n hashable values; by default each row is a group). `weights` (n,) say how much each row
    counts. Raises UsageError if the shapes do not fit, a row does not sum to 1 within 1e-6, a label is not 0, 1 or 2, a row has
    no vote, a number is negative or not finite, or there is no row.
    """
    p, given = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes)
    counted = given.ndim == 2
    votes = np.asarray(given, dtype=np.float64) if counted else None
    y = np.asarray(given, dtype=np.int64) if votes is None else np.zeros(len(votes), dtype=np.int64)
    if p.ndim != 2 or p.shape[1] != len(Outcome) or y.shape != (len(p),) or (counted and given.shape[1] != 3):
        raise UsageError(
            f"probabilities must have shape (n, 3) and outcomes (n,) or (n, 3); found {p.shape} and {given.shape}"
        )
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=1), 1.0, rtol=0, atol=1e-6)):
        raise UsageError("probabilities must be finite, not negative, and sum to 1 in every row")
    if ((y < 0) | (y >= len(Outcome))).any():
        raise UsageError("outcomes must be 0 (A), 1 (B) or 2 (tie)")
    if votes is not None and not (np.isfinite(votes).all() and (votes >= 0).all() and (votes.sum(axis=1) > 0).all()):
        raise UsageError("votes must be finite and not negative, and every row needs one")
    if groups is not None and len(groups) != len(p):
        raise UsageError(f"groups must have shape (n,); found {len(groups)} for {len(p)} rows")
    w = None if weights is None else np.asarray(weights, dtype=np.float64)
    if w is not None and not (w.shape == (len(p),) and np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
        raise UsageError("weights must have shape (n,), be finite and not negative, and not all 0")
    share = np.eye(len(Outcome))[y] if votes is None else votes / votes.sum(axis=1, keepdims=True)
    table = Columns(MeasuredRows.COLUMNS)
    number = None if votes is None else votes.sum(axis=1)
    table.append(given_rows(p, share, group_keys(groups, len(p)), votes=number, weight=w))
    return measure(MeasuredRows(table, resampled="rows" if groups is None else "prompts"), repeats=repeats, seed=seed)
