"""The process that builds one engine: it may be killed for want of memory without taking the command with it.

Started by run.py with a job file; writes a result file. Not a command for users.
"""

import os
import sys
import time
from typing import Any, Dict, List

from ..engines.request import OptimizationProfile
from ..errors import UserError
from ..files import read_json, write_bytes, write_json
from ..pyz import find_pyz

USER_ERROR = 3
"""Exit code: the reason is in the result file."""

# sys.path[0] is the current folder with -c: a tensorrt.py lying there must not be taken for TensorRT.
_START = (
    "import sys; sys.path[0] = sys.argv.pop(1); from edgeqlora_jetson.engine_build.worker import main; "
    "sys.exit(main(sys.argv[1:]))"
)


def worker_command(job_path: str) -> List[str]:
    """How to start a worker for a job file, from a .pyz as from a folder."""
    home = find_pyz() or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-c", _START, home, job_path]


def main(arguments: List[str]) -> int:
    """Do the job of a file: {"do": "probe" or "build", "result": path, ...}."""
    job = read_json(arguments[0], "job")
    try:
        result = probe() if job["do"] == "probe" else build(job)
    except UserError as error:
        write_json(job["result"], {"error": str(error)})
        return USER_ERROR
    write_json(job["result"], result)
    return 0


def probe() -> Dict[str, Any]:
    """TensorRT and GPU of this machine; apart from the command, whose memory the build will need."""
    from ..engines.cache import read_place
    from ..runtimes.cudart import Cudart
    from ..runtimes.tensorrt import import_tensorrt

    return dict(read_place(import_tensorrt(), Cudart())._asdict())


def build(job: Dict[str, Any]) -> Dict[str, Any]:
    """Build the engine of a job and write it to job["plan"]; returns what goes into its record."""
    from ..runtimes.tensorrt import import_tensorrt
    from ..runtimes.trt_builder import build_plan

    start_s = time.monotonic()
    profiles = [
        OptimizationProfile(
            entry["name"],
            {name: {bound: tuple(n) for bound, n in shapes.items()} for name, shapes in entry["inputs"].items()},
        )
        for entry in job["optimization_profiles"]
    ]
    built = build_plan(
        import_tensorrt(),
        job["onnx"],
        profiles,
        precision=job["precision"],
        workspace_mib=job["workspace_mib"],
        timing_cache=_read(job["timing_cache"]),
        graph_precision=job["graph_precision"],
        fp32_nodes=job["fp32_nodes"],
    )
    write_bytes(job["plan"], built.plan)  # as it is: a copy could double what is held
    if built.timing_cache:
        write_bytes(job["timing_cache"], built.timing_cache)
    return {
        "precision": built.precision,
        "fp32_layers": built.fp32_layers,
        "n_fp32_layers": len(built.fp32_layers),
        "tf32": built.tf32,
        "notes": built.notes,
        "workspace_mib": job["workspace_mib"],
        "build_s": time.monotonic() - start_s,
    }


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # the first build here
