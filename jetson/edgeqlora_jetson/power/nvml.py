"""NVML: energy counter or power of NVIDIA's discrete GPUs, through the package nvidia-ml-py."""

import importlib
import os
import time
import warnings
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .sample import RailTable, Sample, Scope
from .source import PowerSource, Unavailable


class NvmlSource(PowerSource):
    """Whole boards of the GPUs that this process may use (CUDA_VISIBLE_DEVICES), rails gpu0, gpu1, ... as NVML counts.

    The energy counter (Volta and later) if every GPU has it, else the power reading. On Jetson NVML starts and then
    says NOT_SUPPORTED: that is Unavailable here, never 0. Raises Unavailable without package, driver, GPU, or reading.
    """

    name = "nvml"
    kind = "power"

    def __init__(self, interval_s: float = 0.2, root: str = "/"):
        super().__init__()
        self.interval_s = interval_s
        if root != "/":
            raise Unavailable("NVML speaks for this machine only, not for root={}".format(root))
        self._nvml = _import_nvml()
        self._visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._is_open = False
        self._handles: Dict[str, Any] = {}  # valid while NVML is open
        self._first_mj: Dict[str, int] = {}
        self.names: Dict[str, str] = {}
        self.driver = "not known"
        try:
            self.start()
            self.kind = self._probe()
        finally:
            self.stop()
        self.rails = tuple(self._handles)

    def resolve_scope(self, table: Optional[RailTable]) -> Scope:
        """The GPU boards, whatever the profile says of rails."""
        return Scope("gpu_board", self.rails)

    def start(self) -> None:
        """Open NVML. Raises Unavailable where it does not answer or lists no GPU for this process."""
        self.error = None
        if self._is_open:
            return
        try:
            self._open()
        except Unavailable:
            self.stop()
            raise
        except Exception as error:  # NVMLError, and what its loading of a library may raise
            self.stop()
            raise Unavailable("NVML does not work here: {}".format(error)) from error

    def poll(self) -> List[Sample]:
        """One reading, now. A GPU that does not answer is missing from it."""
        before_s = time.monotonic()
        power_mw: Dict[str, float] = {}
        counters_j: Dict[str, float] = {}
        self.error = None
        for rail, handle in self._handles.items():
            try:
                if self.kind == "counter":
                    counters_j[rail] = (self._read_mj(rail) - self._first_mj[rail]) / 1000.0
                else:
                    power_mw[rail] = float(self._nvml.nvmlDeviceGetPowerUsage(handle))
            except self._nvml.NVMLError as error:
                self.error = "NVML: {} does not answer any more: {}".format(rail, error)
        time_s = (before_s + time.monotonic()) / 2
        return [Sample(time_s, power_mw, counters_j)] if power_mw or counters_j else []

    def stop(self) -> None:
        """Let NVML go."""
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()

    def describe(self) -> Dict[str, Any]:
        """GPUs by name, driver, what is read."""
        return dict(
            super().describe(),
            gpus=self.names,
            driver=self.driver,
            averaging_s=None,
            averaging_from="a counter does not average" if self.kind == "counter" else "not known",
        )

    def _open(self) -> None:
        nvml = self._nvml
        nvml.nvmlInit()
        self._is_open = True
        self.driver = _text(nvml.nvmlSystemGetDriverVersion())
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        for i in parse_visible_devices(self._visible, uuids):
            rail = "gpu{}".format(i)
            self._handles[rail] = handles[i]
            self.names[rail] = _text(nvml.nvmlDeviceGetName(handles[i]))
        if not self._handles:
            raise Unavailable(
                "NVML lists {} GPUs and CUDA_VISIBLE_DEVICES={} leaves none".format(len(handles), self._visible)
            )

    def _probe(self) -> str:
        """Read every GPU once: "counter" if all have it, else "power"."""
        nvml = self._nvml
        try:
            self._first_mj = {rail: self._read_mj(rail) for rail in self._handles}
            return "counter"
        except nvml.NVMLError:
            pass
        for rail, handle in self._handles.items():
            try:
                nvml.nvmlDeviceGetPowerUsage(handle)
            except nvml.NVMLError as error:
                raise Unavailable(
                    "NVML knows {} ({}) but neither its energy nor its power: {}".format(rail, self.names[rail], error)
                ) from error
        return "power"

    def _read_mj(self, rail: str) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handles[rail]))


def parse_visible_devices(text: Optional[str], uuids: Sequence[str]) -> Tuple[int, ...]:
    """Indices of the GPUs that CUDA_VISIBLE_DEVICES leaves, of those with `uuids`; None: all.

    As CUDA does it: numbers or beginnings of UUIDs, up to the first that is not there. Numbers are NVML's only where
    CUDA_DEVICE_ORDER=PCI_BUS_ID or the GPUs are all alike. Raises Unavailable for a MIG slice: NVML measures boards.
    """
    if text is None:
        return tuple(range(len(uuids)))
    chosen: List[int] = []
    for item in (item.strip() for item in text.split(",")):
        if item.startswith("MIG-"):
            raise Unavailable("CUDA_VISIBLE_DEVICES={} is a MIG slice, and NVML measures whole GPUs".format(text))
        matches = [i for i, uuid in enumerate(uuids) if item.startswith("GPU-") and uuid.startswith(item)]
        if item.isdigit() and int(item) < len(uuids):
            matches = [int(item)]
        if len(matches) != 1:
            break
        chosen += [i for i in matches if i not in chosen]
    return tuple(chosen)


def _import_nvml() -> Any:
    try:
        with warnings.catch_warnings():
            # An old package of the same name announces its end on import.
            warnings.simplefilter("ignore")
            return importlib.import_module("pynvml")
    except ImportError as error:
        raise Unavailable("the package nvidia-ml-py is not installed ({})".format(error)) from error


def _text(value: Any) -> str:
    """Older versions of the package give bytes."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
