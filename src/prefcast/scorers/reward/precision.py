"""Quantised weights, and the matrix products of each precision.

NF4 has double quantisation (Dettmers et al., QLoRA, 2023, section 3); int8 has one scale a row. Only weights are
quantised: the product is taken with the dequantised matrix in the compute type, so a score does not depend on the rest of
the batch. The tensors have the names that bitsandbytes uses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prefcast.errors import MissingExtraError, ModelError

__all__ = [
    "DTYPES",
    "Int8Linear",
    "LowRank",
    "NF4Linear",
    "OneDNNLinear",
    "compute_dtype",
    "quantise",
    "quantised_linear",
    "stored_parts",
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_BLOCK = 64
_STATE = "quant_state.bitsandbytes__nf4"
_NF4_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", _STATE)

Fetch = Callable[[str], Tensor]


def _bitsandbytes() -> Any:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    # Its import warns about kernels that are not installed.
    logger.setLevel(logging.CRITICAL)
    try:
        import bitsandbytes.functional
    except ImportError:
        raise MissingExtraError("bitsandbytes", "transformers") from None
    finally:
        logger.setLevel(level)
    return bitsandbytes.functional


def compute_dtype(name: str | None, device: torch.device, stored: str | None, quantization: str | None) -> torch.dtype:
    """The type that a model computes in: the one called `name`, or the default of the device.

    A CPU's default is float32, because half precision is less accurate there. Other devices use float16 for 4 bit weights,
    as the notebook does, and otherwise the type of the stored weights.
    """
    if name is not None:
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    if quantization == "nf4":
        return torch.float16
    return DTYPES.get(stored or "", torch.float16)


class _Frozen(torch.autograd.Function):
    """x W^T, where `fetch` makes W. The gradient fetches W again, so that no wide matrix is kept until then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fetch: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.fetch = fetch
        return linear(x, fetch(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.fetch(gradient.dtype), None


def _product(x: Tensor, fetch: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
    """x W^T + bias, where `fetch` makes the frozen matrix W in a type."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return linear(x, fetch(x.dtype), bias)
    found: Tensor = _Frozen.apply(x, fetch)
    return found if bias is None else found + bias


class NF4Linear(nn.Module):
    """A linear layer with a 4 bit matrix."""

    def __init__(self, packed: Tensor, state: Any, bias: Tensor | None) -> None:
        super().__init__()
        self._functional = _bitsandbytes()
        self._state = state
        self.register_buffer("weight", packed)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        out, size = self._state.shape
        return int(out), int(size)

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self._wide, self.bias)

    def _wide(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = self._functional.dequantize_4bit(self.weight, self._state)
        return weight.to(dtype)


class Int8Linear(nn.Module):
    """A linear layer with an 8 bit matrix. The scale of a row is its largest magnitude."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.weight.shape[0], self.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self._wide, self.bias)

    def _wide(self, dtype: torch.dtype) -> Tensor:
        # The scale is applied before the product, which would overflow float16 otherwise.
        return self.weight.to(dtype) * (self.scale / 127).to(dtype)[:, None]


class LowRank(nn.Module):
    """A layer with a LoRA adapter beside it: layer(x) + B A x."""

    a: Tensor
    b: Tensor

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out + linear(linear(x, self.a), self.b)


class OneDNNLinear(nn.Module):
    """A linear layer whose matrix has oneDNN's layout for this processor. It is 1.1 to 1.5 times as fast in the same
    precision."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
        self.bias = module.bias

    @staticmethod
    def usable(module: nn.Linear, dtype: torch.dtype) -> bool:
        """Whether torch supports this layer here."""
        return (
            module.weight.device.type == "cpu"
            and dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()
            # Only some processors multiply in bfloat16 themselves.
            and (dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


def quantise(weight: Tensor, quantization: str) -> dict[str, Tensor]:
    """The tensors of the quantised `weight` (out, in). Their keys are the ends of their names; that of the matrix is
    empty."""
    if quantization == "int8":
        wide = weight.float()
        scale = wide.abs().amax(1)
        steps = torch.round(wide * (127 / scale.clamp(min=torch.finfo(torch.float32).tiny))[:, None])
        return {"": steps.clamp(-127, 127).to(torch.int8), "SCB": scale}
    packed, state = _bitsandbytes().quantize_4bit(
        weight.contiguous(), blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return {"": packed, **state.as_dict(packed=True)}


def quantised_linear(parts: dict[str, Tensor], bias: Tensor | None, device: torch.device) -> nn.Module:
    """The layer with the tensors `parts`, as `quantise` and `stored_parts` give them."""
    parts = {name: part.to(device) if name != _STATE else part for name, part in parts.items()}
    if "SCB" in parts:
        return Int8Linear(parts[""], parts["SCB"], bias)
    functional = _bitsandbytes()
    try:
        state = functional.QuantState.from_dict({name: part for name, part in parts.items() if name}, device)
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise ModelError(f"quantised weights are damaged: {type(error).__name__}: {error}") from None
    return NF4Linear(parts[""], state, bias)


def stored_parts(name: str, names: Any, fetch: Fetch) -> dict[str, Tensor] | None:
    """The tensors of a weight that is stored quantised; None for a weight that is not."""
    if f"{name}.{_STATE}" in names:
        return {"": fetch(name), **{part: fetch(f"{name}.{part}") for part in _NF4_PARTS if f"{name}.{part}" in names}}
    scale = f"{name.removesuffix('weight')}SCB"
    if scale in names:
        return {"": fetch(name), "SCB": fetch(scale)}
    return None
