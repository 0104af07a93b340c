"""The vocabulary of a decoder in int8, turned so that few of its columns show which tokens are likely.

A token's logit is x . w, with x (d,) of the last layer and w the token's row of W (V, d). With any basis B, W = A B and the
logit is (B x) . a. B is taken from the singular values of W C^(1/2), C the second moment of x on real speech: then the first
n_lead columns of A hold most of what differs between tokens (SVD-softmax, Shim et al. 2017). The graph multiplies these for all tokens, takes the
n_best best, and adds the other columns for those alone: their logits are complete. Columns of A are scaled by one over the root of their
singular value, which divides what int8 loses evenly between A and B x. Embeddings are read from the same two matrices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx

from edgeqlora_export.precision.cpu.linears import Editor, round_rows

LEAST_TOKENS = 4096
"""A smaller vocabulary costs little."""
LARGEST_REST = 127
"""Of the columns that take part in no product of integers."""
STEP = 32
CHUNK = 256
"""States whose logits are in memory at a time."""
SHARE_OF_BEST = 4
"""The likeliest token of every step that was looked at must be among the first n_best / 4 by the leading columns."""


class Turned(NamedTuple):
    """W = A B."""

    a: np.ndarray
    """(V, d)"""
    b: np.ndarray
    """(d, d)"""


def turn(weight: np.ndarray, moment: np.ndarray) -> Turned:
    """weight W (V, d), moment C (d, d), symmetric and not negative: A and B in float64."""
    of_states, directions = np.linalg.eigh(moment.astype(np.float64))
    # Directions that no state has still count a little: other speech may have them.
    spread = np.sqrt(np.maximum(of_states, 1e-6 * max(np.trace(moment), 0.0) / len(moment) + 1e-12))
    root = directions * spread
    # Singular vectors of W L from those of (W L)^T W L: (d, d), and V is large.
    product = weight.astype(np.float64) @ root
    squares, vectors = np.linalg.eigh(product.T @ product)
    vectors, values = vectors[:, ::-1], np.sqrt(np.maximum(squares[::-1], squares[-1] * 1e-12))
    scale = np.sqrt(values)
    return Turned(product @ vectors / scale, (vectors * scale).T @ (directions / spread).T)


def find_vocabulary(model: onnx.ModelProto) -> str | None:
    """Name of the Gemm that gives the logits of a large vocabulary; None: the graph has none."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and shapes.get(node.input[1], [0])[0] >= LEAST_TOKENS:
            return str(node.name)
    return None


