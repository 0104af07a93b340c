"""Runtimes that execute a bundle's graphs. Each is imported only when it is opened."""

import difflib
import importlib
from typing import Any, Dict, Optional, Sequence, Tuple

from ..errors import UserError

# Name of the runtime -> (module beside this one, class).
RUNTIMES: Dict[str, Tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "tensorrt": ("tensorrt", "TensorRt"),
}


def open_runtime(
    bundle: Any,
    name: str = "onnxruntime",
    threads: Optional[int] = None,
    providers: Optional[Sequence[str]] = None,
    precision: Optional[str] = None,
    cache_dir: Optional[str] = None,
) -> Any:
    """Open the bundle's graphs in a runtime. The runtime tensorrt builds no engines: without them, the error says how.

    threads: intra-op threads, None: as the bundle's profile says, else one per core.
    providers: onnxruntime's execution providers in order of preference (tensorrt, cuda, cpu, or ["auto"] for CUDA where
    it works), None: CPU. precision: of TensorRT's engines, fp32 or fp16, None: the bundle's preference.
    cache_dir: where engines are kept, None: ~/.cache/edgeqlora/engines.
    Raises UserError for an unknown runtime, a missing library or engine, a graph it cannot load.
    """
    if name not in RUNTIMES:
        near = difflib.get_close_matches(name, RUNTIMES, n=1)
        raise UserError(
            "runtime {!r} is not known, allowed: {}{}".format(
                name, ", ".join(sorted(RUNTIMES)), "; did you mean {!r}?".format(near[0]) if near else ""
            )
        )
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError("threads={}, allowed 1 to 1024".format(threads))
    module_name, class_name = RUNTIMES[name]
    module = importlib.import_module("." + module_name, __name__)
    return getattr(module, class_name)(bundle, threads, providers, precision, cache_dir)
