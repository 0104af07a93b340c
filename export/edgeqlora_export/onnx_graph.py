"""Write a torch module as an ONNX file, and read what an ONNX file takes and gives."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.schema import Graph

LOWEST_OPSET, HIGHEST_OPSET = 13, 20
"""13: what TensorRT 8.2 reads. 20: the last one that torch's TorchScript exporter writes."""

INLINE_LIMIT_BYTES = 1_900_000_000
"""Above this, weights go to a file beside the graph: a protobuf file ends at 2 GiB."""


def check_exportable(model: Any, opset: int) -> None:
    """Raise UserError for an opset out of range, or a model that is not in float32."""
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UserError(
            f"opset={opset} cannot be exported: allowed are {LOWEST_OPSET} to {HIGHEST_OPSET}; "
            "change the profile's opset"
        )
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32}:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UserError(f"dtype={found}: export needs a model in float32; load the merged folder with dtype=float32")


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside the `with`, `model` is in eval mode; after it, in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def write_graph(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
    opset: int,
) -> None:
    # Beside the target: the same disk, and above 2 GiB the exporter leaves one file per weight there.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch:
        raw = Path(scratch) / "graph.onnx"
        with torch.no_grad(), warnings.catch_warnings():
            # The TorchScript exporter is deprecated in favour of dynamo, which cannot write opset 13; and tracing
            # notes that constant shapes of the custom Reshape are constants, which is what they are for.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                example,
                str(raw),
                dynamo=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: axes[name] for name in [*inputs, *outputs]},
            )
        graph = onnx.load(str(raw))
    with torch.no_grad():
        shapes = [list(tensor.shape) for tensor in module(*example)]
    _declare_outputs(graph, dict(zip(outputs, shapes, strict=True)), axes)
    save_graph(graph, path)


def _declare_outputs(graph: onnx.ModelProto, shapes: dict[str, list[int]], axes: dict[str, dict[int, str]]) -> None:
    """Give every output axis its name or its size; behind Reshape the exporter knows neither."""
    for output in graph.graph.output:
        dims = output.type.tensor_type.shape.dim
        for i, (dim, size) in enumerate(zip(dims, shapes[output.name], strict=True)):
            if i in axes[output.name]:
                dim.dim_param = axes[output.name][i]
            else:
                dim.dim_value = size


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    weights_bytes = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if weights_bytes > INLINE_LIMIT_BYTES:
        onnx.save_model(graph, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)
        # onnx makes this file private to its owner; the bundle goes to other users and machines.
        data.chmod(path.stat().st_mode)
    else:
        onnx.save_model(graph, str(path))


def graph_entries(graphs: Mapping[str, Path], opset: int) -> dict[str, Graph]:
    """The manifest's `graphs` of these files, in fp32."""
    return {
        key: Graph(file=path.name, opset=opset, precision="fp32", inputs=inputs, outputs=outputs)
        for key, path in graphs.items()
        for inputs, outputs in [graph_names(path)]
    }


def graph_names(path: Path | str) -> tuple[list[str], list[str]]:
    """Names of an ONNX file's inputs and outputs, in order."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]
