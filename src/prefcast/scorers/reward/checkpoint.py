"""What a checkpoint is, read from its `config.json` and the headers of its weights.

No code of the checkpoint runs. Neither torch nor transformers is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from prefcast.errors import MissingExtraError, ModelError, PrefcastError, UsageError, excerpt, shown_path
from prefcast.scorers.reward import CLOCK, DEFAULT_DAY
from prefcast.scorers.reward.labels import label_columns, label_count
from prefcast.scorers.reward.weights import BYTES, SIDE_TENSOR, TensorInfo, quantisable, tensors_of

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
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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
    """A folder with a model. Messages use `name`, the path or hub id that was asked for. `config` is its `config.json`."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    kind: Kind

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def quantization(self) -> str | None:
        """The precision of weights that are stored quantised, `nf4` or `int8`; None for other weights."""
        stored = self.config.get("quantization_config")
        if not isinstance(stored, Mapping):
            return None
        if stored.get("quant_method", "bitsandbytes") == "bitsandbytes":
            if stored.get("load_in_8bit"):
                return "int8"
            if stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
                return "nf4"
        raise ModelError(
            f"{self.name}: weights quantised as {excerpt(str(stored.get('quant_method')))} are not supported; supported "
            "are bitsandbytes nf4 and int8 (prefcast quantize MODEL DIR writes them)"
        )

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
        """SHA-256 over the small files, over the name, type and shape of every tensor, and over each tensor's first
        bytes. It is computed once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
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
        """The part of config.json that describes the language model."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    @property
    def _scaling(self) -> tuple[Any, Mapping[str, Any]]:
        """How rotary positions are scaled: the kind, and the settings."""
        scaling = self.text_config.get("rope_scaling") or self.text_config.get("rope_parameters")
        if not isinstance(scaling, Mapping):
            return None, {}
        return scaling.get("rope_type", scaling.get("type")), scaling

    @property
    def unscaled_length(self) -> int | None:
        """The length from which on the rotary base depends on the length of the sequence; None where it never does."""
        config, (kind, scaling) = self.text_config, self._scaling
        if kind not in ("dynamic", "longrope"):
            return None
        original = scaling.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
        return int(original or config["max_position_embeddings"])

    @cached_property
    def positions(self) -> int | None:
        """The most positions that the network has; None where config.json does not say."""
        config, (kind, scaling) = self.text_config, self._scaling
        positions = config.get("max_position_embeddings", config.get("n_positions"))
        if not isinstance(positions, int) or positions < 1:
            return None
        return int(positions * float(scaling.get("factor", 1))) if kind == "dynamic" else positions

    @cached_property
    def limit(self) -> int | None:
        """The most tokens that are read by default; None where the checkpoint does not say.

        It is the number of positions, or the tokenizer's limit if that is less. With rotary positions only the number of
        positions counts.
        """
        if self.positions is not None and ("rope_theta" in self.text_config or "rope_parameters" in self.text_config):
            # The tokenizer's limit is often a forgotten 512 there.
            return self.positions
        limits = [] if self.positions is None else [self.positions]
        told = self._tokenizer_config.get("model_max_length")
        # A tokenizer without a limit says 1e30.
        if isinstance(told, int | float) and 0 < told < 1e9:
            limits.append(int(told))
        return min(limits, default=None)

    @cached_property
    def _tokenizer_config(self) -> Mapping[str, Any]:
        """The checkpoint's tokenizer_config.json; empty where it cannot be read."""
        try:
            told = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template that comes with the tokenizer."""
        own = self.folder / "chat_template.jinja"
        if own.is_file():
            try:
                return own.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ModelError(f"{self.name}: {own.name} cannot be read: {error}") from None
        template = self._tokenizer_config.get("chat_template")
        if isinstance(template, list):
            template = next((each.get("template") for each in template if each.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    @property
    def compares(self) -> bool:
        """Whether an answer is compared with a reference answer, as POLAR does: a token `<|reward|>` stands between the
        two, and another token, that of config.json, is scored."""
        tokens = self._tokenizer_config.get("added_tokens_decoder") or {}
        ids = [int(index) for index, token in tokens.items() if token.get("content") == "<|reward|>"]
        reward, size = self.config.get("reward_token_id"), self.config.get("vocab_size")
        # A number that is no token is a fault, which loading the network tells.
        token = isinstance(reward, int) and isinstance(size, int) and reward < size
        return self.kind is Kind.INTERNLM2 and token and bool(ids) and reward not in ids

    @cached_property
    def _types(self) -> Counter[str]:
        """How many numbers the weights have of each type."""
        numbers: Counter[str] = Counter()
        for tensor in self.tensors.values():
            numbers[tensor.dtype] += tensor.size
        return numbers

    @property
    def stored_dtype(self) -> str | None:
        """The floating type that most of the weights are stored in, as torch calls it."""
        return next((_FLOATS[dtype] for dtype, _ in self._types.most_common() if dtype in _FLOATS), None)

    @property
    def stored(self) -> str:
        """The two types that hold the most bytes of the weights, the larger first."""
        return ", ".join(sorted(self._types, key=lambda dtype: -self._types[dtype] * BYTES[dtype])[:2])

    @property
    def template_note(self) -> str:
        """Which template makes the text that the model reads."""
        if self.kind is Kind.PAIR:
            if (self.folder / "pair_template.jinja").is_file():
                return "the checkpoint's pair_template.jinja"
            return "lmsys (--template names another)"
        if self.kind is Kind.CAUSAL:
            return "rlhflow (--template names another); the tokens A and B are compared"
        if self.compares:
            return "POLAR's: prompt, reference, prompt, answer; each pair needs a reference answer (column reference)"
        if self.chat_template:
            return "the tokenizer's chat template (--template names another)"
        if self.kind is Kind.INTERNLM2:
            return "InternLM2's chat"
        return "none: reads the two texts (question, answer); --template sets one"

    @property
    def template_day(self) -> str | None:
        """The day that the chat template takes for today by default; None for a template that writes no date."""
        return DEFAULT_DAY if CLOCK in (self.chat_template or "") else None

    @property
    def label_note(self) -> str:
        """What the outputs mean."""
        if self.kind is Kind.CAUSAL:
            return "A and B, by their tokens"
        if self.kind is not Kind.PAIR:
            return "one score a conversation, higher is better"
        try:
            columns = label_columns(self.config, None, self.name)
        except UsageError:
            return f"{label_count(self.config)} without telling names: --labels must say which is A"
        return ", ".join(("A", "B", "tie")[columns.index(index)] for index in range(len(columns))) + " (from id2label)"

    def _sizes(self) -> Iterator[tuple[str, TensorInfo, int]]:
        """Name, tensor and number of parameters of each weight. A byte of packed 4 bit weights holds two of them."""
        for name, tensor in self.tensors.items():
            if not SIDE_TENSOR.search(name):
                yield name, tensor, tensor.size * 2 if f"{name}.absmax" in self.tensors else tensor.size

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(size for _, _, size in self._sizes())

    def memory(self, precision: str) -> int:
        """The bytes that the weights take at `precision` (float32, float16, bfloat16, int8, nf4), without a batch."""
        wide = 4 if precision == "float32" else 2
        # NF4: half a byte, and a byte of scale for 64 weights with 4 bytes for 256 of those (double quantisation).
        matrix = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}.get(precision, wide)
        return int(
            sum(size * (matrix if quantisable(name, tensor.shape) else wide) for name, tensor, size in self._sizes())
        )


def open_checkpoint(model: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint in a folder, or of a hub id such as `owner/name` or `owner/name@revision`.

    `architectures` and the number of labels in `config.json` tell its kind. Raises ModelError for a model that is not
    supported or is damaged, and UsageError if there is no such folder.
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
        found = Checkpoint(name, folder, config, _kind(config, name, trust_remote_code))
        # What config.json says is checked now.
        _ = found.quantization, found.positions, found.limit, found.unscaled_length
        _ = found.label_note, found.template_note
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
    """Whether a name has the form of a hub id, `owner/name`."""
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
