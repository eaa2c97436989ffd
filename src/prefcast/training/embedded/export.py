"""From a trained network to what ONNX Runtime runs, and back.

encoder.onnx takes the ids and types of one conversation, (1, l) int32, and gives its vector (1, members * h): matrices as
int8 with a scale a column, activations scaled as they come, the rest float32. Members are encoders that have their first
layers in common, which are computed once. head.onnx takes two vectors and gives the members' mean margin and tie (1,). The operations of the domain com.microsoft are ONNX Runtime's own fused ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError
from prefcast.scorers.embedded.encoder import ENCODER, HEAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from prefcast.training.embedded.network import Encoder, Head

__all__ = ["Members", "export", "load_exported"]

Array = NDArray[Any]
Members: TypeAlias = "Sequence[tuple[Encoder, Head]]"

_FUSED = "com.microsoft"
# 63, not 127: processors without VNNI add two products of eight bits in sixteen, which larger weights overflow.
_LARGEST = 63
_LARGEST_EMBEDDING = 127
_SCALE = ".scale"


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def add(self, operation: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operation, inputs, [output], domain=domain, **attributes))
        return output

    def add_many(self, operation: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operation, inputs, outputs, **attributes))

    def save(self, path: Path, inputs: dict[str, tuple[Any, list[Any]]], outputs: dict[str, list[Any]]) -> None:
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self.constants.items()],
        )
        # Opset 21 and IR 10 are read by ONNX Runtime from 1.20 on.
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(_FUSED, 1)], ir_version=10
        )
        path.write_bytes(model.SerializeToString(deterministic=True))


def export(members: Members, folder: Path, *, shared: int, quantized: bool = True) -> None:
    """Write encoder.onnx and head.onnx of encoders that have their first `shared` layers in common; `quantized=False`
    keeps float32, to measure what int8 costs."""
    _encoder_graph([encoder for encoder, _ in members], folder / ENCODER, shared, quantized)
    _head_graph([head for _, head in members], folder / HEAD)


def _arrays(module: torch.nn.Module) -> dict[str, Array]:
    return {name: value.detach().float().numpy() for name, value in module.state_dict().items()}


class _EncoderGraph(_Graph):
    """The parts of an encoder's layers."""

    def __init__(self, quantized: bool, heads: int, epsilon: float) -> None:
        super().__init__("encoder")
        self.quantized, self.heads, self.epsilon = quantized, heads, epsilon
        self._integers: set[str] = set()

    def linear(self, value: str, name: str, weight: Array, bias: Array) -> str:
        """`value` (1, l, i) times a weight (o, i), and a bias (o,)."""
        output, b = f"{name}.output", self.constant(f"{name}.bias", bias)
        if not self.quantized:
            product = self.add("MatMul", [value, self.constant(f"{name}.weight", weight.T)], f"{name}.product")
            return self.add("Add", [product, b], output)
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / _LARGEST
        w = self.constant(f"{name}.weight", np.round(weight / scale[:, None]).astype(np.int8).T)
        s = self.constant(f"{name}.weight{_SCALE}", scale.astype(np.float32))
        integer, unit, zero = (f"{value}.{part}" for part in ("integer", "unit", "zero"))
        if value not in self._integers:
            self.add_many("DynamicQuantizeLinear", [value], [integer, unit, zero])
            self._integers.add(value)
        return self.add("MatMulIntegerToFloat", [integer, w, unit, s, zero, "", b], output, _FUSED)

    def layer_norm(self, value: str, skip: str, name: str, weights: dict[str, Array], of: str) -> str:
        constants = [self.constant(f"{name}.{part}", weights[f"{of}.{part}"]) for part in ("weight", "bias")]
        inputs = [value, skip, *constants]
        return self.add("SkipLayerNormalization", inputs, f"{name}.output", _FUSED, epsilon=self.epsilon)

    def embedded(self, weights: dict[str, Array]) -> str:
        """Words, types and places, summed and normalised."""
        from onnx import TensorProto

        word = weights["word.weight"]
        if self.quantized:
            scale = np.maximum(np.abs(word).max(axis=1, keepdims=True), 1e-12) / _LARGEST_EMBEDDING
            table = self.constant("word.weight", np.round(word / scale).astype(np.int8))
            units = self.constant(f"word.weight{_SCALE}", scale.astype(np.float32))
            rows = self.add("Gather", [table, "ids"], "word.rows")
            rows = self.add("Cast", [rows], "word.float", to=TensorProto.FLOAT)
            words = self.add("Mul", [rows, self.add("Gather", [units, "ids"], "word.units")], "words")
        else:
            words = self.add("Gather", [self.constant("word.weight", word), "ids"], "words")
        types = self.add("Gather", [self.constant("typ.weight", weights["typ.weight"]), "types"], "kinds")
        zero, one = self.constant("zero", np.array([0])), self.constant("one", np.array([1]))
        length = self.add("Gather", [self.add("Shape", ["ids"], "shape"), one], "length")
        places = self.add("Slice", [self.constant("pos.weight", weights["pos.weight"]), zero, length, zero], "places")
        total = self.add("Add", [self.add("Add", [words, types], "words.typed"), places], "words.placed")
        norm = [self.constant(f"ln.{part}", weights[f"ln.{part}"]) for part in ("weight", "bias")]
        return self.add("LayerNormalization", [total, *norm], "embedded", axis=-1, epsilon=self.epsilon)

    def layer(self, x: str, name: str, weights: dict[str, Array], of: str, first: bool) -> str:
        """The layer that `weights` call `of`; `first` computes the first token alone."""
        weight, bias = weights[f"{of}.qkv.weight"], weights[f"{of}.qkv.bias"]
        hidden = weight.shape[1]
        if first:
            kept = self.add("Slice", [x, "zero", "one", "one"], f"{name}.first")
            q = self.linear(kept, f"{name}.q", weight[:hidden], bias[:hidden])
            k, v = f"{name}.keys", f"{name}.values"
            both = self.linear(x, f"{name}.kv", weight[hidden:], bias[hidden:])
            self.add_many("Split", [both], [k, v], axis=-1, num_outputs=2)
        else:
            kept = x
            q, k, v = (f"{name}.{part}" for part in ("queries", "keys", "values"))
            every = self.linear(x, f"{name}.qkv", weight, bias)
            self.add_many("Split", [every], [q, k, v], axis=-1, num_outputs=3)
        seen = self.add("MultiHeadAttention", [q, k, v], f"{name}.seen", _FUSED, num_heads=self.heads)
        out, up, down = (
            (f"{name}.{part}", weights[f"{of}.{part}.weight"], weights[f"{of}.{part}.bias"])
            for part in ("out", "up", "down")
        )
        middle = self.layer_norm(self.linear(seen, *out), kept, f"{name}.ln1", weights, f"{of}.ln1")
        bent = self.add("Gelu", [self.linear(middle, *up)], f"{name}.bent", _FUSED)
        return self.layer_norm(self.linear(bent, *down), middle, f"{name}.ln2", weights, f"{of}.ln2")


