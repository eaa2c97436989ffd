"""Trains the `surface` forecaster and fits the `length` one: python tools/train_surface.py --data DIR -o DIR.

One joint fit of margin and tie evidence by penalised maximum likelihood (Davidson's model with a tie level a source,
since sources differ in how often they allow ties), rows weighted by how much their source resembles Arena votes.
Figures come from cross-validation grouped by first prompt. The dev rows fit only the link from evidence to
probabilities, and its figure is cross-fitted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.selection import davidson_link
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.forecasts.forecaster import Forecaster
from prefcast.measuring.metrics import row_log_loss
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.outcomes.calibration import Calibration, measure_calibration
from prefcast.outcomes.models import Davidson, Link
from prefcast.outcomes.statistics.bootstrap import paired_difference
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import read_pairs
from prefcast.pairs.pair import group_key
from prefcast.scorers.length import LengthScorer
from prefcast.scorers.surface import SurfaceScorer, feature_arrays
from prefcast.scorers.surface.features import PAIR_FEATURES, RESPONSE_FEATURES
from prefcast.scorers.surface.model import SurfaceModel
from prefcast.training.prompts import prompt_key
from prefcast.training.shared import fit_weights, plain_figure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# How much a row of each source counts. The first five are Arena votes or as good as; the rest is auxiliary.
SOURCES = {
    "arena33k_sample574": 1.0,
    "arena33k_writing1277": 1.0,
    "arena_100k_first50": 1.0,
    "autoj_pairwise": 1.0,
    "arena_llama3_70b": 1.0,
    "mtbench_human": 0.5,
    "tulu_human_eval": 0.5,
    "faireval80": 0.5,
    "pandalm_test": 0.3,
    "vicuna80_human": 0.2,
    "oasst_ranked": 0.2,
    "llmfao_crowd": 0.1,
    "hh_harmless_test": 0.05,
    "qafeedback_dev": 0.05,
}
# Cross-validated figures are taken here: Arena-like, all three outcomes. (arena_llama3_70b left the ties out.)
ARENA_LIKE = ("arena33k_sample574", "arena33k_writing1277", "arena_100k_first50", "autoj_pairwise")
DEV = ("arena_kaggle_random500", "arena_kaggle_batch99")

FOLDS = 10
PENALTY = 600.0
# The yardstick sees lengths only: three terms for the margin, three for the tie.
_LENGTH_MARGIN = ("length", "length_over_1000", "last_length")
_LENGTH_TIE = ("length_gap", "length_sum", "prompt_length")
_LENGTH_PENALTY = 1.0


@dataclass(frozen=True)
class Rows:
    """Labelled rows with their features: `a`, `b` (n, r), `pair` (n, p); `source` indexes `names`, `group` numbers
    the first prompts."""

    names: list[str]
    source: Ints
    group: Ints
    outcome: Ints
    a: Floats
    b: Floats
    pair: Floats

    def of(self, *names: str) -> NDArray[np.bool_]:
        """A mask of the rows of these sources."""
        return np.isin(self.source, [self.names.index(name) for name in names])


def load_rows(data: Path) -> tuple[Rows, dict[str, list[Pair]]]:
    """The rows of every source and of dev below `data`; also the pairs by source, for fitting."""
    pairs: dict[str, list[Pair]] = {}
    for name in SOURCES:
        pairs[name] = list(read_pairs(data / "train" / f"{name}.csv.gz"))
    for name in DEV:
        pairs[name] = list(read_pairs(data / "dev" / f"{name}.csv"))
    groups: dict[str, int] = {}
    every = [(index, pair) for index, rows in enumerate(pairs.values()) for pair in rows]
    if any(pair.outcome is None for _, pair in every):
        raise UsageError(f"{data}: every training row needs a label")
    a, b, both = feature_arrays([pair for _, pair in every])
    group = [groups.setdefault(prompt_key(pair), len(groups)) for _, pair in every]
    outcome = np.array([pair.outcome for _, pair in every], dtype=np.int64)
    return Rows(list(pairs), np.array([index for index, _ in every]), np.array(group), outcome, a, b, both), pairs


def train(rows: Rows, mask: NDArray[np.bool_], penalty: float = PENALTY) -> SurfaceModel:
    """The surface model of the rows in `mask`."""
    a, b, pair = rows.a[mask], rows.b[mask], rows.pair[mask]
    weight = np.array([SOURCES.get(name, 0.0) for name in rows.names])[rows.source[mask]]
    share = weight / weight.sum()
    spread = np.sqrt(share @ (a - b) ** 2)
    mean = share @ pair
    deviation = np.sqrt(share @ (pair - mean) ** 2)
    r, p = len(RESPONSE_FEATURES), len(PAIR_FEATURES)
    # A feature that never varies gets no weight: its column is 0.
    empty = SurfaceModel(
        np.where(spread > 0, spread, 1.0),
        np.zeros(r),
        np.zeros(r),
        np.zeros(r),
        mean,
        np.where(deviation > 0, deviation, 1.0),
        np.zeros(p),
    )
    z, bent, u = empty.design(a, b, pair)
    by_margin, by_tie = fit_weights(
        np.concatenate([z, bent], axis=1),
        np.concatenate([np.abs(bent), u], axis=1),
        rows.source[mask],
        np.eye(len(Outcome))[rows.outcome[mask]],
        weight,
        _tieless(rows)[mask],
        penalty,
    )
    return SurfaceModel(empty.spread, by_margin[:r], by_margin[r:], by_tie[:r], empty.mean, empty.deviation, by_tie[r:])


def evidence(model: SurfaceModel, rows: Rows, mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    margin, likeness, pair = model.terms(rows.a[mask], rows.b[mask], rows.pair[mask])
    return margin.sum(axis=1), likeness.sum(axis=1) + pair.sum(axis=1)


def length_evidence(rows: Rows, fitted_on: NDArray[np.bool_], mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The yardstick's evidence of the rows in `mask`, fitted on those in `fitted_on` (Arena-like sources)."""
    index_m, index_t = (
        [RESPONSE_FEATURES.index(name) for name in _LENGTH_MARGIN],
        [PAIR_FEATURES.index(name) for name in _LENGTH_TIE],
    )
    margin, tie = (rows.a - rows.b)[:, index_m], rows.pair[:, index_t]
    spread, mean, deviation = (
        np.sqrt((margin[fitted_on] ** 2).mean(axis=0)),
        tie[fitted_on].mean(axis=0),
        tie[fitted_on].std(axis=0),
    )
    margin, tie = margin / spread, (tie - mean) / deviation
    by_margin, by_tie = fit_weights(
        margin[fitted_on],
        tie[fitted_on],
        rows.source[fitted_on],
        np.eye(len(Outcome))[rows.outcome[fitted_on]],
        np.ones(int(fitted_on.sum())),
        _tieless(rows)[fitted_on],
        _LENGTH_PENALTY,
    )
    return margin[mask] @ by_margin, tie[mask] @ by_tie


