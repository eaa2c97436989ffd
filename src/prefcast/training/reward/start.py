"""The folder that a training starts from: an adapter of the base model that so far has a head and nothing else.

The base model is read as any model that `--model` names: safetensors only, no code of the checkpoint, every size checked. A base
without the head that the training needs gets one of zeros, so that the first forecasts are those of no preference at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prefcast.errors import ModelError, UsageError
from prefcast.scorers.reward import Options
from prefcast.scorers.reward.adapters import ADAPTER_CONFIG
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind, open_checkpoint
from prefcast.scorers.reward.families import Head
from prefcast.scorers.reward.kinds import build_scorer
from prefcast.scorers.reward.loading import tensor_reader
from prefcast.scorers.reward.networks import body_of, skeleton
from prefcast.scorers.reward.prompts import template_source
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.scorers.reward.weights import TensorInfo
from prefcast.training.reward.encoders import as_classifier, bare_encoder
from prefcast.training.reward.lora import PREFIX
from prefcast.training.reward.recipe import Recipe

__all__ = [
    "ADAPTER_WEIGHTS",
    "MADE_BASE",
    "TIE_LABELS",
    "head_names",
    "make_start",
    "opened_start",
    "write_adapter_config",
]

MADE_BASE = "encoder"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TIE_LABELS = {0: "winner_model_a", 1: "winner_model_b", 2: "winner_tie"}
_MOST_TOKENS = 2048
_TOKENIZER = ("tokenizer", "special_tokens_map.json", "added_tokens.json", "vocab", "merges.txt")
_SUFFIXES = (".json", ".model", ".txt", ".jinja")


def make_start(base: str, folder: Path, recipe: Recipe) -> list[str]:
    """Write the folder, and tell in lines what was decided. Raises ModelError and UsageError.

    An encoder without a head becomes a classifier first, in the folder `encoder` beside this one; the product is then whole.
    """
    labels = TIE_LABELS if recipe.kind == "pair" else {0: "reward"}
    said = []
    if (encoder := bare_encoder(base)) is not None:
        made = folder.parent / MADE_BASE
        shutil.rmtree(made, ignore_errors=True)
        said += as_classifier(encoder, len(labels), made, recipe.seed)
        _copy_tokenizer(encoder, made)
        base = str(made)
    found = open_checkpoint(base)
    planned = _planned(found, recipe)
    network = skeleton(planned)
    _check_names(planned, network, recipe)
    names = head_names(network)
    head: dict[str, Tensor] = {}
    parameters = dict(network.named_parameters())
    with tensor_reader(found) as reader:
        for name in names:
            shape = tuple(parameters[name].shape)
            if name in found.tensors and found.tensors[name].shape == shape:
                head[name] = reader.fetch(name).float().contiguous()
            else:
                head[name] = torch.zeros(shape)
                said.append(f"the head {name} is new")
    folder.mkdir(parents=True)
    _copy_tokenizer(found, folder)
    _write_template(found, folder, recipe, said)
    config = {
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in labels.items()},
        "label2id": {label: index for index, label in labels.items()},
    }
    _write_json(folder / "config.json", config)
    # A hub id stays one; a folder is found from anywhere.
    where = str(Path(base).resolve()) if Path(base).is_dir() else base
    write_adapter_config(folder, where, recipe, (), sorted({name.partition(".")[0] for name in names}))
    save_file({f"{PREFIX}{name}": value for name, value in head.items()}, folder / ADAPTER_WEIGHTS)
    return said


def opened_start(folder: Path, recipe: Recipe, device: str) -> RewardScorer:
    """The scorer of a folder that `make_start` wrote. It reads the pairs as the trained model will. Raises ModelError."""
    limit = open_checkpoint(folder).limit
    most = recipe.max_tokens or min(limit or _MOST_TOKENS, _MOST_TOKENS)
    options = Options(
        dtype=recipe.dtype,
        quantize=recipe.quantize,
        devices=(device,),
        max_tokens=most,
        batch_tokens=recipe.batch_tokens,
    )
    return build_scorer(folder, options)


def head_names(network: nn.Module) -> list[str]:
    """The names of the parameters behind the body."""
    inside = {id(parameter) for parameter in body_of(network).parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) not in inside]


def write_adapter_config(folder: Path, base: str, recipe: Recipe, layers: tuple[str, ...], heads: list[str]) -> None:
    """adapter_config.json, as peft writes it: rank, scale 2, the names of the layers and of the heads."""
    rank = recipe.lora or 1
    _write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "target_modules": sorted({path.rpartition(".")[2] for path in layers}),
            "modules_to_save": heads,
        },
    )


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _planned(found: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The checkpoint with the head that the training needs, before that head has weights."""
    pair = recipe.kind == "pair"
    outputs, kind = (3, Kind.PAIR) if pair else (1, Kind.POINTWISE)
    if found.adapter is not None:
        raise UsageError(
            f"{found.name}: is a LoRA adapter; merge it first (peft: merge_and_unload, then save_pretrained) and train that model"
        )
    if found.quantization is not None:
        raise UsageError(f"{found.name}: is stored as {found.quantization}; name the unquantised model and --quantize")
    if found.kind is Kind.INTERNLM2:
        if pair or found.compares:
            what = "compares with a reference answer" if found.compares else "has a head of one score"
            raise UsageError(f"{found.name}: {what}; train it as --kind pointwise, on pairs without a reference")
        return found
    if found.head is not None:
        if found.head.outputs != outputs:
            raise UsageError(
                f"{found.name}: has a trained head with {found.head.outputs} outputs, and --kind {recipe.kind} needs {outputs}; "
                "start from a model without a head"
            )
        return replace(found, kind=kind)
    labels = {str(index): f"label_{index}" for index in range(outputs)}
    rest = {key: value for key, value in found.config.items() if key not in ("id2label", "label2id", "num_labels")}
    planned = replace(found, kind=kind, config={**rest, "id2label": labels, "num_labels": outputs})
    if found.kind is not Kind.LANGUAGE:
        return planned
    size = found.text_config.get("hidden_size")
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"{found.name}: config.json does not say its hidden_size, so no head can be made")
    place = TensorInfo(found.folder, "F32", (outputs, size), 0, "score.weight")
    tensors = {**found.tensors, "score.weight": place}
    return replace(planned, head=Head((("score.weight", None),), outputs), tensors=tensors)


