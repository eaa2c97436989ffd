"""What a checkpoint is, told by its own `config.json` and the headers of its weights. Nothing of it is executed, and
neither torch nor transformers is needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from prefcast.errors import MissingExtraError, ModelError, PrefcastError, UsageError, excerpt, shown_path
from prefcast.scorers.reward.labels import label_columns, label_count
from prefcast.scorers.reward.weights import TensorInfo, is_matrix, tensors_of

__all__ = ["Checkpoint", "Kind", "is_hub_id", "open_checkpoint"]

CONFIG = "config.json"
_SAMPLED_BYTES = 65_536
_READ_FILES = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
)
# What lies beside a quantised matrix: its scales and tables.
_SIDE_TENSOR = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|quant_state")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
SUPPORTED = (
    "InternLM2ForRewardModel; ...ForSequenceClassification with one label (reward models) or two or three (pair "
    "classifiers); ...ForCausalLM (A/B preference models)"
)


class Kind(StrEnum):
    """How a checkpoint scores."""

    INTERNLM2 = "InternLM2 reward model"
    POINTWISE = "pointwise reward model"
    PAIR = "pair classifier"
    CAUSAL = "causal A/B preference model"
    CUSTOM = "custom reward model (remote code)"


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model. `name` is what the person called it, `config` its `config.json`."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    kind: Kind

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def labels(self) -> int:
        return label_count(self.config)

    @property
    def quantization(self) -> str | None:
        """`nf4` or `int8` where the weights are stored so."""
        return _quantization(self.config, self.name)

    @property
    def remote_code(self) -> bool:
        """Whether the checkpoint names Python files of its own."""
        return bool(self.config.get("auto_map"))

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of the weights, by name.

        Raises ModelError if there are none, or if a shard is missing or damaged.
        """
        return tensors_of(self.folder, self.name)

    def fingerprint(self) -> str:
        """SHA-256 over what its small files hold, its weights' names, types and shapes, and the first bytes of every
        tensor."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if any(path.match(pattern) for pattern in _READ_FILES) and path.is_file():
                digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
            with tensor.file.open("rb") as file:
                file.seek(tensor.offset)
                digest.update(file.read(min(tensor.bytes, _SAMPLED_BYTES)))
        return digest.hexdigest()

    @property
    def text_config(self) -> Mapping[str, Any]:
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    @property
    def unscaled_length(self) -> int | None:
        """The length beyond which a rotary base follows the length of the sequence; None where it never does."""
        config = self.text_config
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(scaling, Mapping) or scaling.get("rope_type", scaling.get("type")) not in (
            "dynamic",
            "longrope",
        ):
            return None
        original = scaling.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
        return int(original or config["max_position_embeddings"])

    @cached_property
    def positions(self) -> int | None:
        """The most positions that the network has; None where config.json does not say."""
        config = self.text_config
        positions = config.get("max_position_embeddings", config.get("n_positions"))
        if not isinstance(positions, int) or positions < 1:
            return None
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        dynamic = isinstance(scaling, Mapping) and scaling.get("rope_type", scaling.get("type")) == "dynamic"
        return int(positions * float(scaling.get("factor", 1))) if dynamic else positions

    @cached_property
    def limit(self) -> int | None:
        """The most tokens that are read unless a person says otherwise: the positions of a model with rotary ones, for
        others what their tokenizer says if that is less; None where nothing is said."""
        if self.positions is not None and ("rope_theta" in self.text_config or "rope_parameters" in self.text_config):
            # There the tokenizer's figure is advice, and often a forgotten 512.
            return self.positions
        limits = [] if self.positions is None else [self.positions]
        try:
            told = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(
                "model_max_length"
            )
        except (OSError, ValueError, AttributeError):
            told = None
        # Tokenizers without a limit say 1e30.
        if isinstance(told, int | float) and 0 < told < 1e9:
            limits.append(int(told))
        return min(limits, default=None)

    @property
    def stored_dtype(self) -> str | None:
        """The floating type that most of the weights are stored in, as torch calls it."""
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype in names:
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return names[max(sizes, key=lambda name: sizes[name])] if sizes else None

    @property
    def stored(self) -> str:
        """The types of the weights, the most frequent first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
        return ", ".join(sorted(sizes, key=lambda name: -sizes[name])[:2])

    @property
    def template_note(self) -> str:
        """Which template turns texts into what the model reads."""
        if self.kind is Kind.PAIR:
            return (
                "the checkpoint's pair_template.jinja"
                if (self.folder / "pair_template.jinja").is_file()
                else "lmsys (--template names another)"
            )
        if self.kind is Kind.CAUSAL:
            return "rlhflow (--template names another); the tokens A and B are compared"
        if self._has_chat_template or self.kind is Kind.INTERNLM2:
            return "the tokenizer's chat template" if self._has_chat_template else "InternLM2's chat"
        return "none: reads the two texts (question, answer)"

    @property
    def _has_chat_template(self) -> bool:
        if (self.folder / "chat_template.jinja").is_file():
            return True
        try:
            told = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            return bool(told.get("chat_template"))
        except (OSError, ValueError, AttributeError):
            return False

    @property
    def label_note(self) -> str:
        """What the outputs mean."""
        if self.kind is not Kind.PAIR:
            return (
                "A and B, by their tokens" if self.kind is Kind.CAUSAL else "one score a conversation, higher is better"
            )
        try:
            columns = label_columns(self.config, None, self.name)
        except UsageError:
            return f"{self.labels} without telling names: --labels must say which is A"
        return ", ".join(("A", "B", "tie")[columns.index(index)] for index in range(len(columns))) + " (from id2label)"

    @property
    def parameters(self) -> int:
        """How many parameters the model has; packed 4 bit weights count for what they stand for."""
        count = 0
        for name, tensor in self.tensors.items():
            if _SIDE_TENSOR.search(name):
                continue
            packed = f"{name}.absmax" in self.tensors
            count += tensor.size * 2 if packed else tensor.size
        return count

    def memory(self, precision: str) -> int:
        """Bytes that the weights take at `precision` (float32, float16, bfloat16, int8, nf4); a batch comes on top."""
        wide = 4 if precision == "float32" else 2
        total = 0.0
        for name, tensor in self.tensors.items():
            if _SIDE_TENSOR.search(name):
                continue
            size = tensor.size * 2 if f"{name}.absmax" in self.tensors else tensor.size
            matrix = is_matrix(name, tensor.shape)
            # NF4: half a byte, and a byte of scale for 64 weights with 4 bytes for 256 of those (double quantisation).
            each = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}.get(precision, wide) if matrix else wide
            total += size * each
        return int(total)


