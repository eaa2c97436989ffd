"""Fits, comparisons and drifts as text, and any of them as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefcast.base.files import atomic_file
from prefcast.errors import shown_path
from prefcast.report.cascades import agreement_lines, cascade_parts, jury_parts
from prefcast.report.evaluations import in_sample_said
from prefcast.report.terminal import counts_said, rendered, short, table

if TYPE_CHECKING:
    from rich.table import Table

    from prefcast.base.tables import Tables
    from prefcast.fitting import Fitted
    from prefcast.measuring.comparison import Comparison
    from prefcast.measuring.drift import Drift
    from prefcast.measuring.metrics import Figure
    from prefcast.measuring.sampling import Plan
    from prefcast.pairs.formats.answers import JoinReport

__all__ = [
    "comparison_text",
    "drift_text",
    "fit_text",
    "plan_text",
    "write_json",
    "write_markdown",
]

_FIRST = 16
_ID, _PROMPT = 16, 60


def fit_text(fitted: Fitted) -> str:
    """What a fit found: the candidates, the choice, its parameters, and whether it helps."""
    fit, card = fitted.fit, fitted.forecaster.card
    shares = ", ".join(
        f"{name} {share:.0%}"
        for name, share in zip(("A", "B", "tie"), card["fitted_on"]["outcome_shares"].values(), strict=True)
    )
    votes = "" if fit.votes == fit.rows else f" with {fit.votes:g} votes"
    left_out = counts_said((fitted.failed, "failed"), (fitted.unlabelled, "without a label"))
    rows = [
        (
            trial.name,
            f"{trial.log_loss:.4f}",
            "" if trial.over is None else f"{trial.gain:+.4f} ± {trial.error:.4f} over {trial.over}",
            "taken" if trial.taken else "",
        )
        for trial in fit.trials
    ]
    parameters = [
        (f"  {name}", f"{said['value']:+.4g} [{said['low']:+.4g}, {said['high']:+.4g}]")
        for name, said in card["parameters"].items()
        if said["value"] or said["low"] or said["high"]
    ]
    parts: list[str | Table] = [
        f"{fit.rows} labelled pairs{votes} ({shares}){left_out}, {fit.groups} groups",
        "",
        table(("candidate", "log loss", "gain ± standard error", ""), rows, first_width=_FIRST),
        "",
        f"chosen: {fit.chosen}; log loss {fit.log_loss} out of fold",
        *([card["as_shipped"]["said"]] if "as_shipped" in card else []),
        *([table(("", ""), parameters)] if parameters else []),
        *(f"{name} adds nothing: it has weight 0 and is not in the forecaster" for name in card["useless"]),
        *([] if fit.jury is None else jury_parts(fit.jury, fitted.names)),
    ]
    for name, seen in fitted.in_sample.items():
        parts += in_sample_said(
            seen, f"{name} knows their labels, so the figures are in-sample, cross-validated or not"
        )
    if "tie_level_moved" in card:
        parts += _moved_ties(card["tie_level_moved"])
    if fitted.cascade is not None:
        parts += ["", *cascade_parts(fitted.cascade)]
    if fitted.forecaster.agreement is not None:
        parts += agreement_lines(fitted.forecaster.agreement)
    no_better = "it is no better than the class prior, as far as these labels can tell: its gain is"
    return rendered(*parts, f"it gains {fit.gain} over the class prior" if fit.useful else f"{no_better} {fit.gain}")


def _moved_ties(moved: Mapping[str, Any]) -> list[str]:
    """How far the tie level was moved, and, if the share was estimated, on what grounds and with what result."""
    line = f"the share of ties moved from {moved['from']:.1%} among the labels to {moved['to']:.1%}"
    if "estimate" not in moved:
        return [line]
    share, loss, gain = moved["estimate"], moved["log_loss"], moved["gain"]
    bounded = "; more is not believed" if moved["bounded"] else ""
    return [
        f"the target has {share['value']:.1%} ties [{share['low']:.1%}, {share['high']:.1%}], estimated from "
        f"{moved['rows']} pairs with {moved['groups']} first prompts",
        f"a mixture of the labelled ties and the other labelled pairs describes the target (p = {moved['p_value']:.2f})",
        f"{line}, the estimate shrunk by its error{bounded}",
        f"expected log loss on the target {loss['value']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}], "
        f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] better than without the move",
    ]


def plan_text(found: Plan) -> str:
    """How narrow the interval will be, and how many votes a preference needs."""
    rows = [(f"{votes:,}", f"± {100 * half:.1f}", f"± {100 * alone:.1f}") for votes, half, alone in found.halves]
    right, left = (f"{100 * share:g}" for share in found.see)
    enough = "" if found.needed <= found.pairs else f"; there are {found.pairs:,}"
    return rendered(
        "how far win minus loss (in points) can be from the estimate, with 95 % confidence, if the forecasts are calibrated",
        table(("votes", "with forecasts", "votes alone"), rows, right=(0, 1, 2)),
        f"to see {right} to {left} with 90 % power: votes on {found.needed:,} pairs{enough} (without forecasts: {found.needed_alone:,})",
    )


def voted_text(found: Comparison, report: JoinReport) -> str:
    """Which system people prefer by votes and forecasts, and how much each of the two says alone."""
    left, right, of = found.left, found.right, found.voted
    assert of is not None  # noqa: S101
    rates = [
        (f"{right} preferred", *_percent(of.win)),
        (f"{left} preferred", *_percent(of.loss)),
        ("tie", *_percent(of.tie)),
        ("win minus loss", *_percent(of.net)),
        *([] if of.always is None else [("  at any time", *_percent(of.always))]),
        ("  votes alone", *_percent(of.alone)),
        ("  forecasts alone", *_percent(found.net)),
    ]
    open_ = "still open"
    if of.more is not None:
        open_ += f"; about {of.more:,} more pairs with votes would decide it, if the rates stay as they are"
    elif of.verdict == "none":
        open_ += (
            "; votes on all of these pairs would probably not decide it: the two are too close, or the pairs too few"
        )
    verdict = {"right": f"people prefer {right}", "left": f"people prefer {left}", "none": open_}[of.verdict]
    raters = f" by {of.raters} rater{'s' * (of.raters > 1)}" if of.raters else ""
    agree = "" if of.agreement is None else f"; two raters of one pair agree in {of.agreement:.0%}"
    categories = [
        (
            each.name or "(none)",
            f"{each.voted} of {each.pairs}",
            *(
                ("", "", "too few votes")
                if each.net is None
                else (*_percent(each.net), {"right": right, "left": left, "none": "open"}[each.verdict])
            ),
        )
        for each in of.categories
    ]
    parts: list[str | Table] = [
        f"{of.votes} votes{raters} on {of.pairs} of {found.n} pairs (joined by {report.by}){agree}; {right} against {left}",
        *(
            f"  {what}: {count}"
            for count, what in ((of.unmatched, "votes on ids that no pair has"), (of.skipped, "rows without a vote"))
            if count
        ),
        "",
        table(("", "", ""), rates, right=(1,), first_width=_FIRST),
        "",
        verdict,
        "(95 % intervals; they hold whatever the forecasts are worth, if the pairs with votes are a random sample)",
        f"the forecasts correlate {of.correlation:.2f} with the votes: {of.pairs} pairs with votes give as narrow an interval as "
        f"{of.worth} would without forecasts",
    ]
    if categories:
        parts += [
            "",
            table(("category", "with votes", "win minus loss", "", ""), categories, right=(1, 2)),
            "(these intervals hold together, in 95 % of cases)",
        ]
    return rendered(*parts)


def comparison_text(found: Comparison, report: JoinReport) -> str:
    """Which system people would prefer, with intervals, kinds of prompts, and the clearest examples."""
    if found.voted is not None:
        return voted_text(found, report)
    left, right = found.left, found.right
    failed = report.failed + found.failed
    left_out = ((report.only_left, f"only in {left}"), (report.only_right, f"only in {right}"), (failed, "failed"))
    expected = [
        (f"{right} preferred", *_percent(found.win)),
        (f"{left} preferred", *_percent(found.loss)),
        ("tie", *_percent(found.tie)),
        ("win minus loss", *_percent(found.net)),
    ]
    verdict = {
        "right": f"people would prefer {right}",
        "left": f"people would prefer {left}",
        "none": "no difference that this forecaster can see",
    }
    covered = "which prompts alone; this forecaster has no record of its own error"
    if found.calibrated:
        covered = (
            "which prompts, the fitted outcome model, and this forecaster's own error for a whole system, which has a standard "
            f"deviation of {found.bias['net']:.1%} in win minus loss"
        )
    kinds = [
        (f"{part.kind}: {part.name}", str(part.n), *_percent(part.net), "few rows" if part.small else "")
        for part in found.slices
    ]
    parts: list[str | Table] = [
        f"{found.n} prompts that both answered (joined by {report.by}); {right} against {left}",
        *(f"  {count} {what}" for count, what in left_out if count),
        "",
        table(("", "", ""), expected, right=(1,), first_width=_FIRST),
        "",
        verdict[found.verdict],
        f"(the 95 % intervals cover {covered})",
        *in_sample_said(found.in_sample, "the forecasts of these are in-sample"),
        *_unlike_said(found),
        "",
        table(("kind of prompt", "n", "win minus loss", "", ""), kinds, right=(1, 2)),
    ]
    if found.calibrated:
        parts.append("(the intervals of the kinds do not cover that error)")
    for side, name in (("right", right), ("left", left)):
        examples = [
            (
                f"  {max(example.probabilities[:2]):.0%}",
                short(str(example.pair.id), _ID),
                short(example.pair.prompt[0], _PROMPT),
            )
            for example in found.examples[side]
        ]
        parts += ["", f"clearest forecasts for {name}", *([table(("", "", ""), examples)] if examples else [])]
    return rendered(*parts)


def _unlike_said(found: Comparison) -> list[str]:
    if not found.unlike:
        return []
    are = "pair is" if found.unlike == 1 else "pairs are"
    return [f"{found.unlike} of {found.n} {are} unlike the training pairs: those forecasts are less certain"]


def _percent(figure: Figure) -> tuple[str, str]:
    return f"{figure.value:.1%}", f"[{figure.low:.1%}, {figure.high:.1%}]"


def drift_text(drift: Drift) -> str:
    """How far a precision moves the scores."""
    facts = [
        (
            "margin",
            f"mean {drift.mean:.3g}, largest {drift.largest:.3g}; the margins' own spread is {drift.spread:.3g}, "
            f"correlation {drift.correlation:.4f}",
        ),
        ("sign", f"{drift.flipped:.1%} of the pairs change sides"),
    ]
    if drift.log_loss_before is None or drift.log_loss_after is None:
        facts.append(("log loss", drift.link))
    else:
        change = f"change {drift.log_loss_change} over {drift.labelled} labelled pairs,"
        facts.append(("log loss", f"{drift.log_loss_before:.4f} before, {drift.log_loss_after:.4f} after, {change}"))
        facts.append(("", drift.link))
    return rendered(
        f"drift over {drift.n} pairs{f' ({drift.failed} failed)' if drift.failed else ''}", table(("", ""), facts)
    )


def write_json(data: Mapping[str, Any], path: str) -> None:
    """Write JSON to a file, whole or not at all, or to standard output (`-`)."""
    _write(json.dumps(data, indent=1, allow_nan=False) + "\n", path)


def write_markdown(found: Tables, path: str) -> None:
    """Write the tables of a result as Markdown to a file, whole or not at all, or to standard output (`-`)."""
    _write(found.to_markdown(), path)


def _write(text: str, path: str) -> None:
    if path == "-":
        sys.stdout.write(text)
        return
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))
    print(f"figures in {shown_path(path)}")