def _encoder_graph(encoders: list[Encoder], path: Path, shared: int, quantized: bool) -> None:
    from onnx import TensorProto

    one, last = encoders[0], len(encoders[0].layers) - 1
    graph, weights = _EncoderGraph(quantized, one.heads, one.ln.eps), _arrays(one)
    trunk = graph.embedded(weights)
    for number in range(shared):
        trunk = graph.layer(trunk, f"layers.{number}", weights, f"layers.{number}", number == last)
    tops = []
    for place, encoder in enumerate(encoders):
        own, x = _arrays(encoder), trunk
        for name, value in own.items():
            below = not name.startswith("layers.") or int(name.split(".")[1]) < shared
            if below and not np.array_equal(value, weights[name]):
                raise ValueError(f"members differ in {name}, which they are said to share")
        for number in range(shared, last + 1):
            x = graph.layer(x, f"members.{place}.layers.{number}", own, f"layers.{number}", number == last)
        tops.append(x)
    graph.add("Squeeze", [graph.add("Concat", tops, "tops", axis=-1), "one"], "vector")
    shape = TensorProto.INT32, [1, "length"]
    graph.save(path, {"ids": shape, "types": shape}, {"vector": [1, len(encoders) * one.hidden]})


def _head_graph(heads: list[Head], path: Path) -> None:
    """The mean of what the members' heads say of their own vectors."""
    from onnx import TensorProto

    graph, hidden, count = _Graph("head"), heads[0].hidden, len(heads)
    graph.constant("ones", np.ones(hidden, dtype=np.float32))
    graph.constant("half", np.array(0.5, dtype=np.float32))
    axis = graph.constant("axis", np.array([1]))
    for side in ("a", "b"):
        graph.add_many("Split", [side], [f"{side}.{place}" for place in range(count)], axis=-1, num_outputs=count)
    found = [_member(graph, f"members.{place}", head, f"a.{place}", f"b.{place}") for place, head in enumerate(heads)]
    for name, each in zip(("margin", "tie"), zip(*found, strict=True), strict=True):
        mean = graph.add("Mean", list(each), f"{name}.mean")
        graph.add("Squeeze", [mean, axis], name)
    vector = TensorProto.FLOAT, [1, count * hidden]
    graph.save(path, {"a": vector, "b": vector}, {"margin": [1], "tie": [1]})


