"""The commands that prepare a measurement: doctor and build. Each takes plain values and prints."""

import sys
from typing import Optional

from ..bundle import Bundle
from ..pyz import command_name, find_pyz
from ..screen import command_line, show
from .progress import Elapsed
from .transcribe import open_bundle

HAS_PROBLEM = 1
"""Exit code of a doctor that found something that must be corrected."""


def run_doctor(folder: Optional[str], verify: bool = False) -> int:
    """Print what stands in the way of a sound measurement. A bundle is looked at where there is one."""
    from ..doctor.run import examine, format_findings

    bundle = open_bundle(folder, verify) if folder is not None or find_pyz() is not None else None
    findings = examine(bundle)
    show(format_findings(findings))
    return HAS_PROBLEM if any(finding.level == "problem" for finding in findings) else 0


def run_build(
    folder: Optional[str],
    precision: Optional[str],
    workspace_mib: Optional[int],
    cache: Optional[str],
    force: bool = False,
    check_memory: bool = True,
    verify: bool = False,
) -> int:
    """Build the bundle's TensorRT engines and show how long it takes."""
    from ..engine_build.run import build_engines, format_engines

    bundle: Bundle = open_bundle(folder, verify)
    elapsed = Elapsed()
    try:
        records = build_engines(
            bundle,
            cache_dir=cache,
            progress=elapsed.update,
            precision=precision,
            workspace_mib=workspace_mib,
            force=force,
            check_memory=check_memory,
        )
        show(format_engines(records))
    finally:
        elapsed.close()
    sys.stdout.flush()
    words = ["bench", "--runtime", "tensorrt"] + ([folder] if folder else [])
    show("Next: {} {}".format(command_name(), command_line(*words)))
    return 0
