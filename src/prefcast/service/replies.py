"""Forecasts -> the documents that go out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from itertools import combinations

from prefcast.forecasts.best import ranked_answers
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecast
from prefcast.pairs.budget import cuts
from prefcast.scorers.base import Scorer
from prefcast.service import schema
from prefcast.service.forecasting import Found, Result
from prefcast.service.reading import Asked
from prefcast.service.refusals import Refusal

__all__ = ["forecast_document", "ranking_document", "said", "score_document"]

_LEVEL = 0.95


def said(forecaster: Forecaster) -> schema.ForecasterSaid:
    """What the server says of its forecaster."""
    scorer = forecaster.scorer
    return schema.ForecasterSaid(
        name=scorer.name,
        version=version("prefcast"),
        budget=str(forecaster.budget),
        outcome_model=forecaster.outcome.kind,
        interval_level=None if forecaster.link is None else _LEVEL,
        explains=type(scorer).explain is not Scorer.explain,
        pointwise=scorer.pointwise,
    )


def forecast_document(asked: Asked, found: Found, swapped: Found | None) -> schema.Forecast:
    """The answer to one pair. `swapped` is the forecast of the pair with A and B exchanged."""
    forecast = found.forecast
    interval = None if forecast.interval is None else (_LEVEL, *forecast.interval)
    return schema.Forecast.model_validate(
        {
            "id": asked.id,
            "probabilities": forecast.probabilities,
            "interval": interval,
            "margin": forecast.margin,
            "tie": forecast.tie,
            "swapped": None if swapped is None else _exchanged_back(forecast, swapped.forecast),
            "truncation": _truncation(asked, found),
            "influences": found.influences,
            "escalated": forecast.escalated,
            "handed_over": forecast.handed_over,
            "unlike": forecast.unlike,
        }
    )


def _exchanged_back(forecast: Forecast, swapped: Forecast) -> tuple[tuple[float, float, float], float]:
    b, a, tie = swapped.probabilities
    differences = (x - y for x, y in zip(forecast.probabilities, (a, b, tie), strict=True))
    return (a, b, tie), max(map(abs, differences))


def _truncation(asked: Asked, found: Found) -> tuple[object, ...] | None:
    cut, pair = found.forecast.truncation, asked.pair
    if cut is None or pair is None:
        return None
    # Where the model takes no system message, it read the pair with that message joined to the first prompt.
    whole = pair if found.read.system else pair.joined()
    texts = cuts(whole.turns, found.read.turns) if cut.truncated else []
    return cut.truncated, cut.kept, cut.total, cut.turns_kept, cut.turns_total, texts


def score_document(number: int, result: Result) -> schema.Score:
    if isinstance(result, Refusal):
        return schema.Score(error=schema.ErrorDetail.model_validate(result.within(f"conversations.{number}")))
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
        if isinstance(result, Refusal):
            raise result.within(f"responses.{i},responses.{j}")
        assert isinstance(result, Found)  # noqa: S101
        found.append(result.forecast)
    ranking = ranked_answers(n, found)
    pairwise = [
        (i, j, each.probabilities, each.margin, each.tie, each.truncation is not None and each.truncation.truncated)
        for (i, j), each in zip(places, found, strict=True)
    ]
    return schema.Ranking.model_validate(
        {
            "id": ranked.id,
            "best": ranking.best,
            "order": ranking.order,
            "strengths": ranking.strengths.tolist(),
            "pairwise": pairwise,
            "forecaster": forecaster,
        }
    )
