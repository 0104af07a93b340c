"""Linear layers in int8 as TensorRT takes them: QuantizeLinear and DequantizeLinear around the factors of a product, zero points 0.

    x -> Mul -> Q -> DQ -\
                          MatMul
    W (int8)  ->  DQ    -/

One step for x, and a factor for each of its channels, found before on real audio (see calibrate.py); one step for each output of W.
TensorRT makes one product of integers of the four; between a Q and its DQ nothing is lost by a type in the graph, so the DQ may give fp16.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from edgeqlora_export.precision.board.calibrate import LARGEST, Rounding
from edgeqlora_export.precision.cpu.linears import Editor, linear_layers, round_rows


def inputs_of(model: onnx.ModelProto) -> dict[str, str]:
    """Name of the float tensor that each linear layer multiplies, by the layer's name."""
    found = set(linear_layers(model))
    return {node.name: node.input[0] for node in model.graph.node if node.name in found}


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights (n_in, n_out, of all linear layers that read it) by the name of what they multiply."""
    editor, found = Editor(model), set(linear_layers(model))
    together: dict[str, list[np.ndarray]] = {}
    for node in model.graph.node:
        if node.name in found:
            together.setdefault(node.input[0], []).append(editor.array(node.input[1]))
    return {x: np.concatenate(parts, axis=1) for x, parts in together.items()}


def quantise_static(
    model: onnx.ModelProto,
    wanted: Collection[str],
    roundings: Mapping[str, Rounding],
    *,
    as_numbers: bool = False,
    from_fp32: bool = False,
) -> set[str]:
    """Make int8 of linear layers, in place; returns the names of the nodes that take and give float32 for it.

    roundings: by the name of what they multiply. as_numbers: the same numbers in plain operators of float32, of which no runtime makes
    another product. from_fp32: weights as float32 with a Q before their DQ, as TensorRT 8 takes them.
    """
    editor, make = Editor(model), onnx.helper.make_node
    replaced: dict[int, list[onnx.NodeProto]] = {}
    fp32: set[str] = set()
    done: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if node.name not in wanted:
            continue
        x, weight, nodes = node.input[0], node.input[1], []
        rounding, short, out = roundings[x], f"{x}_short", f"{weight}_short"
        step, zero = np.array(rounding.step, dtype=np.float32), np.array(0, dtype=np.int8)
        if x not in done:
            done.add(x)
            factors = editor.add_constant(f"{x}_factors", rounding.evened.astype(np.float32))
            nodes.append(make("Mul", [x, factors], [f"{x}_evened"], name=f"{x}_Even"))
            nodes += (_as_numbers if as_numbers else _as_integers)(editor, f"{x}_evened", step, zero, short)
        if weight not in done:
            done.add(weight)
            matrix = editor.array(weight) / rounding.evened[:, None]
            rows, steps = round_rows(matrix.T, LARGEST)
            if as_numbers:
                editor.add_constant(out, (rows * steps[:, None]).T.astype(np.float32))
            elif from_fp32:
                name = editor.add_constant(f"{weight}_evened", matrix.astype(np.float32))
                nodes += _as_integers(editor, name, steps, np.zeros(steps.shape, dtype=np.int8), out)
            else:
                name = editor.add_constant(f"{weight}_int8", rows.T)
                nodes += _as_integers(editor, name, steps, np.zeros(steps.shape, dtype=np.int8), out, only_back=True)
        fp32 |= {one.name for one in nodes}
        replaced[i] = [*nodes, make("MatMul", [short, out], list(node.output), name=node.name)]
    editor.replace(replaced)
    return fp32


def _as_integers(
    editor: Editor, x: str, step: np.ndarray, zero: np.ndarray, out: str, only_back: bool = False
) -> list[onnx.NodeProto]:
    """x -> Q -> DQ -> out; with steps for the columns of a matrix, or one. only_back: x is integers already."""
    make = onnx.helper.make_node
    constants = [editor.add_constant(f"{x}_step", step), editor.add_constant(f"{x}_zero", zero)]
    axis = {"axis": 1} if step.ndim else {}
    back = make(
        "DequantizeLinear", [x if only_back else f"{x}_int8", *constants], [out], name=f"{x}_DequantizeLinear", **axis
    )
    if only_back:
        return [back]
    return [make("QuantizeLinear", [x, *constants], [f"{x}_int8"], name=f"{x}_QuantizeLinear", **axis), back]


def _as_numbers(editor: Editor, x: str, step: np.ndarray, zero: np.ndarray, out: str) -> list[onnx.NodeProto]:
    make, scale = onnx.helper.make_node, editor.add_constant(f"{x}_step", step)
    low, high = (editor.add_constant(f"int8_{n}", np.array(n, dtype=np.float32)) for n in (-128, 127))
    return [
        make("Div", [x, scale], [f"{x}_steps"], name=f"{x}_Div"),
        make("Round", [f"{x}_steps"], [f"{x}_whole"], name=f"{x}_Round"),
        make("Clip", [f"{x}_whole", low, high], [f"{x}_cut"], name=f"{x}_Clip"),
        make("Mul", [f"{x}_cut", scale], [out], name=f"{x}_Back"),
    ]
