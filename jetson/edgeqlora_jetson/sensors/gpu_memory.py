"""GPU memory of this process: NvMap's list on a Jetson, NVML on other machines. Null with the reason elsewhere."""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional

from ..board.sysfs import find, read_text
from ..figures import figure

NVMAP = "/sys/kernel/debug/nvmap/iovmm/clients"
_UNIT_MIB = {"B": 1.0 / 2**20, "K": 1.0 / 1024, "M": 1.0, "G": 1024.0}


class NvmapClient(NamedTuple):
    """One line of NvMap's list."""

    process: str
    pid: int
    size_mib: float


def parse_nvmap(text: str) -> List[NvmapClient]:
    """Clients in `CLIENT PROCESS PID SIZE` lines ("user  python3  5281  524288K"), without the total.

    A process name may hold spaces.
    """
    clients = []
    for line in text.splitlines():
        match = re.match(r"^\s*(?!total\b)\w+\s+(\S.*?)\s+(\d+)\s+(\d+)([BKMG])\s*$", line)
        if match:
            process, pid, size, unit = match.groups()
            clients.append(NvmapClient(process, int(pid), int(size) * _UNIT_MIB[unit]))
    return clients


class GpuMemory(object):
    """Highest GPU memory of this process, by whatever this machine tells.

    On Orin, NVML answers but knows nothing ((nvgpu) in the device's name); on Thor it knows, and NvMap says 0.
    """

    def __init__(self, root: str = "/", pid: Optional[int] = None) -> None:
        self._root = root
        self._pid = os.getpid() if pid is None else pid
        self._nvmap_mib: Optional[float] = None
        self._nvmap_reason = ""
        self._nvml: Any = None
        self._handles: List[Any] = []
        self._nvml_mib: Optional[float] = None
        self._nvml_reason = "not asked yet"

    def start(self) -> None:
        """Find out what can be asked, and ask once."""
        # NVML speaks of this machine, whatever root says.
        if os.path.abspath(self._root) == "/":
            self._open_nvml()
        else:
            self._nvml_reason = "NVML is not asked for another root"
        self.poll()

    def poll(self) -> None:
        """Ask once; the highest answer is kept."""
        self._poll_nvmap()
        self._poll_nvml()

    def finish(self) -> Dict[str, Any]:
        """{"nvmap", "gpu_memory"}: figures in MiB."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml, self._handles = None, []
        return {
            "nvmap": figure(self._nvmap_mib, "MiB", self._nvmap_reason),
            "gpu_memory": figure(self._nvml_mib, "MiB", self._nvml_reason),
        }

    def _poll_nvmap(self) -> None:
        text = read_text(self._root, NVMAP)
        if text is None:
            self._nvmap_reason = _why_no_nvmap(self._root)
            return
        mine = [client.size_mib for client in parse_nvmap(text) if client.pid == self._pid]
        if sum(mine) > 0:
            self._nvmap_mib = max(self._nvmap_mib or 0.0, sum(mine))
        elif mine:
            self._nvmap_reason = "NvMap says 0 here, as on Thor, whose GPU memory it does not count"
        else:
            self._nvmap_reason = "{} lists no buffer of this process".format(NVMAP)

    def _open_nvml(self) -> None:
        try:
            import pynvml
        except ImportError:
            self._nvml_reason = "the package nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._nvml_reason = "NVML: {}".format(error)
            return
        self._nvml = pynvml
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            names = [_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
        except pynvml.NVMLError as error:
            self._nvml_reason = "NVML: {}".format(error)
            return
        self._handles = [handle for handle, name in zip(handles, names) if "(nvgpu)" not in name]
        self._nvml_reason = "NVML lists no memory of this process"
        if not self._handles:
            self._nvml_reason = "NVML knows no memory of this GPU ({})".format(", ".join(names) or "no GPU")

    def _poll_nvml(self) -> None:
        sizes = []
        for handle in self._handles:
            try:
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            except self._nvml.NVMLError as error:
                self._nvml_reason = "NVML: {}".format(error)
                continue
            # None: the driver does not say. In a container the pids are those of the host, so that none is ours.
            sizes += [process.usedGpuMemory for process in processes if process.pid == self._pid]
        known = [size for size in sizes if size is not None]
        if known:
            self._nvml_mib = max(self._nvml_mib or 0.0, sum(known) / 2.0**20)


def _why_no_nvmap(root: str) -> str:
    if os.geteuid() != 0:
        return "{} needs root".format(NVMAP)
    if find(root, "sys/kernel/debug/*"):
        return "this kernel has no {}".format(NVMAP)
    return "no {}: no NvMap here, or debugfs is not mounted".format(NVMAP)


def _text(name: Any) -> str:
    return name.decode("utf-8", errors="replace") if isinstance(name, bytes) else str(name)
