"""The headers of safetensors files: names, types and shapes of tensors. No tensor is loaded."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcast.errors import ModelError, excerpt, printable
from prefcast.scorers.reward.files import read_object

__all__ = ["BYTES", "HEAD", "SIDE_TENSOR", "TensorInfo", "quantisable", "read_header", "tensors_of"]

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
# Files of an adapter, which are no weights of the model beside them.
ADAPTER_FILES = re.compile(r"adapter_model.*\.safetensors")
# A model of 60,000 tensors has a header of 8 MB.
_LONGEST_HEADER = 16 * 1024 * 1024
_MOST_AXES = 8
_CHUNK = 1024 * 1024
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
# Heads, embeddings and norms are not quantised; the matrices between them are.
_NOT_QUANTISED = re.compile(
    r"(^|\.)(v_head|score|classifier|lm_head|pooler|out_proj_head)\.|embed|norm|\bwte\b|\bwpe\b", re.IGNORECASE
)
# The scales and tables of a quantised matrix.
SIDE_TENSOR = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|quant_state")
# The names of weights that stand for a trained output layer, whatever the family. A language model's own is not one.
HEAD = re.compile(
    r"(?!lm_head)(?:model\.)?(?:\w*head\w*|score\w*|classif\w*|regress\w*|reward\w*|value\w*|critic\w*|ranking\w*|gating\w*)\."
)
# What peft puts before every name of a model that it wraps.
_WRAPPED = "base_model.model."


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a weights file: the file, its type as safetensors names it, its shape, its first byte in the file, and
    its name there."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    key: str = field(default="", compare=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * BYTES[self.dtype]


def quantisable(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a matrix of the body, judged by its name and shape."""
    return len(shape) == 2 and name.endswith(".weight") and not _NOT_QUANTISED.search(name)


def tensors_of(folder: Path, name: str) -> dict[str, TensorInfo]:
    """Every tensor of the weights in `folder`, by name: those of the model, and of a head in a file beside it.

    Raises ModelError, which calls the model `name`.
    """
    files = _weight_files(folder, name)
    found: dict[str, TensorInfo] = {}
    for file in files:
        for key, tensor in read_header(file, name).items():
            if key in found:
                raise ModelError(f"{name}: {found[key].file.name} and {file.name} both have {excerpt(key)}")
            found[key] = tensor
    if found and all(key.startswith(_WRAPPED) for key in found):
        found = {key.removeprefix(_WRAPPED): tensor for key, tensor in found.items()}
    if loose := next((key for key in found if ".lora_" in key or ".base_layer." in key), None):
        raise ModelError(
            f"{name}: holds a LoRA adapter that is not merged ({excerpt(loose)}); merge it (peft: merge_and_unload, then "
            "save_pretrained), or save the adapter alone (save_pretrained of the peft model)"
        )
    found |= _beside(folder, files, found, name)
    return found


def _weight_files(folder: Path, name: str) -> list[Path]:
    # As transformers: one file is preferred over an index, which may be older.
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        where = read_object(folder / INDEX, name).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
            raise ModelError(f"{name}: {INDEX} cannot be read: its weight_map must name a file for each weight")
        names = sorted(set(where.values()))
        # A name without a folder cannot lead out of it; the files themselves may be links, as in the hub's cache.
        if any(file != Path(file).name or "\0" in file or len(file) > 255 for file in names):
            raise ModelError(f"{name}: {INDEX} names files outside the folder, or no files")
        return [folder / file for file in names]
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if not ADAPTER_FILES.fullmatch(file.name) and "head" not in file.name]
    if not files:
        raise ModelError(f"{name}: no .safetensors weights in the folder{_other_weights(folder)}")
    return files


def _other_weights(folder: Path) -> str:
    """What else a folder without safetensors holds, and what to do about it."""
    if list(folder.glob("*.gguf")):
        return "; GGUF files are not read: take the model's original folder"
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not pickles:
        return ""
    return f"; {excerpt(pickles[0])} is a pickle, which can run code: {to_convert(pickles[0])}"


def to_convert(pickle: str) -> str:
    """The command that turns a pickle of weights into safetensors, without running its code."""
    stem = pickle.rpartition(".")[0].replace("pytorch_model", "model")
    if not re.fullmatch(r"[\w.-]+", pickle):
        return "convert it with safetensors.torch.save_file"
    return (
        'convert it where you trust it: python -c "import torch; from safetensors.torch import save_file; save_file({name: '
        f"each.clone() for name, each in torch.load('{pickle}', weights_only=True).items()}}, '{stem}.safetensors')\""
    )


def _beside(folder: Path, files: Sequence[Path], found: dict[str, TensorInfo], name: str) -> dict[str, TensorInfo]:
    """The tensors of heads in files beside the weights, as LLaMA-Factory's value_head.safetensors."""
    heads: dict[str, TensorInfo] = {}
    for file in sorted(folder.glob("*.safetensors")):
        # Shards beside the weights are an older state of them.
        if file in files or ADAPTER_FILES.fullmatch(file.name) or re.fullmatch(r"model-\d+-of-\d+", file.stem):
            continue
        for key, tensor in read_header(file, name).items():
            if not HEAD.match(key):
                continue
            other = heads.get(key, found.get(key))
            if other is not None and not _same(tensor, other):
                raise ModelError(f"{name}: {other.file.name} and {file.name} have different weights {excerpt(key)}")
            heads[key] = tensor
    for file in sorted(folder.glob("*head*.bin")):
        if not file.with_suffix(".safetensors").exists():
            raise ModelError(
                f"{name}: {file.name} beside the weights is a pickle, which can run code: {to_convert(file.name)}"
            )
    return heads


def _same(one: TensorInfo, other: TensorInfo) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        return all(
            first.read(min(left, _CHUNK)) == second.read(min(left, _CHUNK)) for left in range(one.bytes, 0, -_CHUNK)
        )


def read_header(file: Path, name: str) -> dict[str, TensorInfo]:
    """The header of a safetensors file: 8 bytes of length, then JSON. Raises ModelError, which calls the model `name`."""
    try:
        if not file.is_file() and file.exists():
            raise ValueError("it is not a file")
        size = file.stat().st_size
        with file.open("rb") as data:
            start = data.read(8)
            if len(start) < 8:
                raise ValueError("it ends too early")
            (length,) = struct.unpack("<Q", start)
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(data.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        return {
            key: _tensor(file, key, entry, 8 + length, size) for key, entry in header.items() if key != "__metadata__"
        }
    except RecursionError:
        raise ModelError(f"{name}: {printable(file.name)} cannot be read: its header is nested too deeply") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name}: {printable(file.name)} cannot be read: {reason}") from None


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _tensor(file: Path, key: str, entry: Any, start: int, size: int) -> TensorInfo:
    """What a header says of one tensor. Raises ValueError for what cannot be."""
    said: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, place = said.get("dtype"), said.get("shape", ()), said.get("data_offsets", ())
    sound = _counts(shape) and _counts(place) and len(place) == 2 and len(shape) <= _MOST_AXES
    if not isinstance(dtype, str) or not sound:
        raise ValueError(f"its header does not describe the tensor {excerpt(key)}")
    if dtype not in BYTES:
        raise ValueError(f"the type {excerpt(dtype)} is not known")
    found = TensorInfo(file, dtype, tuple(shape), start + place[0], key)
    if place[1] - place[0] != found.bytes:
        raise ValueError(f"the tensor {excerpt(key)} has not as many bytes as its shape says")
    if start + place[1] > size:
        raise ValueError("it ends too early")
    return found
