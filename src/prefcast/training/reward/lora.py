"""Low-rank adapters on the linear layers of a network, under the names that peft gives them.

Hu and others, "LoRA: Low-rank adaptation of large language models", 2021: W x becomes W x + scale * B A x. The base matrix W stays as
it is, wide or quantised (Dettmers and others, "QLoRA", 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prefcast.errors import UsageError
from prefcast.scorers.reward.networks import body_of
from prefcast.scorers.reward.precision import Int8Linear, NF4Linear

__all__ = ["PREFIX", "LoRA", "attach", "tensors_of"]

# What peft puts before the name of a module.
PREFIX = "base_model.model."
# The matrices A and B are held and learned in float32, whatever the network computes in.
_LEARNED = torch.float32


class LoRA(nn.Module):
    """A linear layer with an adapter: layer(x) + scale * B A x. B begins with zeros, so that the layer begins as it was."""

    def __init__(self, layer: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        out, size = layer.shape if isinstance(layer, NF4Linear | Int8Linear) else layer.weight.shape  # type: ignore[misc]
        device = next(iter((*layer.parameters(), *layer.buffers()))).device
        self.layer, self.scale = layer, scale
        # As peft begins: uniform within 1 / sqrt(inputs).
        a = (torch.rand((rank, size), generator=generator, dtype=_LEARNED) * 2 - 1) / size**0.5
        self.a = nn.Parameter(a.to(device))
        self.b = nn.Parameter(torch.zeros((out, rank), dtype=_LEARNED, device=device))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found + linear(linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * self.scale


def attach(network: nn.Module, rank: int, scale: float, seed: int, name: str) -> dict[str, LoRA]:
    """Put an adapter on every linear layer of the body; the adapters by the names of the layers.

    Raises UsageError for a body without linear layers.
    """
    inside = {id(module) for module in body_of(network).modules()}
    layers = {
        path: module
        for path, module in network.named_modules()
        if id(module) in inside and (type(module) is nn.Linear or isinstance(module, NF4Linear | Int8Linear))
    }
    if not layers:
        raise UsageError(f"{name}: has no linear layers for an adapter; --lora none trains all weights")
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, layer in layers.items():
        found[path] = LoRA(layer, rank, scale, generator)
        parent, _, last = path.rpartition(".")
        setattr(network.get_submodule(parent), last, found[path])
    return found


def tensors_of(adapters: dict[str, LoRA]) -> dict[str, nn.Parameter]:
    """The matrices of the adapters under peft's names."""
    found: dict[str, nn.Parameter] = {}
    for path, each in adapters.items():
        found[f"{PREFIX}{path}.lora_A.weight"] = each.a
        found[f"{PREFIX}{path}.lora_B.weight"] = each.b
    return found
