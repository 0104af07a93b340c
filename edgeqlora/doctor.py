"""The doctor on the workstation: whether training, export and measuring will work here, and what corrects it."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqlora.card import installed_version
from edgeqlora.quiet import hush
from edgeqlora_jetson.doctor.findings import Finding, note, ok, problem, warning
from edgeqlora_jetson.doctor.run import examine

_TORCH_INDEX = "https://download.pytorch.org/whl"
_GPU_TRAINING_MIB = 4096


@dataclass(frozen=True)
class Gpu:
    """What torch and the driver say of the GPU."""

    torch: str | None
    """Version of torch; None: it does not import."""
    error: str | None
    """Why torch does not import."""
    built_for: str | None
    """CUDA version torch was built with; None: a torch without CUDA."""
    names: Sequence[str] = ()
    """GPUs torch sees."""
    memory_mib: Sequence[float] = ()
    compute_capability: Sequence[str] = ()
    has_bf16: bool = False
    driver: str | None = None
    """Version of NVIDIA's driver; None: no driver."""


def examine_workstation(bundle: Any = None, root: str = "/") -> list[Finding]:
    """Everything that training, export and a measurement on this machine depend on; takes about 10 s.

    bundle: an edgeqlora_jetson.bundle.Bundle, to say whether it fits this machine. Ends with what the runner's own
    doctor says, so that nothing has to be asked twice; Python and numpy are among the required packages.
    """
    hush()
    gpu = read_gpu(root)
    findings = examine_requirements(read_requirements()) + examine_gpu(gpu)
    if gpu.torch is not None:
        findings.append(examine_nf4("cuda" if gpu.names else "cpu"))
    return findings + list(examine(bundle, root, with_python=False))


def read_requirements() -> list[str]:
    """The requirements of the installed edgeqlora, extras left out: "torch>=2.6"; [] when it is not installed."""
    try:
        lines = importlib.metadata.requires("edgeqlora") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [line for line in lines if "extra ==" not in line]