def open_checkpoint(model: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint in a folder, or of a hub id such as `owner/name` or `owner/name@revision`.

    Its kind is told by `architectures` and the number of labels in `config.json`. Raises ModelError, naming what is
    supported, and UsageError if there is no such folder.
    """
    folder = _folder(model, trust_remote_code)
    name = shown_path(model)
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{name}: {_what_it_is(folder)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {CONFIG} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{name}: {CONFIG} is not a JSON object")
    try:
        _quantization(config, name)
        found = Checkpoint(name, folder, config, _kind(config, name, trust_remote_code))
        _ = found.positions, found.limit, found.unscaled_length, found.label_note, found.template_note
    except PrefcastError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        raise ModelError(
            f"{name}: {CONFIG} holds a value that cannot be: {type(error).__name__}: {excerpt(str(error), 200)}"
        ) from None
    return found


def _what_it_is(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return "a LoRA adapter without its model; merge it first (peft: merge_and_unload, then save_pretrained)"
    if list(folder.glob("*.gguf")):
        return "GGUF files; a folder with config.json and .safetensors files is needed"
    if (folder / "forecaster.json").exists():
        return "a forecaster, not a model; predict, evaluate and explain take it with --forecaster"
    return f"not a model: it has no {CONFIG}"


def _folder(model: str | os.PathLike[str], trust_remote_code: bool) -> Path:
    path = Path(model)
    try:
        if path.is_dir():
            return path
        if path.exists():
            raise UsageError(f"{shown_path(model)}: is a file; name the folder that holds config.json and the weights")
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown_path(model)}: {error}") from None
    if not isinstance(model, str) or not is_hub_id(model):
        raise UsageError(
            f"{shown_path(model)}: no such folder; name a folder with a model, or a hub id like owner/name"
        )
    return _download(model, trust_remote_code)


def is_hub_id(model: str) -> bool:
    """Whether a name may be a hub's `owner/name`."""
    return bool(_HUB_ID.fullmatch(model)) and not model.startswith(".")


def _download(model: str, trust_remote_code: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtraError("huggingface_hub", "transformers") from None
    repository, _, revision = model.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=[*_HUB_FILES, *(["*.py"] if trust_remote_code else [])],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{model}: no such folder here, and it cannot be fetched from the hub: {excerpt(reason, 200)}; without a "
            "network name a local folder"
        ) from None


def _kind(config: Mapping[str, Any], name: str, trust_remote_code: bool) -> Kind:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise ModelError(f"{name}: {CONFIG} names no architecture; supported are {SUPPORTED}")
    architecture = architectures[0]
    if architecture == "InternLM2ForRewardModel":
        return Kind.INTERNLM2
    custom = bool(config.get("auto_map"))
    pairs = architecture.endswith("ForSequenceClassification") and ("id2label" in config or "num_labels" in config)
    if custom and trust_remote_code and not (pairs and label_count(config) in (2, 3)):
        return Kind.CUSTOM
    if architecture.endswith("ForSequenceClassification"):
        labels = label_count(config)
        if labels == 1:
            return Kind.POINTWISE
        if labels in (2, 3):
            return Kind.PAIR
        raise ModelError(
            f"{name}: a classifier with {labels} labels; supported are one (reward models), two and three (A, B, tie)"
        )
    if architecture.endswith("ForCausalLM"):
        return Kind.CAUSAL
    remote = " (its own code runs only with --trust-remote-code)" if custom else ""
    raise ModelError(
        f"{name}: the architecture {excerpt(architecture)} is not supported{remote}; supported are {SUPPORTED}"
    )


def _quantization(config: Mapping[str, Any], name: str) -> str | None:
    stored = config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    if stored.get("quant_method", "bitsandbytes") == "bitsandbytes":
        if stored.get("load_in_8bit"):
            return "int8"
        if stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
            return "nf4"
    raise ModelError(
        f"{name}: weights quantised as {excerpt(str(stored.get('quant_method')))} are not supported; supported are "
        "bitsandbytes nf4 and int8 (prefcast quantize MODEL DIR writes them)"
    )
