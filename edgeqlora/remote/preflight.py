"""Whether a machine can run a bundle, found out before anything is copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeqlora.errors import UserError

_RUNTIMES = ("onnxruntime", "tensorrt")


def check_machine(facts: Mapping[str, Any], host: str, python: str, runner_args: Sequence[str]) -> str:
    """Check what the helper saw (far.op_look); returns it as one line.

    Raises UserError for a missing numpy, no runtime (the one named by --runtime, else any), a folder that cannot be
    written, with the command that corrects it.
    """
    if not facts["is_writable"]:
        raise UserError(
            f"{host}: {facts['existing']} cannot be written there: choose another place with --remote-dir, "
            "for example one in your home folder"
        )
    modules = facts["modules"]
    if not modules:
        raise UserError(f"{host}: {python} there did not say within 3 minutes which modules it has: is it overloaded?")
    numpy = modules["numpy"]
    if "missing" in numpy:
        raise UserError(
            f"{host}: numpy cannot be imported by {python} there ({numpy['missing']}): sudo apt-get install "
            "python3-numpy, or name another Python with --remote-python"
        )
    wanted = _wanted_runtime(runner_args)
    present = [name for name in _RUNTIMES if "version" in modules[name]]
    if wanted is not None and wanted not in present:
        raise UserError(f"{host}: {_missing(modules, [wanted], python)}")
    if not present:
        raise UserError(f"{host}: {_missing(modules, _RUNTIMES, python)}")
    versions = ", ".join(f"{name} {modules[name]['version']}" for name in ("numpy", *present))
    return (
        f"{facts['system']} {facts['machine']}, Python {facts['python']}, {versions}, "
        f"{facts['free_bytes'] / 1e9:.1f} GB free"
    )


def _wanted_runtime(runner_args: Sequence[str]) -> str | None:
    """The value of --runtime where it is a module's name."""
    for i, arg in enumerate(runner_args):
        flag, _, value = arg.partition("=")
        if flag == "--runtime":
            value = value or (runner_args[i + 1] if i + 1 < len(runner_args) else "")
            return value if value in _RUNTIMES else None
    return None


def _missing(modules: Mapping[str, Any], names: Sequence[str], python: str) -> str:
    reasons = "; ".join(f"{name}: {modules[name]['missing']}" for name in names)
    advice = []
    if "onnxruntime" in names:
        advice.append(
            f"{python} -m pip install onnxruntime (for the GPU of a Jetson, the onnxruntime-gpu wheel of its JetPack)"
        )
    if "tensorrt" in names:
        advice.append("TensorRT comes with JetPack (sudo apt-get install nvidia-jetpack) for the system's python3")
    return f"{python} there has no runtime ({reasons}): {'; '.join(advice)}"
