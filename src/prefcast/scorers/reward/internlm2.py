"""InternLM2ForRewardModel: the network of InternLM2-reward (1.8B, 7B, 20B) and POLAR over packed rows.

Modules have the names of the published weights. `wqkv` stays one matrix, as it was trained and as it is quantised. The
rotary base of dynamic NTK scaling depends on the length of each sequence alone, so a score does not depend on earlier
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from prefcast.errors import ModelError, excerpt
from prefcast.scorers.reward.packing import Layout, attend, attend_last

__all__ = ["InternLM2Config", "InternLM2Reward"]

_NUMBERS: Mapping[str, Any] = {"int": int, "float": float}


@dataclass(frozen=True)
class InternLM2Config:
    """The sizes and constants of a checkpoint, with their names in `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    reward_token_id: int
    bias: bool = False
    scaling: str | None = None
    factor: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> InternLM2Config:
        """Read from `config.json`. Raises ModelError for a value that is missing or that this network does not support."""
        scaling = config.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise ModelError(f"config.json: rope_scaling {excerpt(scaling)} is not an object")
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind not in (None, "default", "linear", "dynamic"):
            raise ModelError(
                f"config.json: rope_scaling {excerpt(kind)} is not supported; there are linear and dynamic"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise ModelError(
                f"config.json: hidden_act {excerpt(config['hidden_act'])} is not supported; InternLM2 has silu"
            )
        try:
            heads = {"num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"]}
            needed = [each for each in fields(cls) if each.default is MISSING]
            made = cls(
                **{each.name: _NUMBERS[str(each.type)]({**config, **heads}[each.name]) for each in needed},
                bias=bool(config.get("bias", False)),
                scaling=None if kind == "default" else kind,
                factor=float(scaling.get("factor", 1.0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"config.json: {type(error).__name__}: {error}") from None
        sizes = (made.hidden_size, made.num_hidden_layers, made.num_attention_heads, made.num_key_value_heads)
        if (
            min(sizes) < 1
            or made.hidden_size % made.num_attention_heads
            or made.num_attention_heads % made.num_key_value_heads
        ):
            raise ModelError(
                "config.json: hidden_size, layers, heads and key heads must be positive and divide each other"
            )
        if not 0 <= made.reward_token_id < made.vocab_size:
            raise ModelError(
                f"config.json: reward_token_id {made.reward_token_id} is not below vocab_size {made.vocab_size}"
            )
        return made

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Norm(nn.Module):
    """Root mean square normalisation, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.heads, self.kv, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_size
        self.wqkv = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv) * self.size, bias=config.bias)
        self.wo = nn.Linear(self.heads * self.size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, last: bool) -> Tensor:
        # For each key head: its queries, then one key, then one value.
        qkv = self.wqkv(x).view(len(x), self.kv, -1, self.size)
        q = qkv[:, :, :-2].reshape(len(x), self.heads, self.size)
        k = _rotate(qkv[:, :, -2], cos, sin)
        if last:
            ends = layout.last.to(x.device)
            q, cos, sin = q[ends], cos[ends], sin[ends]
        q, k, v = (part.transpose(0, 1)[None] for part in (_rotate(q, cos, sin), k, qkv[:, :, -1]))
        found = attend_last(layout, q, k, v) if last else attend(layout, q, k, v)
        out: Tensor = self.wo(found[0].flatten(1))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class FeedForward(nn.Module):
    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(silu(self.w1(x)) * self.w3(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, last: bool) -> Tensor:
        """The states after the layer; with `last` those of the last token of each sequence alone."""
        found = self.attention(self.attention_norm(x), cos, sin, layout, last)
        x = (x[layout.last.to(x.device)] if last else x) + found
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Body(nn.Module):
    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, layout: Layout) -> Tensor:
        x = self.tok_embeddings(layout.ids)
        cos, sin = rotary(self.config, layout, x.dtype)
        for number, layer in enumerate(self.layers, 1):
            # The layers may be on several devices.
            device = next(layer.parameters()).device
            x, cos, sin = x.to(device), cos.to(device), sin.to(device)
            x = layer(x, cos, sin, layout, number == len(self.layers))
        out: Tensor = self.norm(x)
        return out


class InternLM2Reward(nn.Module):
    """Gives for a packed row the hidden states (sequences, hidden size) that the head scores."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.model = Body(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, layout: Layout) -> Tensor:
        hidden: Tensor = self.model(layout)
        return hidden

    @property
    def score(self) -> nn.Linear:
        """The head. Classifiers of transformers use this name."""
        return self.v_head


def rotary(config: InternLM2Config, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, 1, head size) of every token.

    Dynamic NTK: a sequence of L > max_position_embeddings tokens has the base
    theta * (f * L / max - (f - 1)) ** (d / (d - 2)), as the published modelling code computes it.
    """
    device, size, limit = layout.ids.device, config.head_size, config.max_position_embeddings
    powers = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    frequencies = (1.0 / config.rope_theta**powers).to(device)
    positions = layout.positions.float()
    if config.scaling == "linear":
        positions = positions / config.factor
    angles = positions[:, None] * frequencies[None, :]
    if config.scaling == "dynamic":
        for span in layout.spans:
            if span.length > limit:
                base = config.rope_theta * (config.factor * span.length / limit - (config.factor - 1)) ** (
                    size / (size - 2)
                )
                here = slice(span.start, span.stop)
                angles[here] = positions[here, None] * (1.0 / base**powers).to(device)[None, :]
    angles = torch.cat((angles, angles), -1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)
