"""How much the encoder and the surface of the texts count, and how good the two are together: fitted on rows that
neither was trained on, measured by cross-fitting over their first prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.fitting.selection import LabelledEvidence, cross_fitted, davidson_link
from prefcast.metrics import Figure, row_log_loss
from prefcast.metrics.calibration import Calibration, measure_calibration
from prefcast.metrics.measure import evaluate_probabilities, paired_difference
from prefcast.outcomes import Davidson, Link
from prefcast.pairs import Outcome, Pair
from prefcast.scorers.embedded import Join

__all__ = ["Joined", "fit_join", "precision_cost"]

Floats = NDArray[np.float64]

_SURFACE, _ENCODER = 0, 1
_COLUMNS = {
    f"{what}:{member}": f"{what}:{name}"
    for member, name in enumerate(("surface", "encoder"))
    for what in ("margin", "tie")
}


@dataclass(frozen=True)
class Joined:
    """The weights of the two parts, the outcome model of their sums, its uncertainty, and figures by name."""

    join: Join
    outcome: Davidson
    link: Link
    calibration: Calibration
    figures: dict[str, Any]


def fit_join(parts: Sequence[Floats], pairs: Sequence[Pair], group: NDArray[np.int64]) -> Joined:
    """Davidson's model of the two parts' evidence: `parts` as `EmbeddedScorer.parts` gives them for labelled
    `pairs`, whose first prompts `group` (n,) numbers. Raises FitError."""
    outcome = np.array([pair.outcome for pair in pairs], dtype=np.int64)
    votes, keys = np.eye(len(Outcome))[outcome], group.astype(np.uint64)
    labelled = LabelledEvidence(2, names=("surface", "encoder"))
    labelled.add(
        np.column_stack([parts[0], parts[2]]),
        np.column_stack([parts[1], parts[3]]),
        votes,
        keys,
        models=[(pair.model_a, pair.model_b) for pair in pairs],
    )
    link = davidson_link(labelled)
    margins, level, ties = link.theta[:2], link.theta[2], link.theta[3:]
    join = Join(float(margins[0]), float(margins[1]), float(ties[0]), float(ties[1]))
    by = {members: cross_fitted(labelled, members) for members in ((_SURFACE,), (_ENCODER,), (_SURFACE, _ENCODER))}
    both = by[_SURFACE, _ENCODER]
    numbers = np.concatenate(list(labelled.table.blocks()))
    models = (numbers[:, labelled.place[name]] for name in ("model_a", "model_b"))
    return Joined(
        join,
        Davidson(1.0, float(level), 1.0),
        link.renamed(_COLUMNS),
        measure_calibration(both, votes, keys, *models),
        _figures(both, by[_SURFACE,], by[_ENCODER,], outcome, group),
    )


def precision_cost(
    joined: Joined, parts: Sequence[Floats], whole: Sequence[Floats], pairs: Sequence[Pair]
) -> dict[str, float]:
    """What int8 changed on labelled `pairs`: `parts` are the shipped evidence, `whole` that of the encoder in float32
    (margin, tie). The change of the log loss, and the 99th percentile and the largest change of a probability."""
    join, outcome = joined.join, np.array([pair.outcome for pair in pairs], dtype=np.int64)
    found = [
        joined.outcome.probabilities(
            join.surface_margin * parts[0] + join.encoder_margin * margin,
            join.surface_tie * parts[1] + join.encoder_tie * tie,
        )
        for margin, tie in (parts[2:], whole)
    ]
    change = np.abs(found[0] - found[1])
    shipped, exact = (float(row_log_loss(each, outcome).mean()) for each in found)
    return {
        "n": len(outcome),
        "log_loss_change": round(shipped - exact, 5),
        "probability_change_p99": round(float(np.quantile(change, 0.99)), 5),
        "probability_change_max": round(float(change.max()), 5),
    }


def _figures(
    both: Floats, surface: Floats, encoder: Floats, outcome: NDArray[np.int64], group: NDArray[np.int64]
) -> dict[str, Any]:
    groups = group.tolist()
    found = evaluate_probabilities(both, outcome, groups)
    scores = found.scores
    alone = {
        name: evaluate_probabilities(p, outcome, groups).scores
        for name, p in (("surface", surface), ("encoder", encoder))
    }
    gain = paired_difference(row_log_loss(surface, outcome), row_log_loss(both, outcome), groups)
    return {
        "n": found.n,
        "prompts": found.groups,
        "log_loss": _plain(scores.log_loss),
        "accuracy": _plain(scores.accuracy),
        "brier_score": _plain(scores.brier_score),
        "expected_calibration_error": _plain(scores.expected_calibration_error),
        "log_loss_by_outcome": {name: _plain(value) for name, value in scores.log_loss_by_outcome.items()},
        "log_loss_of_class_prior": _plain(found.baselines["class_prior"].log_loss),
        "log_loss_of_surface": _plain(alone["surface"].log_loss),
        "log_loss_of_encoder": _plain(alone["encoder"].log_loss),
        "gain_over_surface": _plain(gain),
    }


def _plain(figure: Figure) -> dict[str, float]:
    return {"value": round(figure.value, 4), "low": round(figure.low, 4), "high": round(figure.high, 4)}
