"""An evaluation as one HTML page without scripts or other files, for light and dark screens, telephones and paper.

Texts of the files are untrusted: the template escapes them, invisible characters are shown as escapes, and the page's
content security policy forbids it to load or run anything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
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
        "plain": _number,
        "signed": lambda value: _number(value, "signed"),
        "percent": lambda value: f"{_number(value, 'percent')}\u00a0%",
        "bracketed": _bracketed,
        "drawing": _drawing,
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
        ladder=ladder_svg("this forecast", evaluation.scores.log_loss, evaluation.baselines),
        reliability=_reliability(evaluation),
        margins=margins_svg(evaluation.margins, _WON),
        kinds=_kinds(evaluation.slices),
        surprises=surprises,
        shown_text=_SHOWN_TEXT,
        shown_turns=_SHOWN_TURNS,
    )


def _spelled(text: object) -> str:
    """An untrusted name, escaped, on one line and of limited length."""
    name = printable(str(text))
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _number(value: float, form: str = "plain") -> str:
    """A number with three decimals, `signed` or not, or in hundred (`percent`, without the sign %)."""
    shown = f"{100 * value:.1f}" if form == "percent" else f"{value:{'+' if form == 'signed' else ''}.3f}"
    return shown.replace("-", "−")


def _bracketed(figure: Figure, form: str = "plain") -> str:
    return f"{_number(figure.low, form)} to {_number(figure.high, form)}"


def _drawing(svg: str, alt: str) -> Markup:
    """A drawing with its text alternative."""
    from markupsafe import Markup, escape

    # matplotlib made the drawing and escaped the names in it.
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))  # noqa: S704


def _reliability(e: Evaluation) -> dict[str, str]:
    """The chart of each outcome; all charts have the same range of probabilities."""
    every = [part for bins in e.reliability.values() for part in bins]
    most = min(1.0, max([0.1, *(max(part.forecast, part.observed.high) for part in every)]) * 1.04)
    return {name: reliability_svg(name, e.reliability[name], most) for name in NAMES}


def _kinds(slices: Sequence[Slice]) -> list[tuple[str, list[Slice], str | None]]:
    """Each kind with its slices and, if there are several, their chart; all charts have the same range of gains."""
    kinds = [(kind, list(parts)) for kind, parts in groupby(slices, key=lambda part: part.kind)]
    drawn = [part for _, parts in kinds if len(parts) > 1 for part in parts]
    span = slice_range(drawn) if drawn else (0.0, 0.0)
    return [
        (_spelled(kind), parts, slices_svg(f"slices-{number}", parts, span) if len(parts) > 1 else None)
        for number, (kind, parts) in enumerate(kinds)
    ]
