"""Evaluations as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefcast.report.terminal import counts_said, rendered, table

if TYPE_CHECKING:
    from rich.table import Table

    from prefcast.forecasts.fitted_rows import InSample
    from prefcast.measuring.bias import JudgeBias
    from prefcast.measuring.metrics import Baseline, Compared, Evaluation, Figure, PeopleLimit, Scores

__all__ = ["evaluation_text", "in_sample_said"]

# With fewer rows the bootstrap intervals are too narrow.
_FEW = 30
_FIRST = 16
_NAMES = {"a": "A won", "b": "B won", "tie": "it was a tie"}


def evaluation_text(evaluation: Evaluation, title: str, *, slices: bool = False) -> str:
    """The figures as tables: the forecast beside the baselines, the log loss by outcome, the calibration, and, if
    `slices`, the slices of rows."""
    shares = ", ".join(
        f"{name if name == 'tie' else name.upper()} {share:.0%}" for name, share in evaluation.outcome_shares.items()
    )
    left_out = counts_said((evaluation.failed, "failed"), (evaluation.unlabelled, "without a label"))
    scores = evaluation.scores
    baselines = [(name.replace("_", " "), base) for name, base in evaluation.baselines.items()]
    every: list[tuple[str, Scores | Baseline]] = [(title, scores), *baselines]
    pairwise = f"{_or_dash(scores.pairwise_accuracy)} on {scores.decisive} pairs whose label is no tie"
    columns = [("log loss", "log_loss"), ("accuracy", "accuracy"), ("Brier score", "brier_score")]
    more: list[tuple[str, str]] = []
    if evaluation.by_margin:
        columns = [("pairwise accuracy", "pairwise_accuracy")]
        more.append(("pairwise accuracy", f"on {scores.decisive} pairs whose label is no tie"))
    else:
        if scores.decisive == evaluation.n:
            columns.insert(1, ("pairwise accuracy", "pairwise_accuracy"))
        else:
            more.append(("pairwise accuracy", pairwise))
        more += _three_outcomes(evaluation)
    rows = [(name, *(_or_dash(getattr(each, field)) for _, field in columns)) for name, each in every]
    if evaluation.order_swap is not None:
        swap = evaluation.order_swap
        change = "" if evaluation.by_margin else f"; largest change {swap.largest_change:.2g}"
        more.append(("A and B exchanged", f"{swap.flips:.1%} of {swap.n} favourites change{change}"))
    more += _judge(evaluation.judge_bias)
    several = evaluation.compared is not None and len(evaluation.compared.others) > 1
    if evaluation.against is not None and not several:
        other = evaluation.against
        more.append((f"minus {other.name}", f"log loss {other.log_loss}, on {other.n} rows that both have"))
        more.append(("", f"Brier score {other.brier_score}, accuracy {other.accuracy}"))
    weighted = ", weighted" if evaluation.weighted else ""
    parts: list[str | Table] = [
        f"{evaluation.n} labelled pairs ({shares}){weighted}{left_out}; 95 % intervals by bootstrap over {evaluation.groups} {evaluation.resampled}",
        *in_sample_said(evaluation.in_sample, "these figures are in-sample, and forecasts of new rows are worse"),
        "",
        table(("", *(head for head, _ in columns)), rows, first_width=_FIRST),
        "",
        table(("", ""), more),
        *([] if evaluation.people is None or evaluation.by_margin else _people(evaluation.people)),
        *(_several(evaluation.compared, title) if several and evaluation.compared is not None else []),
    ]
    if evaluation.by_margin:
        parts.append(
            "no outcome model was fitted to these scores, so there are no probabilities to measure (prefcast fit)"
        )
    elif scores.decisive == evaluation.n:
        parts.append("no label is a tie: pairwise accuracy leaves the forecast of a tie out")
    if slices:
        parts += ["", *_slices(evaluation)]
    if evaluation.groups < _FEW:
        parts += [
            "",
            f"{evaluation.groups} {evaluation.resampled} are few: the intervals above are too narrow, and the figures are uncertain",
        ]
    return rendered(*parts)


def _three_outcomes(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The figures of the three probabilities, beside those of the main table."""
    scores = evaluation.scores
    return [
        *((f"gain over {name.replace('_', ' ')}", str(base.gain)) for name, base in evaluation.baselines.items()),
        *((f"log loss where {_NAMES[name]}", str(found)) for name, found in scores.log_loss_by_outcome.items()),
        ("expected calibration error", f"{scores.expected_calibration_error}, debiased"),
        ("  plain", str(scores.expected_calibration_error_plain)),
        ("are they calibrated?", _calibrated(scores)),
        ("tie recall", _or_dash(scores.tie_recall)),
        ("AUC on decisive pairs", _or_dash(scores.auc)),
    ]


