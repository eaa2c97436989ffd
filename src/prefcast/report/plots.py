"""Plots in one style; only this module and `svg` use matplotlib.

Figures are made inside `plot_style()`, without pyplot and its global state. Texts of files are never parsed as
formulas (`$...$`). The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from prefcast.base.files import atomic_file, checked_ending
from prefcast.report.terminal import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prefcast.measuring.ranking import Leaderboard

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "inline_svg",
    "leaderboard_figure",
    "plot_kind",
    "plot_style",
    "save_figure",
    "styled_figure",
]

# From Okabe and Ito (2008, "Color universal design"): visible with any colour vision.
BLUE = "#0072B2"
INK, GREY = "#222222", "#8A8A8A"
# Orange to purple through white: visible with any colour vision.
_DIVERGING = "PuOr"

_STYLE: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "prefcast",
    "pdf.fonttype": 42,
}
# Metadata that would differ from day to day or between machines.
_NOTHING: dict[str, dict[str, None]] = {
    ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    ".png": {"Software": None},
    ".pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}
_HEAT_MAP, _NUMBERS, _NAME = 30, 16, 56


@contextmanager
def plot_style() -> Iterator[None]:
    """A block in which to make and save figures; its settings end with it."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _STYLE))
        yield


def styled_figure(width: float, height: float) -> Figure:
    """An empty white figure of `width` by `height` inches with automatic layout; use it inside `plot_style()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plot_kind(path: str | os.PathLike[str]) -> str:
    """The extension of a plot's file. Raises UsageError if it is not .svg, .png or .pdf."""
    return checked_ending(path, "a plot", *_NOTHING)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the extension, whole or not at all. Raises UsageError."""
    kind = plot_kind(path)
    with atomic_file(path) as file:
        _render(figure, file, kind)


def inline_svg(figure: Figure) -> str:
    """A figure as an `<svg>` element for an HTML page, with text as text and without a style sheet."""
    buffer = io.BytesIO()
    _render(figure, buffer, ".svg")
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    # A style sheet inside the element would apply to the whole page.
    sheet = re.search(r"\s*<defs>\s*<style[^>]*>\*\{(.*?)\}</style>\s*</defs>", text)
    if sheet:
        text = text[: sheet.start()] + text[sheet.end() :]
        text = text.replace("<svg ", f'<svg style="{sheet[1]}" ', 1)
    return text


def _render(figure: Figure, file: BinaryIO | io.BytesIO, kind: str) -> None:
    with plot_style(), warnings.catch_warnings():
        # A character that the font lacks is drawn as a box in .png and .pdf; an .svg uses the reader's fonts.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.savefig(file, format=kind[1:], metadata=_NOTHING[kind])


def leaderboard_figure(board: Leaderboard) -> Figure:
    """Ratings with their 95 % intervals, the best on top, and for up to 30 models a map of the predicted win rates."""
    k = len(board.standings)
    names = [short(standing.model, _NAME) for standing in board.standings]
    with_map = k <= _HEAT_MAP
    side = max(2.2, 0.27 * k)
    label = 0.075 * max(map(len, names))
    figure_width = 1.4 + label + 4.0 + (side + 1.4 if with_map else 0.0)
    with plot_style():
        figure = styled_figure(figure_width, 1.3 + side)
        widths = [4.0, side + 0.6] if with_map else [4.0]
        axes = figure.subplots(1, len(widths), width_ratios=widths, sharey=True, squeeze=False)[0]
        _ratings(axes[0], board, names)
        if with_map:
            _win_rates(figure, axes[1], board)
    return figure


def _ratings(axes: Axes, board: Leaderboard, names: list[str]) -> None:
    k = len(names)
    for place, standing in enumerate(board.standings):
        axes.plot([standing.low, standing.high], [place, place], color=BLUE, linewidth=1.6, solid_capstyle="butt")
        axes.plot(standing.rating, place, "o", color=BLUE, markersize=4.5)
    axes.axvline(1000, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(k), [f"{name}  {place}" for place, name in enumerate(names, 1)])
    axes.set_ylim(k - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel("rating (Elo points, mean 1000) and 95 % interval")
    counted = "votes, with forecasts" if board.source == "both" else board.source
    axes.set_title(f"{board.n:,} {counted}, {board.groups:,} {board.resampled}")


def _win_rates(figure: Figure, axes: Axes, board: Leaderboard) -> None:
    k = len(board.standings)
    image = axes.imshow(100 * board.predicted, cmap=_DIVERGING, vmin=0, vmax=100, aspect="equal")
    axes.set_xticks(range(k), [str(place) for place in range(1, k + 1)])
    axes.tick_params(length=0, labelleft=False)
    axes.spines[:].set_visible(False)
    axes.set_title("row wins against column, %")
    if k <= _NUMBERS:
        for i in range(k):
            for j in range(k):
                if i != j:
                    share = board.predicted[i, j]
                    ink = "white" if abs(share - 0.5) > 0.32 else INK
                    axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 2.2 / (0.27 * k)), aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
