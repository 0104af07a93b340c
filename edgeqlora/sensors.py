"""Energy and memory on the workstation: counters read before and after; null with a reason where there are none."""

import time
from pathlib import Path
from typing import Any

from edgeqlora.card import measured, missing
from edgeqlora_jetson.machine import measure_peak_rss_mib as peak_rss_mib
from edgeqlora_jetson.machine import measure_rss_mib


def rss_mib() -> float:
    """Resident memory of this process now, in MiB; where the system does not say, its peak."""
    return measure_rss_mib() or peak_rss_mib()


def peak_vram() -> dict[str, Any]:
    """Peak memory that torch allocated on the GPU, or null with the reason."""
    import torch

    if not torch.cuda.is_available():
        return missing("no CUDA GPU in this run")
    return measured(round(torch.cuda.max_memory_allocated() / 1024**2, 1), "MiB", how="torch.cuda.max_memory_allocated")


class EnergyMeter:
    """Joules between construction and `read()`, from hardware counters.

    CPU packages: RAPL through /sys/class/powercap (energy_uj wraps at max_energy_range_uj; runs longer than one wrap
    must call `poll` now and then). Scope `cpu_package`: not the memory, not the board, not the power supply.
    """

    def __init__(self, root: str = "/"):
        self._zones = [
            path
            for path in sorted(Path(root, "sys/class/powercap").glob("intel-rapl:*"))
            if path.name.count(":") == 1 and (path / "energy_uj").exists()
        ]
        self._reason = "no energy counter: /sys/class/powercap has no intel-rapl package"
        self._last: list[int] = []
        self._total_uj = 0
        self._start_s = time.monotonic()
        try:
            self._last = [_counter(zone) for zone in self._zones]
        except OSError as error:
            self._zones, self._reason = (
                [],
                f"energy counter not readable ({error.strerror}): RAPL needs root on most systems",
            )

    def poll(self) -> None:
        """Add what the counters gained since the last look."""
        for i, zone in enumerate(self._zones):
            now = _counter(zone)
            gained = now - self._last[i]
            if gained < 0:
                gained += int((zone / "max_energy_range_uj").read_text())
            self._total_uj += gained
            self._last[i] = now

    def read(self) -> dict[str, Any]:
        """The figure: J with scope and duration, or null with the reason."""
        if not self._zones:
            return missing(self._reason)
        self.poll()
        return measured(
            round(self._total_uj / 1e6, 3),
            "J",
            energy_scope="cpu_package",
            source="rapl",
            duration_s=round(time.monotonic() - self._start_s, 3),
        )


def _counter(zone: Path) -> int:
    return int((zone / "energy_uj").read_text())
