"""Figures as plain text for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefcast.errors import printable
from prefcast.show import fit_width

if TYPE_CHECKING:
    from prefcast.metrics import Evaluation, Figure

__all__ = ["evaluation_text", "table_text"]

_NAMES = {"a": "A won", "b": "B won", "tie": "it was a tie"}


def table_text(head: Sequence[str], rows: Sequence[Sequence[str]], least: int = 16) -> list[str]:
    """Lines of a table whose first column is text and whose others are as wide as they must be."""
    every = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    widths[0] = max(least, widths[0])
    return [
        "  ".join(fit_width(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    ]


def _said(figure: Figure | None) -> str:
    return "-" if figure is None else str(figure)


def evaluation_text(evaluation: Evaluation, title: str, *, slices: bool = False) -> str:
    """The figures as tables: the forecast and the baselines, what each outcome cost, calibration; with `slices` the
    kinds of rows."""
    shares = ", ".join(
        f"{name if name == 'tie' else name.upper()} {share:.0%}" for name, share in evaluation.outcome_shares.items()
    )
    left_out = "".join(
        f", {count} {what}"
        for count, what in ((evaluation.failed, "failed"), (evaluation.unlabelled, "without a label"))
        if count
    )
    scores = evaluation.scores
    rows = [(printable(title), scores.log_loss, scores.accuracy, scores.brier_score)]
    rows += [
        (name.replace("_", " "), base.log_loss, base.accuracy, base.brier_score)
        for name, base in evaluation.baselines.items()
    ]
    lines = [
        f"{evaluation.n} labelled pairs ({shares}){left_out}; 95 % intervals by bootstrap over {evaluation.groups} {evaluation.resampled}",
        "",
        *table_text(
            ("", "log loss", "accuracy", "Brier score"), [(name, *map(str, figures)) for name, *figures in rows]
        ),
        "",
    ]
    more = [(f"gain over {name.replace('_', ' ')}", str(base.gain)) for name, base in evaluation.baselines.items()]
    more += [(f"log loss where {_NAMES[name]}", str(found)) for name, found in scores.log_loss_by_outcome.items()]
    more += [
        ("expected calibration error", f"{scores.expected_calibration_error}, debiased"),
        ("  plain", str(scores.expected_calibration_error_plain)),
        ("tie recall", _said(scores.tie_recall)),
        ("AUC on decisive pairs", _said(scores.auc)),
    ]
    if evaluation.order_swap is not None:
        swap = evaluation.order_swap
        more.append(
            (
                "A and B exchanged",
                f"{swap.flips:.1%} of {swap.n} favourites change; largest change {swap.largest_change:.2g}",
            )
        )
    if evaluation.against is not None:
        other = evaluation.against
        more.append((f"less {printable(other.name)}", f"log loss {other.log_loss}, on {other.n} rows that both have"))
        more.append(("", f"Brier score {other.brier_score}, accuracy {other.accuracy}"))
    lines += table_text(("log loss and more", ""), more)[1:]
    if slices and evaluation.slices:
        lines += ["", *_slice_lines(evaluation)]
    return "\n".join(lines)


def _slice_lines(evaluation: Evaluation) -> list[str]:
    rows = [
        (
            f"{part.kind}: {printable(part.name)}",
            str(part.n),
            str(part.log_loss),
            str(part.gain),
            "few rows" if part.small else "",
        )
        for part in evaluation.slices
    ]
    lines = table_text(("slice", "n", "log loss", "gain over class prior", ""), rows)
    small = sum(part.small for part in evaluation.slices)
    return [*lines, f"{small} slices have fewer than 100 rows: their figures say little"] if small else lines
