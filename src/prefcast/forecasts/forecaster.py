"""Budget + scorer + outcome model: from pairs to probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, RowError, UsageError, shown_path
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.forecasts.folder import CARD, ForecasterParts
from prefcast.forecasts.predictions import Forecast, Forecasts
from prefcast.forecasts.scores import score_pairs
from prefcast.outcomes.models import Davidson, FittedModel, NotebookRule
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.budget import Budget, Notebook, Truncation
from prefcast.scorers.base import SILENT, Meter, Scorer, read_pair
from prefcast.scorers.registry import DEFAULT, find_scorer

__all__ = ["Explanation", "Forecaster", "Influence", "built_in", "load_forecaster"]

_BUILT_IN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class Influence:
    """The effect of one kind of feature: the change of (A, B, tie) against the same forecast without that kind.

    `margin` and `tie` are its terms in calibrated log-odds. `values` are its features that differ: (name, of A, of B).
    """

    name: str
    change: tuple[float, float, float]
    margin: float
    tie: float
    values: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Explanation:
    """A forecast and its influences, the largest change first."""

    forecast: Forecast
    influences: list[Influence]


@dataclass(frozen=True)
class Forecaster(ForecasterParts):
    """Reads the part of a pair that `budget` lets through. `scorer` reduces that to evidence, and `outcome` turns the evidence into
    probabilities.

    A row that fails gets `fallback` as (A, B, tie). Without `fallback` it gets the class prior: `prior_tie` is the share of ties
    in the data of the fit, and A and B are equal. `link` has the draws of the bootstrap of the outcome model, `calibration` how far
    forecasts were off, and `agreement` promises how often the most likely answer agrees with people. `fitted_rows` knows the
    rows of the fit. All come from a fit and may be None. `card` has the data, figures and versions of the fit. Without a
    budget, 24,000 characters are read, or everything if the scorer has a limit of its own.
    """

    @classmethod
    def notebook(cls, scorer: Scorer) -> Forecaster:
        """The forecaster of the Kaggle notebook: its character budget, its rule, and its probabilities for a row that failed."""
        return cls(scorer, NotebookRule(), Notebook(), fallback=(0.33334, 0.33333, 0.33333))

    @property
    def prior(self) -> tuple[float, float, float]:
        """(A, B, tie) of a row about which nothing is known."""
        if self.fallback is not None:
            return self.fallback
        side = (1 - self.prior_tie) / 2
        return side, side, self.prior_tie

    def with_budget(self, budget: Budget) -> Forecaster:
        """The same forecaster with another budget."""
        return replace(self, budget=budget)

    def read(self, pair: Pair) -> tuple[Pair, Truncation]:
        """The part of `pair` that the budget lets through, and a report on what was cut."""
        return read_pair(pair, self.budget, self.scorer)

    def forecast(self, pairs: Iterable[Pair | RowError], meter: Meter = SILENT) -> Forecasts:
        """Forecast `pairs`, in their order. A RowError among them (as `open_pairs` yields) and a pair that cannot be scored keep
        their places as errors."""
        scores = score_pairs(pairs, self.scorer, self.budget, meter, "forecast")
        margin, tie = scores.columns["margin"], scores.columns["tie"]
        good = np.isfinite(margin)
        probabilities = np.tile(np.array(self.prior), (len(scores), 1))
        probabilities[good] = self.outcome.probabilities(margin[good], tie[good])
        return Forecasts(
            scores.ids,
            probabilities,
            margin,
            tie,
            scores.truncations,
            scores.errors,
            scores.pairs,
            self.link,
            None if self.link is None else (scores.array(self.link.margin), scores.array(self.link.tie)),
            scores.columns.get("member_spread"),
            None if (tiers := scores.columns.get("escalated")) is None else tiers == 1,
            None if self.agreement is None else ~(good & self.agreement.keeps(probabilities)),
            scores.columns.get("unlike"),
            # Of a link with other columns nothing is known.
            scores.columns.get("doubt") if self.link is not None and self.link.margin == ("margin",) else None,
            scores.columns,
        )

    def evidence(self, pairs: Iterable[Pair]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Margin and tie evidence (n,) of what the budget lets through of `pairs`."""
        found = self.scorer.evidence([self.read(pair)[0] for pair in pairs])
        return found.margin, found.tie

    def fit(self, pairs: Iterable[Pair], model: type[FittedModel] = Davidson) -> Forecaster:
        """A forecaster with this scorer and budget, and an outcome model of one kind that is fitted to labelled `pairs`.
        `prefcast.fit` chooses the model by cross-validation, and says how uncertain the result is.

        Raises UsageError for a pair without a label, FitError if the fit fails.
        """
        pairs = list(pairs)
        if any(pair.outcome is None for pair in pairs) or not pairs:
            raise UsageError("fit needs labelled pairs: every pair must have an outcome")
        outcomes = np.array([pair.outcome for pair in pairs], dtype=np.int64)
        margin, tie = self.evidence(pairs)
        return replace(
            self,
            outcome=model.fit(margin, tie, outcomes),
            prior_tie=float((outcomes == Outcome.TIE).mean()),
            # The uncertainty of the old link is not that of the new one.
            link=None,
            calibration=None,
            agreement=None,
            fitted_rows=FittedRows.of(pairs).joined(self.fitted_rows),
            card={"outcome_fitted_on": len(pairs), "made_from": dict(self.card)},
        )

    def explain(self, pair: Pair) -> Explanation:
        """The forecast of `pair` and its influences. There are none if the scorer cannot explain."""
        forecast: Forecast = self.forecast([pair])[0]
        return Explanation(forecast, self.influences(pair, forecast))

    def influences(self, pair: Pair, forecast: Forecast) -> list[Influence]:
        """The influences on `forecast`, which is that of `pair`. There are none if it failed or if the scorer cannot explain."""
        if forecast.error is not None:
            return []
        scale, weight = (
            (self.outcome.scale, self.outcome.tie_weight) if isinstance(self.outcome, FittedModel) else (1.0, 0.0)
        )
        found = []
        for push in self.scorer.explain(self.read(pair)[0]):
            without = self.outcome.probabilities(
                np.array([forecast.margin - push.margin]), np.array([forecast.tie - push.tie])
            )[0]
            a, b, tie = (float(now - then) for now, then in zip(forecast.probabilities, without, strict=True))
            found.append(Influence(push.name, (a, b, tie), scale * push.margin, weight * push.tie, push.values))
        found.sort(key=lambda influence: -max(map(abs, influence.change)))
        return found


@cache
def built_in() -> tuple[str, ...]:
    """The names of the forecasters that are shipped, the default first."""
    names = sorted(path.name for path in _BUILT_IN.iterdir() if (path / CARD).is_file())
    return tuple(sorted(names, key=lambda name: (name != DEFAULT, -len(name))))


def load_forecaster(name_or_folder: str | os.PathLike[str] = DEFAULT, *, model: str | None = None) -> Forecaster:
    """A built-in forecaster by its name (`embedded`, `surface`, `length`), or a forecaster from its folder. `model` is the present
    path of the reward model of that folder, if it has moved.

    Raises UsageError or ForecasterError.
    """
    if isinstance(name_or_folder, str) and name_or_folder in built_in():
        return Forecaster.load(_BUILT_IN / name_or_folder)
    if os.path.isdir(name_or_folder):  # noqa: PTH112 - it never raises
        return Forecaster.load(name_or_folder, model)
    if isinstance(name_or_folder, str) and os.sep not in name_or_folder:
        find_scorer(name_or_folder)
    raise ForecasterError(
        f"{shown_path(name_or_folder)}: no such forecaster folder; built in are {', '.join(built_in())}"
    )
