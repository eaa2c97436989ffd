"""An evaluation as tables."""

from __future__ import annotations

from typing import Any

from prefcast.base.tables import ShownTable
from prefcast.measuring.metrics import Evaluation

__all__ = ["evaluation_tables"]

_OURS = "this forecast"


def evaluation_tables(found: Evaluation) -> list[ShownTable]:
    """The forecast beside the baselines, its other figures, the other forecasts, and the slices."""
    scores = found.scores
    every = [(_OURS, scores), *((name.replace("_", " "), base) for name, base in found.baselines.items())]
    columns = [("pairwise accuracy", "pairwise_accuracy")]
    if not found.by_margin:
        columns = [("log loss", "log_loss"), ("accuracy", "accuracy"), ("Brier score", "brier_score"), *columns]
    rows = [(name, *(getattr(each, field) for _, field in columns)) for name, each in every]
    tables = [ShownTable(f"{found.n} labelled pairs", ("forecast", *(head for head, _ in columns)), rows)]
    tables.append(ShownTable("figures", ("figure", "value"), _figures(found)))
    if found.compared is not None:
        others: list[tuple[Any, ...]] = [(_OURS, found.compared.log_loss, None, None, _yes(found.compared.may_be_best))]
        others += [
            (each.name, each.theirs, each.log_loss, each.together, _yes(each.may_be_best))
            for each in found.compared.others
        ]
        head = ("forecast", "log loss", f"{_OURS} minus this", "all together", "may be the best")
        tables.append(ShownTable(f"forecasts on {found.compared.n} rows that all of them have", head, others))
    if found.slices:
        slices: list[tuple[Any, ...]] = [
            (part.kind, part.name, part.n, part.pairwise_accuracy)
            if found.by_margin
            else (part.kind, part.name, part.n, part.log_loss, part.gain, part.pairwise_accuracy)
            for part in found.slices
        ]
        of = () if found.by_margin else ("log loss", "gain over class prior")
        tables.append(ShownTable("slices", ("kind", "name", "n", *of, "pairwise accuracy"), slices))
    return tables


def _figures(found: Evaluation) -> list[tuple[str, Any]]:
    scores, rows = found.scores, list[tuple[str, Any]]()
    if not found.by_margin:
        rows += [(f"gain over {name.replace('_', ' ')}", base.gain) for name, base in found.baselines.items()]
        rows += [
            ("expected calibration error", scores.expected_calibration_error),
            ("p value of no calibration error", scores.calibration_p_value),
            ("p value of slope 1 and no shift", scores.calibration_test and scores.calibration_test.p_value),
            ("tie recall", scores.tie_recall),
            ("AUC", scores.auc),
        ]
    if found.people is not None:
        rows += [
            ("agreement of two votes", found.people.agree),
            ("best possible log loss", found.people.log_loss),
            ("log loss on these pairs", found.people.forecast),
        ]
    if found.in_sample is not None:
        rows.append(("rows of the fit", found.in_sample.found))
        rows.append(("other rows with a first prompt of the fit", found.in_sample.prompts))
    return [*rows, ("failed", found.failed), ("without a label", found.unlabelled)]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