def _check_names(planned: Checkpoint, network: nn.Module, recipe: Recipe) -> None:
    """UsageError if the network's weights have other names than the files', where they are to be written under them."""
    if recipe.lora is not None:
        return
    head = set(head_names(network))
    other = [name for name, _ in network.named_parameters() if name not in planned.tensors and name not in head]
    if other:
        raise UsageError(
            f"{planned.name}: its files have other names for its weights ({other[0]}); --lora none cannot write them back"
        )


def _copy_tokenizer(found: Checkpoint, folder: Path) -> None:
    for path in sorted(found.tokenizer_folder.iterdir()):
        named = path.name.startswith(_TOKENIZER) and path.suffix in _SUFFIXES
        if path.is_file() and (named or path.suffix in (".model", ".jinja")):
            shutil.copyfile(path, folder / path.name)


def _write_template(found: Checkpoint, folder: Path, recipe: Recipe, said: list[str]) -> None:
    """The template of the texts, in the file where a model's own is."""
    pair, name = recipe.kind == "pair", recipe.template
    if not pair and name is None and found.chat_template is None and found.kind is Kind.LANGUAGE:
        name = "chatml"
        said.append(
            f"{found.name}: has no chat template; conversations are written as chatml (--template names another)"
        )
    if name is None:
        return
    if not pair and _frames(found):
        raise UsageError(f"{found.name}: reads question and answer as two texts; it takes no --template")
    source = template_source(name, pairs=pair)
    (folder / ("pair_template.jinja" if pair else "chat_template.jinja")).write_text(source, encoding="utf-8")


def _frames(found: Checkpoint) -> bool:
    from prefcast.scorers.reward.tokenizers import load_tokenizer

    return getattr(load_tokenizer(found)[0], "cls_token", None) is not None
