"""The network in torch: a BERT encoder that reads a conversation into a vector, and a head that compares two vectors.

    margin = (w.a + f(a, b)) - (w.b + f(b, a))    tie = g((a + b) / 2, |a - b|, a * b, cos(a, b))

with a and b normalised: exchanging them negates the margin and leaves the tie alone, whatever the weights. This module
knows nothing of tokens' meaning, nor of how it is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prefcast.errors import ModelError, shown_path

__all__ = ["Encoder", "Head", "SourceLevels", "read_checkpoint"]

_MARGIN_WIDTH, _TIE_WIDTH = 128, 64


class Layer(nn.Module):
    """One layer of the encoder; `first` computes the first token alone, which attends to all."""

    def __init__(self, hidden: int, intermediate: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.ln1 = nn.LayerNorm(hidden, eps=epsilon)
        self.up = nn.Linear(hidden, intermediate)
        self.down = nn.Linear(intermediate, hidden)
        self.ln2 = nn.LayerNorm(hidden, eps=epsilon)

    def forward(self, x: Tensor, mask: Tensor, dropout: float, first: bool) -> Tensor:
        n, length, hidden = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        if first:
            q, x = q[:, :, :1], x[:, :1]
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        read = self.out(read.transpose(1, 2).reshape(n, -1, hidden))
        x = self.ln1(x + functional.dropout(read, dropout, self.training))
        inner = self.down(functional.gelu(self.up(x)))
        normed: Tensor = self.ln2(x + functional.dropout(inner, dropout, self.training))
        return normed


class Encoder(nn.Module):
    """BERT (Devlin et al., 2019), read at its first token.

    The last layer computes that token alone. Under autocast to bfloat16 all but the embeddings is in that.
    """

    def __init__(
        self,
        *,
        hidden: int,
        intermediate: int,
        layers: int,
        heads: int,
        vocabulary: int,
        positions: int = 512,
        types: int = 2,
        epsilon: float = 1e-12,
    ) -> None:
        super().__init__()
        self.hidden, self.heads = hidden, heads
        self.word = nn.Embedding(vocabulary, hidden)
        self.pos = nn.Embedding(positions, hidden)
        self.typ = nn.Embedding(types, hidden)
        self.ln = nn.LayerNorm(hidden, eps=epsilon)
        self.layers = nn.ModuleList(Layer(hidden, intermediate, heads, epsilon) for _ in range(layers))

    def forward(self, ids: Tensor, types: Tensor, lengths: Tensor, dropout: float = 0.0) -> Tensor:
        """Vectors (n, hidden), float32, of token ids and types (n, length), padded after `lengths` (n,)."""
        n, length = ids.shape
        half = torch.is_autocast_enabled("cpu")
        padding = torch.arange(length)[None] >= lengths[:, None]
        mask = torch.zeros(n, 1, 1, length).masked_fill(padding[:, None, None], -1e4)
        x = self.ln(self.word(ids) + self.pos.weight[:length] + self.typ(types))
        x = functional.dropout(x, dropout, self.training)
        if half:
            x, mask = x.to(torch.bfloat16), mask.to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, mask, dropout, layer is self.layers[-1])
        vector: Tensor = x[:, 0].float()
        return vector


class Head(nn.Module):
    """Margin and tie evidence of two vectors; a new one says 0 to everything."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.w = nn.Linear(hidden, 1, bias=False)
        self.inter = nn.Linear(2 * hidden, _MARGIN_WIDTH)
        self.iv = nn.Linear(_MARGIN_WIDTH, 1, bias=False)
        self.t1 = nn.Linear(3 * hidden + 1, _TIE_WIDTH)
        self.t2 = nn.Linear(_TIE_WIDTH, 1, bias=False)
        for last in (self.w, self.iv, self.t2):
            nn.init.zeros_(last.weight)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Margin and tie (n,) of vectors a and b (n, hidden)."""
        a, b = (functional.layer_norm(each, (self.hidden,)) for each in (a, b))
        # Each side whole, then one difference: exchanged, it is the same number with its sign turned, to the last bit.
        margin = (self.w(a) + self._compared(a, b)) - (self.w(b) + self._compared(b, a))
        likeness = functional.cosine_similarity(a, b)[:, None]
        tie = self.t2(functional.gelu(self.t1(torch.cat([(a + b) / 2, (a - b).abs(), a * b, likeness], 1))))
        return margin[:, 0], tie[:, 0]

    def _compared(self, a: Tensor, b: Tensor) -> Tensor:
        compared: Tensor = self.iv(functional.gelu(self.inter(torch.cat([a, b], 1))))
        return compared


class SourceLevels(nn.Module):
    """What differs between sources, needed in training alone: how often people call a tie (`level`), how sharply
    they judge (`scale`, in logs), and how much the surface of a text counts with them (`om` for the margin, `ot` for
    the tie)."""

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.full((sources,), -0.2))
        self.scale = nn.Parameter(torch.zeros(sources))
        self.om = nn.Parameter(torch.ones(sources))
        self.ot = nn.Parameter(torch.ones(sources))

    def forward(
        self, source: Tensor, margin: Tensor, tie: Tensor, surface_margin: Tensor, surface_tie: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The arguments s and t (n,) of Davidson's model for rows of `source` (n,)."""
        s = 2 * self.scale[source].exp() * margin + self.om[source] * surface_margin
        return s, self.level[source] + tie + self.ot[source] * surface_tie