def _member(graph: _Graph, name: str, head: Head, a: str, b: str) -> tuple[str, str]:
    """Margin and tie (1, 1) of one head for its vectors a and b (1, h)."""
    for part, value in _arrays(head).items():
        graph.constant(f"{name}.{part}", value.T if value.ndim > 1 else value)
    a, b = (graph.add("LayerNormalization", [side, "ones"], f"{side}.normed", axis=-1, epsilon=1e-5) for side in (a, b))

    def dense(value: str, part: str, output: str) -> str:
        return graph.add("MatMul", [value, f"{name}.{part}.weight"], output)

    def side(first: str, second: str, of: str) -> str:
        """What speaks for `first`: a linear score, and what a look at both says."""
        both = graph.add("Concat", [first, second], f"{of}.both", axis=1)
        wide = graph.add("Add", [dense(both, "inter", f"{of}.product"), f"{name}.inter.bias"], of)
        looked = dense(graph.add("Gelu", [wide], f"{of}.bent", _FUSED), "iv", f"{of}.looked")
        return graph.add("Add", [dense(first, "w", f"{of}.own"), looked], f"{of}.score")

    margin = graph.add("Sub", [side(a, b, f"{name}.for_a"), side(b, a, f"{name}.for_b")], f"{name}.margin")
    product = graph.add("Mul", [a, b], f"{name}.product")
    dot = graph.add("ReduceSum", [product, "axis"], f"{name}.dot", keepdims=1)
    norms = [graph.add("ReduceL2", [value, "axis"], f"{value}.norm", keepdims=1) for value in (a, b)]
    cosine = graph.add("Div", [dot, graph.add("Mul", norms, f"{name}.norms")], f"{name}.cosine")
    mean = graph.add("Mul", [graph.add("Add", [a, b], f"{name}.sum"), "half"], f"{name}.halves")
    gap = graph.add("Abs", [graph.add("Sub", [a, b], f"{name}.difference")], f"{name}.gap")
    likeness = graph.add("Concat", [mean, gap, product, cosine], f"{name}.likeness", axis=1)
    wide = graph.add("Add", [dense(likeness, "t1", f"{name}.t1.product"), f"{name}.t1.bias"], f"{name}.t1.sum")
    return margin, dense(graph.add("Gelu", [wide], f"{name}.t1.bent", _FUSED), "t2", f"{name}.tie")


def load_exported(folder: Path) -> tuple[Members, int]:
    """The networks whose files lie in `folder`, as torch has them (int8 times its scale), and how many layers they
    share.

    Raises ForecasterError if they are damaged.
    """
    from prefcast.training.embedded.network import Encoder, Head

    try:
        found, attention_heads = _constants(folder / ENCODER)
        heads = _of_members(_constants(folder / HEAD)[0])
        shared = {name: value for name, value in found.items() if not name.startswith("members.")}
        places, hidden = found["pos.weight"].shape
        members = []
        for place, of_head in enumerate(heads):
            weights = {**shared, **_of_members(found)[place]}
            last = sum(name.endswith(".up.weight") for name in weights) - 1
            for part in ("weight", "bias"):
                parts = [weights.pop(f"layers.{last}.{name}.{part}") for name in ("q", "kv")]
                weights[f"layers.{last}.qkv.{part}"] = np.concatenate(parts, axis=0)
            encoder = Encoder(
                hidden=hidden,
                intermediate=len(weights[f"layers.{last}.up.weight"]),
                layers=last + 1,
                heads=attention_heads,
                vocabulary=len(weights["word.weight"]),
                positions=places,
                types=len(weights["typ.weight"]),
            )
            head = Head(hidden)
            _fill(encoder, weights)
            _fill(head, of_head)
            members.append((encoder, head))
    except (OSError, KeyError, ValueError, RuntimeError, IndexError) as error:
        raise ForecasterError(f"{folder}: not a network of this version: {type(error).__name__}: {error}") from None
    return members, sum(name.endswith(".up.weight") for name in shared)


def _of_members(found: dict[str, Array]) -> list[dict[str, Array]]:
    """Weights by member, under the names that they have there."""
    members: dict[int, dict[str, Array]] = {}
    for name, value in found.items():
        if name.startswith("members."):
            _, place, own = name.split(".", 2)
            members.setdefault(int(place), {})[own] = value
    return [members[place] for place in range(len(members))]


def _constants(path: Path) -> tuple[dict[str, Array], int]:
    """The weights in a file, matrices (out, in) as torch has them, and the number of attention heads."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    raw = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found = {}
    for name, value in raw.items():
        if name.endswith(_SCALE) or "." not in name:
            continue
        whole = value.astype(np.float32) * raw[name + _SCALE] if name + _SCALE in raw else value
        # The tables of words, types and places are looked up, not multiplied.
        found[name] = whole.T if value.ndim > 1 and name not in ("word.weight", "typ.weight", "pos.weight") else whole
    heads = [each.i for node in model.graph.node for each in node.attribute if each.name == "num_heads"]
    return found, heads[0] if heads else 0


def _fill(module: torch.nn.Module, found: dict[str, Array]) -> None:
    import torch

    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in found.items()})
