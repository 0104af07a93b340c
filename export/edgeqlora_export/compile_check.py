"""Compile the bundle's graphs with NVIDIA's own parser and compiler, on a machine without a GPU.

TensorRT-RTX (pip package tensorrt-rtx-cu12) compiles for a GPU that is not there. It is not the Jetson's TensorRT: it
shows that network, parser, optimization profiles and configuration are taken, and that the graphs compile; what the
board's own release takes is judged from its operator table (lint). Each graph is compiled in a process of its own: a
compiler that crashes takes nothing with it, and its memory is measured.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeqlora_jetson.board.machine import measure_peak_rss_mib
from edgeqlora_jetson.engines.request import OptimizationProfile, optimization_profiles
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes.trt_builder import build_plan
from edgeqlora_jetson.schema import Gate, Manifest

MODULE = "tensorrt_rtx"
TARGETS = {"7.5": "SM75", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120"}
"""Compute capabilities that TensorRT-RTX compiles for: Turing, Ampere, Ada, Blackwell."""

DEFAULT_TARGET = "SM86"
"""Where a profile names no GPU."""


def target_of(compute_capability: str | None, precision: str = "fp16") -> str:
    """The GPU to compile for that is nearest to a board's: its own architecture, or the oldest that the compiler knows.

    Orin (8.7) is an Ampere, Thor (11.0) a Blackwell; Maxwell, Pascal and Volta are older than all of them. The compiler makes no
    products of fp32 for Turing (7.5): graphs of fp32 are compiled for Ampere then.
    """
    if compute_capability is None:
        return DEFAULT_TARGET
    wanted = _key(compute_capability)
    if wanted[0] >= 10:
        return TARGETS["12.0"]
    known = [name for name in sorted(TARGETS, key=_key) if _key(name) <= wanted]
    target = TARGETS[known[-1] if known else "7.5"]
    return DEFAULT_TARGET if target == "SM75" and precision == "fp32" else target


def import_compiler() -> Any:
    """TensorRT-RTX. Raises UserError saying how to install it."""
    try:
        return importlib.import_module(MODULE)
    except (ImportError, OSError) as error:
        raise UserError(
            f"the compile check needs TensorRT-RTX, which cannot be imported ({error}): "
            "python -m pip install 'edgeqlora[trt-check]' (x86-64 Linux; no GPU is needed)"
        ) from error


def compile_gate(
    folder: Path | str,
    manifest: Manifest,
    request: Mapping[str, Any],
    compute_capability: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Gate:
    """Compile the graphs of a bundle folder with every shape that an engine request names: a gate of the manifest.

    compute_capability: of the board's GPU; compiled for is the nearest one (see target_of). Engines are thrown away: they
    hold for another GPU. The gate has `graphs`: for each the GPU, seconds, peak memory in MiB, optimization profiles, the size of the
    engine in bytes, and `products`: how many of the engine's matrix products and convolutions take int8, fp16, bf16 and fp32 (None: not said). Raises UserError with the compiler's words when a graph is refused.
    """
    version = import_compiler().__version__
    graphs = {}
    for graph in sorted(manifest["graphs"]):
        entry = manifest["graphs"][graph]
        target = target_of(compute_capability, entry["precision"])
        profiles = optimization_profiles(dict(request), graph)
        found = _compile_apart(Path(folder) / entry["file"], profiles, target, entry["precision"])
        graphs[graph] = {"target": target, **found}
        products = found["products"]
        kinds = f", products: {', '.join(f'{n} {kind}' for kind, n in products.items())}" if products else ""
        say(
            f"{graph}: TensorRT-RTX {version} for {target} compiles it, optimization profiles: {len(profiles)}{kinds}, "
            f"{found['seconds']:.1f} s, {found['peak_rss_mib']:.0f} MiB"
        )
    targets = " and ".join(sorted({found["target"] for found in graphs.values()}))
    n_profiles = sum(found["n_profiles"] for found in graphs.values())
    return {
        "name": "compile",
        "passed": True,
        "measured": 0.0,
        "limit": 0.0,
        "detail": f"graphs refused by TensorRT-RTX {version} for {targets}, {n_profiles} optimization profiles; "
        "it is not the board's TensorRT, and nothing was run on hardware",
        "graphs": graphs,
    }


def _compile_apart(path: Path, profiles: list[OptimizationProfile], target: str, precision: str) -> dict[str, Any]:
    """One graph in a process of its own."""
    shapes = [profile._asdict() for profile in profiles]
    asked = {"path": str(path), "target": target, "precision": precision, "profiles": shapes}
    done = subprocess.run(
        [sys.executable, "-c", "from edgeqlora_export.compile_check import work; work()"],
        input=json.dumps(asked), capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"{path.name}: the compiler of TensorRT-RTX crashed (exit code {done.returncode}): {said}. Export without "
            "--compile-check, and report the graph"
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer


def work() -> None:
    """In the process of one graph: compile what standard input asks for, and print what came of it as JSON."""
    asked = json.loads(sys.stdin.read())
    trt = import_compiler()
    profiles = [
        OptimizationProfile(
            profile["name"],
            {
                name: {bound: tuple(shape) for bound, shape in bounds.items()}
                for name, bounds in profile["inputs"].items()
            },
        )
        for profile in asked["profiles"]
    ]
    start_s, heard = time.perf_counter(), list[str]()
    try:
        built = build_plan(
            trt, asked["path"], profiles, configure=lambda config: set_target(trt, config, asked["target"]),
            graph_precision=asked["precision"], hear=heard.append,
        )  # fmt: skip
    except UserError as error:
        print(json.dumps({"refused": str(error)}))
        return
    figures = {
        "seconds": round(time.perf_counter() - start_s, 2),
        "peak_rss_mib": round(measure_peak_rss_mib(), 1),
        "n_profiles": len(profiles),
        "plan_bytes": memoryview(built.plan).nbytes,
        "products": count_products("\n".join(heard)),
    }
    print(json.dumps(figures))


def set_target(trt: Any, config: Any, target: str = DEFAULT_TARGET) -> None:
    """Tell the builder's configuration which GPU to compile for."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # it then says what each layer of the engine takes


_LAYER = re.compile(
    r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[ \{ Name: .+?, Datatype: (?P<type>\w+)", re.MULTILINE
)
_TYPES = {"Int8": "int8", "Half": "fp16", "BFloat16": "bf16", "Float": "fp32"}


def count_products(said: str) -> dict[str, int] | None:
    """Matrix products and convolutions of an engine by the type that they take, from what the compiler said; None: it named none."""
    found = [
        _TYPES.get(layer["type"], layer["type"])
        for layer in _LAYER.finditer(said)
        if layer["kind"].startswith(("gemm", "runtime")) or "gemm" in layer["name"]
    ]
    return {kind: found.count(kind) for kind in ("int8", "fp16", "bf16", "fp32") if kind in found} or None


def _key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
