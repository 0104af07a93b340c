"""Clocks of processor and GPU: what they may be, what they are, and whether they are locked."""

import re
from typing import Any, Dict, List, NamedTuple, Optional

from .sysfs import KeptFile, find, read_int, read_text

# 57000000.gpu (Nano), 17000000.gp10b (TX2), 17000000.gv11b (Xavier), 17000000.ga10b (Orin, R35), 17000000.gpu
# (Orin, R36), gpu-gpc-0 (Thor); gpu-nvd-0 beside it is Thor's video clock.
_GPU = re.compile(r"(\.gpu|\.g[a-z]\d+b|^gpu-gpc-\d+)$")


class Clock(NamedTuple):
    """One clock that the kernel scales."""

    name: str
    """gpu, gpu1, cpu0, cpu4, ...: a processor clock has the number of its first core."""
    path: str
    """Folder, from the root."""
    min_mhz: Optional[float]
    max_mhz: Optional[float]
    """Limits in force now."""
    current_path: str
    """File with the present clock: kHz for processors, Hz for the GPU."""
    max_path: str
    per_mhz: float


class Lock(NamedTuple):
    """Whether the clocks are pinned."""

    locked: Optional[bool]
    """None: not known."""
    how: str
    """What it was judged by."""


def read_clocks(root: str = "/") -> List[Clock]:
    """The GPU's clocks and one for each group of processor cores that share one."""
    return read_gpu_clocks(root) + read_cpu_clocks(root)


def read_gpu_clocks(root: str = "/") -> List[Clock]:
    """Clocks of the GPU in /sys/class/devfreq, which is where Tegra's is; none on other machines."""
    folders = [path for path in find(root, "sys/class/devfreq/*") if _GPU.search(path.rsplit("/", 1)[-1])]
    clocks = []
    for i, folder in enumerate(folders):
        name = "gpu" if i == 0 else "gpu{}".format(i)
        clocks.append(_clock(root, name, folder, "min_freq", "max_freq", "cur_freq", 1e6))
    return clocks


def read_cpu_clocks(root: str = "/") -> List[Clock]:
    """Clocks of the processor; none where the system does not scale them or does not say."""
    clocks = []
    for folder in find(root, "sys/devices/system/cpu/cpufreq/policy*"):
        cores = (read_text(root, folder + "/affected_cpus") or "").split()
        # A policy whose cores are all switched off by the power mode stays listed.
        if not cores and read_text(root, folder + "/scaling_cur_freq") in (None, "", "<unknown>"):
            continue
        number = re.sub(r"\D", "", folder.rsplit("/", 1)[-1])
        clocks.append(
            _clock(root, "cpu" + number, folder, "scaling_min_freq", "scaling_max_freq", "scaling_cur_freq", 1e3)
        )
    return clocks


def judge_lock(clocks: List[Clock], is_jetson: bool = False) -> Lock:
    """Clocks are locked where lowest and highest allowed clock are the same, as jetson_clocks makes them.

    One that moves is enough to say no; yes takes all of them, on a Jetson the GPU's too.
    """
    known = [(c.name, c.min_mhz, c.max_mhz) for c in clocks if c.min_mhz is not None and c.max_mhz is not None]
    if not known:
        return Lock(None, "no clock limits are readable (/sys/devices/system/cpu/cpufreq, /sys/class/devfreq)")
    free = [(name, low, high) for name, low, high in known if low != high]
    if free:
        texts = ["{} {:.0f} to {:.0f} MHz".format(*limits) for limits in free]
        return Lock(False, "free to move: " + ", ".join(texts))
    texts = ["{} {:.0f} MHz".format(name, high) for name, _, high in known]
    equal = "lowest and highest allowed clock are equal: " + ", ".join(texts)
    hidden = ["the limits of {}".format(c.name) for c in clocks if c.min_mhz is None or c.max_mhz is None]
    if is_jetson and not any(c.name == "gpu" for c in clocks):
        hidden.append("the GPU's clock (/sys/class/devfreq)")
    if hidden:
        return Lock(None, "{}; not readable: {}".format(equal, ", ".join(hidden)))
    return Lock(True, equal)


class ClockWatch(object):
    """Keeps lowest and highest of each clock, and the lowest cap, from one reading to the next."""

    def __init__(self, clocks: List[Clock], root: str = "/") -> None:
        self._clocks = clocks
        self._current = [KeptFile(root, clock.current_path) for clock in clocks]
        self._caps = [KeptFile(root, clock.max_path) for clock in clocks]
        self._seen: List[Dict[str, Any]] = [
            {"low": None, "high": None, "cap": clock.max_mhz, "n": 0, "n_low": 0} for clock in clocks
        ]

    def poll(self) -> None:
        """Read every clock once. A reading below 95 % of the first cap counts as low.

        scaling_cur_freq is what the kernel asked for (kernel documentation, admin-guide/pm/cpufreq) and costs nothing;
        cpuinfo_cur_freq would be measured, which takes Tegra half a millisecond for each core.
        0 is a GPU that is switched off for want of work.
        """
        for clock, current, cap, seen in zip(self._clocks, self._current, self._caps, self._seen):
            value, limit = current.read_int(), cap.read_int()
            if limit:
                seen["cap"] = min(seen["cap"] or limit / clock.per_mhz, limit / clock.per_mhz)
            if not value:
                continue
            mhz = value / clock.per_mhz
            seen["low"] = mhz if seen["low"] is None else min(seen["low"], mhz)
            seen["high"] = mhz if seen["high"] is None else max(seen["high"], mhz)
            seen["n"] += 1
            seen["n_low"] += bool(clock.max_mhz and mhz < 0.95 * clock.max_mhz)

    def close(self) -> None:
        """Close the files."""
        for file in self._current + self._caps:
            file.close()

    def result(self) -> List[Dict[str, Any]]:
        """Of each clock: name, max_mhz (the cap at the start), low, high, cap (lowest seen), n readings, n_low."""
        return [dict(seen, name=clock.name, max_mhz=clock.max_mhz) for clock, seen in zip(self._clocks, self._seen)]


def _clock(root: str, name: str, folder: str, low: str, high: str, current: str, per_mhz: float) -> Clock:
    limits = [read_int(root, "{}/{}".format(folder, file)) for file in (low, high)]
    return Clock(
        name,
        folder,
        None if limits[0] is None else limits[0] / per_mhz,
        None if limits[1] is None else limits[1] / per_mhz,
        "{}/{}".format(folder, current),
        "{}/{}".format(folder, high),
        per_mhz,
    )
