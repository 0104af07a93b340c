"""Temperatures and throttling during a run: zones, over-current counters, cooling devices, clocks below their pin.

Sources: docs.kernel.org driver-api/thermal/sysfs-api and hwmon/ina3221; the counters of NVIDIA's soctherm_oc driver
(oc1 under-voltage, oc2 average over-current, oc3 instantaneous over-current) count since boot.
"""

import re
import time
from typing import Any, Dict, List, NamedTuple, Optional

from ..board.clocks import ClockWatch, read_clocks
from ..board.sysfs import KeptFile, find, read_int, read_text
from ..figures import figure

# Alarms are read from the sensor over I2C, a third of a millisecond each: one of them in each slow turn.
SLOW_EVERY_S = 0.2
_OC_MEANING = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}
# Cooling devices that slow nothing down: fans, screens, radios, and a warning that a surface is hot to touch.
_HARMLESS = re.compile(r"fan|lcd|backlight|display|iwlwifi|wifi|phy\d|ath\d|hot-surface|TCC Offset|user-space", re.I)
# These slow something down at any step above 0, whenever they got there; others (a power limit that a laptop's firmware
# keeps) only count when they rise during the run.
_SLOWING = re.compile(r"^(thermal-)?(cpufreq|devfreq)|throttle|balanced|^Processor$")
# PMIC reads a constant 50 or 100 degC on R32, and a gated zone reads -256 degC (recorded tegrastats lines).
_GATED_BELOW_C = -40.0
_TOO_HOT_C = 150.0


class Zone(NamedTuple):
    """A thermal zone: its name and the file with its temperature, milli-degC."""

    name: str
    path: str


def parse_temperature(text: Optional[str]) -> Optional[float]:
    """degC of a zone's milli-degC; None for a zone that is switched off (-256 degC) or reads nonsense."""
    if not text or not re.match(r"^-?\d+$", text):
        return None
    value_c = int(text) / 1000.0
    return value_c if _GATED_BELOW_C <= value_c <= _TOO_HOT_C else None


def find_zones(root: str = "/") -> List[Zone]:
    """Thermal zones by name; a name that occurs again gets a number. PMIC zones are placeholders and left out."""
    zones: List[Zone] = []
    names: Dict[str, int] = {}
    for folder in find(root, "sys/class/thermal/thermal_zone*"):
        name = read_text(root, folder + "/type") or folder.rsplit("/", 1)[-1]
        if name.upper().startswith("PMIC"):
            continue
        names[name] = names.get(name, 0) + 1
        zones.append(Zone(name if names[name] == 1 else "{}-{}".format(name, names[name]), folder + "/temp"))
    return zones


def read_event_counters(root: str = "/") -> Dict[str, int]:
    """Throttle counters since boot: soctherm_oc's on a Jetson, thermal_throttle's (summed over cores) on x86."""
    counters: Dict[str, int] = {}
    for folder in find(root, "sys/class/hwmon/*"):
        if read_text(root, folder + "/name") != "soctherm_oc":
            continue
        for path in find(root, folder + "/oc*_event_cnt"):
            count = read_int(root, path)
            if count is not None:
                counters[path.rsplit("/", 1)[-1]] = count
    for kind in ("core", "package"):
        for path in find(root, "sys/devices/system/cpu/cpu*/thermal_throttle/{}_throttle_count".format(kind)):
            count = read_int(root, path)
            if count is not None:
                name = kind + "_throttle_count"
                counters[name] = counters.get(name, 0) + count
    return counters


