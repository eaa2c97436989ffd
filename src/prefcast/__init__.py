"""Prefcast forecasts which of two chatbot answers people will prefer: A, B or a tie."""

from __future__ import annotations

from importlib import import_module

# Not from typing, whose import takes longer than the rest: Ctrl-C is obeyed from the import of prefcast.cli on.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from prefcast.errors import PrefcastError
    from prefcast.fitting import fit
    from prefcast.forecasts.forecaster import Forecaster, load_forecaster
    from prefcast.forecasts.predictions import Forecasts, open_writer
    from prefcast.forecasts.resolve import Choice
    from prefcast.forecasts.scores import open_score_writer
    from prefcast.measuring.comparison import compare
    from prefcast.measuring.doctor import check
    from prefcast.measuring.evaluation import evaluate
    from prefcast.measuring.ranking import rank
    from prefcast.outcomes.models import Davidson, NotebookRule, RaoKupper
    from prefcast.pairs import Outcome, Pair, Turn
    from prefcast.pairs.formats import open_pairs, read_pairs
    from prefcast.pairs.formats.saved import read_saved
    from prefcast.runs.jobs import predict, predict_to
    from prefcast.runs.ready import Running, ready
    from prefcast.scorers.base import Evidence, Scorer
    from prefcast.scorers.reward import load_scorer
    from prefcast.scorers.store import EvidenceStore
    from prefcast.service import rewards
    from prefcast.service.client import Client
    from prefcast.training.embedded import train_embedded
    from prefcast.training.reward import Recipe, train_reward

__all__ = [
    "Choice",
    "Client",
    "Davidson",
    "Evidence",
    "EvidenceStore",
    "Forecaster",
    "Forecasts",
    "NotebookRule",
    "Outcome",
    "Pair",
    "PrefcastError",
    "RaoKupper",
    "Recipe",
    "Running",
    "Scorer",
    "Turn",
    "check",
    "compare",
    "evaluate",
    "fit",
    "load_forecaster",
    "load_scorer",
    "open_pairs",
    "open_score_writer",
    "open_writer",
    "predict",
    "predict_to",
    "rank",
    "read_pairs",
    "read_saved",
    "ready",
    "rewards",
    "train_embedded",
    "train_reward",
]

_HOMES = {
    "Choice": "forecasts.resolve",
    "Client": "service.client",
    "Davidson": "outcomes.models",
    "Evidence": "scorers.base",
    "EvidenceStore": "scorers.store",
    "Forecaster": "forecasts.forecaster",
    "Forecasts": "forecasts.predictions",
    "NotebookRule": "outcomes.models",
    "Outcome": "pairs",
    "Pair": "pairs",
    "PrefcastError": "errors",
    "RaoKupper": "outcomes.models",
    "Recipe": "training.reward",
    "Running": "runs.ready",
    "Scorer": "scorers.base",
    "Turn": "pairs",
    "check": "measuring.doctor",
    "compare": "measuring.comparison",
    "evaluate": "measuring.evaluation",
    "fit": "fitting",
    "load_forecaster": "forecasts.forecaster",
    "load_scorer": "scorers.reward",
    "open_pairs": "pairs.formats",
    "open_score_writer": "forecasts.scores",
    "open_writer": "forecasts.predictions",
    "predict": "runs.jobs",
    "predict_to": "runs.jobs",
    "rank": "measuring.ranking",
    "read_pairs": "pairs.formats",
    "read_saved": "pairs.formats.saved",
    "ready": "runs.ready",
    "rewards": "service",
    "train_embedded": "training.embedded",
    "train_reward": "training.reward",
}


def __getattr__(name: str) -> Any:
    # Names are fetched when they are used, so that `import prefcast` costs nothing.
    if name in _HOMES:
        home = f"prefcast.{_HOMES[name]}"
        # `rewards` is a package itself, the others are names in a module.
        return import_module(f"{home}.{name}") if name == "rewards" else getattr(import_module(home), name)
    raise AttributeError(f"module 'prefcast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
