"""What TensorRT engines the board is asked to build: shapes, precision, workspace. Plain values for the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeqlora_jetson.engines.request import SCHEMA, check_request
from edgeqlora_jetson.errors import UserError

ENGINE_PRECISIONS = ("fp16", "fp32")
"""What the graphs, which are fp32, can be built to without calibration; int8 needs a calibrated graph."""


def engine_request(
    graphs: Mapping[str, Any],
    *,
    max_batch: int,
    precisions: Sequence[str],
    tensorrt: str,
    workspace_mib: int | None = None,
) -> dict[str, Any]:
    """The manifest's "engine_request": one engine a graph, with every shape that it must take.

    graphs: the shapes of each graph up to max_batch, which are the family's to say. precisions: the profile's, best
    first; fp16 and fp32 are asked for, in that order. workspace_mib: cap on the scratch memory that TensorRT's kernels
    may take, None: TensorRT's own. Raises UserError for a batch out of range.
    """
    if not 1 <= max_batch <= 64:
        raise UserError(f"max_batch={max_batch}, allowed 1 to 64: change the profile's max_batch")
    request = {
        "schema": SCHEMA,
        "tensorrt": str(tensorrt),
        "precisions": [name for name in precisions if name in ENGINE_PRECISIONS] or ["fp32"],
        "workspace_mib": workspace_mib,
        "max_batch": max_batch,
        "graphs": dict(graphs),
    }
    check_request(request, "engine_request")
    return request
