"""The curves of a training as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prefcast.errors import FileError, shown_path
from prefcast.report.plots import BLUE, GREY, INK, plot_style, save_figure, styled_figure

__all__ = ["draw_curves"]

_LINES = "curves.jsonl"
_STEP, _EVALUATION = ("step", "loss", "rate", "tokens_per_second"), ("step", "validation")


def draw_curves(folder: str | os.PathLike[str]) -> Path:
    """Draw `curves.jsonl` of a trained model's folder as `curves.png`: loss with validation, learning rate, tokens a second.

    Raises FileError for a file of curves that cannot be read, and UsageError.
    """
    steps, evaluations = _read(Path(folder) / _LINES)
    target = Path(folder) / "curves.png"
    with plot_style():
        figure = styled_figure(7.0, 6.0)
        loss, rate, speed = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
        at = [each["step"] for each in steps]
        loss.plot(at, [each["loss"] for each in steps], color=GREY, linewidth=0.8, label="loss of each step")
        loss.plot(
            [each["step"] for each in evaluations],
            [each["validation"] for each in evaluations],
            "o-",
            color=BLUE,
            markersize=3.5,
            linewidth=1.4,
            label="validation log loss",
        )
        loss.legend(frameon=False)
        loss.set_title("loss")
        rate.plot(at, [each["rate"] for each in steps], color=INK, linewidth=1.0)
        rate.set_title("learning rate")
        speed.plot(at, [each["tokens_per_second"] for each in steps], color=INK, linewidth=0.8)
        speed.set_title("tokens a second")
        speed.set_xlabel("step")
        for axes in (loss, rate, speed):
            axes.grid(axis="y")
        save_figure(figure, target)
    return target


def _read(path: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The lines of steps, and those of evaluations."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise FileError(shown_path(path), f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = [_line(path, number, line) for number, line in enumerate(lines, 1)]
    return [each for each in found if "loss" in each], [each for each in found if "validation" in each]


def _line(path: Path, number: int, line: str) -> dict[str, float]:
    try:
        said = json.loads(line)
        return {name: float(said[name]) for name in (_EVALUATION if "validation" in said else _STEP)}
    except (ValueError, TypeError, KeyError) as error:
        raise FileError(shown_path(path), f"is not a line of curves: {type(error).__name__}: {error}", number) from None
