"""Compile the bundle's graphs with NVIDIA's own parser and compiler, on a machine without a GPU.

TensorRT-RTX (pip package tensorrt-rtx-cu12) compiles for a GPU that is not there. It is not the Jetson's TensorRT: it
shows that network, parser, optimization profiles and configuration are taken, and that the graphs compile; what the
board's own release takes is judged from its operator table (lint.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeqlora_jetson.engines.request import optimization_profiles
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes.trt_builder import build_plan
from edgeqlora_jetson.schema import Gate, Manifest

MODULE = "tensorrt_rtx"
TARGET = "SM86"
"""GPU compiled for: Ampere, the nearest to Orin's 8.7 that TensorRT-RTX knows."""


def import_compiler() -> Any:
    """TensorRT-RTX. Raises UserError saying how to install it."""
    try:
        return importlib.import_module(MODULE)
    except (ImportError, OSError) as error:
        raise UserError(
            f"the compile check needs TensorRT-RTX, which cannot be imported ({error}): "
            "python -m pip install tensorrt-rtx-cu12 (x86-64 Linux or Windows; no GPU is needed)"
        ) from error


def compile_gate(
    folder: Path | str,
    manifest: Manifest,
    request: Mapping[str, Any],
    say: Callable[[str], None] = lambda message: None,
) -> Gate:
    """Compile the graphs of a bundle folder with every shape that an engine request names: a gate of the manifest.

    Engines are thrown away: they hold for another GPU. Raises UserError with the compiler's words when a graph is
    refused.
    """
    trt = import_compiler()
    compiler = f"TensorRT-RTX {trt.__version__} for {TARGET}"
    n_profiles = 0
    for graph in sorted(manifest["graphs"]):
        path = Path(folder) / manifest["graphs"][graph]["file"]
        profiles = optimization_profiles(dict(request), graph)
        build_plan(trt, str(path), profiles, configure=lambda config: _set_target(trt, config))
        n_profiles += len(profiles)
        say(f"{graph}: {compiler} compiles it, {len(profiles)} optimization profiles")
    return {
        "name": "compile",
        "passed": True,
        "measured": 0.0,
        "limit": 0.0,
        "detail": f"graphs refused by {compiler}, {n_profiles} optimization profiles; "
        "it is not the board's TensorRT, and nothing was run on hardware",
    }


def _set_target(trt: Any, config: Any) -> None:
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, TARGET), 0)
