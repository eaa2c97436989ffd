"""What a training of a reward model is told: a recipe, with defaults by the size of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from prefcast.errors import UsageError

__all__ = ["Recipe", "learning_rate", "recomputes"]

# Learning rates of adapters and of all weights, for models of at most so many parameters.
_RATES = ((3e8, 5e-4, 5e-5), (3e9, 2e-4, 2e-5), (math.inf, 1e-4, 1e-5))
_RECOMPUTED = 5e8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a reward model is trained.

    `kind` is `pointwise` (one score a conversation) or `pair` (a classifier of A, B and tie that reads both orders in the same
    step). `lora` is the rank of the adapters, None trains all weights. `batch` is the number of pairs in a step, over all
    processes together. `rate` is the largest learning rate (default: by the size of the model). `smoothing` is the share of a
    target that is spread over the outcomes. `strength` says how the strengths of preferences are used: as weights (scaled
    Bradley-Terry of Wang and others, "HelpSteer2-Preference", 2024) or as margins (Llama 2). `temperature` and `mixing` are for a
    teacher: `mixing` is the share of its part in the loss. After `patience` evaluations without a lower validation log loss the
    training stops. `validation` is the share of the first prompts that is held out.
    """

    kind: str = "pointwise"
    likelihood: str = "davidson"
    lora: int | None = 16
    quantize: str | None = None
    epochs: int = 2
    batch: int = 32
    batch_tokens: int | None = None
    rate: float | None = None
    warmup: float = 0.05
    decay: float = 0.0
    smoothing: float = 0.0
    strength: str = "weight"
    temperature: float = 1.0
    mixing: float = 0.5
    evaluations: int = 4
    patience: int = 3
    validation: float = 0.15
    max_tokens: int | None = None
    template: str | None = None
    dtype: str | None = None
    recompute: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a value that cannot be."""
        choices = {
            "kind": ("pointwise", "pair"),
            "likelihood": ("davidson", "rao-kupper", "bradley-terry"),
            "strength": ("weight", "margin"),
            "recompute": ("auto", "on", "off"),
            "quantize": (None, "nf4"),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{_flag(name)} is {value!r}; there are {', '.join(map(str, known))}")
        whole = ("lora", "epochs", "batch", "batch_tokens", "evaluations", "patience", "max_tokens")
        for name in whole:
            if (value := getattr(self, name)) is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{_flag(name)} is {value}; it must be a whole number from 1")
        ranges = {
            "rate": (0.0, 1.0),
            "warmup": (0.0, 1.0),
            "decay": (0.0, 1.0),
            "smoothing": (0.0, 0.5),
            "temperature": (0.1, 100.0),
            "mixing": (0.0, 1.0),
            "validation": (0.01, 0.5),
        }
        for name, (low, high) in ranges.items():
            if (value := getattr(self, name)) is not None and not low <= value <= high:
                raise UsageError(f"{_flag(name)} is {value}; it must be from {low:g} to {high:g}")
        if self.kind == "pair" and self.likelihood != "davidson":
            raise UsageError(
                "--kind pair: its three logits in both orders are Davidson's model; leave --likelihood out"
            )
        if self.quantize is not None and self.lora is None:
            raise UsageError("--quantize nf4 keeps the weights as they are; it needs adapters (--lora RANK)")

    def said(self) -> dict[str, Any]:
        """The settings by name, for a card and to compare with those of an earlier start."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def learning_rate(recipe: Recipe, parameters: int) -> float:
    """The largest learning rate of a recipe for a model of so many parameters."""
    if recipe.rate is not None:
        return recipe.rate
    adapters, everything = next(rates for most, *rates in _RATES if parameters <= most)
    return everything if recipe.lora is None else adapters


def recomputes(recipe: Recipe, parameters: int) -> bool:
    """Whether layers are computed again for the gradient, which takes a third more time and far less memory."""
    return recipe.recompute == "on" or (recipe.recompute == "auto" and parameters > _RECOMPUTED)
