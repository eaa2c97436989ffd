"""Forecasts -> the documents that go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations

from prefcast.forecasts.best import ranked_answers
from prefcast.forecasts.forecaster import Forecaster, Influence
from prefcast.forecasts.predictions import Forecast
from prefcast.pairs.budget import cuts
from prefcast.scorers.base import Scorer
from prefcast.service import schema
from prefcast.service.forecasting import Failed, Found, Result
from prefcast.service.reading import Asked
from prefcast.service.refusals import Refusal

__all__ = ["failed_forecast", "forecast_document", "ranking_document", "refusal_of", "said", "score_document"]

_LEVEL = 0.95


def said(forecaster: Forecaster, *, pointwise: bool) -> schema.ForecasterSaid:
    """What the server says of its forecaster."""
    scorer = forecaster.scorer
    return schema.ForecasterSaid(
        name=scorer.name,
        version=version("prefcast"),
        budget=str(forecaster.budget),
        outcome_model=forecaster.outcome.kind,
        interval_level=None if forecaster.link is None else _LEVEL,
        explains=type(scorer).explain is not Scorer.explain,
        pointwise=pointwise,
    )


def refusal_of(failed: Failed, field: str = "") -> Refusal:
    return Refusal("internal" if failed.ours else "scoring", failed.problem, field)


def forecast_document(asked: Asked, found: Found, swapped: Found | None) -> schema.Forecast:
    """The answer to one pair. `swapped` is the forecast of the pair with A and B exchanged."""
    forecast = found.forecast
    return schema.Forecast(
        id=asked.id,
        probabilities=_probabilities(forecast.probabilities),
        interval=_interval(forecast),
        margin=forecast.margin,
        tie=forecast.tie,
        swapped=None if swapped is None else _exchanged_back(forecast, swapped.forecast),
        truncation=_truncation(asked, found),
        influences=None if found.influences is None else list(map(_influence, found.influences)),
    )


def _interval(forecast: Forecast) -> schema.Interval | None:
    if forecast.interval is None:
        return None
    a, b, tie = ((low, high) for low, high in forecast.interval)
    return schema.Interval(level=_LEVEL, a=a, b=b, tie=tie)


def _exchanged_back(forecast: Forecast, swapped: Forecast) -> schema.Swapped:
    b, a, tie = swapped.probabilities
    differences = (x - y for x, y in zip(forecast.probabilities, (a, b, tie), strict=True))
    return schema.Swapped(probabilities=_probabilities((a, b, tie)), largest_difference=max(map(abs, differences)))


def _truncation(asked: Asked, found: Found) -> schema.Truncation | None:
    cut, pair = found.forecast.truncation, asked.pair
    if cut is None or pair is None:
        return None
    texts = cuts(pair.turns, found.read.turns) if cut.truncated else []
    return schema.Truncation(
        truncated=cut.truncated,
        characters_kept=cut.kept,
        characters=cut.total,
        turns_kept=cut.turns_kept,
        turns=cut.turns_total,
        texts=[schema.CutText(**asdict(each)) for each in texts],
    )


def failed_forecast(id: str | int | None, refusal: Refusal) -> schema.Forecast:
    """The answer to a pair of a list that has no forecast."""
    return schema.Forecast(id=id, error=_detail(refusal))


def score_document(number: int, result: Result | Refusal) -> schema.Score:
    if isinstance(result, Failed):
        result = refusal_of(result, f"conversations.{number}")
    if isinstance(result, Refusal):
        return schema.Score(error=_detail(result))
    assert isinstance(result, float)  # noqa: S101
    return schema.Score(score=result)


def ranking_document(
    ranked: schema.RankRequest, results: Sequence[Result], forecaster: schema.ForecasterSaid
) -> schema.Ranking:
    """The order of n responses. Raises Refusal if one of their pairs has no forecast."""
    n = len(ranked.responses)
    places = list(combinations(range(n), 2))
    found = []
    for (i, j), result in zip(places, results, strict=True):
        if isinstance(result, Failed):
            raise refusal_of(result, f"responses.{i},responses.{j}")
        assert isinstance(result, Found)  # noqa: S101
        found.append(result.forecast)
    ranking = ranked_answers(n, found)
    return schema.Ranking(
        id=ranked.id,
        best=ranking.best,
        order=list(ranking.order),
        strengths=ranking.strengths.tolist(),
        pairwise=[
            schema.Compared(
                a=i,
                b=j,
                probabilities=_probabilities(forecast.probabilities),
                margin=forecast.margin,
                tie=forecast.tie,
                truncated=forecast.truncation is not None and forecast.truncation.truncated,
            )
            for (i, j), forecast in zip(places, found, strict=True)
        ],
        forecaster=forecaster,
    )


def _probabilities(values: Sequence[float]) -> schema.Probabilities:
    a, b, tie = values
    return schema.Probabilities(a=a, b=b, tie=tie)


def _influence(influence: Influence) -> schema.Influence:
    return schema.Influence(
        name=influence.name,
        change=_probabilities(influence.change),
        margin=influence.margin,
        tie=influence.tie,
        values=[schema.FeatureValue(name=name, a=a, b=b) for name, a, b in influence.values],
    )


def _detail(refusal: Refusal) -> schema.ErrorDetail:
    return schema.ErrorDetail(**refusal.document()["error"])
