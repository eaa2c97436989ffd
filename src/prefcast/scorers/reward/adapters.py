"""LoRA adapters as peft saves them: which matrices of which base model they change, and the weights that they replace.

Neither torch nor peft is needed. What an adapter does that is not known here is refused by name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcast.errors import ModelError, PrefcastError, excerpt, shown_path
from prefcast.scorers.reward.files import look_over, read_object
from prefcast.scorers.reward.folders import folder_of
from prefcast.scorers.reward.weights import (
    ADAPTER_FILES,
    HEAD,
    TensorInfo,
    read_header,
    to_convert,
)

__all__ = ["ADAPTER_CONFIG", "Adapter", "Delta", "base_of", "has_weights", "read_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Settings that change what the network computes in ways that are not known here.
_UNKNOWN = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "megatron_config",
)
# These begin with other base weights than the base model's: its own must have been changed as well.
_OTHER_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.default)?\.weight")
_SAVED = re.compile(
    r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.default)?)?\.(?P<leaf>weight|bias|summary\.weight|summary\.bias)"
)


@dataclass(frozen=True)
class Delta:
    """The change of one matrix W: W + scale * B A; with `transposed` W is stored as (in, out)."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool

    @property
    def halves(self) -> dict[str, TensorInfo]:
        return {"A": self.a, "B": self.b}


@dataclass(frozen=True)
class Adapter:
    """An adapter in `folder`: `deltas` by the name of the weight that each changes, and the weights that it `replaces`."""

    folder: Path
    deltas: Mapping[str, Delta]
    replaces: Mapping[str, TensorInfo]


def has_weights(folder: Path) -> bool:
    """Whether a folder holds the weights of a whole model."""
    return any(
        not ADAPTER_FILES.fullmatch(path.name) and "head" not in path.name for path in folder.glob("*.safetensors")
    )


def base_of(folder: Path, settings: Mapping[str, Any], said: str | os.PathLike[str] | None, name: str) -> Path:
    """The folder of the model that the adapter in `folder` changes: `said`, or the one that adapter_config.json names.

    Raises ModelError and UsageError. The base model's own code never runs.
    """
    told = settings.get("base_model_name_or_path")
    if said is None and (not isinstance(told, str) or not told):
        raise ModelError(f"{name}: its {ADAPTER_CONFIG} names no base model; name it: --base FOLDER")
    try:
        base = folder_of(said if said is not None else str(told))
    except PrefcastError as error:
        if said is not None:
            raise
        raise ModelError(
            f"{name}: is a LoRA adapter, and its base model is not here ({error}); name it: --base FOLDER"
        ) from None
    own = has_weights(folder)
    if own and base.resolve() != folder.resolve():
        raise ModelError(
            f"{name}: holds a whole model and a LoRA adapter of another model ({excerpt(str(told))}); remove the one that is "
            f"not meant, or say --base {shown_path(folder)} to apply the adapter to the model beside it"
        )
    look_over(base, shown_path(base))
    inner = base / ADAPTER_CONFIG
    if inner.exists() and base.resolve() != folder.resolve():
        same = _beginning(base / _WEIGHTS) == _beginning(folder / _WEIGHTS)
        if not has_weights(base) or not same:
            raise ModelError(
                f"{name}: its base model {shown_path(base)} holds another LoRA adapter; merge that one first (peft: "
                "merge_and_unload, then save_pretrained)"
            )
    return folder if base.resolve() == folder.resolve() else base.resolve()


