"""What lies in safetensors files, told by their headers: names, types, shapes. Nothing is loaded."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefcast.errors import ModelError, excerpt

__all__ = ["TensorInfo", "is_matrix", "quantisable", "tensors_of"]

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_LONGEST_HEADER = 100_000_000
_BYTES = {
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
# A head, an embedding or a norm stays as it is: what is quantised are the matrices between them.
_NOT_QUANTISED = re.compile(
    r"(^|\.)(v_head|score|classifier|lm_head|pooler|out_proj_head)\.|embed|norm|\bwte\b|\bwpe\b", re.IGNORECASE
)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a weights file: where it lies, its type as safetensors names it, and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def bytes(self) -> int:
        return self.size * _BYTES.get(self.dtype, 2)


def quantisable(name: str, shape: Sequence[int]) -> bool:
    """Whether the tensor is a matrix of the body, by name and shape."""
    return len(shape) == 2 and name.endswith(".weight") and not _NOT_QUANTISED.search(name)


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a matrix that quantising would shrink, whatever its name ends in."""
    return len(shape) == 2 and not _NOT_QUANTISED.search(name)


def tensors_of(folder: Path, name: str) -> dict[str, TensorInfo]:
    """Every tensor of the weights in `folder`, by name; `name` is what messages call the model.

    Raises ModelError.
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
        found = (
            f"; {others[0]} is a pickle, which can run code: convert it (safetensors.torch.save_file)" if others else ""
        )
        raise ModelError(f"{name}: no .safetensors weights in the folder{found}")
    found_tensors: dict[str, TensorInfo] = {}
    for file in files:
        found_tensors |= _header(file, name)
    return found_tensors


def _header(file: Path, name: str) -> dict[str, TensorInfo]:
    """The header of a safetensors file: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as data:
            (length,) = struct.unpack("<Q", data.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(data.read(length))
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        if file.stat().st_size < 8 + length + end:
            raise ValueError("it ends too early")
        unknown = {str(entry["dtype"]) for key, entry in header.items() if key != "__metadata__"} - set(_BYTES)
        if unknown:
            raise ValueError(f"the type {excerpt(unknown.pop())} is not known")
        return {
            key: TensorInfo(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for key, entry in header.items()
            if key != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name}: {file.name} cannot be read: {reason}") from None
