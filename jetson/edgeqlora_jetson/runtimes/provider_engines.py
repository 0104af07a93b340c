"""Engines of onnxruntime's TensorRT provider: what they are built with, the folder they are kept in, whether they are there.

onnxruntime builds and reads them itself and builds anew, silently, when one does not fit: so a folder holds for exactly
one of everything that they depend on. Not run on hardware.
"""

import os
import shutil
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from ..engines.cache import build_command, graph_hashes, key_sha256, read_power_mode
from ..engines.request import BOUNDS, optimization_profiles
from ..errors import UserError
from ..files import read_json, write_json
from .cudart import Cudart
from .providers import SHAPES, ProviderRefused

_BUILT = "built.json"
_CACHE_PATH, _WORKSPACE = "trt_engine_cache_path", "trt_max_workspace_size"


class ProviderBuild(NamedTuple):
    """Leave to build the engines of the TensorRT provider now, which takes minutes and much memory."""

    log: str  # file that this process's stderr goes to: what it says there outlives the process
    workspace_mib: Optional[int] = None  # cap on scratch memory, None: the bundle's
    force: bool = False  # build again what is there


def engine_options(
    bundle: Any, precision: str, version: str, cache_dir: str, build: Optional[ProviderBuild] = None
) -> Dict[str, Dict[str, str]]:
    """Options of the TensorRT provider by graph, each with a folder of its own; old engines go where it is forced.

    version: of onnxruntime. Raises ProviderRefused where engines would be built in a run.
    """
    request = bundle.manifest.get("engine_request")
    if not request:
        raise ProviderRefused(
            "{}: this bundle names no shapes for TensorRT (engine_request is null): onnxruntime would rebuild its "
            "engine for every length. Export it for a board whose profile names a TensorRT version, or use "
            "cuda".format(bundle.folder)
        )
    place = [version, _read_tensorrt_version()] + _read_gpu() + [read_power_mode()]
    options = {}
    for graph in bundle.graphs:
        given = tensorrt_options(request, graph, precision)
        # With the bundle's workspace, not that of a build: what was built is found whatever it was.
        key = {"place": place, "onnx_sha256": graph_hashes(bundle.manifest, graph), "options": given}
        folder = os.path.join(cache_dir, "onnxruntime-" + key_sha256(key)[:24])
        built = _read_built(folder)
        if build is None and built is None:
            raise ProviderRefused(
                "no {} engine of onnxruntime's TensorRT provider in {}: it would be built now, for minutes. Build it "
                "first: {} --runtime onnxruntime".format(graph, folder, build_command(bundle, precision, cache_dir))
            )
        if build is not None and _is_outdated(built, build):
            shutil.rmtree(folder, ignore_errors=True)
            built = None
        if build is not None and build.workspace_mib is not None:
            given[_WORKSPACE] = str(build.workspace_mib << 20)
        elif built is not None and built["workspace"] is not None:
            given[_WORKSPACE] = built["workspace"]
        os.makedirs(folder, exist_ok=True)
        options[graph] = dict(given, **{_CACHE_PATH: folder})
    return options


def tensorrt_options(request: Dict[str, Any], graph: str, precision: str) -> Dict[str, str]:
    """Options of the TensorRT provider for a graph: precision, workspace, and the shapes to build for; no path.

    Without explicit shapes it builds anew, for minutes, whenever a longer past than any before comes along
    (microsoft/onnxruntime#12120). It takes one range for an input, so this is the span of all optimization profiles.
    """
    options = {
        "trt_engine_cache_enable": "True",
        "trt_timing_cache_enable": "True",
        "trt_fp16_enable": "True" if precision == "fp16" else "False",
        # Squares of activations overflow in fp16 (known of Whisper's layer norms: microsoft/onnxruntime#31626).
        "trt_layer_norm_fp32_fallback": "True" if precision == "fp16" else "False",
    }
    if request["workspace_mib"] is not None:
        options["trt_max_workspace_size"] = str(request["workspace_mib"] << 20)
    profiles = optimization_profiles(request, graph)
    for bound in BOUNDS:
        pick: Callable[..., int] = {"min": min, "opt": max, "max": max}[bound]
        shapes = []
        for name in sorted(profiles[0].inputs):
            span = [pick(sizes) for sizes in zip(*(profile.inputs[name][bound] for profile in profiles))]
            shapes.append("{}:{}".format(name, "x".join(str(n) for n in span)))
        options["{}{}_shapes".format(SHAPES, bound)] = ",".join(shapes)
    return options


def mark_built(options: Dict[str, str], placement: Dict[str, int]) -> None:
    """Note that a build with these options ended well; an engine alone would not say so, and there may be none."""
    note = {"placement": placement, "workspace": options.get(_WORKSPACE)}
    write_json(os.path.join(options[_CACHE_PATH], _BUILT), note)


def _read_built(folder: str) -> Optional[Dict[str, Any]]:
    """What mark_built noted; None: the provider has not (wholly) built in this folder what it takes of a graph."""
    path = os.path.join(folder, _BUILT)
    return read_json(path, "note of a build") if os.path.isfile(path) else None


def _is_outdated(built: Optional[Dict[str, Any]], build: ProviderBuild) -> bool:
    if build.force or built is None or build.workspace_mib is None:
        return build.force
    return bool(built["workspace"] != str(build.workspace_mib << 20))


def _read_tensorrt_version() -> Optional[str]:
    """TensorRT's version where its Python package is installed: the provider loads the library of the same package."""
    from .tensorrt import import_tensorrt

    try:
        return str(import_tensorrt().__version__)
    except UserError:
        return None


def _read_gpu() -> List[Optional[str]]:
    """What engines depend on: the GPU, where CUDA says it."""
    try:
        gpu = Cudart().gpu()
    except UserError:
        return [None, None, None]
    return [gpu.name, gpu.compute_capability, str(gpu.n_sms)]
