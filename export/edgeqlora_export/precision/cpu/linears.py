"""Linear layers in int8: weights per output channel, inputs as they come, in operators of plain ONNX.

    x -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(scale of x * scales of the weight)

onnxruntime, 1.10 to current, makes one node of these four. Weights take 7 of the 8 bits: on processors without VNNI the sum
of two products of 8 bits does not fit into the 16 that they have for it, and is cut there without a word.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

LARGEST = 63
"""Of an int8 weight in a product with uint8: 2 * 255 * 63 fits into 16 bits."""

LEAST_SIZE = 32
"""Inputs and outputs that a linear must have: a smaller one is faster in fp32."""

LEAST_TABLE = 2**16
"""Values that a table must have to be worth halving."""


def round_rows(rows: np.ndarray, largest: int = LARGEST) -> tuple[np.ndarray, np.ndarray]:
    """Float (n, m) -> int8 (n, m) and scales float32 (n,): row = scale * integers, each at most `largest`."""
    scales = np.abs(rows).max(axis=1) / largest
    scales[scales == 0] = 1.0
    integers = np.clip(np.rint(rows / scales[:, None]), -largest, largest).astype(np.int8)
    return integers, scales.astype(np.float32)


class Editor:
    """A graph that is being changed: its nodes in order, and its constants by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._quantised: dict[str, list[str]] = {}

    def array(self, name: str) -> np.ndarray:
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def add_constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.constants:
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self.graph.initializer.append(tensor)
            self.constants[name] = self.graph.initializer[-1]
        return name

    def quantise_input(self, name: str) -> tuple[list[str], list[onnx.NodeProto]]:
        """Names of the integers, scale and zero point of a float tensor, and the node that makes them, once for all its readers."""
        if name in self._quantised:
            return self._quantised[name], []
        made = [f"{name}_{part}" for part in ("int8", "scale", "zero")]
        self._quantised[name] = made
        return made, [
            onnx.helper.make_node("DynamicQuantizeLinear", [name], made, name=f"{name}_DynamicQuantizeLinear")
        ]

    def product(self, name: str, x: str, weight: str, scales: str, out: str) -> list[onnx.NodeProto]:
        """Nodes of x times the int8 weight (in, out): float again."""
        (integers, scale, zero), nodes = self.quantise_input(x)
        make = onnx.helper.make_node
        zeros = self.add_constant(f"{weight}_zero", np.zeros(self.array(scales).shape, dtype=np.int8))
        return [
            *nodes,
            make("MatMulInteger", [integers, weight, zero, zeros], [f"{out}_int32"], name=name),
            make("Cast", [f"{out}_int32"], [f"{out}_float"], name=f"{name}_Cast", to=onnx.TensorProto.FLOAT),
            make("Mul", [scale, scales], [f"{out}_scales"], name=f"{name}_Scales"),
            make("Mul", [f"{out}_float", f"{out}_scales"], [out], name=f"{name}_Mul"),
        ]

    def replace(self, replaced: dict[int, list[onnx.NodeProto]]) -> None:
        """Put other nodes where nodes, by their number, are; constants that nothing reads any more go."""
        nodes = [node for i, old in enumerate(self.graph.node) for node in replaced.get(i, [old])]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        read = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def halve_tables(model: onnx.ModelProto) -> None:
    """Store the large fp32 constants that take part in no product, such as positions, in fp16; they are read as fp32."""
    editor = Editor(model)
    factors = {name for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv") for name in node.input}
    casts = []
    for tensor in list(model.graph.initializer):
        name, is_float = tensor.name, tensor.data_type == onnx.TensorProto.FLOAT
        if not is_float or name in factors or np.prod(tensor.dims) < LEAST_TABLE:
            continue
        values = editor.array(name)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        half = editor.add_constant(f"{name}_fp16", values.astype(np.float16))
        casts.append(onnx.helper.make_node("Cast", [half], [name], name=f"{name}_Cast", to=onnx.TensorProto.FLOAT))
        model.graph.initializer.remove(editor.constants[name])
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def linear_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that can be int8: products with a constant matrix of a worthwhile size."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and len(s := shapes.get(node.input[1], [])) == 2 and min(s) >= LEAST_SIZE
    ]


def quantise_linears(model: onnx.ModelProto, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Make int8 of the linear layers that are wanted, in place; returns their names."""
    editor, done = Editor(model), set(filter(wanted, linear_layers(model)))
    replaced = {}
    for i, node in enumerate(model.graph.node):
        if node.name not in done:
            continue
        weight = f"{node.input[1]}_int8"
        if weight not in editor.constants:
            integers, scales = round_rows(editor.array(node.input[1]).T)
            editor.add_constant(weight, integers.T)
            editor.add_constant(f"{weight}_scales", scales)
        replaced[i] = editor.product(node.name, node.input[0], weight, f"{weight}_scales", node.output[0])
    editor.replace(replaced)
    return sorted(done)
