"""Results as plain text for a terminal or a pipe.

Texts of the files are untrusted: nothing invisible of them is printed.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from prefcast.base.files import atomic_file
from prefcast.errors import printable, shown_path
from prefcast.forecasts.predictions import Forecast, Forecasts
from prefcast.pairs import Outcome, Pair

if TYPE_CHECKING:
    from prefcast.forecasts.best import Choice
    from prefcast.forecasts.check import Inspection
    from prefcast.forecasts.forecaster import Explanation
    from prefcast.measuring.drift import Drift
    from prefcast.measuring.ranking import Leaderboard
    from prefcast.scorers.reward.checkpoint import Checkpoint

__all__ = [
    "ChoiceTable",
    "TableWriter",
    "checkpoint_text",
    "drift_text",
    "explanation_text",
    "fit_width",
    "inspection_text",
    "leaderboard_text",
    "models_text",
    "size_text",
    "write_json",
]

_BAR = 30
_LEAST_CHANGE = 0.0005
_ID, _PROMPT = 16, 60
_MODEL, _LEFT_OUT = 60, 20
_SHOWN_INFLUENCES, _SHOWN_VALUES, _SHOWN_TEXT = 8, 3, 400


class TableWriter:
    """Forecasts as lines of a table, as they come."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = False

    def write(self, forecasts: Forecasts) -> None:
        if not self._begun:
            self._out.write(f"{fit_width('id', _ID)}   A     B    tie    prompt\n")
            self._begun = True
        for index in range(len(forecasts)):
            forecast, pair = forecasts[index], forecasts.pairs[index]
            note = str(forecast.error) if forecast.error else pair.turns[0].prompt if pair else ""
            numbers = "  ".join(f"{p:.2f}" for p in forecast.probabilities)
            self._out.write(
                f"{fit_width(str(forecast.id), _ID)}  {numbers}   {'! ' if forecast.error else ''}{fit_width(note, 120 if forecast.error else _PROMPT).rstrip()}\n"
            )


