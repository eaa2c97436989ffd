"""Writes a checkpoint with quantised weights, one matrix at a time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from prefcast.base.files import umask
from prefcast.errors import ModelError, UsageError, shown_path
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind, open_checkpoint
from prefcast.scorers.reward.loading import body_matrices, refuse_incomplete, tensor_reader
from prefcast.scorers.reward.networks import skeleton
from prefcast.scorers.reward.precision import quantise

__all__ = ["Stored", "quantize_checkpoint"]

_SHARD_BYTES = 4_000_000_000
# The files that a checkpoint needs besides its weights and config.json. Code is not copied.
_KEPT = (
    "tokenizer*.json",
    "*.model",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "spiece*",
    "generation_config.json",
    "LICENSE*",
    "README.md",
)


@dataclass(frozen=True)
class Stored:
    """How many matrices were quantised, and the size of the weights after and before."""

    matrices: int
    bytes: int
    bytes_before: int


def quantize_checkpoint(model: str, folder: Path, quantization: str) -> Stored:
    """Write `model` with its matrices in `quantization` (`nf4`, `int8`) into `folder`, with its tokenizer.

    The new checkpoint loads without any option. Its scores are those of the original with `quantize=`. Its tensors have
    the names that bitsandbytes uses. After an error there is no folder. Raises UsageError and ModelError.
    """
    checkpoint = open_checkpoint(model)
    if checkpoint.adapter is not None:
        raise UsageError(
            f"{checkpoint.name}: is a LoRA adapter; quantise its base model, and name that one with --base"
        )
    if checkpoint.quantization:
        raise UsageError(f"{checkpoint.name}: is stored as {checkpoint.quantization} already")
    shown = shown_path(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{shown}: is not an empty folder; name a new one")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".prefcast-", dir=folder.parent) as room:
            made = Path(room) / "new"
            made.mkdir()
            matrices = _write(checkpoint, made, quantization)
            written = sum(path.stat().st_size for path in made.glob("*.safetensors"))
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    except OSError as error:
        raise UsageError(f"{shown}: cannot be written: {error.strerror or error}") from None
    return Stored(matrices, written, sum(tensor.bytes for tensor in checkpoint.tensors.values()))


def _tensors(checkpoint: Checkpoint, quantization: str) -> Iterator[dict[str, Tensor]]:
    """For each weight the tensors that are stored: the weight itself, or the parts of the quantised matrix."""
    network = skeleton(checkpoint)
    refuse_incomplete(checkpoint, network)
    matrices = body_matrices(network)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tensor_reader(checkpoint) as reader:
        for name in checkpoint.tensors:
            if name not in matrices:
                yield {name: reader.stored(name)}
                continue
            parts = quantise(reader.stored(name).to(device), quantization)
            stem = name.removesuffix("weight")
            yield {
                f"{stem}SCB" if part == "SCB" else f"{name}.{part}" if part else name: value.contiguous().cpu()
                for part, value in parts.items()
            }


def _write(checkpoint: Checkpoint, folder: Path, quantization: str) -> int:
    """Write the checkpoint into `folder`; gives the number of matrices that were quantised."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size = matrices = total = 0

    def flush() -> None:
        nonlocal shard, size
        if shard:
            save_file(shard, str(folder / f"part-{len(shards):05}.safetensors"), metadata={"format": "pt"})
            shards.append(list(shard))
        shard, size = {}, 0

    for parts in _tensors(checkpoint, quantization):
        matrices += len(parts) > 1
        bytes_ = sum(part.numel() * part.element_size() for part in parts.values())
        if size + bytes_ > _SHARD_BYTES:
            flush()
        shard |= parts
        size += bytes_
        total += bytes_
    flush()
    if matrices == 0:
        raise ModelError(f"{checkpoint.name}: has no matrices that could be quantised")
    if len(shards) == 1:
        (folder / "part-00000.safetensors").rename(folder / "model.safetensors")
    else:
        where: dict[str, str] = {}
        for number, names in enumerate(shards):
            file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
            (folder / f"part-{number:05}.safetensors").rename(folder / file)
            where |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~umask())
    for path in checkpoint.folder.iterdir():
        if any(path.match(pattern) for pattern in _KEPT) and path.is_file():
            shutil.copyfile(path, folder / path.name)
    config = dict(checkpoint.config)
    config["quantization_config"] = (
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "float16",
            "bnb_4bit_quant_storage": "uint8",
        }
        if quantization == "nf4"
        else {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True, "llm_int8_threshold": 6.0}
    )
    if checkpoint.kind is not Kind.INTERNLM2:
        config["quantization_config"]["llm_int8_skip_modules"] = ["score", "classifier", "lm_head"]
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return matrices
