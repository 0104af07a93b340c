"""Hear real clips, and see what flows through the graphs on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeqlora_export.onnx_graph import save_graph
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.runtimes import open_runtime

See = Callable[[str, str, np.ndarray], None]
"""Called with graph, tensor and its value."""


class TappedRuntime:
    """A runtime whose graphs also give tensors from their inside, each run."""

    def __init__(self, runtime: Any, taps: Mapping[str, Mapping[str, str]], see: See) -> None:
        self._runtime, self._taps, self._see = runtime, taps, see

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def run(
        self, graph: str, inputs: dict[str, Any], shapes: dict[str, Sequence[int]], keep: Sequence[str] = ()
    ) -> dict[str, Any]:
        taps = self._taps[graph]
        found: dict[str, Any] = self._runtime.run(graph, inputs, {**shapes, **dict.fromkeys(taps, ())}, keep)
        for output, tensor in taps.items():
            self._see(graph, tensor, found.pop(output))
        return found


def tapped(
    bundle: Bundle, wanted: Mapping[str, Collection[str]], see: See, threads: int, *, only_largest: bool = False
) -> TappedRuntime:
    """A runtime of a bundle that shows the tensors `wanted` of each graph. only_largest: the largest magnitude of each."""
    graphs: dict[str, Any] = dict(bundle.manifest["graphs"])
    taps: dict[str, dict[str, str]] = {}
    files: list[Path] = []
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    try:
        for graph in bundle.graphs:
            path = Path(bundle.graph_path(graph))
            model, taps[graph] = onnx.load(str(path)), {}
            for i, tensor in enumerate(sorted(wanted[graph])):
                out = f"tap_{i}"
                taps[graph][out] = tensor
                if only_largest:
                    model.graph.node.append(make("Abs", [tensor], [f"{out}_abs"], name=f"{out}_Abs"))
                    model.graph.node.append(make("ReduceMax", [f"{out}_abs"], [out], name=f"{out}_Max", keepdims=0))
                else:
                    model.graph.node.append(make("Identity", [tensor], [out], name=f"{out}_Identity"))
                model.graph.output.append(info(out, onnx.TensorProto.FLOAT, None))
            file = path.with_name(f"{path.stem}-tapped.onnx")
            files.append(file)
            save_graph(model, file)
            graphs[graph] = {**graphs[graph], "file": file.name}
        runtime = open_runtime(
            Bundle(bundle.folder, {**bundle.manifest, "graphs": graphs}), "onnxruntime", threads=threads
        )
    finally:
        for file in files:
            for leftover in file.parent.glob(f"{file.name}*"):
                leftover.unlink()
    return TappedRuntime(runtime, taps, see)
