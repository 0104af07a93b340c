"""Memory that a run takes: of the whole system over its baseline, of this process, of the GPU; and swap.

On a Jetson, processor and GPU share one memory, and what CUDA allocates is not in the process's RSS: the honest figure
is the peak of MemTotal - MemAvailable over what was in use before the run.
"""

import os
import re
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..board.machine import measure_peak_rss_mib
from ..board.sysfs import KeptFile, read_text
from ..figures import figure
from ..schema import Figure
from .gpu_memory import GpuMemory

# Swapping of other programs moves a page or two; a run that swaps moves megabytes.
SWAP_TOLERANCE_MIB = 1.0
SLOW_EVERY_S = 1.0


class Meminfo(NamedTuple):
    """/proc/meminfo, as far as it is used here; None: the kernel does not say."""

    total_mib: Optional[float]
    available_mib: Optional[float]
    swap_total_mib: Optional[float]
    swap_free_mib: Optional[float]

    @property
    def swap_used_mib(self) -> Optional[float]:
        """Swap in use, zram included."""
        if self.swap_total_mib is None or self.swap_free_mib is None:
            return None
        return self.swap_total_mib - self.swap_free_mib


class Swap(NamedTuple):
    """One line of /proc/swaps."""

    path: str
    size_mib: float
    used_mib: float
    priority: Optional[int] = None
    """As set; None: left to the kernel, which shows a negative number."""

    @property
    def is_zram(self) -> bool:
        """Whether it is compressed memory, not disk."""
        return "zram" in self.path


def parse_meminfo(text: str) -> Meminfo:
    """The fields above out of /proc/meminfo's text, which is in kB of 1024 bytes."""
    lines = re.findall(r"^(MemTotal|MemAvailable|SwapTotal|SwapFree):\s+(\d+)", text, re.MULTILINE)
    found = {name: int(value) / 1024.0 for name, value in lines}
    return Meminfo(found.get("MemTotal"), found.get("MemAvailable"), found.get("SwapTotal"), found.get("SwapFree"))


def parse_free_lists_mib(zoneinfo: str, page_kib: int = 4) -> Optional[float]:
    """MiB in the processors' lists of free pages; None where their size is not tuned by the kernel (before 6.7)."""
    if "high_max:" not in zoneinfo:
        return None
    return sum(int(count) for count in re.findall(r"^\s+count:\s+(\d+)", zoneinfo, re.MULTILINE)) * page_kib / 1024.0


def parse_swaps(text: str) -> List[Swap]:
    """/proc/swaps: each swap area with its size and what is used of it."""
    swaps = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) >= 5 and words[-3].isdigit() and words[-2].isdigit():
            priority = int(words[-1]) if words[-1].isdigit() else None
            swaps.append(Swap(words[0], int(words[-3]) / 1024.0, int(words[-2]) / 1024.0, priority))
    return swaps


def parse_lfb(buddyinfo: str, page_kib: int = 4) -> Optional[Tuple[int, int]]:
    """Largest free blocks of /proc/buddyinfo: (how many, size in KiB of each), as tegrastats' lfb; None: no zone.

    A line is `Node 0, zone Normal n0 n1 ... n10`: n_k free blocks of 2^k pages.
    """
    counts: Dict[int, int] = {}
    for zone in re.findall(r"zone\s+\S+\s+([\d ]+)", buddyinfo):
        for order, count in enumerate(zone.split()):
            counts[order] = counts.get(order, 0) + int(count)
    free = [order for order, count in counts.items() if count]
    return (counts[max(free)], page_kib << max(free)) if free else None


def read_pss_mib(root: str = "/") -> Optional[float]:
    """Proportional set size of this process: shared pages count by their share. Takes milliseconds.

    smaps_rollup came with Linux 4.14; the Nano's 4.9 has only smaps, whose parts are added up.
    """
    for path in ("proc/self/smaps_rollup", "proc/self/smaps"):
        parts = re.findall(r"^Pss:\s+(\d+) kB", read_text(root, path) or "", re.MULTILINE)
        if parts:
            return sum(int(part) for part in parts) / 1024.0
    return None