class ThermalMonitor(object):
    """Watches heat from start() to finish(); poll() costs about 0.1 ms, ask once a second.

    clocks_locked: whether the clocks were pinned before (board.Board.clocks_locked): only then is a lower clock a
    sign of throttling; free clocks move by themselves.
    """

    def __init__(self, root: str = "/", clocks_locked: Optional[bool] = None) -> None:
        self._root = root
        self._clocks_locked = clocks_locked
        self._zones: List[Dict[str, Any]] = []
        self._cooling: List[Dict[str, Any]] = []
        self._alarms: List[Dict[str, Any]] = []
        self._counters: Dict[str, int] = {}
        self._clocks: Optional[ClockWatch] = None
        self._slow_due_s = 0.0
        self._next_alarm = 0

    def start(self) -> None:
        """Find what this machine tells and take the first readings."""
        self._zones = [
            {"name": zone.name, "file": KeptFile(self._root, zone.path), "start": None, "max": None, "end": None}
            for zone in find_zones(self._root)
        ]
        self._cooling = [
            {
                "name": read_text(self._root, folder + "/type") or folder.rsplit("/", 1)[-1],
                "file": KeptFile(self._root, folder + "/cur_state"),
                "start": None,
                "max": None,
                "max_state": read_int(self._root, folder + "/max_state"),
            }
            for folder in find(self._root, "sys/class/thermal/cooling_device*")
        ]
        self._alarms = _find_alarms(self._root)
        self._counters = read_event_counters(self._root)
        self._clocks = ClockWatch(read_clocks(self._root), self._root)
        for alarm in self._alarms:
            alarm["start"] = alarm["file"].read_int()
        self.poll()

    def poll(self) -> None:
        """Read zones, cooling devices and clocks, and one alarm."""
        if self._clocks is None:
            raise RuntimeError("ThermalMonitor.poll() before start()")
        for entry in self._zones:
            _note(entry, parse_temperature(entry["file"].read()))
        for entry in self._cooling:
            _note(entry, entry["file"].read_int())
        self._clocks.poll()
        now_s = time.monotonic()
        if self._alarms and now_s >= self._slow_due_s:
            alarm = self._alarms[self._next_alarm % len(self._alarms)]
            alarm["raised"] = alarm["raised"] or bool(alarm["file"].read_int())
            self._next_alarm += 1
            self._slow_due_s = now_s + SLOW_EVERY_S

    def finish(self) -> Dict[str, Any]:
        """Read a last time; the report's part "thermal" with the verdict: throttled True, False or None (not known)."""
        self.poll()
        assert self._clocks is not None
        for alarm in self._alarms:
            alarm["raised"] = alarm["raised"] or bool(alarm["file"].read_int())
        now = read_event_counters(self._root)
        events = {name: now[name] - count for name, count in sorted(self._counters.items()) if name in now}
        events.update((alarm["name"], int(alarm["raised"])) for alarm in self._alarms)
        clocks = self._clocks.result()
        reasons = (
            _event_reasons(events)
            + _alarm_reasons(self._alarms)
            + _cooling_reasons(self._cooling)
            + _clock_reasons(clocks, self._clocks_locked)
        )
        sources = {
            "temperatures": bool([zone for zone in self._zones if zone["max"] is not None]),
            "throttle_counters": bool(events),
            "cooling_devices": bool([c for c in self._cooling if c["max"] is not None and not _is_harmless(c)]),
            "pinned_clocks": bool(self._clocks_locked and [clock for clock in clocks if clock["n"]]),
        }
        throttled = _verdict(reasons, sources)
        if throttled is None:
            reasons = ["not known: this machine shows no throttle counter and no cooling device that slows it down"]
            if self._clocks_locked is not True:
                reasons[0] += ", and the clocks are not locked"
        result = {
            "zones": {zone["name"]: _zone_figures(zone) for zone in self._zones},
            "throttle_events": events,
            "cooling": {
                cooling["name"] + "#{}".format(i): {key: cooling[key] for key in ("start", "max", "max_state")}
                for i, cooling in enumerate(self._cooling)
                if cooling["max"] is not None and cooling["start"] is not None and cooling["max"] > cooling["start"]
            },
            "clocks": {clock["name"]: _clock_figures(clock) for clock in clocks},
            "clocks_locked": self._clocks_locked,
            "judged_by": [name for name, seen in sorted(sources.items()) if seen],
            "throttled": throttled,
            "reasons": reasons,
        }
        self._close()
        return result

    def _close(self) -> None:
        for entry in self._zones + self._cooling + self._alarms:
            entry["file"].close()
        if self._clocks is not None:
            self._clocks.close()


def _note(entry: Dict[str, Any], value: Optional[float]) -> None:
    if value is None:
        return
    if entry["start"] is None:
        entry["start"] = value
    entry["max"] = value if entry["max"] is None else max(entry["max"], value)
    entry["end"] = value


