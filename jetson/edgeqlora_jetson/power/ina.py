"""INA3221 and INA238 power monitors, read from /sys.

L4T R28 to R32 has them as iio devices (ina3221x), R34 and later as hwmon (ina3221); Thor's dev kit has an INA238 at its
input besides. Device numbers change from boot to boot, so rails are found by label. Layouts: jetson.md 4, kernel
documentation hwmon/ina3221 and hwmon/ina238.
"""

import glob
import os
import re
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..board.sysfs import read_text
from .sample import Sample
from .source import PowerSource, Unavailable


class Channel(NamedTuple):
    """One measured rail. Power is the product of the files' values times `factor`, in mW."""

    label: str
    paths: Tuple[str, ...]
    factor: float


class Search(NamedTuple):
    """What is there, and what was left out and why."""

    channels: List[Channel]
    skipped: Dict[str, str]  # path -> reason


_PATTERNS = (
    "sys/bus/i2c/drivers/ina3221x/*/iio:device*",
    "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*",
    "sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*",
    "sys/class/hwmon/hwmon*",
)
_NOT_CONNECTED = re.compile(r"NC(_?\d+)?$")


class InaSource(PowerSource):
    """Every connected channel of the power monitors; a channel that cannot be read is left out and said.

    Raises Unavailable where no channel can be read.
    """

    name = "ina"
    kind = "power"

    def __init__(self, interval_s: float = 0.2, root: str = "/"):
        super().__init__()
        self.interval_s = interval_s
        found = find_channels(root)
        self.channels, self.skipped = found.channels, found.skipped
        if not self.channels:
            raise Unavailable("no ina3221 or ina238 with a channel that can be read under /sys{}".format(_why(found)))
        self.rails = tuple(channel.label for channel in self.channels)
        self.averaging_s = read_averaging_s(root)

    def poll(self) -> List[Sample]:
        """One reading, now. A rail that cannot be read, tried twice, is missing from it."""
        before_s = time.monotonic()
        rails_mw: Dict[str, float] = {}
        for channel in self.channels:
            power_mw = _read_or_none(channel)
            if power_mw is None:
                power_mw = _read_or_none(channel)  # the I2C bus is shared: one failure may be a collision
            if power_mw is not None:
                rails_mw[channel.label] = power_mw
        self.error = None if rails_mw else "no power monitor in /sys can be read any more"
        return [Sample((before_s + time.monotonic()) / 2, rails_mw, {})] if rails_mw else []

    def describe(self) -> Dict[str, Any]:
        """Rails with their files, averaging and where it is from, channels left out."""
        return dict(
            super().describe(),
            paths={channel.label: list(channel.paths) for channel in self.channels},
            averaging_s=self.averaging_s,
            averaging_from="update_interval of ina3221 in /sys; an INA238 does not say"
            if self.averaging_s
            else "not known",
            skipped=self.skipped,
        )


def find_channels(root: str = "/") -> Search:
    """Find the channels of all power monitors under `root`, each read once; labels decide, never numbers."""
    channels: List[Channel] = []
    skipped: Dict[str, str] = {}
    # Thor's dev kit has one INA238, at its input; its driver gives it no label (jetson_stats PR 900). On any other
    # machine one without a label could be anything.
    input_label = "VIN" if _is_thor(root) else None
    for folder in _chip_folders(root):
        for label, prefix, channel in _chip_channels(folder, input_label):
            reason = _reason_to_skip(label)
            if reason is None:
                try:
                    read_power_mw(channel)
                except (OSError, ValueError) as error:
                    reason = "{}: cannot be read: {}".format(label, getattr(error, "strerror", None) or error)
            if reason is None:
                channels.append(channel)
            else:
                skipped[prefix] = reason
    return Search(_drop_ambiguous(channels, skipped), skipped)


def read_power_mw(channel: Channel) -> float:
    """Present power of a channel. Raises OSError, and ValueError where there is no number in a file."""
    product = channel.factor
    for path in channel.paths:
        with open(path, "rb") as file:
            # Some R32 drivers write "400 ma".
            product *= int((file.read(64).split() or [b""])[0])
    return product


def read_averaging_s(root: str = "/") -> Optional[float]:
    """How long the slowest ina3221 averages over, None where it does not say (iio, ina238).

    NVIDIA's boot script sets 512 samples on JetPack 5 and later, which makes 430 ms.
    """
    found_s = []
    for folder in _chip_folders(root):
        text = read_text(folder, "update_interval")
        if read_text(folder, "name") == "ina3221" and text is not None and text.isdigit():
            found_s.append(int(text) / 1000.0)
    return max(found_s) if found_s else None


def _chip_folders(root: str) -> Iterator[str]:
    """Folders of the chips, each once: the same one is reached through its driver and through its class."""
    seen = set()
    for pattern in _PATTERNS:
        for folder in sorted(glob.glob(os.path.join(root, pattern))):
            real = os.path.realpath(folder)
            is_chip = "iio:device" in folder or read_text(folder, "name") in ("ina3221", "ina238")
            if is_chip and real not in seen:
                seen.add(real)
                yield folder


def _is_thor(root: str) -> bool:
    # The last for containers, which hide /proc/device-tree.
    paths = ("proc/device-tree/compatible", "proc/device-tree/model", "sys/devices/soc0/machine")
    about = " ".join(read_text(root, path) or "" for path in paths)
    return "tegra264" in about or "Thor" in about


def _chip_channels(folder: str, unlabelled_ina238: Optional[str]) -> Iterator[Tuple[Optional[str], str, Channel]]:
    """(label, what to call it when it is skipped, channel) of a chip; label None: the channel has none."""
    if "iio:device" in os.path.basename(folder):
        for n in range(3):
            label = read_text(folder, "rail_name_{}".format(n))
            path = os.path.join(folder, "in_power{}_input".format(n))
            yield label, path, Channel(label or "", (path,), 1.0)
    elif read_text(folder, "name") == "ina238":
        label = read_text(folder, "power1_label") or read_text(folder, "label") or unlabelled_ina238
        path = os.path.join(folder, "power1_input")
        yield label, path, Channel(label or "", (path,), 0.001)  # uW
    else:
        # Channels 4 to 6 are shunt voltages, 7 is their sum; curr4 the sum of currents: none of them is a rail.
        for n in (1, 2, 3):
            label = read_text(folder, "in{}_label".format(n))
            paths = tuple(os.path.join(folder, name.format(n)) for name in ("in{}_input", "curr{}_input"))
            yield label, paths[0], Channel(label or "", paths, 0.001)  # mV x mA


def _reason_to_skip(label: Optional[str]) -> Optional[str]:
    if not label:
        return "no label: it cannot be known which rail this is"
    if _NOT_CONNECTED.match(label):
        return "{}: not connected".format(label)
    return None


def _drop_ambiguous(channels: List[Channel], skipped: Dict[str, str]) -> List[Channel]:
    labels = [channel.label for channel in channels]
    for channel in channels:
        if labels.count(channel.label) > 1:
            skipped[channel.paths[0]] = "{}: more than one channel has this label".format(channel.label)
    return [channel for channel in channels if labels.count(channel.label) == 1]


def _read_or_none(channel: Channel) -> Optional[float]:
    try:
        return read_power_mw(channel)
    except (OSError, ValueError):
        return None


def _why(found: Search) -> str:
    if not found.skipped:
        return " (in a container mount /sys)"
    return ": " + "; ".join("{} {}".format(*item) for item in sorted(found.skipped.items()))
