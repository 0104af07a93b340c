"""What this machine lacks of what the tests and figures of a GPU need: None, or the reason in words. And its commands."""

from __future__ import annotations

import functools
import os
import subprocess
import sys


@functools.cache
def no_gpu() -> str | None:
    """Why nothing can be computed on a CUDA GPU here."""
    import torch

    if not torch.cuda.is_available():
        return f"needs a CUDA GPU: torch {torch.__version__} sees none"
    try:
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError as error:
        return f"needs a CUDA GPU that works: {str(error).splitlines()[0]}"
    return None


@functools.cache
def no_cuda_provider() -> str | None:
    """Why onnxruntime cannot run on the GPU here."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"needs onnxruntime-gpu: onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider"
    return no_gpu()


@functools.cache
def no_tensorrt() -> str | None:
    """Why there is no TensorRT here."""
    from edgeqlora_jetson.errors import UserError
    from edgeqlora_jetson.runtimes.tensorrt import import_tensorrt

    try:
        import_tensorrt()
    except UserError as error:
        return f"needs TensorRT: {str(error).split('. ')[0]}"
    return no_gpu()


def edgeqlora(*arguments: object, on_gpu: bool = True, code: int = 0) -> str:
    """Run a command as a user types it and return what it printed; on_gpu=False hides the GPU from it.

    Raises RuntimeError with its output where it ends with another exit code.
    """
    environment = dict(os.environ) if on_gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "edgeqlora", *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    if done.returncode != code:
        raise RuntimeError(
            f"edgeqlora {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stdout[-4000:]}"
        )
    return done.stdout
