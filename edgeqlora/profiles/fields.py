"""The fields of a hardware profile, each with what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
KINDS = ("jetson", "cpu", "gpu")
ENERGY_SCOPES = ("module_input", "system_input", "sum_of_rails", "none")
VARIANTS = ("", "super")


@dataclass(frozen=True)
class PowerMode:
    """One power mode of the board's nvpmodel table. The name decides: numbers differ between images."""

    id: int
    """Number in /etc/nvpmodel.conf of NVIDIA's image; never used to set or to judge a mode."""
    name: str
    """Name in /etc/nvpmodel.conf, such as "MODE_15W"."""
    watt_cap: float | None = None
    """Power budget of the mode, W; None: no budget, or not known."""
    gpu_max_mhz: int | None = None
    """Highest GPU clock of the mode, MHz; None: not known."""
    tpc_pg_mask: int | None = None
    """Which texture processing clusters (2 SM each) the mode powers off, one bit each; None: not known."""
    variant: str = ""
    """ "super": of the conf file that comes with the -super device tree; "": of the ordinary one."""


@dataclass(frozen=True)
class JetpackRelease:
    """One JetPack release of the board and what it brings."""

    jetpack: str
    """JetPack, such as "6.2.2"."""
    l4t: str
    """Jetson Linux, such as "36.5.0"."""
    tensorrt: str
    """TensorRT, such as "10.3.0.30"."""
    python: str
    """Python of its Ubuntu, such as "3.10"."""
    cuda: str
    """CUDA, such as "12.6"."""
    opset: int
    """ONNX opset to export with for that TensorRT."""


@dataclass(frozen=True)
class Profile:
    """One board. Absent optional keys are None or empty: not applicable, or not known (see `absent`)."""

    name: str
    """Name for --target: the file's name without .toml."""
    title: str
    """The board in words."""
    opset: int
    """ONNX opset of the exported graphs, 13 to 20."""
    precisions: tuple[str, ...]
    """Precisions TensorRT offers on the board, best first; out of fp32, fp16, bf16, int8. Engines use fp16 and fp32."""
    max_window_s: float
    """Longest audio window, s, that the board is asked to encode, in (0, 30]."""
    max_batch: int
    """Largest batch, 1 to 64."""
    threads: int | None
    """CPU threads of the runner, 1 to 1024; None: one per core."""
    memory_mib: int | None
    """Memory of the board, shared by CPU and GPU, MiB."""
    tensorrt: str | None
    """TensorRT version, such as "8.2"; None: no TensorRT."""
    python: str
    """Python version of the board's system, such as "3.6"."""
    workspace_mib: int | None
    """Cap on TensorRT's workspace, MiB, when engines are built."""
    notes: str
    """What a user should know."""
    kind: str
    """ "jetson", "cpu" or "gpu" (a workstation's)."""
    soc: str | None
    """System on chip, such as "tegra234"."""
    compute_capability: str | None
    """CUDA compute capability of the GPU, such as "8.7"."""
    memory_bandwidth_gbs: float | None
    """Peak memory bandwidth, GB/s."""
    memory_budget_mib: int | None
    """What model and runtime together may take of the memory, MiB."""
    part_numbers: tuple[str, ...]
    """Module part numbers, such as "p3767-0005"."""
    compatible: tuple[str, ...]
    """Strings of /proc/device-tree/compatible that this board reports; some are reported by its sisters too."""
    models: tuple[str, ...]
    """Strings of /proc/device-tree/model that this board reports; most are reported by its sisters too."""
    power_modes: tuple[PowerMode, ...]
    """Power modes of NVIDIA's images."""
    default_power_mode: str | None
    """Name of the mode after flashing, without the -super device tree."""
    default_power_mode_super: str | None
    """Name of the mode after flashing, with the -super device tree."""
    total_rail: str | None
    """The power rail that covers everything of `energy_scope`; None: the board has none."""
    sum_rails: tuple[str, ...]
    """Rails that may be added up where there is no total rail; empty: adding up is not allowed."""
    optional_rails: tuple[str, ...]
    """Rails added to the sum where they are seen (sysfs shows them, tegrastats does not everywhere)."""
    rails: tuple[str, ...]
    """Every power rail that the board is known to show."""
    energy_scope: str
    """What the total covers: module_input, system_input, sum_of_rails or none."""
    jetpack: str | None
    """The JetPack release that opset, tensorrt and python are of; None: not a Jetson."""
    jetpacks: tuple[JetpackRelease, ...]
    """JetPack releases that run on the board, one for each TensorRT of interest, oldest first."""
    sources: Mapping[str, str]
    """Where each value comes from, by key or KEY.PART; a text that starts with "unsourced" marks a value that no public
    document confirms."""
    absent: Mapping[str, str]
    """Why a key has no value, by key."""

    @property
    def unsourced(self) -> tuple[str, ...]:
        """Keys, and parts as KEY.PART, whose source is "unsourced" or starts so; sorted."""
        return tuple(sorted(key for key, text in self.sources.items() if text.strip().lower().startswith("unsourced")))

    def to_plain(self) -> dict[str, Any]:
        """Plain flat values for the bundle's manifest, with the names of the unsourced ones; sources stay here."""
        plain = dataclasses.asdict(self)
        del plain["sources"], plain["absent"]
        lists = {key: list(value) for key, value in plain.items() if isinstance(value, tuple)}
        return {**plain, **lists, "unsourced": list(self.unsourced)}
