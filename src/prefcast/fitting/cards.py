"""What a forecaster's folder says of its fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prefcast.fitting.cascade import CascadeFit
from prefcast.fitting.gathered import Gathered
from prefcast.fitting.selection import Fit, OverShipped
from prefcast.outcomes.agreement import Agreement
from prefcast.outcomes.models import Link, drawn_interval
from prefcast.pairs import Outcome
from prefcast.scorers.cascade.scorer import ESCALATED

__all__ = ["agreement_said", "card_of", "cascade_said", "shipped_said"]

_TIERS = {"first": "first tier alone", "both": "with the second tier"}


def card_of(
    found: Fit, link: Link, names: Sequence[str], gathered: Gathered, moved: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The description of a fit to the scorers `names`. `link` is the link that is saved, `moved` says how its tie level was
    adjusted, if it was."""
    low, high = drawn_interval(link.draws)
    columns = tuple(_named(column, names) for column in (*found.link.margin, "level", *found.link.tie))
    card: dict[str, Any] = {
        "fitted_on": {
            "rows": found.rows,
            "votes": found.votes,
            "first_prompts": found.groups,
            "outcome_shares": dict(zip(("a", "b", "tie"), found.shares, strict=True)),
            "failed": gathered.failed,
            "without_a_label": gathered.unlabelled,
            "truncated": gathered.truncated,
            **(
                {}
                if not gathered.in_sample
                else {"in_sample": {name: asdict(each) for name, each in gathered.in_sample.items()}}
            ),
        },
        "models": list(names),
        "used": [names[member] for member in found.members] if found.chosen != "prior" else [],
        "useless": [names[member] for member in found.useless],
        "outcome_model": found.chosen,
        "parameters": {
            name: {"value": float(value), "low": float(a), "high": float(b)}
            for name, value, a, b in zip(columns, link.theta, low, high, strict=True)
        },
        "cross_validated": {
            "rows": found.validated,
            "log_loss": asdict(found.log_loss),
            "gain_over_class_prior": asdict(found.gain),
            "better_than_class_prior": found.useful,
        },
        "candidates": [asdict(trial) for trial in found.trials],
    }
    if found.over_shipped is not None:
        over = found.over_shipped
        card["as_shipped"] = {
            "kept": over.kept,
            "rows": found.validated,
            "log_loss": asdict(over.log_loss),
            "best_fit": over.best,
            "log_loss_of_best_fit": asdict(over.best_log_loss),
            "gain_of_best_fit": asdict(over.gain),
            "said": shipped_said(over, found.validated),
        }
    if found.jury is not None:
        card["jury"] = {
            "loss_without": {names[member]: asdict(lost) for member, lost in found.jury.lost.items()},
            "correlations": {
                "models": list(names),
                "margin": found.jury.margin.tolist(),
                "tie": found.jury.tie.tolist(),
            },
        }
    if moved is not None:
        card["tie_level_moved"] = {"from": found.shares[Outcome.TIE], **moved}
    return card


def shipped_said(over: OverShipped, rows: int) -> str:
    """Whether the fit is better than the forecaster was before it, in one line."""
    gain, before, after = over.gain, over.log_loss.value, over.best_log_loss.value
    better = gain.value >= 0
    low, high = (gain.low, gain.high) if better else (-gain.high, -gain.low)
    size = f"{'better' if better else 'worse'} by {abs(gain.value):.4f} [{low:.4f}, {high:.4f}]"
    if not over.kept:
        return f"log loss out of fold {after:.4f}, as shipped {before:.4f}: {size} (n = {rows})"
    within = ", less than its standard error" if better else ""
    return (
        f"no fit is better than as shipped, so the forecaster stays as shipped: log loss {before:.4f}; the best fit "
        f"({over.best}) {after:.4f} out of fold: {size}{within} (n = {rows})"
    )


def cascade_said(found: CascadeFit, names: Sequence[str]) -> dict[str, Any]:
    """The description of a cascade."""
    return {
        "first": names[0],
        "then": names[1],
        "share": found.share,
        "rule": found.rule.name,
        "rules": [asdict(trial) for trial in found.rules],
        "cost": None if found.cost is None else {"first": found.cost[0], "second": found.cost[1]},
        "curve": [asdict(point) for point in found.curve],
    }


def agreement_said(promise: Agreement) -> dict[str, Any]:
    """The description of a promise of agreement."""
    return {**asdict(promise), "share": promise.share, "lower_bound": promise.lower_bound}


def _named(column: str, names: Sequence[str]) -> str:
    """The readable name of a column: margin:0 becomes "margin of surface"."""
    if column == ESCALATED:
        return f"{_TIERS['both']}: level, less that of the first"
    what, _, member = column.partition(":")
    member, _, tier = member.partition(":")
    shown = f"{what} of {names[int(member)]}" if member.isdecimal() else member or what
    return f"{_TIERS[tier]}: {shown}" if tier else shown
