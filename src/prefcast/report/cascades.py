"""What a fit says of a cascade, of the members of an ensemble, and of a promise of agreement, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefcast.report.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

    from prefcast.fitting.cascade import CascadeFit
    from prefcast.fitting.selection import Jury
    from prefcast.measuring.collected import KeptRows
    from prefcast.outcomes.agreement import Agreement

__all__ = ["agreement_lines", "cascade_parts", "jury_parts", "kept_lines", "kept_said"]


def cascade_parts(found: CascadeFit) -> list[str | Table]:
    """The rules that were compared, and the curve."""
    rules = [
        (
            trial.name,
            f"{trial.log_loss:.4f}",
            "" if trial.over is None else f"{trial.gain:+.4f} ± {trial.error:.4f} over {trial.over}",
            "taken" if trial.name == found.rule.name else "",
        )
        for trial in found.rules
    ]
    head = ["share", "realised", "log loss", "gain over the first tier"]
    costs = found.cost is not None
    rows = [
        [
            f"{point.share:.0%}" + (" *" if point.share == found.share else ""),
            f"{point.realised:.1%}",
            str(point.log_loss),
            str(point.gain),
            *([f"{point.cost:.4g}"] if costs else []),
        ]
        for point in found.curve
    ]
    return [
        "which pairs the second tier scores; log loss is the mean over the shares between 0 and 1",
        table(("rule", "log loss", "gain ± standard error", ""), rules),
        "",
        "the share of the pairs that the second tier scores, out of fold; * is the share of this forecaster",
        table((*head, "cost of a pair") if costs else head, rows, right=(0, 1, 4) if costs else (0, 1)),
        "(the whole curve lies within these intervals with a probability of about 95 %)",
        "",
    ]


def jury_parts(found: Jury, names: Sequence[str]) -> list[str | Table]:
    """What each member of an ensemble is worth, and how alike the evidence of the models is."""
    rows = [
        (names[member], str(lost), "earns its cost" if lost.low > 0 else "not shown to earn its cost")
        for member, lost in found.lost.items()
    ]
    places = range(len(names))
    alike = [(names[row], *(f"{found.margin[row, column]:.2f}" for column in places)) for row in places]
    ties = [(names[row], *(f"{found.tie[row, column]:.2f}" for column in places)) for row in places]
    parts: list[str | Table] = []
    if rows:
        parts += ["", table(("member", "log loss that is lost without it", ""), rows)]
    parts += ["", "correlation between the margins", table(("", *names), alike)]
    if found.tie.any():
        parts += ["", "correlation between the evidence for ties", table(("", *names), ties)]
    return parts


def agreement_lines(promise: Agreement) -> list[str]:
    """What a forecaster promises."""
    head = f"agreement: tested on {promise.rows} labelled rows that were held out, one of each first prompt"
    if promise.threshold is None:
        return [
            head,
            f"no threshold reaches {promise.wanted:.0%} at {promise.confidence:.0%} confidence: every row is for people",
        ]
    return [
        head,
        f"the most likely answer agrees with people at least {promise.wanted:.0%} of the time, at {promise.confidence:.0%} "
        f"confidence, where its probability is at least {promise.threshold:.3f}: {promise.share:.1%} of the rows "
        f"({promise.agreed} of {promise.kept} agree); the others are for people (--hand-over FILE)",
    ]


def kept_said(found: KeptRows, promise: Agreement) -> dict[str, Any]:
    """What became of a promise on labelled rows, as JSON."""
    low, high = _interval(found)
    rate = found.agreed / found.kept if found.kept else None
    return {
        "wanted": promise.wanted,
        "confidence": promise.confidence,
        "threshold": promise.threshold,
        "rows": found.rows,
        "kept": found.kept,
        "agreed": found.agreed,
        "agreement": None if rate is None else {"value": rate, "low": low, "high": high},
    }


def kept_lines(said: Mapping[str, Any]) -> list[str]:
    """What `kept_said` says, in words."""
    rows, kept, rate = said["rows"], said["kept"], said["agreement"]
    promised = f"promised {said['wanted']:.0%} at {said['confidence']:.0%} confidence"
    if rate is None:
        return [f"agreement: every one of the {rows} rows is for people ({promised})"]
    return [
        f"agreement: {kept} of {rows} rows are kept from people ({kept / rows:.1%}); people agree on {said['agreed']} of them: "
        f"{rate['value']:.4f} [{rate['low']:.4f}, {rate['high']:.4f}] ({promised})"
    ]


def _interval(found: KeptRows) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson for the agreement."""
    from prefcast.outcomes.agreement import lower_bound

    level = 0.975
    return lower_bound(found.agreed, found.kept, level), 1 - lower_bound(found.kept - found.agreed, found.kept, level)