def _beginning(path: Path) -> tuple[int, bytes] | None:
    """The size of a file and its first bytes, which differ wherever two trained adapters do; None where there is none."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size, file.read(1024 * 1024)
    except OSError:
        return None


def read_adapter(folder: Path, base: Mapping[str, TensorInfo], name: str) -> Adapter:
    """The adapter in `folder` for a base model with the weights `base`. Raises ModelError for one that cannot be used."""
    settings = read_object(folder / ADAPTER_CONFIG, name)
    _check(settings, name)
    if not (folder / _WEIGHTS).exists():
        pickle = "adapter_model.bin"
        why = f"; {pickle} is a pickle, which can run code: {to_convert(pickle)}" if (folder / pickle).exists() else ""
        raise ModelError(f"{name}: has no {_WEIGHTS}{why}")
    halves: dict[str, dict[str, TensorInfo]] = {}
    replaces: dict[str, TensorInfo] = {}
    for key, tensor in read_header(folder / _WEIGHTS, name).items():
        short = key.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(short):
            halves.setdefault(match["module"], {})[match["part"]] = tensor
        elif ".lora_" in short or ".original_module." in short or not (match := _SAVED.fullmatch(short)):
            raise ModelError(f"{name}: its adapter has weights of a kind that is not known, {excerpt(key)}")
        else:
            replaces[_stored(f"{match['module']}.{match['leaf']}", base)] = tensor
    # LLaMA-Factory keeps the value head of an adapter in a file beside it.
    for file in sorted(folder.glob("*head*.safetensors")):
        replaces |= {key: tensor for key, tensor in read_header(file, name).items() if HEAD.match(key)}
    for key in replaces:
        if key not in base and not HEAD.match(key):
            raise ModelError(f"{name}: its adapter has weights that its base model lacks, {excerpt(key)}")
    deltas = {}
    for module, parts in halves.items():
        weight = _stored(f"{module}.weight", base)
        if weight not in base:
            raise ModelError(f"{name}: its adapter changes {excerpt(module)}, which its base model lacks")
        deltas[weight] = _delta(module, parts, settings, name)
        _fits(deltas[weight], base[weight], f"{weight}.absmax" in base, module, name)
    return Adapter(folder, deltas, replaces)


def _check(settings: Mapping[str, Any], name: str) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{name}: is an adapter of the kind {excerpt(kind)}; only LORA is supported")
    for key in _UNKNOWN:
        if settings.get(key):
            raise ModelError(f"{name}: its adapter has {key} = {excerpt(settings[key])}, which is not supported")
    begin = settings.get("init_lora_weights")
    if isinstance(begin, str) and _OTHER_BASE.search(begin):
        raise ModelError(
            f"{name}: its adapter has init_lora_weights = {excerpt(begin)}, which changes the base model too; merge it first"
        )


def _stored(weight: str, base: Mapping[str, TensorInfo]) -> str:
    """The name in the base model's files of what peft calls `weight`: they may lack the model's first name."""
    short = weight.removeprefix("model.")
    return short if weight not in base and short in base else weight


def _pattern(settings: Mapping[str, Any], key: str, module: str, default: Any, name: str) -> Any:
    patterns = settings.get(key) or {}
    # As peft: a pattern is the end of a module's name. Only plain names are read, because a regex may never end.
    if not isinstance(patterns, Mapping) or not all(re.fullmatch(r"\^?[\w.]+", pattern) for pattern in patterns):
        raise ModelError(f"{name}: {ADAPTER_CONFIG} has a {key} that is not supported: {excerpt(patterns)}")
    for pattern, value in patterns.items():
        plain = pattern.removeprefix("^")
        if module == plain or (plain == pattern and module.endswith(f".{plain}")):
            return value
    return default


def _delta(module: str, parts: Mapping[str, TensorInfo], settings: Mapping[str, Any], name: str) -> Delta:
    a, b = parts.get("A"), parts.get("B")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise ModelError(f"{name}: its adapter has no pair of matrices A and B for {excerpt(module)}")
    rank = _pattern(settings, "rank_pattern", module, settings.get("r"), name)
    alpha = _pattern(settings, "alpha_pattern", module, settings.get("lora_alpha", 8), name)
    if type(rank) is not int or rank != a.shape[0]:
        raise ModelError(
            f"{name}: {ADAPTER_CONFIG} says rank {excerpt(rank)} for {excerpt(module)}, but its matrices have {a.shape[0]}"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(
            f"{name}: {ADAPTER_CONFIG} says lora_alpha {excerpt(alpha)} for {excerpt(module)}; it must be a number"
        )
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return Delta(a, b, scale, bool(settings.get("fan_in_fan_out")))


def _fits(delta: Delta, weight: TensorInfo, packed: bool, module: str, name: str) -> None:
    shape = (delta.b.shape[0], delta.a.shape[1])
    if not packed and weight.shape != (shape[::-1] if delta.transposed else shape):
        raise ModelError(
            f"{name}: its adapter's matrices for {excerpt(module)} have the shape {shape}, not {weight.shape}"
        )
