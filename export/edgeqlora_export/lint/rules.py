"""Restrictions of the operator tables that a graph alone decides, operator by operator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

MOST_K = 3840
"""TopK: largest k, not included."""


@dataclass(frozen=True)
class Scope:
    """What a node sees around it."""

    constants: Mapping[str, onnx.TensorProto]
    """Initializers and outputs of Constant nodes, by name."""
    inputs: Set[str]
    """Names of graph inputs, and of those of bodies."""


class Node:
    """A node with its restriction, as a rule asks about it."""

    def __init__(self, proto: onnx.NodeProto, scope: Scope, restriction: str):
        self.proto, self.scope, self.restriction = proto, scope, restriction
        self._attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in proto.attribute}

    def says(self, *words: str) -> bool:
        """Whether the published restriction has one of these words."""
        return any(word in self.restriction for word in words)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute; texts as str."""
        value = self._attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode()
        return [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, list) else value

    def input(self, index: int) -> str:
        """Name of an input, "" where it is left out."""
        return self.proto.input[index] if index < len(self.proto.input) else ""

    def output(self, index: int) -> str:
        return self.proto.output[index] if index < len(self.proto.output) else ""

    def constant(self, index: int) -> onnx.TensorProto | None:
        return self.scope.constants.get(self.input(index))

    def value(self, index: int) -> Any:
        """Values of a constant input, or None: it is none, or lies in a file beside the graph."""
        tensor = self.constant(index)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def must_be_constant(self, index: int, what: str, folded: bool = False) -> Iterator[str]:
        """folded: what is computed from constants counts too, and only a graph input surely is none."""
        name = self.input(index)
        if name and (name in self.scope.inputs if folded else name not in self.scope.constants):
            yield f"{what} must be constant"


Rule = Callable[[Node], Iterator[str]]

REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
AXES_INPUT = {
    "Slice": 3,
    "Squeeze": 1,
    "Unsqueeze": 1,
    "Pad": 3,
    "CumSum": 1,
    **{f"Reduce{name}": 1 for name in REDUCTIONS},
}
"""Input that holds the axes, where they are one (ReduceSum since opset 13, other reductions and Pad since 18)."""


def _axes(node: Node) -> Iterator[str]:
    if re.match("`ax[ei]s` must be", node.restriction):
        # What is resolvable to, or at build time, a constant (10.7 and newer) the parser folds.
        folded = node.says("resolvable", "build-time")
        yield from node.must_be_constant(AXES_INPUT[node.proto.op_type], "its axes", folded)


def _convolution(node: Node) -> Iterator[str]:
    if node.says("2D or 3D"):
        weights = node.constant(1)
        if weights is None:
            yield "its weights must be constant"
        elif len(weights.dims) not in (4, 5):
            yield f"{len(weights.dims) - 2}-D convolution; only 2-D and 3-D are supported"


def _pooling(node: Node) -> Iterator[str]:
    rank = len(node.attribute("kernel_shape", []))
    if node.says("2D or 3D") and rank not in (2, 3):
        yield f"{rank}-D pooling; only 2-D and 3-D are supported"
    if node.says("`Indices`") and node.output(1):
        yield "its output Indices is not supported"
    if node.says("`dilations`") and any(dilation != 1 for dilation in node.attribute("dilations", [])):
        yield f"dilations {node.attribute('dilations')}; only 1 is supported"


def _zero_point(node: Node) -> Iterator[str]:
    if node.input(2):
        yield from node.must_be_constant(2, "its zero point")
        values = node.value(2)
        if values is not None and np.any(values.astype(np.float32) != 0):
            yield "its zero point must be 0"


def _top_k(node: Node) -> Iterator[str]:
    if node.says("`K` input must be an initializer"):
        yield from node.must_be_constant(1, "K")
    if node.says("3840"):
        values = node.value(1)
        if values is not None and np.any(values >= MOST_K):
            yield f"K is {int(np.max(values))}; allowed are less than {MOST_K}"
        if not node.attribute("sorted", 1):
            yield "sorted must be 1"


def _instance_norm(node: Node) -> Iterator[str]:
    yield from node.must_be_constant(1, "its scale")
    yield from node.must_be_constant(2, "its bias")


def _first_output_only(node: Node) -> Iterator[str]:
    if node.output(1) or node.output(2):
        yield "only its first output is supported"


def _dropout(node: Node) -> Iterator[str]:
    yield from node.must_be_constant(2, "training_mode")
    values = node.value(2)
    if values is not None and np.any(values):
        yield "training_mode must be false"