def _calibrated(scores: Scores) -> str:
    """What the tests of calibration say."""
    error, recalibrated = scores.calibration_p_value, scores.calibration_test
    least = min(error, 1.0 if recalibrated is None else recalibrated.p_value)
    # Two tests: one of them is below 0.025 in at most 5 % of the cases.
    said = "no" if least < 0.025 else "nothing speaks against it"
    slope = "" if recalibrated is None else f"{_p(recalibrated.p_value)} (slope and shift), "
    return f"{said}: {slope}{_p(error)} (bins)"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def in_sample_said(found: InSample | None, so: str) -> list[str]:
    """A warning, if the forecaster was fitted on some of the rows, or on rows with their first prompts."""
    if found is None:
        return []
    return [*([f"{found}: {so}"] if found.found else []), *filter(None, [found.prompts_said])]


def _people(limit: PeopleLimit) -> list[str | Table]:
    """The best that a forecast of these pairs can do."""
    rows = [
        ("people agree", f"two votes on one pair are the same in {_share(limit.agree)}"),
        ("best possible", f"log loss {limit.log_loss}, Brier score {limit.brier_score}"),
        ("this forecast", f"log loss {limit.forecast}"),
    ]
    return ["", f"{limit.pairs} pairs have several votes ({limit.votes} in all)", table(("", ""), rows)]


def _share(figure: Figure) -> str:
    return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}]"


def _several(found: Compared, title: str) -> list[str | Table]:
    """All forecasts on the rows that all of them have."""
    mine = (title, str(found.log_loss), "", "", "yes" if found.may_be_best else "no")
    rows = [
        (other.name, str(other.theirs), str(other.log_loss), str(other.together), "yes" if other.may_be_best else "no")
        for other in found.others
    ]
    head = ("", "log loss", f"{title} minus this", "all together", "may be the best")
    return [
        "",
        f"{len(rows) + 1} forecasts on the {found.n} rows that all of them have",
        table(head, [mine, *rows], first_width=_FIRST),
        "the intervals under `all together` hold for all pairs of forecasts at once; no forecast is clearly better than one that may be the best",
    ]


def _judge(bias: JudgeBias | None) -> list[tuple[str, str]]:
    """The biases of a judge."""
    if bias is None:
        return []
    kinds = (("the longer answer", bias.longer), ("its own answer", bias.own))
    return [
        ("judge: what it reads first", f"{bias.position} in log-odds, {bias.first} of its verdicts"),
        ("judge: other order", f"{bias.turned} of its verdicts turn"),
        *(
            (f"judge: {what}", f"{each.judge} of {each.n}, people {each.people}; difference {each.excess}")
            for what, each in kinds
            if each is not None
        ),
        ("judge: no verdict", f"{bias.uncovered} of the probability"),
    ]


def _or_dash(figure: Figure | None) -> str:
    return "-" if figure is None else str(figure)


def _slices(evaluation: Evaluation) -> list[str | Table]:
    if not evaluation.slices:
        return ["no slices: slices need the texts; name the file of labelled pairs"]
    head: tuple[str, ...] = ("slice", "n", "log loss", "gain over class prior", "pairwise accuracy", "of", "")
    rows: list[tuple[str, ...]] = [
        (
            f"{part.kind}: {part.name}",
            str(part.n),
            str(part.log_loss),
            str(part.gain),
            _or_dash(part.pairwise_accuracy),
            str(part.decisive),
            "few rows" if part.small else "",
        )
        for part in evaluation.slices
    ]
    if evaluation.by_margin:
        head, rows = (head[0], *head[4:]), [(row[0], *row[4:]) for row in rows]
    made = table(head, rows)
    small = sum(part.small for part in evaluation.slices)
    return [made, f"{small} slices have fewer than 100 rows: their figures are uncertain"] if small else [made]