class MemoryMonitor(object):
    """Watches memory from start() to finish(); poll() between them costs 0.03 to 0.2 ms.

    The baseline is what was in use at start(): start it before the model is loaded.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._meminfo: Optional[KeptFile] = None
        self._gpu = GpuMemory(root)
        self._zoneinfo: Optional[KeptFile] = None
        self._baseline = Meminfo(None, None, None, None)
        self._baseline_mib: Optional[float] = None
        self._peak_used_mib: Optional[float] = None
        self._peak_swap_mib: Optional[float] = None
        self._least_available_mib: Optional[float] = None
        self._swapped_out_at_start: Optional[int] = None
        self._counts_free_lists = False
        self._n_polls = 0
        self._slow_due_s = 0.0

    def start(self) -> None:
        """Take the baseline; a second call before finish() keeps the first one's."""
        if self._meminfo is not None:
            return
        self._n_polls = 0
        self._meminfo = KeptFile(self._root, "proc/meminfo")
        self._zoneinfo = KeptFile(self._root, "proc/zoneinfo", is_long=True)
        if parse_free_lists_mib(self._zoneinfo.read() or "", _page_kib()) is None:
            self._zoneinfo.close()
        self._baseline, self._baseline_mib = self._read()
        self._peak_used_mib, self._peak_swap_mib = self._baseline_mib, self._baseline.swap_used_mib
        self._least_available_mib = self._baseline.available_mib
        self._swapped_out_at_start = _read_swapped_out(self._root)
        self._gpu.start()

    def poll(self) -> None:
        """Look once; the GPU's memory at most once a second, as asking for it costs more."""
        if self._meminfo is None:
            raise RuntimeError("MemoryMonitor.poll() before start()")
        now, used_mib = self._read()
        self._peak_used_mib = _larger(self._peak_used_mib, used_mib)
        self._peak_swap_mib = _larger(self._peak_swap_mib, now.swap_used_mib)
        if now.available_mib is not None and self._least_available_mib is not None:
            self._least_available_mib = min(self._least_available_mib, now.available_mib)
        self._n_polls += 1
        now_s = time.monotonic()
        if now_s >= self._slow_due_s:
            self._gpu.poll()
            self._slow_due_s = now_s + SLOW_EVERY_S

    def finish(self) -> Dict[str, Any]:
        """Look a last time; the report's part "memory": figures in MiB, how they were taken, "problems"."""
        self._slow_due_s = 0.0
        self.poll()
        after = parse_meminfo(read_text(self._root, "proc/meminfo") or "")
        baseline, peak = self._baseline_mib, self._peak_used_mib
        no_available = "/proc/meminfo has no MemTotal and MemAvailable"
        result: Dict[str, Any] = {
            "baseline_system_used": figure(baseline, "MiB", no_available),
            "peak_system_used": figure(peak, "MiB", no_available),
            "peak_over_baseline": figure(_difference(peak, baseline), "MiB", no_available),
            "least_available": figure(self._least_available_mib, "MiB", no_available),
            "peak_rss": figure(measure_peak_rss_mib(self._root), "MiB"),
            "pss": figure(read_pss_mib(self._root), "MiB", "/proc/self/smaps_rollup and smaps are not readable"),
            "lfb": _lfb_figure(read_text(self._root, "proc/buddyinfo")),
        }
        result.update(self._gpu.finish())
        result.update(self._swap(after))
        result["method"] = (
            "peak of MemTotal - MemAvailable{} over {} readings, less that before the run; what other programs take or "
            "give back meanwhile is in it. peak_rss: VmHWM of this process since it started".format(
                " - free pages held for each processor" if self._counts_free_lists else "", self._n_polls
            )
        )
        result["problems"] = self._problems(result)
        for file in (self._meminfo, self._zoneinfo):
            if file is not None:
                file.close()
        self._meminfo = self._zoneinfo = None
        return result

    def _read(self) -> Tuple[Meminfo, Optional[float]]:
        """What /proc/meminfo says now, and MiB in use: what is not available without swapping."""
        assert self._meminfo is not None
        assert self._zoneinfo is not None
        info = parse_meminfo(self._meminfo.read() or "")
        if info.total_mib is None or info.available_mib is None:
            return info, None
        free_lists_mib = parse_free_lists_mib(self._zoneinfo.read() or "", _page_kib())
        self._counts_free_lists = free_lists_mib is not None
        return info, info.total_mib - info.available_mib - (free_lists_mib or 0.0)

    def _swap(self, after: Meminfo) -> Dict[str, Any]:
        before = self._baseline.swap_used_mib
        reason = "/proc/meminfo has no SwapTotal and SwapFree"
        out = _difference(_read_swapped_out(self._root), self._swapped_out_at_start)
        return {
            "swap_used_before": figure(before, "MiB", reason),
            "swap_used_after": figure(after.swap_used_mib, "MiB", reason),
            "swap_growth": figure(_difference(self._peak_swap_mib, before), "MiB", reason),
            "swapped_out": figure(
                None if out is None else out * _page_kib() / 1024.0,
                "MiB",
                "/proc/vmstat has no pswpout to count pages by",
            ),
        }

    def _problems(self, result: Dict[str, Any]) -> List[str]:
        growth, out = result["swap_growth"]["value"], result["swapped_out"]["value"]
        if max(growth or 0.0, out or 0.0) <= SWAP_TOLERANCE_MIB:
            return []
        return [
            "swap: {:,.0f} MiB more in use at the peak than before, {} written out during the run: latency and energy "
            "are those of a machine short of memory. Free memory (stop the desktop: sudo systemctl isolate "
            "multi-user.target), or take a smaller batch, window or model".format(
                growth or 0.0, "unknown how many" if out is None else "{:,.0f} MiB".format(out)
            )
        ]


def _read_swapped_out(root: str) -> Optional[int]:
    """Pages written to swap since boot."""
    match = re.search(r"^pswpout (\d+)", read_text(root, "proc/vmstat") or "", re.MULTILINE)
    return int(match.group(1)) if match else None


def _page_kib() -> int:
    return os.sysconf("SC_PAGE_SIZE") // 1024


def _lfb_figure(buddyinfo: Optional[str]) -> Figure:
    lfb = parse_lfb(buddyinfo or "", _page_kib())
    if lfb is None:
        return figure(None, "MiB", "/proc/buddyinfo is not readable")
    return figure(lfb[1] / 1024.0, "MiB", n=lfb[0])


def _larger(a: Optional[float], b: Optional[float]) -> Optional[float]:
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)


def _difference(a: Optional[float], b: Optional[float]) -> Optional[float]:
    return None if a is None or b is None else a - b
