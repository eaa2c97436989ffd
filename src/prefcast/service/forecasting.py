"""Batches -> forecasts, explanations and scores, by one Forecaster, on the scoring thread.

A fault of one item does not affect the others: if a batch fails, each of its items is tried alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefcast.errors import ModelError, PrefcastError
from prefcast.forecasts.forecaster import Forecaster, Influence
from prefcast.forecasts.predictions import Forecast
from prefcast.pairs import Pair
from prefcast.scorers.base import Problem

__all__ = ["BatchForecaster", "Conversation", "Failed", "Found", "ToForecast"]


@dataclass(frozen=True)
class ToForecast:
    pair: Pair
    explain: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages to score."""

    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Found:
    """A forecast, its influences if the request asked for them, and the part of the pair that was read."""

    forecast: Forecast
    influences: list[Influence] | None
    read: Pair = field(repr=False)


@dataclass(frozen=True)
class Failed:
    """Why an item has no result. `ours` says that the program is at fault and not the item."""

    problem: str
    ours: bool = False


Item = ToForecast | Conversation
Result = Found | float | Failed


class BatchForecaster:
    """Its `run` is the work of a Batcher. `report` gets the type of each unforeseen exception."""

    def __init__(self, forecaster: Forecaster, report: Callable[[str], None] = lambda what: None) -> None:
        self.forecaster = forecaster
        self._report = report

    @property
    def pointwise(self) -> bool:
        """Whether single conversations have scores."""
        return self.forecaster.scorer.pointwise

    def warm_up(self) -> None:
        """Forecast a plain pair, so that everything is loaded. Raises PrefcastError if that fails."""
        found = self.forecaster.forecast([Pair.of("Why?", "Because.", "No idea.")])
        if found.errors[0] is not None:
            raise ModelError(f"the forecaster fails on a plain pair: {found.errors[0].problem}")

    def run(self, items: list[Item]) -> list[Result]:
        """The result of each item, in order."""
        results: dict[int, Result] = {}
        for kind, run in ((ToForecast, self._forecast), (Conversation, self._scores)):
            index = [number for number, item in enumerate(items) if isinstance(item, kind)]
            if index:
                found = self._each_alone(run, [items[number] for number in index])
                results |= zip(index, found, strict=True)
        return [results[number] for number in range(len(items))]

    def _each_alone(self, run: Callable[[list[Any]], list[Result]], items: list[Any]) -> list[Result]:
        try:
            return run(items)
        except Exception as error:
            if len(items) > 1:
                return [self._each_alone(run, [item])[0] for item in items]
            if isinstance(error, PrefcastError):
                return [Failed(str(error))]
            # The message of the exception may hold the text.
            self._report(type(error).__name__)
            return [Failed("the forecaster failed on this item", ours=True)]

    def _forecast(self, items: list[ToForecast]) -> list[Result]:
        pairs = [item.pair for item in items]
        found: list[Result] = []
        for item, forecast in zip(items, self.forecaster.forecast(pairs), strict=True):
            if forecast.error is not None:
                found.append(self._failed(forecast.error.problem))
                continue
            influences = self.forecaster.influences(item.pair, forecast) if item.explain else None
            cut = forecast.truncation
            read = self.forecaster.read(item.pair)[0] if cut is not None and cut.truncated else item.pair
            found.append(Found(forecast, influences, read))
        return found

    def _failed(self, problem: str) -> Failed:
        if isinstance(problem, Problem) and problem.kind == "unforeseen":
            # The message of the exception may hold the text.
            self._report(problem.about)
            return Failed("the forecaster failed on this item", ours=True)
        return Failed(problem)

    def _scores(self, items: list[Conversation]) -> list[Result]:
        if not self.pointwise:
            return [Failed("the forecaster has no scores of single conversations") for _ in items]
        scores = self.forecaster.scorer.score([item.messages for item in items])
        return [
            float(score) if math.isfinite(score) else Failed("the model gave a score that is not finite")
            for score in scores
        ]
