"""Which kind of model a checkpoint is. Its architecture and the weights of its head decide, never a name or a guess."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prefcast.errors import ModelError, UsageError, excerpt
from prefcast.scorers.reward.labels import label_count
from prefcast.scorers.reward.weights import HEAD, SIDE_TENSOR, TensorInfo

__all__ = [
    "KINDS",
    "LANGUAGE",
    "Head",
    "Kind",
    "architecture_of",
    "check_sizes",
    "decided",
    "find_head",
    "head_rows",
    "kind_of",
    "needs_head",
]

SUPPORTED = (
    "InternLM2ForRewardModel; ...ForSequenceClassification with one label (reward models) or two or three (pair "
    "classifiers); ...ForCausalLM with a value head, or with --kind"
)
# Heads of two layers with a ReLU between, as the model cards of INF-ORM, Qwen2.5-Math-RM and WorldPM define them.
_TWO_LAYERS = ("INFORMForSequenceClassification", "Qwen2ForRewardModel")
_MOST_PARTS, _MOST_POSITIONS, _MOST_SIZE = 65_536, 2**25, 2**40
_CLASSIFIER, LANGUAGE = "ForSequenceClassification", ("ForCausalLM", "LMHeadModel")


class Kind(StrEnum):
    """How a checkpoint scores."""

    INTERNLM2 = "InternLM2 reward model"
    POINTWISE = "pointwise reward model"
    PAIR = "pair classifier"
    LANGUAGE = "language model (--kind says how it scores)"
    CAUSAL = "causal A/B preference model"
    LOGIT = "causal reward model (its first logit)"
    CUSTOM = "custom reward model (remote code)"


# What --kind may say, and the kinds that it may be said of.
KINDS = {
    "pointwise": (Kind.INTERNLM2, Kind.POINTWISE, Kind.CUSTOM),
    "pair": (Kind.PAIR,),
    "ab": (Kind.CAUSAL,),
    "first-logit": (Kind.LOGIT,),
}


@dataclass(frozen=True)
class Head:
    """A trained output layer for which the network of transformers has no place.

    `layers` are the names of its weights and biases, with a ReLU between two of them; `outputs` is how many it gives.
    `at_last` says that it reads the last token, whatever the padding token is.
    """

    layers: tuple[tuple[str, str | None], ...]
    outputs: int
    at_last: bool = False

    @property
    def names(self) -> set[str]:
        return {name for layer in self.layers for name in layer if name}


def architecture_of(config: Mapping[str, Any], name: str) -> str:
    """The architecture that config.json names; ModelError where it names none."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise ModelError(f"{name}: config.json names no architecture; supported are {SUPPORTED}")
    return architectures[0]


