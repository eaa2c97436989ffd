"""The encoder's network as ONNX: token ids (1, l) int32 of one text -> the means of its last and of its third layer, (1, 2 h) float32.

Matrices have eight bits and a scale a column, their inputs are rounded to eight bits as they come, by the largest of them. One
number inside each layer is so large at the start and the end of a text that such a scale leaves nothing of the rest: it
is computed by itself, in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder_network import BLOCK, SPECIAL, Network

__all__ = ["export"]

Array = NDArray[Any]

_FUSED = "com.microsoft"
# 63, not 127: processors without VNNI add two products of eight bits in sixteen, which larger weights overflow.
_LARGEST = 63
# The layer whose mean is read beside that of the last; what that gains is in docs/embedded-model.md.
_LOWER = 3


def export(network: Network, path: Path, *, quantized: bool = True) -> None:
    """Write encoder.onnx: matrices in eight bits, the words in the four that they have; `quantized=False` keeps float32."""
    loud = _loudest(network) if quantized else None
    path.write_bytes(_model(_Graph(network, loud), ["vector"]))


def _loudest(network: Network) -> list[int]:
    """In each layer the number between its last two matrices that is largest where a text starts and ends."""
    from onnxruntime import InferenceSession

    names = [f"layers.{number}.bent" for number in range(network.layers)]
    session = InferenceSession(_model(_Graph(network, None), names), providers=["CPUExecutionProvider"])
    ends = np.array([[SPECIAL.index("<s>"), SPECIAL.index("</s>")]], np.int32)
    return [int(np.abs(bent[0]).max(axis=0).argmax()) for bent in session.run(names, {"ids": ends})]


def _model(graph: _Graph, outputs: list[str]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        graph.nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "length"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2 * graph.hidden] if name == "vector" else None)
            for name in outputs
        ],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in graph.constants.items()],
    )
    # Opset 21 and IR 10 are read by ONNX Runtime from 1.20 on.
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_FUSED, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


class _Graph:
    """The nodes and constants of a network; in eight bits with `loud`, the number of each layer that is apart."""

    def __init__(self, network: Network, loud: list[int] | None) -> None:
        self.loud, self.heads, self.epsilon = loud, network.heads, network.epsilon
        self.hidden = network.units.shape[1] * BLOCK
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self._integers: set[str] = set()
        layers = [self._embedded(network)]
        for number in range(network.layers):
            layers.append(self._layer(layers[-1], number, network.weights))
        axis = self.constant("axis", np.array([1]))
        read = layers[-1], layers[min(_LOWER, network.layers)]
        means = [self.add("ReduceMean", [x, axis], f"mean.{n}", keepdims=0) for n, x in enumerate(read)]
        self.add("Concat", means, "vector", axis=1)

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
        if self.loud is None:
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

    def layer_norm(self, value: str, skip: str, name: str, of: str, weights: dict[str, Array]) -> str:
        constants = [self.constant(f"{name}.{part}", weights[f"{of}.{part}"]) for part in ("weight", "bias")]
        inputs = [value, skip, *constants]
        return self.add("SkipLayerNormalization", inputs, f"{name}.output", _FUSED, epsilon=self.epsilon)

    def _embedded(self, network: Network) -> str:
        """Words and places, summed and normalised; all texts are of one type, which the places hold."""
        from onnx import TensorProto

        weights, (_, blocks) = network.weights, network.units.shape
        zero, one, two = (self.constant(name, np.array([n])) for n, name in enumerate(("zero", "one", "two")))
        rows = self.add("Gather", [self.constant("codes", network.codes), "ids"], "rows")
        low = self.add("BitwiseAnd", [rows, self.constant("mask", np.array([15], np.uint8))], "low")
        high = self.add("BitShift", [rows, self.constant("four", np.array([4], np.uint8))], "high", direction="RIGHT")
        shape = self.constant("halves", np.array([0, 0, blocks, BLOCK // 2]))
        halves = [self.add("Reshape", [half, shape], f"{half}.blocks") for half in (low, high)]
        both = self.add("Concat", halves, "both", axis=-1)
        numbers = self.add("Cast", [both], "numbers", to=TensorProto.FLOAT)
        centred = self.add("Sub", [numbers, self.constant("eight", np.array([8], np.float32))], "centred")
        units = self.add("Gather", [self.constant("units", network.units), "ids"], "row.units")
        units = self.add("Cast", [units], "row.floats", to=TensorProto.FLOAT)
        units = self.add("Unsqueeze", [units, self.constant("last", np.array([-1]))], "row.scales")
        scaled = self.add("Mul", [centred, units], "scaled")
        words = self.add("Reshape", [scaled, self.constant("whole", np.array([0, 0, blocks * BLOCK]))], "words")
        table = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        shape_of = self.add("Shape", ["ids"], "shape")
        length = self.add("Slice", [shape_of, one, two, zero], "length")
        places = self.add("Slice", [self.constant("places", table), zero, length, zero], "placed")
        norm = [self.constant(f"ln.{part}", weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias")]
        total = self.add("Add", [words, places], "total")
        return self.add("LayerNormalization", [total, *norm], "embedded", axis=-1, epsilon=self.epsilon)

    def _layer(self, x: str, number: int, weights: dict[str, Array]) -> str:
        name, of = f"layers.{number}", f"encoder.layer.{number}"

        def matrix(called: str) -> tuple[Array, Array]:
            return weights[f"{of}.{called}.weight"], weights[f"{of}.{called}.bias"]

        attention = [matrix(f"attention.self.{part}") for part in ("query", "key", "value")]
        weight, bias = (np.concatenate(parts) for parts in zip(*attention, strict=True))
        parts = [f"{name}.{part}" for part in ("queries", "keys", "values")]
        self.add_many("Split", [self.linear(x, f"{name}.qkv", weight, bias)], parts, axis=-1, num_outputs=3)
        seen = self.add("MultiHeadAttention", parts, f"{name}.seen", _FUSED, num_heads=self.heads)
        out = self.linear(seen, f"{name}.out", *matrix("attention.output.dense"))
        middle = self.layer_norm(out, x, f"{name}.ln1", f"{of}.attention.output.LayerNorm", weights)
        up, down = matrix("intermediate.dense"), matrix("output.dense")
        if self.loud is None:
            whole = self._bent(middle, name, up, down)
        else:
            one = np.arange(len(up[0])) == self.loud[number]
            rest = self._bent(middle, name, (up[0] * ~one[:, None], up[1] * ~one), (down[0] * ~one, down[1]))
            whole = self.add("Add", [rest, self._apart(middle, f"{name}.loud", up, down[0], one)], f"{name}.whole")
        return self.layer_norm(whole, middle, f"{name}.ln2", f"{of}.output.LayerNorm", weights)

    def _bent(self, x: str, name: str, up: tuple[Array, Array], down: tuple[Array, Array]) -> str:
        bent = self.add("Gelu", [self.linear(x, f"{name}.up", *up)], f"{name}.bent", _FUSED)
        return self.linear(bent, f"{name}.down", *down)

    def _apart(self, x: str, name: str, up: tuple[Array, Array], down: Array, one: NDArray[np.bool_]) -> str:
        """What the numbers in the mask `one` (i,) add to a layer's end, in float32."""
        weight, bias = (
            self.constant(f"{name}.{part}", value) for part, value in (("up", up[0][one].T), ("bias", up[1][one]))
        )
        total = self.add("Add", [self.add("MatMul", [x, weight], f"{name}.product"), bias], f"{name}.sum")
        bent = self.add("Gelu", [total], f"{name}.bent", _FUSED)
        return self.add("MatMul", [bent, self.constant(f"{name}.down", down[:, one].T)], f"{name}.output")
