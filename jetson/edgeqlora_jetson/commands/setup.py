"""The commands that prepare a measurement: doctor and build. Each takes plain values and prints."""

import sys
from typing import Optional

from ..bundle import Bundle
from ..errors import UserError
from ..pyz import find_pyz
from .progress import Elapsed
from .transcribe import bundle_flag, command_name, open_bundle

HAS_PROBLEM = 1
"""Exit code of a doctor that found something that must be mended."""


def run_doctor(folder: Optional[str]) -> int:
    """Print what stands in the way of a sound measurement. A bundle is looked at where there is one."""
    from ..doctor.run import examine, format_findings

    bundle = open_bundle(folder) if folder is not None or find_pyz() is not None else None
    findings = examine(bundle)
    print(format_findings(findings))
    return HAS_PROBLEM if any(finding.level == "problem" for finding in findings) else 0


def run_build(
    folder: Optional[str],
    precision: Optional[str],
    workspace_mib: Optional[int],
    cache: Optional[str],
    force: bool = False,
    check_memory: bool = True,
    runtime: str = "tensorrt",
) -> int:
    """Build the bundle's TensorRT engines, or those of onnxruntime's TensorRT provider, and show how long it takes."""
    from ..engine_build.run import build_engines, build_provider_engines, format_engines
    from ..runtimes.providers import format_placement

    if runtime not in ("tensorrt", "onnxruntime"):
        raise UserError("runtime {!r} has no engines, allowed: tensorrt, onnxruntime".format(runtime))
    bundle: Bundle = open_bundle(folder)
    elapsed = Elapsed()
    try:
        if runtime == "onnxruntime":
            built = build_provider_engines(
                bundle,
                cache_dir=cache,
                progress=elapsed.update,
                precision=precision,
                workspace_mib=workspace_mib,
                force=force,
                check_memory=check_memory,
            )
            print("onnxruntime {onnxruntime}, {precision}, built in {build_s:.0f} s".format(**built))
            print(format_placement(built["placement"]))
        else:
            records = build_engines(
                bundle,
                cache_dir=cache,
                progress=elapsed.update,
                precision=precision,
                workspace_mib=workspace_mib,
                force=force,
                check_memory=check_memory,
            )
            print(format_engines(records))
    finally:
        elapsed.close()
    sys.stdout.flush()
    flags = "--runtime tensorrt" if runtime == "tensorrt" else "--provider tensorrt"
    print("Next: {} bench {}{}".format(command_name(), flags, bundle_flag(folder).replace(" --bundle", "")))
    return 0
