"""GPU and processor together, for workstations."""

from typing import Any, Dict, List, Optional

from .nvml import NvmlSource
from .rapl import RaplSource
from .sample import RailTable, Sample, Scope
from .source import PowerSource


class CombinedSource(PowerSource):
    """NVML's GPU boards and RAPL's packages in one sample. Raises Unavailable where either is not there."""

    name = "nvml+rapl"

    def __init__(self, interval_s: float = 0.2, root: str = "/"):
        super().__init__()
        self.interval_s = interval_s
        # RAPL first: it has nothing to close if the other is not there.
        self._rapl = RaplSource(interval_s=interval_s, root=root)
        self._nvml = NvmlSource(interval_s=interval_s, root=root)
        self.rails = self._nvml.rails + self._rapl.rails
        self.kind = "counter" if self._nvml.kind == "counter" else "power"

    def resolve_scope(self, table: Optional[RailTable]) -> Scope:
        """GPU boards and packages, whatever the profile says of rails."""
        return Scope("cpu_package+gpu_board", self.rails)

    def start(self) -> None:
        """Start both."""
        self._nvml.start()
        self._rapl.start()

    def poll(self) -> List[Sample]:
        """One reading of both."""
        readings = self._nvml.poll() + self._rapl.poll()
        self.error = self._nvml.error or self._rapl.error
        if not readings:
            return []
        rails_mw: Dict[str, float] = {}
        counters_j: Dict[str, float] = {}
        for reading in readings:
            rails_mw.update(reading.rails_mw)
            counters_j.update(reading.counters_j)
        return [Sample(sum(reading.time_s for reading in readings) / len(readings), rails_mw, counters_j)]

    def stop(self) -> None:
        """Stop both."""
        self._nvml.stop()
        self._rapl.stop()

    def describe(self) -> Dict[str, Any]:
        """Both descriptions."""
        return dict(super().describe(), nvml=self._nvml.describe(), rapl=self._rapl.describe(), averaging_s=None)
