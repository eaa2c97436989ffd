"""Batches -> forecasts, explanations and scores, by one Forecaster, on the scoring thread.

A fault of one item does not affect the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from prefcast.errors import ModelError, PrefcastError
from prefcast.forecasts.forecaster import Forecaster, Influence
from prefcast.forecasts.predictions import Forecast
from prefcast.pairs import Pair
from prefcast.scorers.base import Conversation, Problem
from prefcast.service.refusals import Refusal

__all__ = ["BatchForecaster", "Found", "Item", "Result", "ToForecast"]


@dataclass(frozen=True)
class ToForecast:
    pair: Pair
    explain: bool = False


@dataclass(frozen=True)
class Found:
    """A forecast, its influences if the request asked for them, and the part of the pair that was read."""

    forecast: Forecast
    influences: list[Influence] | None
    read: Pair = field(repr=False)


Item = ToForecast | Conversation
Result = Found | float | Refusal
T = TypeVar("T")


class BatchForecaster:
    """Its `run` is the work of a Batcher. `report` gets the type of each unforeseen exception."""

    def __init__(self, forecaster: Forecaster, report: Callable[[str], None] = lambda what: None) -> None:
        self.forecaster = forecaster
        self._report = report

    def warm_up(self) -> None:
        """Forecast a plain pair, so that everything is loaded. Raises PrefcastError if that fails."""
        found = self.forecaster.forecast([Pair.of("Why?", "Because.", "No idea.", reference="Because.")])
        if found.errors[0] is not None:
            raise ModelError(f"the forecaster fails on a plain pair: {found.errors[0].problem}")

    def run(self, items: list[Item]) -> list[Result]:
        """The result of each item, in order."""
        forecasts = iter(self._each(self._forecast, [item for item in items if isinstance(item, ToForecast)]))
        scores = iter(self._each(self._score, [item for item in items if not isinstance(item, ToForecast)]))
        return [next(forecasts if isinstance(item, ToForecast) else scores) for item in items]

    def _each(self, work: Callable[[list[T]], list[Result]], items: list[T]) -> list[Result]:
        """The results of `work`. If it raises an exception, it tries each item alone."""
        try:
            return work(items) if items else []
        except Exception as error:
            if len(items) > 1:
                return [self._each(work, [item])[0] for item in items]
            known = isinstance(error, PrefcastError)
            return [Refusal("scoring", str(error)) if known else self._unforeseen(type(error).__name__)]

    def _unforeseen(self, what: str) -> Refusal:
        self._report(what)
        # The message of the exception may hold the text.
        return Refusal("internal", "the forecaster failed on this item")

    def _forecast(self, items: list[ToForecast]) -> list[Result]:
        forecasts = self.forecaster.forecast([item.pair for item in items])
        return [self._found(item, forecast) for item, forecast in zip(items, forecasts, strict=True)]

    def _found(self, item: ToForecast, forecast: Forecast) -> Result:
        if forecast.error is not None:
            problem = forecast.error.problem
            if isinstance(problem, Problem) and problem.kind == "unforeseen":
                return self._unforeseen(problem.about)
            return Refusal("scoring", problem)
        influences = self.forecaster.influences(item.pair, forecast) if item.explain else None
        cut = forecast.truncation
        read = self.forecaster.read(item.pair)[0] if cut is not None and cut.truncated else item.pair
        return Found(forecast, influences, read)

    def _score(self, items: list[Conversation]) -> list[Result]:
        return [
            float(score) if math.isfinite(score) else Refusal("scoring", "the model gave a score that is not finite")
            for score in self.forecaster.scorer.score(items)
        ]
