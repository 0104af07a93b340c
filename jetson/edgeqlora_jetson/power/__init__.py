"""Where power readings come from, and which source to use here."""

import importlib
import os
import time
from typing import Any, Dict, List, Optional, Tuple

from ..board.sysfs import read_text
from ..errors import UserError
from .sample import RailTable, Sample, Scope, rail_table, resolve_scope
from .source import PowerSource, Unavailable
from .watch import MIN_READINGS, SensorWatch

__all__ = [
    "MAX_INTERVAL_S",
    "MIN_INTERVAL_S",
    "SOURCES",
    "PowerSource",
    "RailTable",
    "Sample",
    "Scope",
    "Unavailable",
    "is_jetson",
    "open_power_source",
    "rail_table",
    "resolve_scope",
]

MIN_INTERVAL_S, MAX_INTERVAL_S = 0.02, 2.0
"""Of sampling: the longest is below energy.MAX_GAP_S, above which nothing is integrated."""

SOURCES = ("tegrastats", "ina", "jtop", "nvml", "rapl")
_CLASSES: Dict[str, Tuple[str, str]] = {
    "tegrastats": ("tegrastats", "TegrastatsSource"),
    "ina": ("ina", "InaSource"),
    "jtop": ("jtop", "JtopSource"),
    "nvml": ("nvml", "NvmlSource"),
    "rapl": ("rapl", "RaplSource"),
    "nvml+rapl": ("combined", "CombinedSource"),
}
_PROBE_EVERY_S, _PROBE_S = 0.05, 5.0
_ON_JETSON = ("tegrastats", "ina", "jtop")
_ELSEWHERE = ("nvml+rapl", "nvml", "rapl")


def open_power_source(
    name: str = "auto", table: Optional[RailTable] = None, interval_s: Optional[float] = None, root: str = "/"
) -> Tuple[Optional[PowerSource], Optional[Scope], List[str]]:
    """Find a source that works here and gives something that may be counted.

    name: "auto", "none", or one of SOURCES or "nvml+rapl". table: rails of this board, from its profile.
    Returns (source, not started; what to count; notes: for every source tried, why not). With "auto" a source whose
    readings do not change is passed over (taken only where no other works: the run then tells), and with nothing usable
    source and scope are None.

    Raises UserError for an unknown name, for an interval outside 0.02 to 2 s, and for a named source that does not
    work here.
    """
    if name == "none":
        return None, None, ["power is not measured: asked for none"]
    if name != "auto" and name not in _CLASSES:
        raise UserError("power source {!r} is not known, allowed: auto, none, {}".format(name, ", ".join(_CLASSES)))
    if interval_s is not None and not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise UserError(
            "power interval_s={:g}, allowed {:g} to {:g}".format(interval_s, MIN_INTERVAL_S, MAX_INTERVAL_S)
        )
    if name != "auto":
        try:
            return _open(name, table, interval_s, root) + ([],)
        except UserError as error:
            raise UserError(
                "power source {} cannot be used here: {}. Choose another with --power, or auto".format(name, error)
            ) from error
    notes: List[str] = []
    still: Tuple[Optional[PowerSource], Optional[Scope]] = (None, None)
    for candidate in _ON_JETSON if table is not None or is_jetson(root) else _ELSEWHERE:
        try:
            source, scope = _open(candidate, table, interval_s, root)
            problem = _try_out(source, scope)
        except UserError as error:
            if "+" not in candidate:  # its parts say the same, each for itself
                notes.append("{}: {}".format(candidate, error))
            continue
        if problem is None:
            return source, scope, notes
        notes.append("{}: {}".format(candidate, problem))
        still = (source, scope) if still[0] is None else still
    return still[0], still[1], notes


def is_jetson(root: str = "/") -> bool:
    """Whether this is a Tegra board, in a container as well: NVML and RAPL have nothing true to say there.

    NVML starts on Orin and then answers NOT_SUPPORTED; on Thor it knows the GPU alone.
    """
    if os.path.exists(os.path.join(root, "etc/nv_tegra_release")):
        return True
    # A container hides /proc/device-tree, as Docker masks /sys/firmware; /sys/devices/soc0 is the host's.
    about = (read_text(root, "proc/device-tree/compatible"), read_text(root, "sys/devices/soc0/family"))
    return "nvidia,tegra" in (about[0] or "") or "tegra" in (about[1] or "").lower()


def _try_out(source: PowerSource, scope: Scope) -> Optional[str]:
    """Why a source is to be passed over: it dies, or its readings do not change although this processor is kept busy.

    Takes two readings where they differ, else up to _PROBE_S. Raises UserError where it does not start.
    """
    watch = SensorWatch(scope.rails)
    end_s = time.monotonic() + _PROBE_S
    source.start()
    try:
        while watch.stuck and watch.n_readings < MIN_READINGS and source.error is None and time.monotonic() < end_s:
            watch.add(source.poll())
            busy_until_s = time.monotonic() + min(source.interval_s, _PROBE_EVERY_S)
            while time.monotonic() < busy_until_s:
                pass
    finally:
        source.stop()
    return source.error or watch.problem()


def _open(name: str, table: Optional[RailTable], interval_s: Optional[float], root: str) -> Tuple[PowerSource, Scope]:
    module_name, class_name = _CLASSES[name]
    options: Dict[str, Any] = {} if interval_s is None else {"interval_s": interval_s}
    source = getattr(importlib.import_module("." + module_name, __name__), class_name)(root=root, **options)
    return source, source.resolve_scope(table)
