"""Encoders without a head, as BERT and sentence-transformers save them: made into classifiers that a training can start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from prefcast.errors import ModelError, shown_path
from prefcast.scorers.reward.checkpoint import CONFIG, Checkpoint, Kind
from prefcast.scorers.reward.engine import PADDED_ENCODERS
from prefcast.scorers.reward.files import look_over, read_object
from prefcast.scorers.reward.folders import folder_of
from prefcast.scorers.reward.loading import tensor_reader
from prefcast.scorers.reward.networks import body_of, class_of, config_of, skeleton
from prefcast.scorers.reward.weights import WEIGHTS, tensors_of

__all__ = ["as_classifier", "bare_encoder"]

_BARE = ("Model", "ForMaskedLM", "ForPreTraining")
_SPREAD = 0.02


def bare_encoder(base: str) -> Checkpoint | None:
    """The checkpoint of an encoder without a head for classes; None for any other model. Raises ModelError and UsageError."""
    folder, name = folder_of(base), shown_path(base)
    look_over(folder, name)
    try:
        config = read_object(folder / CONFIG, name)
    except FileNotFoundError:
        return None
    architecture = (config.get("architectures") or [""])[0]
    known = config.get("model_type") in PADDED_ENCODERS
    if not known or not isinstance(architecture, str) or not architecture.endswith(_BARE):
        return None
    return Checkpoint(name, folder, config, Kind.POINTWISE, tensors_of(folder, name))


def as_classifier(found: Checkpoint, outputs: int, folder: Path, seed: int) -> list[str]:
    """Write an encoder with a head of so many outputs into `folder`, without its tokenizer; tell in lines what is new.

    The head gives 0 at first. A pooling layer that the weights lack is drawn at random. Attention has no dropout: it keeps the fast
    kernels from being used. Raises ModelError if the weights lack a part of the body.
    """
    config: dict[str, Any] = {**found.config, "num_labels": outputs}
    config["id2label"] = {str(index): f"label_{index}" for index in range(outputs)}
    config["label2id"] = {label: int(index) for index, label in config["id2label"].items()}
    if "attention_probs_dropout_prob" in config:
        config["attention_probs_dropout_prob"] = 0.0
    plan = replace(found, config=config)
    config["architectures"] = [class_of(plan, config_of(plan)).__name__]
    network = skeleton(plan)
    prefix = f"{getattr(network, 'base_model_prefix', 'model')}."
    body = {id(parameter) for parameter in body_of(network).parameters()}
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    new: list[str] = []
    with tensor_reader(found) as reader:
        for name, parameter in network.named_parameters():
            stored = next((each for each in (name, name.removeprefix(prefix)) if each in found.tensors), None)
            if stored is not None and found.tensors[stored].shape == tuple(parameter.shape):
                weights[name] = reader.fetch(stored).contiguous()
            elif id(parameter) in body and "pooler" not in name:
                raise ModelError(f"{found.name}: its weights lack {name}, or have another shape for it")
            else:
                new.append(name)
                drawn = torch.randn(tuple(parameter.shape), generator=generator) * _SPREAD
                weights[name] = drawn if name.endswith("weight") and parameter.shape[0] != outputs else drawn.zero_()
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return [f"the head is new: {', '.join(new)}"]
