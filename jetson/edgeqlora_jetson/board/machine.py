"""The machine a measurement ran on: processor, memory, system; memory of this process."""

import os
import platform
import resource
import sys
from typing import Any, Dict, Optional


def read_machine(root: str = "/") -> Dict[str, Any]:
    """Facts of this machine; None where it does not say.

    root: where /proc and the like are found (another folder in tests).
    """
    return {
        "machine": platform.machine(),
        "board": _strip(_read(root, "proc/device-tree/model")),
        "cpu_model": parse_cpu_model(_read(root, "proc/cpuinfo") or ""),
        # Those that this process may use: a container may have fewer than the machine.
        "n_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_total_mib": parse_meminfo_mib(_read(root, "proc/meminfo") or "", "MemTotal"),
        "system": platform.system(),
        "kernel": platform.release(),
    }


def parse_cpu_model(cpuinfo: str) -> Optional[str]:
    """Processor name from the text of /proc/cpuinfo; ARM kernels name the implementer and part only by number."""
    fields: Dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    for key in ("model name", "Hardware", "Processor"):
        if fields.get(key):
            return fields[key]
    if fields.get("CPU part"):
        return "ARM implementer {} part {}".format(fields.get("CPU implementer", "?"), fields["CPU part"])
    return None


def parse_meminfo_mib(meminfo: str, field: str) -> Optional[float]:
    """A field of /proc/meminfo's text, which is in kB (1024 bytes), as MiB."""
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0]) / 1024.0
    return None


def measure_rss_mib(root: str = "/") -> Optional[float]:
    """Resident memory of this process now."""
    return parse_meminfo_mib(_read(root, "proc/self/status") or "", "VmRSS")


def measure_peak_rss_mib(root: str = "/") -> float:
    """Highest resident memory of this program since it started (VmHWM).

    Not getrusage where it can be helped: Linux hands ru_maxrss on through exec, so that a small program started by a
    large one reports the large one's peak.
    """
    peak_mib = parse_meminfo_mib(_read(root, "proc/self/status") or "", "VmHWM")
    if peak_mib is not None:
        return peak_mib
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024.0 / (1024.0 if sys.platform == "darwin" else 1.0)  # kB on Linux, bytes on macOS


def _read(root: str, path: str) -> Optional[str]:
    try:
        with open(os.path.join(root, path), "rb") as file:
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return None


def _strip(text: Optional[str]) -> Optional[str]:
    return text.strip("\0 \n") or None if text else None
