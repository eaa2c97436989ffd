"""The charts of a report as inline SVG. They use the colours of the page, so one drawing serves light and dark."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prefcast.measuring.metrics import HISTOGRAM
from prefcast.report.plots import BLUE, GREY, INK, inline_svg, plot_style, styled_figure
from prefcast.report.terminal import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from prefcast.measuring.metrics import Baseline, Bin, Figure, Slice

__all__ = ["ladder_svg", "margins_svg", "reliability_svg", "slice_range", "slices_svg"]

# The colours of a drawing, and the names of the page's colours that replace them.
_MUTED, _GRID = "#777777", "#DDDDDD"
_ON_PAGE = {
    BLUE: "var(--accent)",
    INK: "currentColor",
    GREY: "var(--axis)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
}
_COLOUR = re.compile("|".join(_ON_PAGE), re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
# In inches: text is legible on a telephone, where the figure is as wide as the page.
_WIDTH = 3.7
_LABEL = 21
# Where the labels of slices end and where the chart ends, so that all charts of slices line up.
_LEFT, _RIGHT = 0.42, 0.97


def _page_svg(figure: Drawing, name: str) -> str:
    """A figure as an `<svg>` element in the colours of the page; `name` (letters) makes its ids unique."""
    text = inline_svg(figure)

    def on_page(match: re.Match[str]) -> str:
        tag = match[0]
        if tag.startswith(("<!", "<?")):
            return ""
        tag = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag).replace("xlink:href=", "href=")
        tag = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", tag)
        # A style can hold a variable, a presentation attribute cannot; matplotlib writes styles.
        return _COLOUR.sub(lambda colour: _ON_PAGE[colour[0].upper()], tag)

    # matplotlib escapes < and > in text and attributes, so the pattern finds only tags.
    return _TAG.sub(on_page, text)


def _blank(width: float, height: float) -> tuple[Drawing, Axes]:
    figure, panels = _panels(width, height, 1)
    return figure, panels[0]


def _panels(width: float, height: float, count: int) -> tuple[Drawing, list[Axes]]:
    """A figure with so many panels, one below the other, through which the page shows."""
    figure = styled_figure(width, height)
    figure.set_facecolor("none")
    panels = list(figure.subplots(count, 1, sharex=True, sharey=True, squeeze=False)[:, 0])
    for axes in panels:
        axes.set_facecolor("none")
        axes.tick_params(length=3, color=GREY)
    return figure, panels


def _interval(axes: Axes, figure: Figure, y: float, colour: str, hollow: bool = False) -> None:
    axes.plot([figure.low, figure.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
    inside = "none" if hollow else colour
    axes.plot(figure.value, y, "o", color=colour, markersize=6, markerfacecolor=inside, clip_on=False)


def _list(axes: Axes, labels: Sequence[str]) -> None:
    """Lines with these labels, the first on top, in place of the vertical axis."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def ladder_svg(name: str, log_loss: Figure, baselines: Mapping[str, Baseline]) -> str:
    """Log losses with intervals: the baselines in their order, then the forecast."""
    rungs = [(base.replace("_", " "), figures.log_loss) for base, figures in baselines.items()]
    rungs.append((name, log_loss))
    with plot_style():
        figure, axes = _blank(_WIDTH, 0.75 + 0.36 * len(rungs))
        for place, (_, found) in enumerate(rungs):
            last = place == len(rungs) - 1
            _interval(axes, found, place, BLUE if last else _MUTED)
        _list(axes, [short(label, 18) for label, _ in rungs])
        axes.get_yticklabels()[-1].set_color(BLUE)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("log loss (further left is better)")
        return _page_svg(figure, "ladder")