def _tieless(rows: Rows) -> NDArray[np.bool_]:
    """Rows of sources that hold no tie at all: ties were left out there, which says nothing of how likely they
    are."""
    ties = np.bincount(rows.source, rows.outcome == Outcome.TIE, len(rows.names))
    tieless: NDArray[np.bool_] = (ties == 0)[rows.source]
    return tieless


def _folds(group: Ints, seed: int) -> Ints:
    """A fold (n,) for every row, the same for all rows of a group."""
    _, dense = np.unique(group, return_inverse=True)
    return np.random.default_rng(seed).integers(0, FOLDS, int(dense.max()) + 1)[dense]


def cross_fitted(margin: Floats, tie: Floats, outcome: Ints, group: Ints) -> Floats:
    """Probabilities (n, 3) by a Davidson link that was fitted on the other folds."""
    fold, probabilities = _folds(group, 0), np.zeros((len(outcome), len(Outcome)))
    for number in range(FOLDS):
        test = fold == number
        probabilities[test] = Davidson.fit(margin[~test], tie[~test], outcome[~test]).probabilities(
            margin[test], tie[test]
        )
    return probabilities


def cross_validate(
    rows: Rows, make: Callable[[NDArray[np.bool_], NDArray[np.bool_]], tuple[Floats, Floats]], within: NDArray[np.bool_]
) -> Floats:
    """Out-of-fold probabilities (n, 3) of the Arena-like rows; `make(train, test)` gives the evidence of the test
    rows."""
    fold = _folds(rows.group, 0)
    margin, tie = np.zeros(len(rows.outcome)), np.zeros(len(rows.outcome))
    target = rows.of(*ARENA_LIKE)
    for number in range(FOLDS):
        test = target & (fold == number)
        margin[test], tie[test] = make(within & (fold != number), test)
    return cross_fitted(margin[target], tie[target], rows.outcome[target], rows.group[target])


