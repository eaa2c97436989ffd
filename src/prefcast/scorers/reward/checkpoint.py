"""What a checkpoint is, read from its `config.json` and the headers of its weights.

No code of the checkpoint runs. Neither torch nor transformers is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefcast.errors import ModelError, PrefcastError, UsageError, excerpt, shown_path
from prefcast.scorers.reward import CLOCK, DEFAULT_DAY
from prefcast.scorers.reward.adapters import ADAPTER_CONFIG, Adapter, base_of, read_adapter
from prefcast.scorers.reward.families import (
    LANGUAGE,
    Head,
    Kind,
    architecture_of,
    check_sizes,
    find_head,
    head_rows,
    kind_of,
    needs_head,
)
from prefcast.scorers.reward.files import look_over, read_object, read_text
from prefcast.scorers.reward.folders import folder_of
from prefcast.scorers.reward.labels import label_columns, label_count
from prefcast.scorers.reward.weights import BYTES, SIDE_TENSOR, TensorInfo, quantisable, tensors_of

__all__ = ["Checkpoint", "Kind", "open_checkpoint"]

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
# Families whose position of a token counts from the padding token's id on.
_POSITIONS_AFTER_PADDING = frozenset(
    {
        "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text", "longformer",
        "mpnet", "ibert", "xmod", "luke", "markuplm", "esm",
    }
)  # fmt: skip
_EMBEDDING = re.compile(r"(embed_tokens|tok_embeddings|word_embeddings|wte)\.weight$")
# What config.json of an adapter's folder says about the head, which its base model does not know.
_OF_THE_LABELS = ("id2label", "label2id", "num_labels")
_OF_THE_HEAD = (*_OF_THE_LABELS, "pad_token_id")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model. Messages use `name`, the path or hub id that was asked for. `config` is its `config.json`,
    with the number of labels that the head has.

    `tensors` has every tensor of the weights, by name. A `head` is one for which transformers has no place. The folder of
    an adapter has an `adapter`, and `base` is then the folder of the model that it changes.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    kind: Kind
    tensors: Mapping[str, TensorInfo]
    head: Head | None = None
    base: Path | None = None
    adapter: Adapter | None = None

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def quantization(self) -> str | None:
        """The precision of weights that are stored quantised, `nf4` or `int8`; None for other weights."""
        return _quantization(self.config, self.name)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer. An adapter may have its own, or use that of its base model."""
        own = any((self.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
        return self.folder if own or self.base is None else self.base

    @property
    def remote_code(self) -> bool:
        """Whether the checkpoint names Python files of its own."""
        return bool(self.config.get("auto_map"))

    def fingerprint(self) -> str:
        """SHA-256 over the small files, over the name, type and shape of every tensor, and over each tensor's first
        bytes. It is computed once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        own = [] if self.adapter is None else [self.folder / ADAPTER_CONFIG]
        for folder in [self.folder] if self.base in (None, self.folder) else [self.folder, self.base]:
            own += [path for path in sorted(folder.iterdir()) if any(path.match(pattern) for pattern in _READ_FILES)]
        for path in own:
            if path.is_file():
                digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        deltas = {} if self.adapter is None else self.adapter.deltas
        halves = {f"{name}\0{half}": each for name, delta in deltas.items() for half, each in delta.halves.items()}
        for name, tensor in sorted((*self.tensors.items(), *halves.items())):
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
        if config.get("model_type") in _POSITIONS_AFTER_PADDING:
            padding = config.get("pad_token_id", 1)
            return max(1, positions - (padding if isinstance(padding, int) else 1) - 1)
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
        """The checkpoint's tokenizer_config.json; empty where it has none."""
        try:
            return read_object(self.tokenizer_folder / "tokenizer_config.json", self.name)
        except FileNotFoundError:
            return {}

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template that comes with the tokenizer."""
        try:
            return read_text(self.tokenizer_folder / "chat_template.jinja", self.name)
        except FileNotFoundError:
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
        if self.kind is Kind.LANGUAGE:
            return "that of the kind (--kind ab, --kind first-logit)"
        if self.chat_template:
            return "the tokenizer's chat template (--template names another)"
        if self.kind is Kind.INTERNLM2:
            return "InternLM2's chat"
        return "none: reads the two texts (question, answer); --template sets one"

    @property
    def template_day(self) -> str | None:
        """The date that the chat template writes by default; None for a template that writes no date."""
        return DEFAULT_DAY if CLOCK in (self.chat_template or "") else None

    @property
    def label_note(self) -> str:
        """What the outputs mean."""
        if self.kind is Kind.CAUSAL:
            return "A and B, by their tokens"
        if self.kind is Kind.LANGUAGE:
            return "unknown: it has no head"
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


def open_checkpoint(
    model: str | os.PathLike[str],
    *,
    trust_remote_code: bool = False,
    base: str | os.PathLike[str] | None = None,
    weights: bool = True,
    kind: str | None = None,
) -> Checkpoint:
    """The checkpoint in a folder, or of a hub id such as `owner/name` or `owner/name@revision`.

    `architectures` in `config.json` and the weights of the head tell its kind. `base` names the base model of a LoRA
    adapter. Without `weights` the checkpoint has no tensors: they are elsewhere, and may be missing in the folder; what the
    head would tell, `kind` (`pointwise`) tells. Raises ModelError for a model that is not supported or is damaged, and UsageError if there is no such folder.
    """
    folder, name = folder_of(model, trust_remote_code, weights=weights), shown_path(model)
    look_over(folder, name)
    try:
        found = _opened(folder, name, base, trust_remote_code) if weights else _described(folder, name, kind)
        # What config.json says is checked now.
        _ = found.positions, found.limit, found.unscaled_length, found.chat_template
        _ = found.label_note, found.template_note
    except PrefcastError:
        raise
    except OSError as error:
        raise ModelError(f"{name}: its folder cannot be read: {error.strerror or error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        raise ModelError(
            f"{name}: {CONFIG} holds a value that cannot be: {type(error).__name__}: {excerpt(str(error), 200)}"
        ) from None
    return found


def _opened(folder: Path, name: str, said: str | os.PathLike[str] | None, trust_remote_code: bool) -> Checkpoint:
    adapted = (folder / ADAPTER_CONFIG).exists()
    if said is not None and not adapted:
        raise UsageError(f"{name}: --base is for LoRA adapters, and this folder has no {ADAPTER_CONFIG}")
    base = base_of(folder, read_object(folder / ADAPTER_CONFIG, name), said, name) if adapted else None
    config = _config(folder, base, name)
    _quantization(config, name)
    trusted = trust_remote_code and base is None
    if not needs_head(config, name):
        # What config.json alone rules out is told before the weights are read.
        kind_of(config, None, name, trusted)
    tensors = tensors_of(base or folder, name)
    check_sizes(config, tensors, name)
    adapter = None if base is None else read_adapter(folder, tensors, name)
    if adapter is not None:
        tensors |= adapter.replaces
        if resized := next((each for key, each in adapter.replaces.items() if _EMBEDDING.search(key)), None):
            config["vocab_size"] = resized.shape[0]
    custom = trusted and bool(config.get("auto_map"))
    head = None if custom else find_head(architecture_of(config, name), tensors, name)
    rows = head.outputs if head is not None else head_rows(tensors)
    unsaid = "id2label" not in config and "num_labels" not in config
    if not custom and rows is not None and (head is not None or unsaid) and label_count(config) != rows:
        config = {key: value for key, value in config.items() if key not in _OF_THE_LABELS} | {"num_labels": rows}
    return Checkpoint(name, folder, config, kind_of(config, head, name, trusted), tensors, head, base, adapter)


def _described(folder: Path, name: str, said: str | None) -> Checkpoint:
    """A checkpoint by its config.json, and the head in its weights where there are any."""
    config, head = _config(folder, None, name), None
    architecture = architecture_of(config, name)
    if any(folder.glob("*.safetensors")) and not (folder / ADAPTER_CONFIG).exists():
        head = find_head(architecture, tensors_of(folder, name), name)
    if needs_head(config, name) or (architecture.endswith(LANGUAGE) and said == "pointwise"):
        return Checkpoint(name, folder, config, Kind.POINTWISE, {})
    if head is not None:
        config = {key: value for key, value in config.items() if key not in _OF_THE_LABELS} | {
            "num_labels": head.outputs
        }
    return Checkpoint(name, folder, config, kind_of(config, head, name, False), {})


def _config(folder: Path, base: Path | None, name: str) -> dict[str, Any]:
    try:
        config = read_object((base or folder) / CONFIG, name)
    except FileNotFoundError:
        of_base = f"its base model {shown_path(base)} is " if base is not None else ""
        raise ModelError(f"{name}: {of_base}{_what_it_is(base or folder)}") from None
    if base is not None and base != folder and (folder / CONFIG).exists():
        own = read_object(folder / CONFIG, name)
        config |= {key: own[key] for key in _OF_THE_HEAD if key in own}
    return config


def _quantization(config: Mapping[str, Any], name: str) -> str | None:
    stored = config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    method = stored.get("quant_method", "bitsandbytes")
    if method == "bitsandbytes":
        if stored.get("load_in_8bit"):
            return "int8"
        if stored.get("load_in_4bit"):
            # transformers' default is fp4.
            method = stored.get("bnb_4bit_quant_type", "fp4")
            if method == "nf4":
                return "nf4"
            method = f"bitsandbytes {method}"
    raise ModelError(
        f"{name}: weights quantised as {excerpt(str(method))} are not supported; supported are bitsandbytes nf4 and int8 "
        "(prefcast quantize MODEL DIR writes them from the unquantised model)"
    )


def _what_it_is(folder: Path) -> str:
    if list(folder.glob("*.gguf")):
        return "GGUF files; a folder with config.json and .safetensors files is needed"
    if (folder / "forecaster.json").exists():
        return "a forecaster, not a model; predict, evaluate and explain take it with --forecaster"
    return f"not a model: it has no {CONFIG}"