class ChoiceTable:
    """The best of each prompt's responses as lines of a table, as they come."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = False

    def write(self, choice: Choice) -> None:
        if not self._begun:
            self._out.write(f"{fit_width('id', _ID)}  best  of  strength  response\n")
            self._begun = True
        if choice.ranking is None or choice.candidates is None:
            self._out.write(
                f"{fit_width(str(choice.id), _ID)}     -   -         -  ! {fit_width(str(choice.error), 120).rstrip()}\n"
            )
            return
        best, responses = choice.ranking.best, choice.candidates.responses
        self._out.write(
            f"{fit_width(str(choice.id), _ID)}  {best:4}  {len(responses):2}  {choice.ranking.strengths[best]:8.2f}  {fit_width(responses[best][-1], _PROMPT).rstrip()}\n"
        )


def fit_width(text: str, width: int) -> str:
    """Printable text in exactly `width` columns of a terminal; wide characters count double."""
    out, used = [], 0
    clean = printable(text[: 4 * width])
    total = sum(map(_columns, clean))
    for character in clean:
        if used + _columns(character) > (width if total <= width and len(text) <= 4 * width else width - 1):
            out.append("…")
            used += 1
            break
        out.append(character)
        used += _columns(character)
    return "".join(out) + " " * (width - used)


def _columns(character: str) -> int:
    return 0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1


def leaderboard_text(board: Leaderboard) -> str:
    """The models, the best first, a line each."""
    left_out = "".join(
        f", {count} {what}"
        for count, what in ((board.failed, "failed"), (board.unlabelled, "without a vote"), (board.faults, "at fault"))
        if count
    )
    models = [fit_width(standing.model, _MODEL).rstrip() for standing in board.standings]
    width = max(5, *(sum(map(_columns, model)) for model in models))
    lines = [
        f"{board.n} {board.source} between {len(models)} models{left_out}; 95 % intervals by bootstrap over {board.groups} {board.resampled}",
        "",
        f"rank  range   {'model':{width}}  rating  95 % interval  {board.source:>9}  win rate",
    ]
    for standing, model in zip(board.standings, models, strict=True):
        span = f"{standing.rank_low}-{standing.rank_high}"
        interval = f"[{standing.low:.0f}, {standing.high:.0f}]"
        lines.append(
            f"{standing.rank:4}  {span:6}  {fit_width(model, width)}  {standing.rating:6.0f}  {interval:13}  {standing.n:9}  {standing.win_rate:8.1%}"
        )
    if board.left_out:
        shown = ", ".join(fit_width(model, _MODEL).rstrip() for model in board.left_out[:_LEFT_OUT])
        more = f" and {len(board.left_out) - _LEFT_OUT} more" if len(board.left_out) > _LEFT_OUT else ""
        lines += ["", f"left out, with fewer than {board.min_votes} {board.source}: {shown}{more}"]
    return "\n".join(lines)


def explanation_text(pair: Pair, explanation: Explanation) -> str:
    """A pair, its forecast as bars, and what moved it."""
    forecast = explanation.forecast
    lines = [f"{printable(str(forecast.id))}: {len(pair.turns)} turn{'s' if len(pair.turns) > 1 else ''}", ""]
    lines += [
        f"{name}  {_shorten(texts)}"
        for name, texts in (("prompt ", pair.prompt), ("A      ", pair.response_a), ("B      ", pair.response_b))
    ]
    lines += ["", *_bars(forecast)]
    if forecast.interval is not None:
        lines.append("the intervals (95 %) are those of the fitted link: how far more labels could move this forecast")
    if forecast.spread is not None:
        lines.append(f"the members of the ensemble differ by up to {100 * forecast.spread:.1f} percentage points")
    if forecast.error:
        return "\n".join(
            [*lines, "", f"this forecast failed and shows what a failed row gets: {printable(str(forecast.error))}"]
        )
    if forecast.truncation and forecast.truncation.truncated:
        cut = forecast.truncation
        lines.append(f"read {cut.kept} of {cut.total} characters, {cut.turns_kept} of {cut.turns_total} turns")
    if forecast.outcome is not None:
        lines.append(f"the label says: {'tie' if forecast.outcome is Outcome.TIE else forecast.outcome.name}")
    if not explanation.influences:
        return "\n".join(lines)
    lines += ["", f"{'what moved it (percentage points)':34}     A      B    tie   in A / in B"]
    shown = [each for each in explanation.influences if max(map(abs, each.change)) >= _LEAST_CHANGE][:_SHOWN_INFLUENCES]
    for influence in shown:
        change = "  ".join(f"{100 * part:+5.1f}" for part in influence.change)
        lines.append(f"{influence.name:34} {change}   {_values(influence.values)}".rstrip())
    rest = len(explanation.influences) - len(shown)
    return "\n".join([*lines, f"and {rest} smaller ones"] if rest > 0 else lines)


def _bars(forecast: Forecast) -> list[str]:
    lines = []
    for column, (name, p) in enumerate(zip(("A", "B", "tie"), forecast.probabilities, strict=True)):
        line = f"{name:3}  {'█' * round(p * _BAR):{_BAR}} {100 * p:5.1f} %"
        if forecast.interval is not None:
            low, high = forecast.interval[column]
            line += f"  [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(line)
    return lines


def _values(values: Sequence[tuple[str, float, float]]) -> str:
    shown = [
        f"{name.replace('_', ' ')} {a:.4g}" if a == b else f"{name.replace('_', ' ')} {a:.4g} / {b:.4g}"
        for name, a, b in values[:_SHOWN_VALUES]
    ]
    return ", ".join(shown) + (", ..." if len(values) > _SHOWN_VALUES else "")


def _shorten(texts: Sequence[str]) -> str:
    text = " | ".join(texts)
    shown = printable(text[:_SHOWN_TEXT])
    return f"{shown}… ({len(text)} characters)" if len(text) > _SHOWN_TEXT else shown or "(empty)"


def inspection_text(found: Inspection) -> str:
    """What `check` found, a fact a line."""
    turns = ", ".join(f"{count} with {number}" for number, count in list(found.turns.items())[:6]) + (
        ", ..." if len(found.turns) > 6 else ""
    )
    labels = ", ".join(
        f"{outcome.name if outcome is not Outcome.TIE else 'tie'} {found.labels[outcome]}"
        for outcome in Outcome
        if outcome in found.labels
    )
    unlabelled = found.labels.get(None, 0)
    lines = [
        f"{found.name}: {found.description}",
        f"rows        {found.rows}, {found.failed} at fault",
        f"ids         {'in the file' if found.has_id else 'none: the row numbers serve'}",
        f"turns       {turns or 'none'}",
        f"labels      {labels or 'none'}{f', {unlabelled} without' if labels and unlabelled else ''}",
        f"characters  about {found.characters_median:.0f} a pair (median), the longest {found.characters_longest}; the budget {found.budget} would cut {found.truncated} pairs",
        f"time        {_duration(found.seconds)} for a forecast with {found.model} here ({found.rate:.0f} pairs a second measured)",
    ]
    if found.note:
        lines.insert(1, f"order       {found.note}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "less than 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def models_text(scorers: Mapping[str, tuple[str, str, str]]) -> str:
    """The models, a line each."""
    rows = [(name, what, needs) for name, (_, what, needs) in scorers.items()]
    rows.append(
        (
            "PATH or ID",
            "a reward model: a folder with config.json and safetensors, or a hub id",
            "pip install 'prefcast[transformers]'",
        )
    )
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:{width}}  {what} (needs: {needs})" for name, what, needs in rows)


def checkpoint_text(checkpoint: Checkpoint) -> str:
    """What a checkpoint is, a fact a line."""
    limit = checkpoint.limit
    lines = [
        f"{checkpoint.name}: {checkpoint.kind}",
        f"architecture  {printable(checkpoint.architecture)} ({printable(str(checkpoint.config.get('model_type', '?')))})",
        f"parameters    {_count(checkpoint.parameters)}",
        f"stored as     {checkpoint.stored}{' in ' + checkpoint.quantization if checkpoint.quantization else ''}, {len({tensor.file for tensor in checkpoint.tensors.values()})} file(s)",
        f"reads         {'at most ' + str(limit) + ' tokens' if limit else 'says no limit: --max-tokens is needed'}",
        f"template      {checkpoint.template_note}",
        f"labels        {checkpoint.label_note}",
        "memory        of the weights, a device (a batch comes on top):",
    ]
    stored = checkpoint.quantization
    for precision in ("float32", "float16", "bfloat16", "int8", "nf4"):
        if stored is None or precision == stored:
            lines.append(f"  {precision:10}  {size_text(checkpoint.memory(precision)):>9}")
    if checkpoint.remote_code:
        lines.append("its own code  named in config.json; never imported without --trust-remote-code")
    return "\n".join(lines)


def size_text(size: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _count(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.2f} {name}"
    return str(number)


def drift_text(drift: Drift) -> str:
    """How far a precision moves the scores."""
    lines = [
        f"drift over {drift.n} pairs{f' ({drift.failed} failed)' if drift.failed else ''}",
        f"margin    mean {drift.mean:.3g}, largest {drift.largest:.3g}; the margins' own spread is {drift.spread:.3g}, correlation {drift.correlation:.4f}",
        f"sign      {drift.flipped:.1%} of the pairs change sides",
    ]
    if drift.log_loss_before is None or drift.log_loss_after is None:
        return "\n".join([*lines, f"log loss  {drift.link}"])
    return "\n".join(
        [
            *lines,
            f"log loss  {drift.log_loss_before:.4f} before, {drift.log_loss_after:.4f} after, change {drift.log_loss_change} over {drift.labelled} labelled pairs,",
            f"          {drift.link}",
        ]
    )


def write_json(data: Mapping[str, Any], path: str) -> None:
    """Write JSON to a file, whole or not at all, or to standard output (`-`)."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))
    print(f"figures in {shown_path(path)}")
