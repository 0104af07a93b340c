"""onnxruntime's execution providers: which are asked for, with what options, and which really ran each node.

CPU and CUDA are the tested ones. TensorRT's is a thin path that was not run on hardware: onnxruntime builds its engines
itself when a bundle is opened, for minutes the first time. The supported way to TensorRT is the runtime `tensorrt`.
Options: onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html.
"""

import contextlib
import io
import os
import tempfile
from typing import Any, Dict, Iterator, List, Optional, Sequence

from ..engines.cache import graph_hashes, key_sha256
from ..engines.request import BOUNDS, optimization_profiles
from ..errors import UserError
from ..files import read_json

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_SHORT = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
AUTO = "auto"


def choose_providers(wanted: Optional[Sequence[str]], available: Sequence[str]) -> List[str]:
    """Execution providers to ask for, best first, CPU last.

    wanted: names (short ones too: tensorrt, cuda, cpu), ["auto"] for CUDA where it is available, None for CPU.
    Raises UserError for a provider that this onnxruntime does not have.
    """
    if not wanted:
        return [CPU]
    if list(wanted) == [AUTO]:
        return [name for name in (CUDA, CPU) if name in available] or [CPU]
    chosen: List[str] = []
    for name in wanted:
        full = _SHORT.get(name.lower(), name)
        if full not in available:
            raise UserError(
                "execution provider {!r} is not in this onnxruntime, allowed: {}".format(name, ", ".join(available))
                + _hint(full)
            )
        if full not in chosen:
            chosen.append(full)
    return chosen if CPU in chosen else chosen + [CPU]


def tensorrt_options(bundle: Any, graph: str, precision: str, version: str, cache_dir: str) -> Dict[str, str]:
    """Options of the TensorRT provider for a graph: precision, workspace, shapes, and where it keeps its engine.

    Without shapes it builds anew whenever a longer past than any before comes along (microsoft/onnxruntime#12120). It
    takes one range for an input, so this is the span of all optimization profiles. version: of onnxruntime; the folder
    below `cache_dir` is made, one for each graph, its options and version. Raises UserError where the bundle names no
    shapes.
    """
    request = bundle.manifest.get("engine_request")
    if not request:
        raise UserError(
            "{}: this bundle names no shapes for TensorRT (engine_request is null): onnxruntime would rebuild its "
            "engine for every length. Export it for a board whose profile names a TensorRT version, or use "
            "cuda".format(bundle.folder)
        )
    options = {"trt_engine_cache_enable": "True", "trt_fp16_enable": str(precision != "fp32")}
    if precision == "int8":
        options["trt_int8_enable"] = "True"
    if precision != "fp32":
        # Squares of activations overflow in fp16 (known of Whisper's layer norms: microsoft/onnxruntime#31626).
        options["trt_layer_norm_fp32_fallback"] = "True"
    if request["workspace_mib"] is not None:
        options["trt_max_workspace_size"] = str(request["workspace_mib"] << 20)
    inputs = [profile.inputs for profile in optimization_profiles(request, graph)]
    for bound, pick in zip(BOUNDS, (min, max, max)):
        shapes = []
        for name in sorted(inputs[0]):
            sizes = zip(*(shapes_of[name][bound] for shapes_of in inputs))
            shapes.append("{}:{}".format(name, "x".join(str(pick(axis)) for axis in sizes)))
        options["trt_profile_{}_shapes".format(bound)] = ",".join(shapes)
    key = {"graph": graph_hashes(bundle.manifest, graph), "options": options, "onnxruntime": version}
    folder = os.path.join(cache_dir, "onnxruntime-" + key_sha256(key)[:24])
    os.makedirs(folder, exist_ok=True)
    return dict(options, trt_engine_cache_path=folder)


def read_placement(path: str) -> Dict[str, int]:
    """Nodes by the provider that ran them, from a profile written by onnxruntime."""
    return parse_placement(read_json(path, "onnxruntime profile"))


def parse_placement(events: Sequence[Dict[str, Any]]) -> Dict[str, int]:
    """Nodes by provider, from the events of a profile; a node that ran several times counts once."""
    seen: Dict[str, set] = {}
    for event in events:
        arguments = event.get("args") or {}
        # 1.10 writes fences beside each kernel; only kernels say their provider.
        if event.get("cat") != "Node" or not arguments.get("provider"):
            continue
        node = arguments.get("node_index") or arguments.get("graph_index"), event.get("name")
        seen.setdefault(str(arguments["provider"]), set()).add(node)
    return {provider: len(nodes) for provider, nodes in sorted(seen.items())}


def format_placement(placement: Dict[str, Dict[str, int]]) -> str:
    """One line for people: "decoder: 3 nodes on cuda, 12 nodes on cpu; encoder: 120 nodes on cuda"."""
    short = {full: name for name, full in _SHORT.items()}
    return "; ".join(
        "{}: {}".format(
            graph,
            ", ".join("{} nodes on {}".format(n, short.get(provider, provider)) for provider, n in nodes.items()),
        )
        for graph, nodes in sorted(placement.items())
    )


def explain_idle(provider: str, said: str) -> str:
    """Why a provider that was asked for runs nothing; `said`: what onnxruntime wrote while the sessions were opened."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("***")]
    telling = [line for line in lines if "fail" in line.lower() or "error" in line.lower() or provider in line]
    reason = (telling or lines or ["onnxruntime gave no reason"])[0]
    return "execution provider {} was asked for and runs no node: {}{}".format(provider, reason[:600], _hint(provider))


@contextlib.contextmanager
def heard_output() -> Iterator[List[str]]:
    """What is written to stdout by Python, and to stderr by anybody, inside the block, in a list of one text after it.

    onnxruntime says only there why a provider is not available: its log goes to file descriptor 2, and up to 1.22 it
    prints why it drops a provider and goes on without it.
    """
    heard: List[str] = []
    saved = os.dup(2)
    with io.TextIOWrapper(tempfile.TemporaryFile(), encoding="utf-8", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(file):
                yield heard
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            heard.append(file.read())


def _hint(provider: str) -> str:
    if provider not in (CUDA, TENSORRT):
        return ""
    return (
        ". PyPI's onnxruntime is CPU only; for a Jetson take the onnxruntime-gpu wheel made for its JetPack, with its "
        "CUDA and cuDNN"
    )