def needs_head(config: Mapping[str, Any], name: str) -> bool:
    """Whether an architecture is supported only with a head that the weights have."""
    return architecture_of(config, name) in _TWO_LAYERS


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], name: str) -> None:
    """Raise ModelError for sizes in config.json that the weights cannot have: a network of them would never be built."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in ("id2label", "label2id"):
            check_sizes(value, tensors, name)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        most = _most(key, len(tensors))
        if value > most:
            raise ModelError(
                f"{name}: config.json says {excerpt(key)} = {excerpt(str(value))}, which its {len(tensors)} tensors cannot have; "
                f"at most {most} is possible"
            )


def _most(key: str, tensors: int) -> int:
    """The largest value that a size in config.json may have."""
    if re.search(r"(num|n)_?(hidden_|encoder_|decoder_)?layers?$|(encoder|decoder)_layers$", key):
        return tensors  # each layer has a tensor of its own
    if re.search(r"layer|block|head|expert|label|stage|group", key):
        return max(_MOST_PARTS, tensors)
    # Some networks make a table of all positions.
    return _MOST_POSITIONS if "position" in key else _MOST_SIZE


def head_rows(tensors: Mapping[str, TensorInfo]) -> int | None:
    """How many outputs the head in the weights has; None where there is none."""
    matrices = [tensor.shape[0] for name, tensor in tensors.items() if _is_head(name) and len(tensor.shape) == 2]
    return min(matrices, default=None)


def _is_head(name: str) -> bool:
    return bool(HEAD.match(name)) and not SIDE_TENSOR.search(name)


def find_head(architecture: str, tensors: Mapping[str, TensorInfo], name: str) -> Head | None:
    """The trained head for which transformers has no place; None where its own class, or InternLM2's, has one.

    Raises ModelError for a head that no known family has: it is never ignored.
    """
    heads = sorted(filter(_is_head, tensors))
    language = architecture.endswith(LANGUAGE)

    def linear(stem: str, at_last: bool) -> Head:
        bias = f"{stem}.bias"
        shape = tensors[f"{stem}.weight"].shape
        return Head(((f"{stem}.weight", bias if bias in tensors else None),), shape[0] if shape else 0, at_last)

    found: Head | None = None
    if language and "v_head.summary.weight" in tensors:
        found = linear("v_head.summary", True)
    elif "score.weight" in tensors and (language or (architecture.endswith(_CLASSIFIER) and "score.bias" in tensors)):
        found = linear("score", False)
    elif architecture in _TWO_LAYERS and {"score.0.weight", "score.2.weight"} <= tensors.keys():
        first, second = linear("score.0", False), linear("score.2", False)
        found = Head(first.layers + second.layers, second.outputs)
    left = [each for each in heads if found is None or each not in found.names]
    if not found and not language:
        # transformers has a place for a layer called so, but not for several.
        left = [each for each in left if re.match(r"score\.\d", each)]
    if left:
        raise ModelError(
            f"{name}: its weights have a head, {', '.join(map(excerpt, left[:3]))}, that no known family with the "
            f"architecture {excerpt(architecture)} has; a model with code of its own needs --trust-remote-code"
        )
    return found


def kind_of(config: Mapping[str, Any], head: Head | None, name: str, trust_remote_code: bool) -> Kind:
    """The kind of a checkpoint. `config` says the number of labels. Raises ModelError for one that is not supported."""
    architecture = architecture_of(config, name)
    if architecture == "InternLM2ForRewardModel":
        return Kind.INTERNLM2
    custom = bool(config.get("auto_map"))
    classifier = architecture.endswith(_CLASSIFIER) or head is not None
    labels, said = label_count(config), "id2label" in config or "num_labels" in config
    if custom and trust_remote_code and not (classifier and said and labels in (2, 3)):
        return Kind.CUSTOM
    if classifier:
        if labels == 1:
            return Kind.POINTWISE
        if labels in (2, 3):
            return Kind.PAIR
        raise ModelError(
            f"{name}: a classifier with {labels} labels; supported are one (reward models), two and three (A, B, tie)"
        )
    if architecture.endswith(LANGUAGE):
        return Kind.LANGUAGE
    remote = " (its own code runs only with --trust-remote-code)" if custom else ""
    raise ModelError(
        f"{name}: the architecture {excerpt(architecture)} is not supported{remote}; supported are {SUPPORTED}"
    )


def decided(kind: Kind, said: str | None, pairs: bool, name: str) -> Kind:
    """The kind of a model, where `said` is what --kind says.

    `pairs` tells that there is a template for both answers, so that a language model is one for A and B. Raises
    UsageError for a language model without any sign of how it scores, and for a `said` that cannot be.
    """
    if kind is Kind.LANGUAGE:
        if said is None and not pairs:
            raise UsageError(
                f"{name}: is a language model without a head, and nothing says how it scores: --kind ab (the logits of the "
                "tokens A and B, as RLHFlow's), or --kind first-logit (logit 0 after the chat, as Nemotron-Reward's)"
            )
        kind = Kind.LOGIT if said == "first-logit" else Kind.CAUSAL if said in (None, "ab") else kind
    if said is not None and kind not in KINDS.get(said, ()):
        raise UsageError(f"{name}: --kind {said} is not for a model of the kind {kind}")
    return kind
