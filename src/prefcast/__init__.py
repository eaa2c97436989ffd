"""Prefcast forecasts which of two chatbot answers people will prefer: A, B or a tie."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefcast.errors import PrefcastError
    from prefcast.fitting import fit
    from prefcast.forecasts.forecaster import Forecaster, load_forecaster
    from prefcast.measuring.comparison import compare
    from prefcast.measuring.evaluation import evaluate
    from prefcast.measuring.ranking import rank
    from prefcast.pairs import Outcome, Pair, Turn
    from prefcast.pairs.formats import open_pairs, read_pairs
    from prefcast.runs.jobs import predict
    from prefcast.scorers.reward import load_scorer
    from prefcast.service.client import Client

__all__ = [
    "Client",
    "Forecaster",
    "Outcome",
    "Pair",
    "PrefcastError",
    "Turn",
    "compare",
    "evaluate",
    "fit",
    "load_forecaster",
    "load_scorer",
    "open_pairs",
    "predict",
    "rank",
    "read_pairs",
]

_HOMES = {
    "Client": "service.client",
    "Forecaster": "forecasts.forecaster",
    "Outcome": "pairs",
    "Pair": "pairs",
    "PrefcastError": "errors",
    "Turn": "pairs",
    "compare": "measuring.comparison",
    "evaluate": "measuring.evaluation",
    "fit": "fitting",
    "load_forecaster": "forecasts.forecaster",
    "load_scorer": "scorers.reward",
    "open_pairs": "pairs.formats",
    "predict": "runs.jobs",
    "rank": "measuring.ranking",
    "read_pairs": "pairs.formats",
}


def __getattr__(name: str) -> Any:
    # Names are fetched when they are used, so that `import prefcast` costs nothing.
    if name in _HOMES:
        return getattr(import_module(f"prefcast.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'prefcast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
