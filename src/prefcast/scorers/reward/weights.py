"""The headers of safetensors files: names, types and shapes of tensors. No tensor is loaded."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefcast.errors import ModelError, excerpt

__all__ = ["BYTES", "SIDE_TENSOR", "TensorInfo", "quantisable", "tensors_of"]

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_LONGEST_HEADER = 100_000_000
BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
# Heads, embeddings and norms are not quantised; the matrices between them are.
_NOT_QUANTISED = re.compile(
    r"(^|\.)(v_head|score|classifier|lm_head|pooler|out_proj_head)\.|embed|norm|\bwte\b|\bwpe\b", re.IGNORECASE
)
# The scales and tables of a quantised matrix.
SIDE_TENSOR = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|quant_state")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a weights file: the file, its type as safetensors names it, its shape, and its first byte in the
    file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

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
    """Every tensor of the weights in `folder`, by name.

    Raises ModelError, which calls the model `name`.
    """
    files = [folder / WEIGHTS]
    if (folder / INDEX).exists():
        try:
            where = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = [folder / file for file in sorted(set(where.values()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{name}: {INDEX} cannot be read: {error}") from None
        if any(file.parent.resolve() != folder.resolve() for file in files):
            raise ModelError(f"{name}: {INDEX} names files outside the folder")
    elif not files[0].exists():
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        pickle = "".join(
            f"; {other} is a pickle, which can run code: convert it (safetensors.torch.save_file)"
            for other in others[:1]
        )
        raise ModelError(f"{name}: no .safetensors weights in the folder{pickle}")
    return {key: tensor for file in files for key, tensor in _header(file, name).items()}


def _header(file: Path, name: str) -> dict[str, TensorInfo]:
    """The header of a safetensors file: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as data:
            (length,) = struct.unpack("<Q", data.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(data.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if file.stat().st_size < 8 + length + end:
            raise ValueError("it ends too early")
        if unknown := {str(entry["dtype"]) for entry in header.values()} - set(BYTES):
            raise ValueError(f"the type {excerpt(unknown.pop())} is not known")
        return {
            key: TensorInfo(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for key, entry in header.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name}: {file.name} cannot be read: {reason}") from None
