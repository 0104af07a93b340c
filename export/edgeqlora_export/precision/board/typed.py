"""A graph in fp16 or bf16 with fp32 where that is needed, as types in the graph itself: every TensorRT reads those, and from 11 on nothing else.

A float tensor has the type of the node that gives it; where a node needs another one, a Cast stands between. What overflows
or loses its digits in fp16 is fp32: softmax, layer norms and their parts (squares of activations above 256 leave fp16's range and an
epsilon of 1e-5 is below its normal numbers), and what a comparison on real audio names.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

FLOAT = TensorProto.FLOAT
TYPES = {"fp32": FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

_NORMS = (
    "LayerNormalization",
    "InstanceNormalization",
    "ReduceMean",
    "ReduceSum",
    "Pow",
    "Sqrt",
    "Softmax",
    "LogSoftmax",
)


class Places(NamedTuple):
    """Where a graph's float tensors come from and go to."""

    floats: set[str]
    """Names of all float tensors, constants included."""
    givers: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]


def places(model: onnx.ModelProto) -> Places:
    """Raises ValueError for a graph whose types cannot be inferred."""
    # Without the weights, which may be more than a protobuf holds: constants are inputs.
    info = onnx.helper.make_tensor_value_info
    constants = [info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in model.graph.initializer]
    inputs = [*model.graph.input, *constants]
    bare = onnx.helper.make_graph(model.graph.node, "types", inputs, model.graph.output)
    known = onnx.shape_inference.infer_shapes(onnx.helper.make_model(bare, opset_imports=model.opset_import)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*known.input, *known.output, *known.value_info]}
    unknown = [name for node in model.graph.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise ValueError(f"the type of {unknown[0]} cannot be inferred")
    floats = {name for name, kind in types.items() if kind == FLOAT}
    givers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return Places(floats, givers, readers)


def always_fp32(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that are fp32 in any mix: softmax, layer norms and the parts of one in plain operators, and what reads a single
    number that fp16 makes 0 (such as 1e-10, added before a division), with what reads its result."""
    where, found = places(model), set[str]()
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    tensors += [
        (n.output[0], n.attribute[0].t)
        for n in model.graph.node
        if n.op_type == "Constant" and n.attribute[0].name == "value"
    ]
    tiny = {
        name
        for name, tensor in tensors
        if tensor.data_type == FLOAT and np.prod(tensor.dims) == 1
        if 0 < abs(float(numpy_helper.to_array(tensor).ravel()[0])) < np.finfo(np.float16).tiny
    }
    for node in model.graph.node:
        if any(name in tiny for name in node.input):
            found |= {node.name, *(reader.name for name in node.output for reader in where.readers.get(name, []))}
        if node.op_type not in _NORMS or not where.floats & set(node.output):
            continue
        found.add(node.name)
        if node.op_type == "Pow":
            found |= {where.givers[name].name for name in node.input if name in where.givers}
        if node.op_type == "Sqrt":
            found |= {where.givers[name].name for name in node.input if name in where.givers}
            found |= {reader.name for reader in where.readers.get(node.output[0], [])}
    return found


class _Typing:
    """One graph that gets its types."""

    def __init__(self, model: onnx.ModelProto, fp32: Collection[str], low: str) -> None:
        self.model, self.graph, self.low = model, model.graph, low
        names = [node.name for node in model.graph.node]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("every node needs a name of its own")
        _constants_to_initializers(model)
        self.where = places(model)
        self.fp32 = set(fp32) | always_fp32(model)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._opset = next(entry.version for entry in model.opset_import if not entry.domain)

    def is_low(self, node: onnx.NodeProto) -> bool:
        # One that makes floats of something else says their type itself.
        touches = bool(self.where.floats & set(node.input)) and node.op_type != "Cast"
        return node.name not in self.fp32 and touches and _takes(node.op_type, self._opset, self.low)

    def type_of(self, node: onnx.NodeProto) -> str:
        return self.low if self.is_low(node) else "fp32"


@functools.cache
def _takes(operator: str, opset: int, low: str) -> bool:
    """Whether an operator is defined for a type (a convolution in bf16: from opset 22 on)."""
    allowed = {name for one in onnx.defs.get_schema(operator, opset).type_constraints for name in one.allowed_type_strs}
    return {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[low] in allowed


def to_types(model: onnx.ModelProto, fp32: Collection[str], low: str = "fp16", io: Collection[str] = ()) -> None:
    """Give an fp32 graph its types, in place. fp32: names of nodes that stay, beside always_fp32. io: inputs and outputs in fp16 (also of
    a graph in bf16: numpy has no bf16).

    Raises ValueError for a graph whose types cannot be inferred.
    """
    typing = _Typing(model, fp32, low)
    graph, floats = model.graph, typing.where.floats
    given = {name: typing.type_of(node) for node in graph.node for name in node.output if name in floats}
    given |= {value.name: "fp16" if value.name in io else "fp32" for value in graph.input if value.name in floats}
    nodes: list[onnx.NodeProto] = []
    casts: set[str] = set()
    inside: dict[str, str] = {}
    """An output's name -> that of the tensor which other nodes read, where the output has another type."""

    def cast(source: str, out: str, to: str) -> None:
        nodes.append(onnx.helper.make_node("Cast", [source], [out], name=f"{out}_Cast", to=TYPES[to]))

    def as_type(name: str, wanted: str) -> str:
        """Name of a float tensor in the type that its reader needs."""
        if name in typing.constants:
            return _constant(typing, name, wanted != "fp32")
        source = inside.get(name, name)
        if given[name] == wanted:
            return source
        out = f"{name}_{wanted}"
        if out not in casts:
            casts.add(out)
            cast(source, out, wanted)
        return out

    outputs = {value.name: "fp16" if value.name in io else "fp32" for value in graph.output if value.name in floats}
    for node in list(graph.node):
        kind = typing.type_of(node)
        for i, name in enumerate(node.input):
            if name in floats:
                node.input[i] = as_type(name, kind)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if outputs.get(name, kind) != kind:
                inside[name] = node.output[i] = f"{name}_inside"
                cast(inside[name], name, outputs[name])
    for value in [*graph.input, *graph.output]:
        if value.name in io:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    _replace(model, nodes)


def to_rounded(model: onnx.ModelProto, fp32: Collection[str], low: str = "fp16", io: Collection[str] = ()) -> None:
    """The same types as roundings in a graph that stays fp32, in place: what a GPU with fp32 sums computes, on any machine."""
    typing = _Typing(model, fp32, low)
    graph, floats = model.graph, typing.where.floats
    is_low_at = {name: typing.is_low(node) for node in graph.node for name in node.output if name in floats}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()

    def rounded(name: str, out: str, to: str = low) -> None:
        short, make = f"{out}_{to}", onnx.helper.make_node
        nodes.append(make("Cast", [name], [short], name=f"{out}_Round", to=TYPES[to]))
        nodes.append(make("Cast", [short], [out], name=f"{out}_Widen", to=FLOAT))

    for node in list(graph.node):
        is_low = typing.is_low(node)
        for i, name in enumerate(node.input):
            if not is_low or name not in floats or is_low_at.get(name):
                continue
            if name in typing.constants:
                node.input[i] = _constant(typing, name, True, widened=True)
                continue
            node.input[i] = f"{name}_rounded"
            if name not in done:
                done.add(name)
                rounded(name, f"{name}_rounded")
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in floats and (is_low or name in io):
                node.output[i] = f"{name}_raw"
                rounded(f"{name}_raw", name, low if is_low else "fp16")
    _replace(model, nodes)


def _constant(typing: _Typing, name: str, is_low: bool, widened: bool = False) -> str:
    """A constant in a type: the fp32 one, or another one beside it."""
    if not is_low:
        return name
    short = f"{name}_{typing.low}"
    if short not in typing.constants:
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(typing.constants[name]).astype(NUMPY[typing.low])
        if widened:
            values = values.astype(np.float32)
        typing.graph.initializer.append(numpy_helper.from_array(values, short))
        typing.constants[short] = typing.graph.initializer[-1]
        typing.where.floats.add(short)
    return short


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
        else:
            kept.append(node)
    _replace(model, kept)


def _replace(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Other nodes; constants that nothing reads any more go."""
    nodes = [*nodes]
    read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


def largest_constants(model: onnx.ModelProto) -> dict[str, float]:
    """The largest magnitude of a float constant that each node reads, by the node's name."""
    largest = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
        for tensor in model.graph.initializer
        if tensor.data_type == FLOAT
    }
    found: dict[str, float] = {}
    for node in model.graph.node:
        values = [largest[name] for name in node.input if name in largest]
        if values:
            found[node.name] = max(values)
    return found
