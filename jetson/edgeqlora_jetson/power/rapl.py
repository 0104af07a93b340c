"""RAPL: energy counters of the processor packages, on workstations with Linux's powercap."""

import glob
import os
import time
from typing import Any, Dict, List, NamedTuple, Optional

from ..board.sysfs import read_text
from .sample import RailTable, Sample, Scope
from .source import PowerSource, Unavailable


class _Zone(NamedTuple):
    name: str
    path: str  # of energy_uj
    range_uj: int  # where the counter wraps around


class RaplSource(PowerSource):
    """Energy of every processor package: not of the memory, the board or the power supply.

    `psys` is left out: it holds the packages once more. A run must poll more often than a counter wraps around (half a
    minute at the least, on large servers). Raises Unavailable where there is no package or no permission to read it.
    """

    name = "rapl"
    kind = "counter"

    def __init__(self, interval_s: float = 0.2, root: str = "/"):
        super().__init__()
        self.interval_s = interval_s
        self._zones = _find_zones(root)
        if not self._zones:
            raise Unavailable("no energy counter: /sys/class/powercap has no intel-rapl package")
        try:
            self._last_uj = {zone.name: _read_uj(zone) for zone in self._zones}
        except (OSError, ValueError) as error:
            # Linux made the counters readable for root alone in 2020 (CVE-2020-8694).
            raise Unavailable(
                "energy counter not readable ({}): RAPL needs root on most systems".format(
                    getattr(error, "strerror", None) or error
                )
            ) from error
        self._total_uj = dict.fromkeys(self._last_uj, 0)
        self.rails = tuple(zone.name for zone in self._zones)

    def resolve_scope(self, table: Optional[RailTable]) -> Scope:
        """The packages, whatever the profile says of rails."""
        return Scope("cpu_package", self.rails)

    def poll(self) -> List[Sample]:
        """One reading, now. A counter that cannot be read is missing from it."""
        counters_j: Dict[str, float] = {}
        for zone in self._zones:
            try:
                now_uj = _read_uj(zone)
            except (OSError, ValueError) as error:
                self.error = "RAPL {} cannot be read any more: {}".format(zone.name, error)
                continue
            self._total_uj[zone.name] += gained_uj(self._last_uj[zone.name], now_uj, zone.range_uj)
            self._last_uj[zone.name] = now_uj
            counters_j[zone.name] = self._total_uj[zone.name] / 1e6
        return [Sample(time.monotonic(), {}, counters_j)] if counters_j else []

    def describe(self) -> Dict[str, Any]:
        """Packages with their files."""
        paths = {zone.name: [zone.path] for zone in self._zones}
        return dict(super().describe(), paths=paths, averaging_s=None, averaging_from="a counter does not average")


def gained_uj(before_uj: int, now_uj: int, range_uj: int) -> int:
    """What a counter gained that starts again from 0 after `range_uj`."""
    return now_uj - before_uj + (range_uj if now_uj < before_uj else 0)


def _find_zones(root: str) -> List[_Zone]:
    zones = []
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/powercap/intel-rapl:*"))):
        name = read_text(folder, "name") or ""
        range_uj = read_text(folder, "max_energy_range_uj") or ""
        if os.path.basename(folder).count(":") == 1 and name.startswith("package") and range_uj.isdigit():
            zones.append(_Zone(name, os.path.join(folder, "energy_uj"), int(range_uj)))
    return zones


def _read_uj(zone: _Zone) -> int:
    with open(zone.path, "rb") as file:
        return int(file.read(64))
