"""Figures as plain text for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefcast.errors import printable
from prefcast.report.text import fit_width

if TYPE_CHECKING:
    from prefcast.fitting import Fitted
    from prefcast.measuring.comparison import Comparison
    from prefcast.measuring.metrics import Evaluation, Figure
    from prefcast.pairs.formats.answers import JoinReport

__all__ = ["comparison_text", "evaluation_text", "fit_text", "table_text"]

# Below, a bootstrap does not know what it has not seen.
_FEW = 30
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
    if slices:
        lines += [
            "",
            *(
                _slice_lines(evaluation)
                if evaluation.slices
                else ["no slices: there are no texts; name the labelled pairs"]
            ),
        ]
    if evaluation.n < _FEW:
        lines += ["", f"{evaluation.n} rows are few: the intervals above are too narrow, and the figures say little"]
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


def fit_text(fitted: Fitted) -> str:
    """What a fit found: the candidates, the choice, its parameters, and whether it helps."""
    fit, card = fitted.fit, fitted.forecaster.card
    shares = ", ".join(
        f"{name} {share:.0%}"
        for name, share in zip(("A", "B", "tie"), card["fitted_on"]["outcome_shares"].values(), strict=True)
    )
    votes = "" if fit.votes == fit.rows else f" with {fit.votes:g} votes"
    left_out = "".join(
        f", {count} {what}"
        for count, what in ((fitted.failed, "failed"), (fitted.unlabelled, "without a label"))
        if count
    )
    lines = [f"{fit.rows} labelled pairs{votes} ({shares}){left_out}, {fit.groups} groups", ""]
    rows = [
        (
            trial.name,
            f"{trial.log_loss:.4f}",
            "" if trial.over is None else f"{trial.gain:+.4f} ± {trial.error:.4f} over {trial.over}",
            "taken" if trial.taken else "",
        )
        for trial in fit.trials
    ]
    lines += [*table_text(("candidate", "log loss", "gain ± standard error", ""), rows), ""]
    lines.append(f"chosen: {fit.chosen}; log loss {fit.log_loss} out of fold")
    for name, said in card["parameters"].items():
        if said["value"] or said["low"] or said["high"]:
            lines.append(f"  {printable(name):18} {said['value']:+.4g} [{said['low']:+.4g}, {said['high']:+.4g}]")
    for name in card["useless"]:
        lines.append(f"{printable(name)} adds nothing: it has weight 0 and is not in the forecaster")
    if "tie_level_moved" in card:
        moved = card["tie_level_moved"]
        lines.append(
            f"tie level moved from {moved['from']:.1%} of ties among the labels to {moved['to']:.1%}"
            + (f" [{moved['low']:.0%}, {moved['high']:.0%}], estimated" if "low" in moved else "")
        )
    if fit.useful:
        lines.append(f"it gains {fit.gain} over the class prior")
    else:
        lines.append(f"it is no better than the class prior, as far as these labels can tell: its gain is {fit.gain}")
    return "\n".join(lines)


def comparison_text(found: Comparison, report: JoinReport) -> str:
    """Which system people would prefer, with intervals, kinds of prompts, and the most decided examples."""
    left, right = printable(found.left), printable(found.right)
    lines = [
        f"{found.n} prompts that both answered (joined by {report.by}); {right} against {left}",
        *(
            f"  {count} {what}"
            for count, what in (
                (report.only_left, f"only in {left}"),
                (report.only_right, f"only in {right}"),
                (report.failed + found.failed, "failed"),
            )
            if count
        ),
        "",
        *table_text(
            ("expected", ""),
            [
                (f"{right} preferred", _percent(found.win)),
                (f"{left} preferred", _percent(found.loss)),
                ("tie", _percent(found.tie)),
                ("win less loss", _percent(found.net)),
            ],
        )[1:],
        "",
        {
            "right": f"people would prefer {right}",
            "left": f"people would prefer {left}",
            "none": "no difference that this forecaster can see",
        }[found.verdict],
    ]
    if found.calibrated:
        lines.append(
            f"(95 % intervals: which prompts, the fitted link, and this forecaster's own error for a whole system, in win less loss a standard deviation of {found.bias['net']:.1%})"
        )
    else:
        lines.append("(95 % intervals: which prompts alone; this forecaster has no record of its own error)")
    rows = [
        (f"{part.kind}: {printable(part.name)}", str(part.n), _percent(part.net), "few rows" if part.small else "")
        for part in found.slices
    ]
    lines += ["", *table_text(("kind of prompt", "n", "win less loss", ""), rows)]
    if found.calibrated:
        lines.append("(the intervals of the kinds leave that error out)")
    for side, name in (("right", right), ("left", left)):
        lines += ["", f"most decided for {name}"]
        lines += [
            f"  {_most(example.probabilities)}  {fit_width(str(example.pair.id), 16)}  {fit_width(example.pair.prompt[0], 60).rstrip()}"
            for example in found.examples[side]
        ]
    return "\n".join(lines)


def _percent(figure: Figure) -> str:
    return f"{figure.value:6.1%} [{figure.low:.1%}, {figure.high:.1%}]"


def _most(probabilities: Sequence[float]) -> str:
    return f"{max(probabilities[0], probabilities[1]):.0%}"
