"""onnxruntime's execution providers: which are asked for, with what options, and which really ran each node.

Options of the TensorRT and CUDA providers: onnxruntime.ai/docs/execution-providers and onnxruntime's own parser of them
(onnxruntime_pybind_state.cc). Not run on hardware.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from ..engines import BOUNDS, optimization_profiles
from ..errors import UserError
from ..files import read_json, write_json

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PREFERENCE = (TENSORRT, CUDA, CPU)
_SHORT = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
_AUTO = "auto"
_BUILT = "built.json"

# What an older onnxruntime may not know, dropped one by one when it says so: explicit shapes and the timing cache came
# with 1.15 (pull requests 15546, 14767), the others are older.
_UNKNOWN_OPTION = "Invalid TensorRT EP option: "


def choose_providers(wanted: Optional[Sequence[str]], available: Sequence[str]) -> List[str]:
    """Execution providers to ask for, best first, CPU last.

    wanted: names (short ones too: tensorrt, cuda, cpu), ["auto"] for the best available, None for CPU.
    Raises UserError for a provider that this onnxruntime does not have.
    """
    if not wanted:
        return [CPU]
    if list(wanted) == [_AUTO]:
        return [name for name in PREFERENCE if name in available] or [CPU]
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


def is_auto(wanted: Optional[Sequence[str]]) -> bool:
    """True when the caller leaves the choice to us: then a provider that does not work is passed over."""
    return bool(wanted) and list(wanted or []) == [_AUTO]


def tensorrt_options(request: Optional[Dict[str, Any]], graph: str, precision: str, cache_dir: str) -> Dict[str, str]:
    """Options of the TensorRT provider for a graph: engine cache, precision, workspace, and the shapes to build for.

    Without explicit shapes it builds anew, for minutes, whenever a longer past than any before comes along
    (microsoft/onnxruntime#12120). It takes one range for an input, so this is the span of all optimization profiles.
    """
    options = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": cache_dir,
        "trt_timing_cache_enable": "True",
        "trt_fp16_enable": "True" if precision == "fp16" else "False",
        # Squares of activations overflow in fp16 (known of Whisper's layer norms: microsoft/onnxruntime#31626).
        "trt_layer_norm_fp32_fallback": "True" if precision == "fp16" else "False",
    }
    if request is None:
        return options
    if request["workspace_mib"] is not None:
        options["trt_max_workspace_size"] = str(request["workspace_mib"] << 20)
    profiles = optimization_profiles(request, graph)
    for bound in BOUNDS:
        pick: Callable[..., int] = {"min": min, "opt": max, "max": max}[bound]
        shapes = []
        for name in sorted(profiles[0].inputs):
            span = [pick(sizes) for sizes in zip(*(profile.inputs[name][bound] for profile in profiles))]
            shapes.append("{}:{}".format(name, "x".join(str(n) for n in span)))
        options["trt_profile_{}_shapes".format(bound)] = ",".join(shapes)
    return options


def open_session(
    onnxruntime: Any, path: str, session_options: Any, providers: Sequence[str], options: Dict[str, Dict[str, str]]
) -> Any:
    """A session, with options that this onnxruntime does not know left out; never with other providers than asked.

    options: by provider. Raises whatever onnxruntime raises.
    """
    options = {name: dict(values) for name, values in options.items()}
    while True:
        given = [options.get(name, {}) for name in providers]
        try:
            # enable_fallback: newer releases otherwise print, drop the provider and go on with CPU.
            return onnxruntime.InferenceSession(
                path, sess_options=session_options, providers=list(providers), provider_options=given, enable_fallback=0
            )
        except Exception as error:  # its exception classes differ from release to release
            unknown = _unknown_option(str(error))
            if unknown is None or unknown not in options.get(TENSORRT, {}):
                raise
            del options[TENSORRT][unknown]


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


def format_placement(placement: Optional[Dict[str, Dict[str, int]]]) -> str:
    """One line for people: "encoder: 120 nodes on CPU; decoder: 3 on TensorRT, 12 on CPU"."""
    if not placement:
        return "not looked at"
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
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "fail" in line.lower() or "error" in line.lower() or provider in line]
    reason = (telling or lines or ["onnxruntime gave no reason"])[0]
    return "execution provider {} was asked for and runs no node: {}{}".format(provider, reason[:600], _hint(provider))


def provider_cache_dir(cache_dir: str, graph_sha256: str, precision: str, place: Sequence[Optional[str]]) -> str:
    """Folder for the engines that onnxruntime's TensorRT provider builds; it holds for one graph, precision and place."""
    key = json.dumps([graph_sha256, precision] + list(place))
    return os.path.join(cache_dir, "onnxruntime-" + hashlib.sha256(key.encode("utf-8")).hexdigest()[:24])


def is_built(folder: str) -> bool:
    """True when the TensorRT provider has built in this folder what it takes of a graph, if anything."""
    return os.path.isfile(os.path.join(folder, _BUILT))


def mark_built(folder: str, placement: Dict[str, int]) -> None:
    """Note that the build for this folder ended well; an engine alone would not say so, and there may be none."""
    if not is_built(folder):
        write_json(os.path.join(folder, _BUILT), {"placement": placement})


@contextlib.contextmanager
def heard_stderr() -> Iterator[List[str]]:
    """What C++ code writes to stderr inside the block, in a list of one text after it.

    onnxruntime tells only its log, on file descriptor 2, why a provider cannot be had.
    """
    heard: List[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            heard.append(file.read().decode("utf-8", errors="replace"))


def _unknown_option(text: str) -> Optional[str]:
    if _UNKNOWN_OPTION not in text:
        return None
    words = text.split(_UNKNOWN_OPTION, 1)[1].split()
    return words[0] if words else None


def _hint(provider: str) -> str:
    if provider not in (CUDA, TENSORRT):
        return ""
    return (
        ". PyPI's onnxruntime is CPU only; for a Jetson take the onnxruntime-gpu wheel made for its JetPack, with its "
        "CUDA and cuDNN"
    )
