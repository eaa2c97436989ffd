"""A reward model with random weights, of any size. The other scripts import this one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FIXTURE", "Shape", "make_checkpoint"]

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "internlm2_tiny"


@dataclass(frozen=True)
class Shape:
    """The sizes of a network: width, layers, heads, heads of keys and values, width of the inner layer."""

    hidden: int
    layers: int
    heads: int
    keys: int
    inner: int


def make_checkpoint(
    folder: Path, shape: Shape, fixture: Path = FIXTURE, *, vocabulary: int | None = None, dtype: Any = None
) -> None:
    """Write an InternLM2-reward with random weights and the fixture's tokenizer into `folder`.

    `vocabulary` is the number of embeddings (default: the fixture's), `dtype` the type of the weights (default: float32).
    """
    import torch
    from safetensors.torch import save_file

    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((fixture / name).read_bytes())
    config = json.loads((fixture / "config.json").read_text())
    config |= {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.keys,
        "intermediate_size": shape.inner,
        "max_position_embeddings": 32768,
        "vocab_size": vocabulary or config["vocab_size"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def matrix(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * 0.02).to(dtype or torch.float32)

    hidden, ones = shape.hidden, torch.ones(shape.hidden, dtype=dtype or torch.float32)
    weights = {"model.tok_embeddings.weight": matrix(config["vocab_size"], hidden), "v_head.weight": matrix(1, hidden)}
    weights["model.norm.weight"] = ones.clone()
    for layer in range(shape.layers):
        for name, size in {
            "attention.wqkv": ((shape.heads + 2 * shape.keys) * hidden // shape.heads, hidden),
            "attention.wo": (hidden, hidden),
            "feed_forward.w1": (shape.inner, hidden),
            "feed_forward.w3": (shape.inner, hidden),
            "feed_forward.w2": (hidden, shape.inner),
        }.items():
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(*size)
        for name in ("attention_norm", "ffn_norm"):
            weights[f"model.layers.{layer}.{name}.weight"] = ones.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
