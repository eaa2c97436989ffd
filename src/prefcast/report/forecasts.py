"""Forecasts, choices and explanations as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from prefcast.forecasts.predictions import UNLIKE, Forecast, Forecasts
from prefcast.pairs import Outcome, Pair
from prefcast.report.terminal import rendered, short, table

if TYPE_CHECKING:
    from rich.table import Table

    from prefcast.forecasts.best import Choice
    from prefcast.forecasts.forecaster import Explanation

__all__ = ["ChoiceTable", "TableWriter", "explanation_text"]

_BAR = 30
_LEAST_CHANGE = 0.0005
_ID, _PROMPT, _ERROR = 16, 60, 120
_SHOWN_INFLUENCES, _SHOWN_VALUES, _SHOWN_TEXT = 8, 3, 400


class TableWriter:
    """Writes forecasts as a table, row by row: the column widths are fixed, so that no row has to wait for others."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = False

    def write(self, forecasts: Forecasts) -> None:
        if not self._begun:
            self._out.write(f"{'id':{_ID}}   A     B    tie    prompt\n")
            self._begun = True
        for index in range(len(forecasts)):
            forecast, pair = forecasts[index], forecasts.pairs[index]
            numbers = "  ".join(f"{p:.2f}" for p in forecast.probabilities)
            note = short(pair.turns[0].prompt if pair else "", _PROMPT)
            if forecast.error:
                note = f"! {short(str(forecast.error), _ERROR)}"
            self._out.write(f"{short(str(forecast.id), _ID, pad=True)}  {numbers}   {note}".rstrip() + "\n")


class ChoiceTable:
    """Writes the best of each prompt's responses as a table, row by row."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = False

    def write(self, choice: Choice) -> None:
        if not self._begun:
            self._out.write(f"{'id':{_ID}}  best  of  strength  response\n")
            self._begun = True
        id = short(str(choice.id), _ID, pad=True)
        if choice.ranking is None or choice.candidates is None:
            self._out.write(f"{id}     -   -         -  ! {short(str(choice.error), _ERROR)}\n")
            return
        best, responses = choice.ranking.best, choice.candidates.responses
        response = short(responses[best][-1], _PROMPT)
        line = f"{id}  {best:4}  {len(responses):2}  {choice.ranking.strengths[best]:8.2f}  {response}"
        self._out.write(line.rstrip() + "\n")


def explanation_text(pair: Pair, explanation: Explanation) -> str:
    """A pair, its forecast as bars, and what moved the forecast."""
    forecast = explanation.forecast
    texts = [("prompt", pair.prompt), ("A", pair.response_a), ("B", pair.response_b)]
    texts = [("system", (pair.system,)), *texts] if pair.system else texts
    parts: list[str | Table] = [
        f"{forecast.id}: {len(pair.turns)} turn{'s' if len(pair.turns) > 1 else ''}",
        "",
        table(("", ""), [(name, _beginning(said)) for name, said in texts]),
        "",
        _bars(forecast),
    ]
    if forecast.interval is not None:
        parts.append("the 95 % intervals show how far more labels could move this forecast")
    if forecast.spread is not None:
        parts.append(f"the members of the ensemble differ by up to {100 * forecast.spread:.1f} percentage points")
    if forecast.unlike is not None and forecast.unlike > UNLIKE:
        parts.append(
            f"this pair is unlike the training pairs ({forecast.unlike:.1f}; a typical pair has 1): the forecast is less certain than usual"
        )
    if forecast.error:
        return rendered(
            *parts, "", f"this forecast failed; the probabilities are those of every failed row: {forecast.error}"
        )
    if forecast.truncation and forecast.truncation.truncated:
        cut = forecast.truncation
        parts.append(f"read {cut.kept} of {cut.total} characters, {cut.turns_kept} of {cut.turns_total} turns")
    if forecast.outcome is not None:
        parts.append(f"the label says: {'tie' if forecast.outcome is Outcome.TIE else forecast.outcome.name}")
    if not explanation.influences:
        return rendered(*parts)
    shown = [each for each in explanation.influences if max(map(abs, each.change)) >= _LEAST_CHANGE][:_SHOWN_INFLUENCES]
    rows = [
        (influence.name, *(f"{100 * part:+.1f}" for part in influence.change), _values(influence.values))
        for influence in shown
    ]
    head = ("what moved it (percentage points)", "A", "B", "tie", "in A / in B")
    parts += ["", table(head, rows, right=(1, 2, 3))]
    rest = len(explanation.influences) - len(shown)
    return rendered(*parts, *([f"and {rest} smaller ones"] if rest > 0 else []))


def _bars(forecast: Forecast) -> Table:
    rows = []
    for column, (name, p) in enumerate(zip(("A", "B", "tie"), forecast.probabilities, strict=True)):
        interval = ""
        if forecast.interval is not None:
            low, high = forecast.interval[column]
            interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        rows.append((name, f"{'█' * round(p * _BAR):{_BAR}}", f"{100 * p:.1f} %", interval))
    return table(("", "", "", ""), rows, right=(2,))


def _values(values: Sequence[tuple[str, float, float]]) -> str:
    shown = [
        f"{name.replace('_', ' ')} {a:.4g}" if a == b else f"{name.replace('_', ' ')} {a:.4g} / {b:.4g}"
        for name, a, b in values[:_SHOWN_VALUES]
    ]
    return ", ".join(shown) + (", ..." if len(values) > _SHOWN_VALUES else "")


def _beginning(texts: Sequence[str]) -> str:
    text = " | ".join(texts)
    return f"{text[:_SHOWN_TEXT]}… ({len(text)} characters)" if len(text) > _SHOWN_TEXT else text or "(empty)"
