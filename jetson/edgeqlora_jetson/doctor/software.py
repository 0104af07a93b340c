"""What the doctor says of the software: Python, numpy, onnxruntime with its providers, TensorRT."""

import platform
import sys
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional

from ..board.l4t import version_key
from .findings import Finding, listed, note, ok, problem, warning
from .onnx_probe import Probe, probe_providers

NOT_INSTALLED = "not installed"
_CPU = "CPUExecutionProvider"
_GPU = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


class Software(NamedTuple):
    """Versions of what is installed; None: not there, or not usable, with the reason beside it."""

    python: str
    numpy: Optional[str]
    onnxruntime: Optional[str]
    onnxruntime_error: Optional[str]
    probes: List[Probe]
    tensorrt: Optional[str]
    tensorrt_error: Optional[str]


def read_software() -> Software:
    """Import what is installed and run the tiny model with every provider; takes some seconds with a GPU."""
    numpy, _ = _import("numpy")
    onnxruntime, onnxruntime_error = _import("onnxruntime")
    tensorrt, tensorrt_error = _import("tensorrt")
    if tensorrt is not None and not hasattr(tensorrt, "__version__"):
        tensorrt, tensorrt_error = None, NOT_INSTALLED  # type stubs alone: an empty package
    return Software(
        python=platform.python_version(),
        numpy=getattr(numpy, "__version__", None),
        onnxruntime=getattr(onnxruntime, "__version__", None),
        onnxruntime_error=onnxruntime_error,
        probes=probe_providers(onnxruntime) if onnxruntime is not None and numpy is not None else [],
        tensorrt=getattr(tensorrt, "__version__", None),
        tensorrt_error=tensorrt_error,
    )


@listed
def examine_python(software: Software, release: Optional[Mapping[str, Any]] = None) -> Iterator[Finding]:
    """Python and numpy against what the runner needs and what this board's JetPack has.

    release: the board table's JetPack release of this board's L4T series; None: not known, or no Jetson.
    """
    if sys.version_info < (3, 6):
        yield problem("Python {}".format(software.python), "The runner needs 3.6 or newer.", "python3 --version")
    else:
        yield ok("Python {} ({})".format(software.python, sys.executable))
    wanted = (release or {}).get("python")
    # A tensorrt that imports was built for this Python, whichever it is.
    if wanted and software.tensorrt is None and version_key(software.python)[:2] != version_key(str(wanted))[:2]:
        yield warning(
            "JetPack's Python is {}, this is {}".format(wanted, software.python),
            "NVIDIA's tensorrt module and the wheels for this board are built for that one and do not import here.",
            "/usr/bin/python3 edgeqlora-jetson.pyz doctor",
        )
    if software.numpy is None:
        yield problem("numpy is not installed", "Nothing can run.", "sudo apt-get install python3-numpy")
    else:
        yield ok("numpy {}".format(software.numpy))


@listed
def examine_onnxruntime(software: Software, is_jetson: bool, install: str) -> Iterator[Finding]:
    """onnxruntime and the providers that really run. install: the command that installs it here."""
    if software.onnxruntime is None:
        yield problem(
            "onnxruntime: {}".format(software.onnxruntime_error),
            "The bundle cannot run on the processor, and TensorRT's result cannot be compared with it.",
            install,
        )
        return
    working = [probe.provider for probe in software.probes if probe.works]
    if _CPU in working:
        yield ok("onnxruntime {}, run and checked: {}".format(software.onnxruntime, ", ".join(working)))
    else:
        yield problem("onnxruntime {} runs no model".format(software.onnxruntime), "The bundle cannot run.", install)
    for probe in software.probes:
        what = "{}: {}".format(probe.provider, probe.reason)
        if not probe.works and probe.provider in _GPU:
            yield warning(what, "Asking for it gives an error, not a slower run.")
        elif not probe.works:
            yield note(what, "It is not used unless it is asked for.")
    if is_jetson and not any(name in working for name in _GPU):
        yield note(
            "onnxruntime has no provider for the GPU here",
            "The bundle runs on the processor; the GPU is used through TensorRT itself. Wheels with CUDA for "
            "JetPack 4 to 6 come from NVIDIA's Jetson pages, matched to JetPack and Python: PyPI has them for "
            "aarch64 from JetPack 7's Python 3.12 on.",
        )


@listed
def examine_tensorrt(
    software: Software, is_jetson: bool, release: Optional[Mapping[str, Any]] = None
) -> Iterator[Finding]:
    """TensorRT's Python module; a workstation that has none needs none.

    release: the board table's JetPack release of this board's L4T series.
    """
    if software.tensorrt is not None:
        yield ok("TensorRT {}".format(software.tensorrt))
        if version_key(software.tensorrt)[0] >= 11:
            yield note(
                "TensorRT {} has no precision flags".format(version_key(software.tensorrt)[0]),
                "An engine has the precision of its graph: fp16 needs a graph that was exported in fp16.",
            )
    elif is_jetson:
        yield warning(
            "TensorRT: {}".format(software.tensorrt_error),
            "No engine can be built; the bundle runs in onnxruntime. JetPack brings the module for its own Python only "
            "({}); a wheel from PyPI does not know a Jetson's GPU before JetPack 7.".format(
                (release or {}).get("python") or "the one in /usr/bin"
            ),
            "sudo apt-get install python3-libnvinfer",
        )
    elif software.tensorrt_error != NOT_INSTALLED:
        yield note("TensorRT: {}".format(software.tensorrt_error), "The bundle runs in onnxruntime.")


def _import(name: str) -> Any:
    """(module, None), or (None, why it cannot be used): a broken library raises OSError or worse on import."""
    import importlib

    try:
        return importlib.import_module(name), None
    except ImportError as error:
        missing = getattr(error, "name", None) == name
        return None, NOT_INSTALLED if missing else "does not import: {}".format(error)
    except Exception as error:
        return None, "does not import: {}: {}".format(type(error).__name__, error)
