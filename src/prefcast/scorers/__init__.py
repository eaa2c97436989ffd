"""The scorers by name."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import cast

from prefcast.errors import UsageError
from prefcast.scorers.base import Evidence, Push, Scorer
from prefcast.scorers.reward import require_extra

__all__ = ["REWARD_MODEL", "SCORERS", "Evidence", "Push", "Scorer", "load_moved", "scorer_class", "scorer_files"]

# name -> (module:Class, what it is, what it needs)
SCORERS: dict[str, tuple[str, str, str]] = {
    "surface": (
        "prefcast.scorers.surface:SurfaceScorer",
        "features of the texts into a small additive model; explains itself",
        "nothing more",
    ),
    "length": ("prefcast.scorers.length:LengthScorer", "the lengths of the two answers: the floor", "nothing more"),
}

# What a forecaster folder calls any reward model; its own file says which.
REWARD_MODEL = "reward-model"
_REWARD_MODEL_FILE = "reward-model.json"


def scorer_files() -> set[str]:
    """The files that scorers write into a forecaster's folder."""
    return {_REWARD_MODEL_FILE, *(name for scorer in SCORERS for name in scorer_class(scorer).files)}


def load_moved(folder: Path, model: str) -> Scorer:
    """The reward model that `folder` describes, from where it lies now."""
    require_extra()
    found: Scorer = import_module("prefcast.scorers.reward.scorer").RewardScorer.load(folder, model)
    return found


def scorer_class(name: str) -> type[Scorer]:
    """The class of the scorer called `name`; UsageError for an unknown one."""
    if name == REWARD_MODEL:
        require_extra()
        return cast(type[Scorer], import_module("prefcast.scorers.reward.scorer").RewardScorer)
    if name not in SCORERS:
        near = difflib.get_close_matches(name, SCORERS, n=1)
        raise UsageError(
            f"unknown model {name!r}{f'; did you mean {near[0]!r}?' if near else ';'} there are {', '.join(SCORERS)}, folders with a model, and hub ids like owner/name"
        )
    module, _, attribute = SCORERS[name][0].partition(":")
    return cast(type[Scorer], getattr(import_module(module), attribute))
