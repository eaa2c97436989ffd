"""Forecasts -> the documents that go out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from itertools import combinations

from prefcast.best import ranked_answers
from prefcast.budget import cuts
from prefcast.forecaster import Forecaster, Influence
from prefcast.service import schema
from prefcast.service.engine import Failed, Found, Result
from prefcast.service.reading import Asked, Ranked
from prefcast.service.refusals import Refusal

__all__ = ["failed_forecast", "forecast_document", "ranking_document", "refusal_of", "said", "score_document"]

_LEVEL = 0.95


def said(forecaster: Forecaster, *, pointwise: bool) -> schema.ForecasterSaid:
    """What answers."""
    scorer = forecaster.scorer
    return schema.ForecasterSaid(
        name=scorer.name,
        version=version("prefcast"),
        budget=str(forecaster.budget),
        outcome_model=forecaster.outcome.kind,
        interval_level=None if forecaster.link is None else _LEVEL,
        explains=type(scorer).explain is not _base().explain,
        pointwise=pointwise,
    )


def _base() -> type:
    from prefcast.scorers.base import Scorer

    return Scorer


def refusal_of(failed: Failed, field: str = "") -> Refusal:
    return Refusal("internal" if failed.ours else "scoring", failed.problem, field)


def forecast_document(asked: Asked, found: Found, swapped: Found | None) -> schema.Forecast:
    """The answer to one pair; `swapped` is what was found of the exchanged pair."""
    forecast, pair = found.forecast, asked.pair
    cut = forecast.truncation
    probabilities = _probabilities(forecast.probabilities)
    interval = None
    if forecast.interval is not None:
        a, b, tie = ((low, high) for low, high in forecast.interval)
        interval = schema.Interval(level=_LEVEL, a=a, b=b, tie=tie)
    back = None
    if swapped is not None:
        b, a, tie = swapped.forecast.probabilities  # type: ignore[assignment]
        exchanged = (a, b, tie)
        back = schema.Swapped(
            probabilities=_probabilities(exchanged),  # type: ignore[arg-type]
            largest_difference=max(abs(x - y) for x, y in zip(forecast.probabilities, exchanged, strict=True)),  # type: ignore[operator]
        )
    truncation = None
    if cut is not None and pair is not None:
        texts = cuts(pair.turns, found.read.turns) if cut.truncated else []
        truncation = schema.Truncation(
            truncated=cut.truncated,
            characters_kept=cut.kept,
            characters=cut.total,
            turns_kept=cut.turns_kept,
            turns=cut.turns_total,
            texts=[
                schema.CutText(turn=each.turn, field=each.field, characters=each.characters, head=each.head, tail=each.tail)  # type: ignore[arg-type]
                for each in texts
            ],
        )
    return schema.Forecast(
        id=asked.id,
        probabilities=probabilities,
        interval=interval,
        margin=forecast.margin,
        tie=forecast.tie,
        swapped=back,
        truncation=truncation,
        influences=None if found.influences is None else list(map(_influence, found.influences)),
        error=None,
    )


def failed_forecast(id: str | int | None, refusal: Refusal) -> schema.Forecast:
    """The answer to a pair that has no forecast, among others."""
    return schema.Forecast(
        id=id,
        probabilities=None,
        interval=None,
        margin=None,
        tie=None,
        swapped=None,
        truncation=None,
        influences=None,
        error=_detail(refusal),
    )


def score_document(number: int, result: Result | Refusal) -> schema.Score:
    if isinstance(result, Failed):
        result = refusal_of(result, f"conversations.{number}")
    if isinstance(result, Refusal):
        return schema.Score(score=None, error=_detail(result))
    assert isinstance(result, float)  # noqa: S101
    return schema.Score(score=result, error=None)


def ranking_document(ranked: Ranked, results: Sequence[Result], forecaster: schema.ForecasterSaid) -> schema.Ranking:
    """The order of n answers. Raises Refusal where one of their pairs has no forecast."""
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