def examine_requirements(
    requirements: Sequence[str], version_of: Callable[[str], str | None] = installed_version
) -> list[Finding]:
    """Installed versions against the ranges that edgeqlora asks for."""
    from packaging.requirements import Requirement

    findings, n_good = [], 0
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = version_of(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        command = f"python -m pip install '{wanted}'"
        if version is None:
            findings.append(problem(f"{requirement.name} is not installed", "edgeqlora needs it.", command))
        elif not requirement.specifier.contains(version, prereleases=True):
            findings.append(
                problem(
                    f"{requirement.name} {version} is outside {requirement.specifier}",
                    "edgeqlora was made and tested with that range: names and results change outside it.",
                    command,
                )
            )
        else:
            n_good += 1
    if n_good:
        findings.append(ok(f"Python {platform.python_version()}; {n_good} required packages in range"))
    if not requirements:
        findings.append(
            warning(
                "edgeqlora is not installed, only imported",
                "Versions of its libraries cannot be compared with what it needs.",
                "python -m pip install -e ./jetson -e .",
            )
        )
    return findings


def read_gpu(root: str = "/") -> Gpu:
    """Import torch and ask it for GPUs; the driver's version is the kernel's own."""
    driver = read_driver(root)
    try:
        import torch
    except Exception as error:  # a broken CUDA library raises OSError, a wrong numpy raises RuntimeError
        return Gpu(None, f"{type(error).__name__}: {error}", None, driver=driver)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    return Gpu(
        torch=torch.__version__,
        error=None,
        built_for=torch.version.cuda,
        names=[p.name for p in properties],
        memory_mib=[p.total_memory / 2**20 for p in properties],
        compute_capability=[f"{p.major}.{p.minor}" for p in properties],
        has_bf16=bool(count and torch.cuda.is_bf16_supported(including_emulation=False)),
        driver=driver,
    )


def read_driver(root: str = "/") -> str | None:
    """Version of NVIDIA's kernel driver, "560.35.03"; None without one."""
    try:
        text = Path(root, "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return match.group(1) if match else "of unknown version"


def examine_gpu(gpu: Gpu) -> list[Finding]:
    """Whether training will run on a GPU."""
    if gpu.torch is None:
        return [
            problem(f"torch does not import: {gpu.error}", "Nothing can be trained.", "python -m pip install torch")
        ]
    if not gpu.names and gpu.driver is None:
        return [
            note(
                f"torch {gpu.torch}, no NVIDIA GPU here",
                "Training runs on the processor: small models and short windows in minutes, large ones not at all.",
            )
        ]
    if not gpu.names and gpu.built_for is None:
        return [
            warning(
                f"torch {gpu.torch} is built without CUDA, though there is a GPU (driver {gpu.driver})",
                "Training runs on the processor, many times slower.",
                f"python -m pip install --force-reinstall torch torchaudio --index-url {_TORCH_INDEX}/cu126",
            )
        ]
    if not gpu.names:
        return [
            warning(
                f"torch {gpu.torch} for CUDA {gpu.built_for} sees no GPU, though there is a driver ({gpu.driver})",
                "Training runs on the processor. The driver is older than this CUDA, or CUDA_VISIBLE_DEVICES hides "
                "the GPU.",
                "nvidia-smi; echo $CUDA_VISIBLE_DEVICES",
            )
        ]
    findings = []
    for name, memory_mib, capability in zip(gpu.names, gpu.memory_mib, gpu.compute_capability, strict=True):
        text = (
            f"{name}, {memory_mib:,.0f} MiB, compute capability {capability}; torch {gpu.torch} for CUDA "
            f"{gpu.built_for}, driver {gpu.driver or 'not known'}"
        )
        if memory_mib < _GPU_TRAINING_MIB:
            findings.append(
                warning(text, "Little memory: take a small model, a short window, --batch-size 1, method qlora.")
            )
        else:
            findings.append(ok(text, "" if gpu.has_bf16 else "No bf16 here: --precision auto takes fp16."))
    return findings


def examine_nf4(device: str) -> Finding:
    """Quantise a tiny layer to NF4, run it forward and back: importing bitsandbytes proves nothing."""
    try:
        import bitsandbytes
        import torch
    except Exception as error:
        return problem(
            f"bitsandbytes does not import: {type(error).__name__}: {error}",
            "method qlora does not work; lora and full do.",
            "python -m pip install --upgrade bitsandbytes",
        )
    try:
        rounding = nf4_error(device)
    except Exception as error:
        return problem(
            f"NF4 does not run on {device} with bitsandbytes {bitsandbytes.__version__}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}",
            "method qlora does not work here; lora and full do.",
            "python -m bitsandbytes",
        )
    if not rounding < 0.2:
        return problem(
            f"NF4 on {device} gives wrong results: relative error {rounding:.2f}, at most 0.2 is quantisation",
            "Training with method qlora would learn against noise.",
            "python -m pip install --upgrade bitsandbytes torch",
        )
    return ok(
        f"NF4 runs on {device}: bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, "
        f"relative error {rounding:.3f} of a 64 x 64 layer"
    )


def nf4_error(device: str) -> float:
    """Relative error of a 64 x 64 layer in NF4 with double quantisation against fp32; the gradient must be finite."""
    import bitsandbytes
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator) * 0.05
    x = torch.randn(8, 64, generator=generator)
    layer = bitsandbytes.nn.Linear4bit(
        64, 64, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )
    layer.weight.data = weight.clone()
    layer = layer.to(device).train()  # this quantises
    inputs = x.clone().to(device).requires_grad_(True)
    output = layer(inputs)
    output.square().sum().backward()
    if inputs.grad is None or not bool(torch.isfinite(inputs.grad).all()):
        raise RuntimeError("the gradient through the quantised layer is not finite")
    expected = x @ weight.T
    return float((output.detach().cpu() - expected).norm() / expected.norm())
