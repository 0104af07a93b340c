"""What TensorRT engines the board is asked to build: shapes, precision, workspace. Plain values for the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeqlora_jetson.engines.request import SCHEMA, check_request
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.schema import Manifest


def engine_request(
    graphs: Mapping[str, Any],
    *,
    max_batch: int,
    precisions: Sequence[str],
    tensorrt: str,
    workspace_mib: int | None = None,
) -> dict[str, Any]:
    """The manifest's "engine_request": one engine a graph, with every shape that it must take.

    graphs: the shapes of each graph up to max_batch, which are the family's to say. precisions: what engines can be built in, the
    first if nobody asks. workspace_mib: cap on the scratch memory that TensorRT's kernels may take, None: TensorRT's own. Raises
    UserError for a batch out of range.
    """
    if not 1 <= max_batch <= 64:
        raise UserError(f"max_batch={max_batch}, allowed 1 to 64: change the profile's max_batch")
    request: dict[str, Any] = {
        "schema": SCHEMA,
        "tensorrt": str(tensorrt),
        "precisions": list(precisions),
        "workspace_mib": workspace_mib,
        "max_batch": max_batch,
        "graphs": dict(graphs),
    }
    check_request(request, "engine_request")
    return request


def engine_precisions(manifest: Manifest, offered: Sequence[str]) -> list[str]:
    """What engines of these graphs can be built in: of graphs with types, those; of fp32, also fp16 where the board offers it."""
    of_graphs = {graph["precision"] for graph in manifest["graphs"].values()}
    typed = next((name for name in ("int8", "fp16", "bf16") if name in of_graphs), None)
    if typed is not None:
        return [typed]
    return ["fp32", *(name for name in offered if name == "fp16")]