def report(probabilities: Floats, length: Floats, outcome: Ints, group: Ints) -> dict[str, object]:
    """The figures of one set of rows: surface, the length yardstick, the class prior, and the paired differences."""
    groups = group.tolist()
    surface = evaluate_probabilities(probabilities, outcome, groups)
    yardstick = evaluate_probabilities(length, outcome, groups)
    losses = row_log_loss(probabilities, outcome), row_log_loss(length, outcome)
    return {
        "n": surface.n,
        "prompts": surface.groups,
        "log_loss": plain_figure(surface.scores.log_loss),
        "accuracy": plain_figure(surface.scores.accuracy),
        "brier_score": plain_figure(surface.scores.brier_score),
        "log_loss_by_outcome": {
            name: plain_figure(value) for name, value in surface.scores.log_loss_by_outcome.items()
        },
        "log_loss_of_lengths": plain_figure(yardstick.scores.log_loss),
        "log_loss_of_class_prior": plain_figure(surface.baselines["class_prior"].log_loss),
        "gain_over_lengths": plain_figure(paired_difference(losses[1], losses[0], groups)),
    }


def slices(rows: Rows, mask: NDArray[np.bool_], probabilities: Floats) -> dict[str, object]:
    """Log loss of the rows in `mask` by source and for prompts about code; how often people and forecasts favour the longer answer."""
    outcome, group = rows.outcome[mask], rows.group[mask]
    longer = (rows.a - rows.b)[mask, RESPONSE_FEATURES.index("length")]
    code = rows.pair[mask, PAIR_FEATURES.index("asks_code")] > 0
    parts = {name: rows.source[mask] == index for index, name in enumerate(rows.names)} | {"about code": code}
    losses: dict[str, object] = {}
    for name, part in parts.items():
        if part.any():
            found = evaluate_probabilities(probabilities[part], outcome[part], group[part].tolist())
            losses[name] = {"n": found.n, "log_loss": plain_figure(found.scores.log_loss)}
    decided = (outcome != Outcome.TIE) & (longer != 0)
    favoured = probabilities[:, Outcome.A] > probabilities[:, Outcome.B]
    shares = {
        "n": int(decided.sum()),
        "longer_answer_won": round(float(((longer > 0) == (outcome == Outcome.A))[decided].mean()), 3),
        "longer_answer_favoured": round(float(((longer > 0) == favoured)[decided].mean()), 3),
        "winner_favoured": round(float((favoured == (outcome == Outcome.A))[decided].mean()), 3),
    }
    return {"log_loss": losses, "decided_pairs": shares}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python tools/train_surface.py", description="Train the surface forecaster and fit the length one."
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/*.csv.gz and dev/*.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where the folders surface/ and length/ go")
    options = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say("reading pairs and computing features")
    rows, pairs = load_rows(options.data)
    train_mask, dev_mask, arena = rows.of(*SOURCES), rows.of(*DEV), rows.of(*ARENA_LIKE, "arena_llama3_70b")
    say(f"{train_mask.sum()} training rows, {dev_mask.sum()} dev rows; cross-validating, {FOLDS} folds by first prompt")
    target = rows.of(*ARENA_LIKE)
    surface_cv = cross_validate(rows, lambda fit, test: evidence(train(rows, fit), rows, test), train_mask)
    length_cv = cross_validate(rows, lambda fit, test: length_evidence(rows, fit, test), arena)
    figures = {"cross_validation": report(surface_cv, length_cv, rows.outcome[target], rows.group[target])}
    figures["cross_validation"]["slices"] = slices(rows, target, surface_cv)
    say("training on all rows")
    model = train(rows, train_mask)
    margin, tie = evidence(model, rows, dev_mask)
    outcome, group = rows.outcome[dev_mask], rows.group[dev_mask]
    surface_dev = cross_fitted(margin, tie, outcome, group)
    length_dev = cross_fitted(*length_evidence(rows, arena, dev_mask), outcome, group)
    figures["dev_cross_fitted"] = report(surface_dev, length_dev, outcome, group)
    figures["dev_cross_fitted"]["slices"] = slices(rows, dev_mask, surface_dev)
    link = Davidson.fit(margin, tie, outcome)
    trained_on = {name: {"n": int(rows.of(name).sum()), "weight": weight} for name, weight in SOURCES.items()}
    card = {
        "trained_on": trained_on,
        "link_fitted_on": {name: int(rows.of(name).sum()) for name in DEV},
        "penalty": PENALTY,
        "figures": figures,
    }
    votes, keys = np.eye(len(Outcome)), rows.group.astype(np.uint64)
    named = [
        np.array([np.nan if name is None else float(group_key(name) >> 12) for name in names])
        for names in zip(*((pair.model_a, pair.model_b) for part in pairs.values() for pair in part), strict=True)
    ]

    def calibration(probabilities: Floats) -> Calibration:
        """How far cross-validated forecasts of the Arena-like rows were off, between models where they are named."""
        return measure_calibration(
            probabilities, votes[rows.outcome[target]], keys[target], named[0][target], named[1][target]
        )

    def draws(margin: Floats, tie: Floats) -> Link:
        labelled = LabelledEvidence(1)
        labelled.add(margin[:, None], tie[:, None], votes[outcome], keys[dev_mask])
        return davidson_link(labelled).renamed({"margin:0": "margin", "tie:0": "tie"})

    forecaster = Forecaster(
        SurfaceScorer(model),
        link,
        prior_tie=round(float((outcome == Outcome.TIE).mean()), 4),
        card=card,
        link=draws(margin, tie),
        calibration=calibration(surface_cv),
        fitted_rows=FittedRows.of(pair for part in pairs.values() for pair in part),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    forecaster.save(options.output / "surface")
    dev_pairs = [pair for name in DEV for pair in pairs[name]]
    floor = Forecaster(LengthScorer(), link).fit(dev_pairs)
    floor_margin, floor_tie = floor.evidence(dev_pairs)
    floor_figures = evaluate_probabilities(
        cross_fitted(floor_margin, floor_tie, outcome, group), outcome, group.tolist()
    )
    floor_card = {
        "link_fitted_on": card["link_fitted_on"],
        "figures": {
            "dev_cross_fitted": {"n": floor_figures.n, "log_loss": plain_figure(floor_figures.scores.log_loss)}
        },
    }
    replace(
        floor,
        prior_tie=forecaster.prior_tie,
        card=floor_card,
        link=draws(floor_margin, floor_tie),
        calibration=calibration(length_cv),
    ).save(options.output / "length")
    print(json.dumps(figures | {"length": floor_card["figures"]}, indent=1))


if __name__ == "__main__":
    main()