def read_checkpoint(folder: Path) -> Encoder:
    """The BERT encoder whose config.json and model.safetensors lie in `folder`.

    Raises ModelError if it is another kind of model or lacks weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shown = shown_path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = [config["model_type"], config["hidden_act"], config.get("position_embedding_type", "absolute")]
        if kind != ["bert", "gelu", "absolute"]:
            raise ModelError(f"{shown}: is {kind}; a BERT encoder with gelu and absolute positions would do")
        encoder = Encoder(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            types=config["type_vocab_size"],
            epsilon=config["layer_norm_eps"],
        )
        weights = {
            name.removeprefix("bert."): tensor for name, tensor in load_file(folder / "model.safetensors").items()
        }
    except OSError as error:
        raise ModelError(f"{shown}: not a checkpoint: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{shown}: not a checkpoint of a BERT encoder: {type(error).__name__}: {error}") from None
    try:
        encoder.load_state_dict(_renamed(weights, len(encoder.layers)))
    except KeyError as error:
        raise ModelError(f"{shown}/model.safetensors: lacks {error.args[0]}") from None
    except RuntimeError as error:
        raise ModelError(
            f"{shown}/model.safetensors: does not fit config.json: {str(error).splitlines()[-1]}"
        ) from None
    return encoder


def _renamed(weights: dict[str, Tensor], layers: int) -> dict[str, Any]:
    """A published checkpoint's weights under our names."""
    names = {
        "word.weight": "embeddings.word_embeddings.weight",
        "pos.weight": "embeddings.position_embeddings.weight",
        "typ.weight": "embeddings.token_type_embeddings.weight",
    }
    parts = {"ln": "embeddings.LayerNorm"}
    found: dict[str, Tensor] = {}
    for number in range(layers):
        theirs, ours = f"encoder.layer.{number}.", f"layers.{number}."
        parts |= {
            f"{ours}out": f"{theirs}attention.output.dense",
            f"{ours}ln1": f"{theirs}attention.output.LayerNorm",
            f"{ours}up": f"{theirs}intermediate.dense",
            f"{ours}down": f"{theirs}output.dense",
            f"{ours}ln2": f"{theirs}output.LayerNorm",
        }
        for what in ("weight", "bias"):
            found[f"{ours}qkv.{what}"] = torch.cat(
                [weights[f"{theirs}attention.self.{part}.{what}"] for part in ("query", "key", "value")]
            )
    names |= {f"{ours}.{what}": f"{theirs}.{what}" for ours, theirs in parts.items() for what in ("weight", "bias")}
    return {**found, **{ours: weights[theirs] for ours, theirs in names.items()}}
