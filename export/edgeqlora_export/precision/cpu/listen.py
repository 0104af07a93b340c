"""What the last layer of a decoder says while real clips are decoded: the states that the vocabulary is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeqlora_export.onnx_graph import save_graph
from edgeqlora_export.precision.cpu.vocabulary import find_vocabulary
from edgeqlora_export.precision.judge import Clip, Heard, hear
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.transcribe import Transcriber

FILE = "decoder-heard.onnx"


class _Listening:
    """A runtime whose decoder also gives its states, which are kept."""

    def __init__(self, runtime: Any, width: int) -> None:
        self._runtime, self._width = runtime, width
        self.states: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def bind(self, graph: str, inputs: dict[str, Any], outputs: dict[str, np.ndarray]) -> Callable[[], None]:
        states = np.zeros((len(outputs["logits"]), self._width), dtype=np.float32)
        run = self._runtime.bind(graph, inputs, {**outputs, "states": states})

        def run_and_keep() -> None:
            run()
            self.states.append(states.copy())

        return run_and_keep


def hear_with_states(bundle: Bundle, clips: Sequence[Clip], threads: int) -> tuple[Heard, np.ndarray]:
    """What the bundle makes of the clips, and the states (n, d_model) of all its decoding steps, in fp32."""
    path = Path(bundle.graph_path("decoder"))
    model = onnx.load(str(path))
    gemm = next(node for node in model.graph.node if node.name == find_vocabulary(model))
    width = next(tensor.dims[1] for tensor in model.graph.initializer if tensor.name == gemm.input[1])
    model.graph.node.append(onnx.helper.make_node("Identity", [gemm.input[0]], ["states"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("states", onnx.TensorProto.FLOAT, ["batch", width]))
    file = path.with_name(FILE)
    try:
        save_graph(model, file)
        graphs = dict(bundle.manifest["graphs"])
        graphs["decoder"] = {**graphs["decoder"], "file": FILE}
        other = Bundle(bundle.folder, {**bundle.manifest, "graphs": graphs})
        listening = _Listening(open_runtime(other, "onnxruntime", threads=threads), width)
    finally:
        for leftover in file.parent.glob(f"{FILE}*"):
            leftover.unlink()
    heard = hear(Transcriber(other, listening), clips)
    return heard, np.concatenate(listening.states)