def _find_alarms(root: str) -> List[Dict[str, Any]]:
    """Current alarms of the power sensors: what NVIDIA's boot script set as the module's limits."""
    alarms = []
    for folder in find(root, "sys/class/hwmon/*"):
        if read_text(root, folder + "/name") not in ("ina3221", "ina238"):
            continue
        for path in find(root, folder + "/curr*_alarm"):
            match = re.search(r"/curr(\d+)_(crit|max)_alarm$", path)
            if not match or (match.group(1) not in ("1", "2", "3")):
                continue
            label = read_text(root, "{}/in{}_label".format(folder, match.group(1)))
            if label is None or "NC" in label.split():
                continue
            file = KeptFile(root, path)
            if file.read_int() is None:
                # A channel that is switched off raises an I/O error (AGX Orin, second chip).
                file.close()
                continue
            name = "{} {}_alarm".format(label, match.group(2))
            alarms.append({"name": name, "file": file, "start": None, "raised": False})
    return alarms


def _event_reasons(events: Dict[str, int]) -> List[str]:
    reasons = []
    for name, count in sorted(events.items()):
        meaning = _OC_MEANING.get(name.split("_")[0])
        if count > 0 and meaning:
            reasons.append("{} {} events during the run ({})".format(count, meaning, name))
        elif count > 0 and name.endswith("_throttle_count"):
            reasons.append("{} thermal throttle events during the run ({})".format(count, name))
    return reasons


def _alarm_reasons(alarms: List[Dict[str, Any]]) -> List[str]:
    return ["current alarm of {}".format(alarm["name"].replace("_alarm", "")) for alarm in alarms if alarm["raised"]]


def _is_harmless(cooling: Dict[str, Any]) -> bool:
    return bool(_HARMLESS.search(cooling["name"]))


def _cooling_reasons(coolings: List[Dict[str, Any]]) -> List[str]:
    """A device that slows processor or GPU down before the run already counts: a throttled start is no clean run."""
    reasons = []
    for cooling in coolings:
        if cooling["max"] is None or _is_harmless(cooling):
            continue
        least = 0 if _SLOWING.search(cooling["name"]) else max(0, cooling["start"])
        if cooling["max"] > least:
            steps = "?" if cooling["max_state"] is None else cooling["max_state"]
            reasons.append("cooling device {} at step {} of {}".format(cooling["name"], cooling["max"], steps))
    return reasons


def _clock_reasons(clocks: List[Dict[str, Any]], clocks_locked: Optional[bool]) -> List[str]:
    reasons = []
    for clock in clocks:
        if not clock["max_mhz"]:
            continue
        if clocks_locked and clock["n_low"]:
            reasons.append(
                "clock {} fell to {:.0f} MHz, pinned at {:.0f} MHz ({} of {} readings)".format(
                    clock["name"], clock["low"], clock["max_mhz"], clock["n_low"], clock["n"]
                )
            )
        elif clock["cap"] is not None and clock["cap"] < 0.95 * clock["max_mhz"]:
            reasons.append(
                "highest allowed clock of {} was cut from {:.0f} to {:.0f} MHz".format(
                    clock["name"], clock["max_mhz"], clock["cap"]
                )
            )
    return reasons


def _verdict(reasons: List[str], sources: Dict[str, bool]) -> Optional[bool]:
    """True with a reason; False only where something that would have shown throttling was readable."""
    if reasons:
        return True
    if sources["throttle_counters"] or sources["cooling_devices"] or sources["pinned_clocks"]:
        return False
    return None


def _zone_figures(zone: Dict[str, Any]) -> Dict[str, Any]:
    reason = "the zone was switched off or not readable"
    return {key: figure(zone[key], "degC", reason) for key in ("start", "max", "end")}


def _clock_figures(clock: Dict[str, Any]) -> Dict[str, Any]:
    reason = "no reading above 0: switched off or not readable"
    return {
        "low": figure(clock["low"], "MHz", reason),
        "high": figure(clock["high"], "MHz", reason),
        "allowed": figure(clock["max_mhz"], "MHz", "no highest allowed clock is readable"),
    }