def _einsum(node: Node) -> Iterator[str]:
    equation = str(node.attribute("equation", "")).replace(" ", "")
    if "..." in equation:
        yield "an ellipsis is not supported"
    if any(len(set(term)) < len(term) for term in equation.replace("...", "").replace("->", ",").split(",")):
        yield "a diagonal is not supported"


def _recurrent(node: Node) -> Iterator[str]:
    activations = node.attribute("activations", [])
    half = len(activations) // 2
    if node.attribute("direction", "forward") == "bidirectional" and activations[:half] != activations[half:]:
        yield "activations of both directions must be the same"
    for name in ("input_forget", "layout"):
        if node.says(f"`{name}`") and node.attribute(name, 0):
            yield f"{name} must be 0"


def _one_hot(node: Node) -> Iterator[str]:
    yield from node.must_be_constant(1, "depth", folded=True)


def _suppression(node: Node) -> Iterator[str]:
    for index, name in enumerate(("max_output_boxes_per_class", "iou_threshold", "score_threshold"), start=2):
        if node.says("must be initializers"):
            yield from node.must_be_constant(index, name)


def _range(node: Node) -> Iterator[str]:
    known = [tensor for i in range(3) if (tensor := node.constant(i)) is not None]
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    if 0 < len(known) < 3 and known[0].data_type in floats:
        yield "start, limit and delta of floats must be constant"


_RESIZE = {
    "coordinate_transformation_mode": (
        "half_pixel",
        ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
    ),
    "mode": ("nearest", ("nearest", "linear")),
    "nearest_mode": ("round_prefer_floor", ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
}


def _resize(node: Node) -> Iterator[str]:
    for name, (default, allowed) in _RESIZE.items():
        value = node.attribute(name, default)
        if value not in allowed:
            yield f"{name} {value!r}; allowed are {', '.join(allowed)}"
    if node.says("ntialiasing") and node.attribute("antialias", 0):
        yield "antialias is not supported"


def _scatter(node: Node) -> Iterator[str]:
    if node.says("`reduction`") and node.attribute("reduction", "none") != "none":
        yield f"reduction {node.attribute('reduction')!r} is not supported"


def _stft(node: Node) -> Iterator[str]:
    yield from node.must_be_constant(1, "frame_step")
    yield from node.must_be_constant(2, "window")


def _constant(node: Node) -> Iterator[str]:
    for name in ("sparse_value", "value_string", "value_strings"):
        if node.attribute(name) is not None:
            yield f"{name} is not supported"


def _attention(node: Node) -> Iterator[str]:
    for index, name in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if node.input(index):
            yield f"its input {name} is not supported"
    if any(node.output(index) for index in (1, 2, 3)):
        yield "only its first output is supported"
    for name in ("softcap", "qk_matmul_output_mode"):
        if node.attribute(name, 0):
            yield f"{name} is not supported"


def _tensor_scatter(node: Node) -> Iterator[str]:
    if node.attribute("axis", -2) != -2:
        yield f"axis {node.attribute('axis')}; only -2 is supported"


RULES: dict[str, Rule] = {
    **dict.fromkeys(AXES_INPUT, _axes),
    "Attention": _attention,
    "AveragePool": _pooling,
    "Constant": _constant,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "DequantizeLinear": _zero_point,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "InstanceNormalization": _instance_norm,
    "LSTM": _recurrent,
    "LayerNormalization": _first_output_only,
    "LpPool": _pooling,
    "MaxPool": _pooling,
    "NonMaxSuppression": _suppression,
    "OneHot": _one_hot,
    "QuantizeLinear": _zero_point,
    "RNN": _recurrent,
    "Range": _range,
    "Resize": _resize,
    "STFT": _stft,
    "ScatterND": _scatter,
    "TensorScatter": _tensor_scatter,
    "TopK": _top_k,
}
"""Operator -> what of its restriction can be seen in the graph."""

UNDECIDED = {
    "DeformConv": "ranks and shapes",
    "EyeLike": "shapes",
    "GridSample": "ranks",
    "Hardmax": "shapes",
    "If": "shapes",
    "Loop": "shapes",
    "RandomNormal": "nothing is refused",
    "RandomNormalLike": "nothing is refused",
    "RandomUniform": "nothing is refused",
    "RandomUniformLike": "nothing is refused",
    "ReverseSequence": "shapes",
    "RotaryEmbedding": "types of what is computed",
    "ScatterElements": "nothing is refused",
}
"""Operators whose restriction is about what a graph file does not say."""


def refused(proto: onnx.NodeProto, scope: Scope, restriction: str) -> Iterator[str]:
    """What the restriction of its operator has against a node."""
    rule = RULES.get(proto.op_type)
    if rule is not None and restriction:
        yield from rule(Node(proto, scope, restriction))