def reliability_svg(outcome: str, bins: Sequence[Bin], most: float) -> str:
    """The share of rows in which an outcome happened, against its forecast probability, both from 0 to `most`."""
    with plot_style():
        figure, axes = _blank(3.3, 3.1)
        axes.plot([0, most], [0, most], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for part in bins:
            axes.plot([part.forecast] * 2, [part.observed.low, part.observed.high], color=BLUE, linewidth=1.4)
        x, y = [part.forecast for part in bins], [part.observed.value for part in bins]
        axes.plot(x, y, "o", color=BLUE, markersize=5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_xlim(0, most)
        axes.set_ylim(0, most)
        axes.locator_params(nbins=5)
        axes.set_aspect("equal")
        axes.grid()
        axes.set_xlabel("forecast, %")
        axes.set_ylabel("happened, %")
        return _page_svg(figure, f"reliability-{outcome}")


def margins_svg(margins: Mapping[str, Sequence[int]], names: Mapping[str, str]) -> str:
    """Histograms of log(P(A) / P(B)) over HISTOGRAM, one for each outcome, in percent of the rows with that outcome."""
    shown = [outcome for outcome in margins if sum(margins[outcome])]
    filled = [abs(HISTOGRAM[i + (i >= 20)]) for outcome in shown for i, n in enumerate(margins[outcome]) if n]
    most = min(float(HISTOGRAM[-1]), max([*filled, 0.4]) + 0.2)
    with plot_style():
        figure, panels = _panels(_WIDTH, 0.6 + 0.95 * len(shown), len(shown))
        for axes, outcome in zip(panels, shown, strict=True):
            shares = [100 * count / sum(margins[outcome]) for count in margins[outcome]]
            axes.bar(HISTOGRAM[:-1], shares, width=HISTOGRAM[1] - HISTOGRAM[0], align="edge", color=BLUE)
            axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_title(names[outcome], fontsize=9)
            axes.set_xlim(-most, most)
            axes.locator_params(axis="y", nbins=3)
            axes.grid(axis="y")
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        figure.supylabel("% of these rows", fontsize=9)
        panels[-1].set_xlabel("log(P(A) / P(B)): above 0 it prefers A")
        return _page_svg(figure, "margins")


def slice_range(slices: Sequence[Slice]) -> tuple[float, float]:
    """The range of gains of a chart: the intervals of all slices that are not small, 0, and a margin on both sides."""
    large = [part for part in slices if not part.small] or list(slices)
    low, high = min([0.0, *(part.gain.low for part in large)]), max([0.0, *(part.gain.high for part in large)])
    room = 0.35 * max(high - low, 0.05)
    return low - room, high + room


def slices_svg(name: str, slices: Sequence[Slice], span: tuple[float, float]) -> str:
    """The gain over the class prior of each slice. Small slices are hollow and grey; a gain outside `span` is an arrow at
    the edge. `name` (letters) makes the ids unique."""
    labels = [_label(part) for part in slices]
    low, high = span
    with plot_style():
        below, rows = 0.48, 0.3 * len(labels) + 0.12 * sum(label.count("\n") for label in labels)
        figure, axes = _blank(_WIDTH, below + rows)
        figure.set_layout_engine("none")
        axes.set_position((_LEFT, below / (below + rows), _RIGHT - _LEFT, rows / (below + rows) - 0.01))
        for place, part in enumerate(slices):
            colour = _MUTED if part.small else BLUE
            if low <= part.gain.value <= high:
                _interval(axes, part.gain, place, colour, hollow=part.small)
            else:
                edge, arrow = (low, "<") if part.gain.value < low else (high, ">")
                axes.plot(edge, place, arrow, color=colour, markersize=7, clip_on=False)
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        _list(axes, labels)
        for label, part in zip(axes.get_yticklabels(), slices, strict=True):
            label.set_color(_MUTED if part.small else INK)
        axes.set_xlim(low, high)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("gain in log loss")
        return _page_svg(figure, name)


def _label(part: Slice) -> str:
    """The name on one or two lines (two models: one on each), and the number of rows, if need be on a further line."""
    if part.kind == "models" and " and " in part.name:
        left, right = part.name.split(" and ", 1)
        name = [left, f"and {right}"]
    else:
        wrapped = textwrap.wrap(short(part.name, 3 * _LABEL), _LABEL, break_on_hyphens=False) or [""]
        name = [wrapped[0], " ".join(wrapped[1:])] if len(wrapped) > 1 else wrapped
    lines = [short(line, _LABEL) for line in name]
    size = f"({part.n}, few)" if part.small else f"({part.n})"
    if len(lines[-1]) + 1 + len(size) <= _LABEL:
        return "\n".join([*lines[:-1], f"{lines[-1]} {size}".lstrip()])
    return "\n".join([*lines, size])
