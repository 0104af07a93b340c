"""The work of a graph for given inputs: products and bytes, counted over the nodes that onnxruntime runs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.decoders import open_decoder
from edgeqlora_jetson.decoders.key_value import KeyValueDecoder

PRODUCTS = ("MatMul", "Gemm", "Conv", "MatMulInteger")


class Work(NamedTuple):
    """Of one run of a graph."""

    flop: float
    """Floating-point or integer operations of its products; a multiplication and an addition are two."""
    moved_bytes: float
    """Bytes that its products read and write: weights, inputs, outputs."""
    largest_bytes: float
    """Inputs and outputs, without weights, of the node that has most."""


class _Counting:
    """A runtime that keeps a profile of each graph. Nothing is fused, so that each product is a node of its own."""

    name, version, precision, takes_any_length = "onnxruntime", onnxruntime.__version__, "fp32", True

    def __init__(self, bundle: Bundle, folder: str):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")  # else weights are missing in the profile
        options.enable_profiling = True
        self.sessions = {}
        for graph in bundle.graphs:
            options.profile_file_prefix = f"{folder}/{graph}"
            self.sessions[graph] = onnxruntime.InferenceSession(
                bundle.graph_path(graph), options, providers=["CPUExecutionProvider"]
            )

    def run(
        self, graph: str, inputs: Mapping[str, Any], shapes: Iterable[str], keep: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        names = list(shapes)
        return dict(zip(names, self.sessions[graph].run(names, dict(inputs)), strict=True))

    def bind(self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            for name, value in self.run(graph, inputs, outputs).items():
                outputs[name][...] = value

        return run


def count_work(bundle: Bundle, features: np.ndarray) -> dict[str, Work]:
    """Work of each graph for these features (batch, ...): of the decoder, of one step behind the prompt."""
    with tempfile.TemporaryDirectory(prefix="edgeqlora-plan-") as folder:
        runtime = _Counting(bundle, folder)
        decoder = open_decoder(bundle, runtime)
        if isinstance(decoder, KeyValueDecoder):
            state = decoder.start(decoder.encode(features))
            prompt = bundle.manifest["decoder"]["prompt_ids"]
            for tokens in (prompt, prompt[-1:]):
                state.step(np.array([tokens] * len(features), dtype=np.int32))
        else:
            decoder.logits(features, [features.shape[1]] * len(features))
        return {
            graph: _last_run(json.loads(Path(session.end_profiling()).read_text()))
            for graph, session in runtime.sessions.items()
        }


def _last_run(events: Sequence[Mapping[str, Any]]) -> Work:
    last = max((event for event in events if event["name"] == "model_run"), key=lambda event: event["ts"])
    nodes = [
        event["args"]
        for event in events
        if event["name"].endswith("_kernel_time") and last["ts"] <= event["ts"] <= last["ts"] + last["dur"]
    ]
    flop = moved = largest = 0.0
    for node in nodes:
        own = float(node["activation_size"]) + float(node["output_size"])
        largest = max(largest, own)
        if node["op_name"] in PRODUCTS:
            flop += _flop(node)
            moved += own + float(node["parameter_size"])
    return Work(flop, moved, largest)


def _flop(node: Mapping[str, Any]) -> float:
    (out,) = (next(iter(shape.values())) for shape in node["output_type_shape"])
    inputs = [next(iter(shape.values())) for shape in node["input_type_shape"]]
    if node["op_name"] == "Conv":
        return 2.0 * math.prod(out) * math.prod(inputs[1][1:])
    return 2.0 * math.prod(out) * inputs[0][-1]
