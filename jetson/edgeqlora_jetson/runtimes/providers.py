"""onnxruntime's execution providers: which are asked for, with what options, and which really ran each node.

Options of the TensorRT and CUDA providers: onnxruntime.ai/docs/execution-providers and onnxruntime's own parser of them
(onnxruntime_pybind_state.cc). Not run on hardware.
"""

import contextlib
import io
import os
import tempfile
from typing import Any, Dict, Iterator, List, Optional, Sequence

from ..errors import UserError
from ..files import read_json

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PREFERENCE = (TENSORRT, CUDA, CPU)
_SHORT = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
_AUTO = "auto"

# What an older onnxruntime may not know, dropped one by one when it says so: explicit shapes and the timing cache came
# with 1.15 (pull requests 15546, 14767), the others are older. Shapes are never dropped.
_UNKNOWN_OPTION = "Invalid TensorRT EP option: "
SHAPES = "trt_profile_"


class ProviderRefused(UserError):
    """The TensorRT provider must not be used here; the text is the whole reason."""


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


def open_session(
    onnxruntime: Any, path: str, session_options: Any, providers: Sequence[str], options: Dict[str, Dict[str, str]]
) -> Any:
    """A session, with options that this onnxruntime does not know left out; never without the first provider.

    options: by provider. Raises ProviderRefused where the shapes of engines are not known, else whatever onnxruntime
    raises, and RuntimeError with what it printed where it went on without the first provider.
    """
    options = {name: dict(values) for name, values in options.items()}
    while True:
        given = [options.get(name, {}) for name in providers]
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                session = onnxruntime.InferenceSession(
                    path,
                    sess_options=session_options,
                    providers=list(providers),
                    provider_options=given,
                    enable_fallback=0,
                )
            # Up to 1.22 it does not look at enable_fallback: it prints, drops the provider and goes on with the rest.
            if providers[0] not in session.get_providers():
                raise RuntimeError(_fallback_reason(printed.getvalue(), providers[0]))
            return session
        except Exception as error:  # its exception classes differ from release to release
            unknown = _unknown_option(str(error))
            if unknown is None or unknown not in options.get(TENSORRT, {}):
                raise
            if unknown.startswith(SHAPES):
                raise ProviderRefused(
                    "onnxruntime {} (< 1.15) would rebuild its engine for every length; use the tensorrt runtime or "
                    "cuda".format(onnxruntime.__version__)
                ) from error
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


@contextlib.contextmanager
def heard_stderr(log: Optional[str] = None) -> Iterator[List[str]]:
    """What C++ code writes to stderr inside the block, in a list of one text after it.

    onnxruntime tells only its log, on file descriptor 2, why a provider cannot be had. log: file that stderr goes to
    already; it is left so, since the process may die and its last words are then read there.
    """
    heard: List[str] = []
    if log is not None:
        start = os.path.getsize(log)
        try:
            yield heard
        finally:
            with open(log, "rb") as said:
                said.seek(start)
                heard.append(said.read().decode("utf-8", errors="replace"))
        return
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


def _fallback_reason(printed: str, provider: str) -> str:
    """What onnxruntime printed when it dropped a provider, without its frame of asterisks, in one line."""
    lines = [line.strip() for line in printed.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("***", "Falling back"))]
    return " ".join(telling) or "onnxruntime dropped {} and gave no reason".format(provider)


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
