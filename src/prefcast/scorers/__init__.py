"""The scorers by name."""

from __future__ import annotations

import difflib
import re
from importlib import import_module
from pathlib import Path
from typing import cast

from prefcast.errors import ForecasterError, UsageError, shown_path
from prefcast.scorers.base import Evidence, Push, Scorer
from prefcast.scorers.reward import require_extra

__all__ = [
    "DEFAULT",
    "REWARD_MODEL",
    "SCORERS",
    "Evidence",
    "Push",
    "Scorer",
    "is_scorer_file",
    "load_moved",
    "scorer_class",
]

# name -> (module:Class, what it is, what it needs)
SCORERS: dict[str, tuple[str, str, str]] = {
    "embedded": (
        "prefcast.scorers.embedded:EmbeddedScorer",
        "a small text encoder's vectors beside the features of surface; explains itself",
        "nothing more",
    ),
    "surface": (
        "prefcast.scorers.surface:SurfaceScorer",
        "features of the texts into a small additive model; explains itself; instant",
        "nothing more",
    ),
    "length": ("prefcast.scorers.length:LengthScorer", "the lengths of the two answers: the floor", "nothing more"),
}

# What people get who name no model.
DEFAULT = "embedded"

# What a forecaster folder calls any reward model; its own file says which.
REWARD_MODEL = "reward-model"
_REWARD_MODEL_FILE = "reward-model.json"
# Scorers that only a fit makes: several as one, scores that a person brings.
_MADE = {
    "blend": "prefcast.scorers.blend:BlendScorer",
    "scores": "prefcast.scorers.given:GivenScorer",
}


def is_scorer_file(name: str) -> bool:
    """Whether scorers write a file or folder of that name into a forecaster's folder."""
    known = {_REWARD_MODEL_FILE, *(file for scorer in (*SCORERS, *_MADE) for file in scorer_class(scorer).files)}
    return name in known or re.fullmatch(r"member-\d+", name) is not None


def load_moved(name: str, folder: Path, model: str) -> Scorer:
    """The scorer called `name` in `folder`, its one reward model from where it lies now.

    Raises ForecasterError where there is not one.
    """
    if name not in (REWARD_MODEL, "blend"):
        raise ForecasterError(f"{shown_path(folder)}: has no reward model that could lie elsewhere")
    found: Scorer = scorer_class(name).load(folder, model)  # type: ignore[call-arg]
    return found


def scorer_class(name: str) -> type[Scorer]:
    """The class of the scorer called `name`; UsageError for an unknown one."""
    if name == REWARD_MODEL:
        require_extra()
        return cast(type[Scorer], import_module("prefcast.scorers.reward.scorer").RewardScorer)
    if name not in SCORERS and name not in _MADE:
        near = difflib.get_close_matches(name, SCORERS, n=1)
        raise UsageError(
            f"unknown model {name!r}{f'; did you mean {near[0]!r}?' if near else ';'} there are {', '.join(SCORERS)}, folders with a model, and hub ids like owner/name"
        )
    module, _, attribute = (_MADE[name] if name in _MADE else SCORERS[name][0]).partition(":")
    return cast(type[Scorer], getattr(import_module(module), attribute))
