"""An evaluation as one HTML page without scripts or other files, for light and dark screens, telephones and paper.

Texts of the files are untrusted: the template escapes them, invisible characters are shown as escapes, and the page's
content security policy forbids it to load or run anything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from prefcast.errors import printable
from prefcast.measuring.metrics import NAMES, Evaluation, Figure, Slice
from prefcast.report.svg import ladder_svg, margins_svg, reliability_svg, slice_range, slices_svg

if TYPE_CHECKING:
    from markupsafe import Markup

    from prefcast.measuring.collected import Surprise

__all__ = ["report_html", "visible"]

_SHOWN_TEXT = 4000
_SHOWN_TURNS = 12
_NAME = 120
# Zero-width joiners, which some scripts and emoji need. After an ASCII character they have no use.
_JOINERS = "\u200c\u200d"
_WON = {"a": "A won", "b": "B won", "tie": "Tie"}
_LETTERS = {"a": "A", "b": "B", "tie": "tie"}


def visible(text: str) -> str:
    """Untrusted text for a page: line ends, tabs and spaces are kept; other invisible characters, and those that change
    the direction of writing, are shown as escapes."""
    out: list[str] = []
    before = ""
    for c in text.replace("\r\n", "\n"):
        kept = c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
        joins = c in _JOINERS and before > "\x7f" and before not in _JOINERS
        out.append(c if kept or joins else c.encode("unicode_escape").decode("ascii"))
        before = c
    return "".join(out)


def report_html(
    evaluation: Evaluation,
    *,
    title: str,
    forecaster: str,
    source: str | None = None,
    date: str | None = None,
    surprises: Sequence[Surprise] | None = None,
) -> str:
    """The HTML of the report.

    `forecaster` is the name of the forecaster, `source` that of the file of labelled pairs. `surprises` are the rows to
    show, the worst first; None means that the texts are not available. The same arguments give the same page.
    """
    from importlib.metadata import version
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "plain": _plain,
        "signed": _signed,
        "percent": _percent,
        "bracketed": _bracketed,
        "spelled": _spelled,
        "visible": visible,
        "grouped": "{:,}".format,
        "counted": lambda count: f"{count:,.1f}".removesuffix(".0"),
    }
    page = environment.from_string(files("prefcast.report").joinpath("templates/report.html.jinja").read_text("utf-8"))
    return page.render(
        e=evaluation,
        scores=evaluation.scores,
        title=_spelled(title),
        forecaster=_spelled(forecaster),
        source=None if source is None else _spelled(source),
        date=date,
        version=version("prefcast"),
        names=NAMES,
        letters=_LETTERS,
        won=_WON,
        ladder=_figure(
            ladder_svg("this forecast", evaluation.scores.log_loss, evaluation.baselines), _ladder_alt(evaluation)
        ),
        reliability=_reliability(evaluation),
        margins=_figure(margins_svg(evaluation.margins, _WON), _MARGINS_ALT),
        kinds=_kinds(evaluation.slices),
        surprises=surprises,
        shown_text=_SHOWN_TEXT,
        shown_turns=_SHOWN_TURNS,
    )


def _spelled(text: object) -> str:
    """An untrusted name, escaped, on one line and of limited length."""
    name = printable(str(text))
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _plain(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%".replace("-", "−")


def _bracketed(figure: Figure, form: str = "plain") -> str:
    return f"{_FORMS[form](figure.low)} to {_FORMS[form](figure.high)}"


def _in_hundred(value: float) -> str:
    return f"{100 * value:.1f}"


_FORMS: dict[str, Callable[[float], str]] = {"plain": _plain, "signed": _signed, "percent": _in_hundred}


def _figure(svg: str, alt: str) -> Markup:
    """A drawing with its text alternative."""
    from markupsafe import Markup, escape

    drawing = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    # matplotlib made the drawing and escaped the names in it.
    return Markup(drawing)  # noqa: S704


_MARGINS_ALT = "Three histograms of the log of P(A) over P(B): where A won, where B won, where it was a tie."


def _ladder_alt(e: Evaluation) -> str:
    parts = [f"{base.replace('_', ' ')} {_plain(found.log_loss.value)}" for base, found in e.baselines.items()]
    return (
        f"Log losses: {', '.join(parts)}, this forecast {_plain(e.scores.log_loss.value)}. The table has the intervals."
    )


def _reliability(e: Evaluation) -> list[tuple[str, Markup]]:
    every = [part for bins in e.reliability.values() for part in bins]
    most = min(1.0, max([0.1, *(max(part.forecast, part.observed.high) for part in every)]) * 1.04)
    out = []
    for name in NAMES:
        bins = e.reliability[name]
        points = ", ".join(f"{_percent(part.forecast)} and {_percent(part.observed.value)}" for part in bins)
        alt = f"{_LETTERS[name]}: forecast probability and share that happened, bin by bin: {points}."
        out.append((name, _figure(reliability_svg(name, bins, most), alt)))
    return out


def _kinds(slices: Sequence[Slice]) -> list[tuple[str, list[Slice], Markup | None]]:
    """Each kind with its slices and, if there are several, their chart; all charts have the same range of gains."""
    kinds = [(kind, list(parts)) for kind, parts in groupby(slices, key=lambda part: part.kind)]
    drawn = [part for _, parts in kinds if len(parts) > 1 for part in parts]
    span = slice_range(drawn) if drawn else (0.0, 0.0)
    out = []
    for number, (kind, parts) in enumerate(kinds):
        chart = None
        if len(parts) > 1:
            said = "; ".join(f"{_spelled(part.name)} {_signed(part.gain.value)} (n {part.n})" for part in parts)
            chart = _figure(
                slices_svg(f"slices-{number}", parts, span), f"Gain in log loss over the class prior: {said}."
            )
        out.append((_spelled(kind), parts, chart))
    return out