def choose_lead(weight: np.ndarray, states: np.ndarray, n_best: int) -> int:
    """How many leading columns, a multiple of 32, show the likeliest tokens: by them the likeliest of each state is among the first
    n_best / 4, with a basis that was taken from other states than those.

    weight: (V, d); states: (n, d), in the order in which they were heard. d where no fewer do.
    """
    halves = states[: len(states) // 2], states[len(states) // 2 :]
    return max(_lead_of(turn(weight, second_moment(a)), b, n_best) for a, b in (halves, halves[::-1]))


def second_moment(states: np.ndarray) -> np.ndarray:
    """states (n, d) -> (d, d)"""
    wide = states.astype(np.float64)
    product: np.ndarray = wide.T @ wide / max(1, len(states))
    return product


def _lead_of(turned: Turned, states: np.ndarray, n_best: int) -> int:
    a = turned.a.astype(np.float32)
    widths = list(range(STEP, a.shape[1], STEP))
    worst = np.zeros(len(widths), dtype=int)
    for start in range(0, len(states), CHUNK):
        x = (states[start : start + CHUNK] @ turned.b.T).astype(np.float32)
        rows, best = np.arange(len(x)), (x @ a.T).argmax(axis=1)
        logits = np.zeros((len(x), len(a)), dtype=np.float32)
        for i, width in enumerate(widths):
            columns = slice(width - STEP, width)
            logits += x[:, columns] @ a[:, columns].T
            rank = (logits > logits[rows, best][:, None]).sum(axis=1)
            worst[i] = max(worst[i], rank.max())
    return next((w for w, rank in zip(widths, worst, strict=True) if rank < n_best // SHARE_OF_BEST), a.shape[1])


def quantise_vocabulary(model: onnx.ModelProto, turned: Turned, n_lead: int, n_best: int) -> None:
    """Put the turned vocabulary into a decoder's graph: logits become those of `candidates` int32 (batch, n_best), a new output."""
    editor, make = Editor(model), onnx.helper.make_node
    at = next(i for i, node in enumerate(model.graph.node) if node.name == find_vocabulary(model))
    gemm = model.graph.node[at]
    hidden, table, logits = gemm.input[0], gemm.input[1], gemm.output[0]
    lead, lead_scales = round_rows(turned.a[:, :n_lead])
    rest, rest_scales = round_rows(turned.a[:, n_lead:], LARGEST_REST)
    editor.add_constant("vocabulary_lead", lead.T)
    editor.add_constant("vocabulary_lead_scales", lead_scales)
    editor.add_constant("vocabulary_rest", rest)
    editor.add_constant("vocabulary_rest_scales", rest_scales)
    editor.add_constant("vocabulary_basis", turned.b.astype(np.float32))
    editor.add_constant("n_best", np.array([n_best]))
    for name, value in {"axis_2": [2], "split": [n_lead, turned.b.shape[0] - n_lead]}.items():
        editor.add_constant(f"vocabulary_{name}", np.array(value))
    replaced = {
        at: [
            make("Gemm", [hidden, "vocabulary_basis"], ["turned"], name="vocabulary/Turn", transB=1),
            make(
                "Split", ["turned", "vocabulary_split"], ["turned_lead", "turned_rest"], name="vocabulary/Split", axis=1
            ),
            *editor.product(
                "vocabulary/Lead", "turned_lead", "vocabulary_lead", "vocabulary_lead_scales", "lead_logits"
            ),
            make("TopK", ["lead_logits", "n_best"], ["best_logits", "best"], name="vocabulary/TopK", sorted=0),
            make("Gather", ["vocabulary_rest", "best"], ["rest_int8"], name="vocabulary/Rest"),
            make("Cast", ["rest_int8"], ["rest_float"], name="vocabulary/RestCast", to=onnx.TensorProto.FLOAT),
            make("Unsqueeze", ["turned_rest", "vocabulary_axis_2"], ["rest_column"], name="vocabulary/Column"),
            make("MatMul", ["rest_float", "rest_column"], ["rest_sums"], name="vocabulary/RestMatMul"),
            make("Squeeze", ["rest_sums", "vocabulary_axis_2"], ["rest_sum"], name="vocabulary/Row"),
            make("Gather", ["vocabulary_rest_scales", "best"], ["rest_scale"], name="vocabulary/RestScale"),
            make("Mul", ["rest_sum", "rest_scale"], ["rest_logits"], name="vocabulary/RestMul"),
            make("Add", ["best_logits", "rest_logits"], [logits], name="vocabulary/Add"),
            # onnxruntime 1.10 writes no int64 into an array of ours.
            make("Cast", ["best"], ["candidates"], name="vocabulary/Candidates", to=onnx.TensorProto.INT32),
        ]
    }
    for i, node in enumerate(model.graph.node):
        if node.op_type == "Gather" and node.input[0] == table:
            replaced[i] = _embedding(make, node.input[1], node.output[0])
    editor.replace(replaced)
    shape = ["batch", n_best]
    model.graph.output.append(onnx.helper.make_tensor_value_info("candidates", onnx.TensorProto.INT32, shape))
    for output in model.graph.output:
        if output.name == logits:
            output.type.tensor_type.shape.dim[1].dim_value = n_best


def _embedding(make: Any, tokens: str, out: str) -> list[onnx.NodeProto]:
    """Rows of A by token, times B: (batch, n, d)."""
    return [
        make("Gather", ["vocabulary_lead", tokens], ["token_lead_columns"], name="embedding/Lead", axis=1),
        make("Transpose", ["token_lead_columns"], ["token_lead_int8"], name="embedding/LeadRows", perm=[1, 2, 0]),
        make("Gather", ["vocabulary_rest", tokens], ["token_rest_int8"], name="embedding/Rest"),
        *[
            node
            for part in ("lead", "rest")
            for node in (
                make(
                    "Cast",
                    [f"token_{part}_int8"],
                    [f"token_{part}_float"],
                    name=f"embedding/{part}Cast",
                    to=onnx.TensorProto.FLOAT,
                ),
                make(
                    "Gather",
                    [f"vocabulary_{part}_scales", tokens],
                    [f"token_{part}_scale"],
                    name=f"embedding/{part}Scale",
                ),
                make(
                    "Unsqueeze",
                    [f"token_{part}_scale", "vocabulary_axis_2"],
                    [f"token_{part}_column"],
                    name=f"embedding/{part}Column",
                ),
                make(
                    "Mul",
                    [f"token_{part}_float", f"token_{part}_column"],
                    [f"token_{part}"],
                    name=f"embedding/{part}Mul",
                ),
            )
        ],
        make("Concat", ["token_lead", "token_rest"], ["token_turned"], name="embedding/Concat", axis=2),
        make("MatMul", ["token_turned", "vocabulary_basis"], [out], name="embedding/MatMul"),
    ]
