"""Made-up /sys trees and a replaying tegrastats for the power tests. Nothing here comes from a board.

The layouts are those that kernel documentation and users of the boards describe (ina3221x in iio, ina3221 and ina238 in
hwmon, powercap); the values are made up, the first bytes of proc/device-tree/compatible too.
"""

import contextlib
import itertools
import json
import os
import stat
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

KINDS = (
    "nano-r32",
    "tx2-r32",
    "xavier-nx-r35",
    "orin-nano-r36",
    "agx-orin-r36",
    "thor-ina238",
    "thor-no-ina238",
    "container",
    "workstation",
    "none",
)


class Chip(NamedTuple):
    """One INA3221: three channels of (label or None, mV, mA); current None raises EIO on reading."""

    driver: str  # "ina3221x": iio of L4T R28 to R32; "ina3221": hwmon of R34 and later
    address: str  # "1-0040"
    number: int  # of hwmonN or iio:deviceN
    channels: Sequence[tuple]


CHIPS = {
    "nano-r32": [
        Chip("ina3221x", "6-0040", 0, [("POM_5V_IN", 5096, 400), ("POM_5V_GPU", 5080, 24), ("POM_5V_CPU", 5080, 64)])
    ],
    "tx2-r32": [
        Chip(
            "ina3221x", "0-0040", 0, [("VDD_SYS_GPU", 19168, 8), ("VDD_SYS_SOC", 19160, 24), ("VDD_4V0_WIFI", 4792, 0)]
        ),
        Chip("ina3221x", "0-0041", 1, [("VDD_IN", 19144, 160), ("VDD_SYS_CPU", 19152, 16), ("VDD_SYS_DDR", 4784, 184)]),
    ],
    "xavier-nx-r35": [
        Chip("ina3221", "7-0040", 3, [("VDD_IN", 4984, 816), ("VDD_CPU_GPU_CV", 4976, 148), ("VDD_SOC", 4976, 272)])
    ],
    "orin-nano-r36": [
        Chip("ina3221", "1-0040", 1, [("VDD_IN", 5000, 1050), ("VDD_CPU_GPU_CV", 4960, 144), ("VDD_SOC", 4960, 360)])
    ],
    "agx-orin-r36": [
        Chip(
            "ina3221", "1-0040", 3, [("VDD_GPU_SOC", 20000, 240), ("VDD_CPU_CV", 20000, 50), ("VIN_SYS_5V0", 5000, 888)]
        ),
        Chip("ina3221", "1-0041", 4, [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 60), ("NC", 0, None)]),
    ],
    "thor-no-ina238": [
        Chip(
            "ina3221",
            "1-0040",
            2,
            [("VDD_GPU", 20000, -20), ("VDD_CPU_SOC_MSS", 20000, 208), ("VIN_SYS_5V0", 5000, 825)],
        )
    ],
}
CHIPS["thor-ina238"] = CHIPS["thor-no-ina238"]
_COMPATIBLE = {
    "nano-r32": "nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,jetson-nano\0nvidia,tegra210\0",
    "tx2-r32": "nvidia,quill\0nvidia,p2771-0000\0nvidia,tegra186\0",
    "xavier-nx-r35": "nvidia,p3449-0000+p3668-0001\0nvidia,tegra194\0",
    "orin-nano-r36": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "agx-orin-r36": "nvidia,p3737-0000+p3701-0000\0nvidia,p3701-0000\0nvidia,tegra234\0",
    "thor-ina238": "nvidia,p3971-0089+p3834-0008\0nvidia,tegra264\0",
    "thor-no-ina238": "nvidia,p3971-0089+p3834-0008\0nvidia,tegra264\0",
    "container": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
}
VIN_UW = 15004000  # of thor-ina238, in power1_input


def write_power_tree(root: object, kind: str) -> Dict[str, float]:
    """Write the power part of /sys of a board under `root`; returns the rails' power in mW, NC left out."""
    root = str(root)
    os.makedirs(os.path.join(root, "sys/class/hwmon"), exist_ok=True)
    expected: Dict[str, float] = {}
    for chip in CHIPS.get(kind, []):
        expected.update(_write_chip(root, chip))
    if kind == "thor-ina238":
        expected["VIN"] = _write_ina238(root)
    if kind in _COMPATIBLE and not os.path.exists(os.path.join(root, "proc/device-tree/compatible")):
        write_file(os.path.join(root, "proc/device-tree"), "compatible", _COMPATIBLE[kind])
    if kind == "workstation":
        _write_powercap(root)
    if kind in ("workstation", "none", "container"):
        # Every machine has hwmon sensors that are no power sensors.
        folder = os.path.join(root, "sys/class/hwmon/hwmon0")
        write_file(folder, "name", "coretemp")
        write_file(folder, "temp1_input", "41000")
    if kind not in KINDS:
        raise ValueError("kind={!r}, allowed {}".format(kind, ", ".join(KINDS)))
    return expected


def set_rail_mw(root: object, label: str, power_mw: float) -> None:
    """Make a rail of the tree written by write_power_tree read `power_mw` from now on (1 V, so exact to 1 mW)."""
    prefix = channel_prefix(root, label)
    folder, n = os.path.dirname(prefix), os.path.basename(prefix)
    if n.startswith("power"):
        write_file(folder, "power1_input", str(int(power_mw * 1000)))
    elif os.path.exists(os.path.join(folder, "rail_name_" + n)):
        write_file(folder, "in_power{}_input".format(n), str(int(power_mw)))
    else:
        write_file(folder, "in{}_input".format(n), "1000")
        write_file(folder, "curr{}_input".format(n), str(int(power_mw)))


@contextlib.contextmanager
def live_rail(
    clock: Any, root: object, label: str, powers_mw: Sequence[float], every_s: float = 0.02
) -> Iterator[None]:
    """A rail that reads `powers_mw` in turns on a VirtualTime, as a sensor that lives never stands still."""
    values = itertools.cycle(powers_mw)
    turn = clock.every(every_s, lambda: set_rail_mw(root, label, next(values)))
    yield
    turn.join()


@contextlib.contextmanager
def live_package(
    clock: Any, root: object, number: int, energies_uj: Iterator[int], every_s: float = 0.02
) -> Iterator[None]:
    """An energy counter of powercap that reads one of `energies_uj` after the other on a VirtualTime."""
    folder = os.path.join(str(root), "sys/class/powercap/intel-rapl:{}".format(number))
    turn = clock.every(every_s, lambda: write_file(folder, "energy_uj", str(next(energies_uj))))
    yield
    turn.join()


def run_with(clock, source, table=None, seconds=0.6):
    """A run of the sensors' session with this source, asked for by name: (energy part of the report, problems).

    clock: a VirtualTime that stands under the runner.
    """
    from edgeqlora_jetson.board.detect import detect_board
    from edgeqlora_jetson.sensors.session import Sensors

    sensors = Sensors(detect_board(boards={}), source, source.resolve_scope(table), [], "/nowhere")
    sensors.was_named = True
    with sensors:
        sensors.rest(0.1)
        sensors.start_run()
        start_s = clock.monotonic()
        clock.sleep(seconds)
        sensors.end_run(start_s, clock.monotonic())
    return sensors.energy, sensors.problems


def assert_no_energy(energy, problems, reason):
    """Every figure is null with the reason, and the run is not valid."""
    for name in ("energy", "net_energy", "mean_power", "peak_power", "idle_power"):
        assert energy[name]["value"] is None, name
        assert reason in energy[name]["reason"], name
    assert any(reason in problem and "--power" in problem for problem in problems)


def recorded_lines() -> List[str]:
    """The 41 recorded lines of tegrastats, in the order of the file."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "..", "fixtures", "tegrastats_lines.txt")) as file:
        return [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]


def break_rail(root: object, label: str) -> None:
    """Make reading a rail raise a real I/O error from now on."""
    prefix = channel_prefix(root, label)
    folder, n = os.path.dirname(prefix), os.path.basename(prefix)
    if n.startswith("power"):
        names = ["power1_input"]
    elif os.path.exists(os.path.join(folder, "rail_name_" + n)):
        names = ["in_power{}_input".format(n)]
    else:
        names = ["in{}_input".format(n), "curr{}_input".format(n)]
    for name in names:
        write_broken(folder, name)


def channel_prefix(root: object, label: str) -> str:
    """Folder and channel number of a label, joined by "/"."""
    for folder, _, names in os.walk(os.path.join(str(root), "sys/devices")):
        for name in names:
            if name.startswith("rail_name_") or name.endswith("_label"):
                with open(os.path.join(folder, name)) as file:
                    if file.read().strip() == label:
                        number = name.split("_")[-1] if name.startswith("rail") else name[2:].split("_")[0]
                        return os.path.join(folder, number)
        if label == "VIN" and "power1_input" in names:
            return os.path.join(folder, "power1")
    raise KeyError(label)


def write_file(folder: str, name: str, text: str) -> None:
    """Write a small file in one piece: those of /sys are never seen empty."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with open(path + ".new", "w") as file:
        file.write(text + "\n")
    os.replace(path + ".new", path)


def write_broken(folder: str, name: str) -> None:
    """A file that opens and then fails with EIO: reading another process's memory at address 0 does."""
    path = os.path.join(folder, name)
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink("/proc/self/mem", path)


def _write_chip(root: str, chip: Chip) -> Dict[str, float]:
    device = os.path.join(root, "sys/devices/platform/i2c-{}/{}".format(chip.address.split("-")[0], chip.address))
    expected: Dict[str, float] = {}
    os.makedirs(device, exist_ok=True)
    _link(root, "sys/bus/i2c/drivers/{}/{}".format(chip.driver, chip.address), device)
    _link(root, "sys/bus/i2c/devices/{}".format(chip.address), device)
    write_file(device, "name", chip.driver)
    if chip.driver == "ina3221x":
        folder = os.path.join(device, "iio:device{}".format(chip.number))
        _link(root, "sys/bus/iio/devices/iio:device{}".format(chip.number), folder)
    else:
        folder = os.path.join(device, "hwmon/hwmon{}".format(chip.number))
        _link(root, "sys/class/hwmon/hwmon{}".format(chip.number), folder)
        _write_hwmon_extras(folder)
    for index, (label, voltage_mv, current_ma) in enumerate(chip.channels):
        write = _write_iio_channel if chip.driver == "ina3221x" else _write_hwmon_channel
        power_mw = write(folder, index, label, voltage_mv, current_ma)
        if label is not None and label != "NC":
            expected[label] = power_mw
    return expected


def _write_iio_channel(folder: str, n: int, label: str, voltage_mv: int, current_ma: int) -> float:
    power_mw = voltage_mv * current_ma // 1000  # the driver's own, whole mW
    write_file(folder, "name", "ina3221x")
    write_file(folder, "rail_name_{}".format(n), label)
    write_file(folder, "in_voltage{}_input".format(n), str(voltage_mv))
    write_file(folder, "in_current{}_input".format(n), str(current_ma))
    write_file(folder, "in_power{}_input".format(n), str(power_mw))
    write_file(folder, "crit_current_limit_{}".format(n), "32760")
    return float(power_mw)


def _write_hwmon_channel(
    folder: str, index: int, label: Optional[str], voltage_mv: int, current_ma: Optional[int]
) -> float:
    n = index + 1  # hwmon counts from 1
    if label is not None:
        write_file(folder, "in{}_label".format(n), label)
    write_file(folder, "in{}_input".format(n + 3), "5080")  # shunt voltage, uV
    write_file(folder, "shunt{}_resistor".format(n), "5000")
    if current_ma is None:
        for name in ("in{}_input", "curr{}_input"):
            write_broken(folder, name.format(n))
        return 0.0
    write_file(folder, "in{}_input".format(n), str(voltage_mv))
    write_file(folder, "curr{}_input".format(n), str(current_ma))
    write_file(folder, "curr{}_crit_alarm".format(n), "0")
    return voltage_mv * current_ma / 1000.0


def _write_hwmon_extras(folder: str) -> None:
    write_file(folder, "name", "ina3221")
    write_file(folder, "in7_label", "sum of shunt voltages")
    write_file(folder, "in7_input", "15240")
    write_file(folder, "curr4_input", "3040")
    write_file(folder, "samples", "512")  # both set by NVIDIA's boot script
    write_file(folder, "update_interval", "430")


def _write_ina238(root: str) -> float:
    device = os.path.join(root, "sys/devices/platform/i2c-1/1-0044")
    folder = os.path.join(device, "hwmon/hwmon5")
    os.makedirs(folder, exist_ok=True)
    _link(root, "sys/bus/i2c/drivers/ina238/1-0044", device)
    _link(root, "sys/bus/i2c/devices/1-0044", device)
    _link(root, "sys/class/hwmon/hwmon5", folder)
    write_file(device, "name", "ina238")
    write_file(folder, "name", "ina238")
    write_file(folder, "in0_input", "7")  # shunt, mV
    write_file(folder, "in1_input", "20000")  # bus, mV
    write_file(folder, "curr1_input", "750")
    write_file(folder, "power1_input", str(VIN_UW))
    write_file(folder, "temp1_input", "38000")
    return VIN_UW / 1000.0


def _write_powercap(root: str) -> None:
    """Two packages, their sub-zones, and psys, which holds the packages once more."""
    zones = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
    for number, name in zones.items():
        folder = os.path.join(root, "sys/class/powercap/intel-rapl:" + number)
        write_file(folder, "name", name)
        write_file(folder, "energy_uj", "1000000")
        write_file(folder, "max_energy_range_uj", "262143328850")


def _link(root: str, path: str, target: str) -> None:
    link = os.path.join(root, path)
    os.makedirs(os.path.dirname(link), exist_ok=True)
    os.symlink(os.path.relpath(target, os.path.dirname(link)), link)


class Replay(NamedTuple):
    """What the replaying tegrastats does; written beside it as JSON."""

    lines: List[str]
    die_after: Optional[int] = None  # lines; then it dies in the middle of the next one
    exit_code: int = 1
    stderr: str = ""
    partial: bool = True  # write every line in two pieces
    hang_after: Optional[int] = None  # lines; then it says nothing more
    ignore_terminate: bool = False  # as a program stuck in a driver does


def write_tegrastats(folder: object, lines: Sequence[str], **options: object) -> str:
    """Put a program named tegrastats into `folder` that prints `lines` over and over; returns its path.

    It honours --interval MS, --logfile PATH and --stop (ends the one that runs). options: see Replay.
    """
    folder = str(folder)
    os.makedirs(folder, exist_ok=True)
    replay = Replay(list(lines), **options)  # type: ignore[arg-type]
    with open(os.path.join(folder, "replay.json"), "w") as file:
        json.dump(replay._asdict(), file)
    path = os.path.join(folder, "tegrastats")
    with open(path, "w") as file:
        file.write("#!{} -S\n{}".format(sys.executable, _PROGRAM))
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
    return path


def is_running(folder: object) -> bool:
    """Whether the program of `write_tegrastats` that was started last still runs and is not a zombie."""
    try:
        with open(os.path.join(str(folder), "tegrastats.pid")) as file:
            path = "/proc/{}/stat".format(file.read())
        with open(path) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


_PROGRAM = """
import argparse, json, os, signal, sys, time

here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "replay.json")) as file:
    replay = json.load(file)
parser = argparse.ArgumentParser()
parser.add_argument("--interval", type=int, default=1000)
parser.add_argument("--logfile")
parser.add_argument("--stop", action="store_true")
arguments = parser.parse_args()
pid_path = os.path.join(here, "tegrastats.pid")
if arguments.stop:
    with open(pid_path) as file:
        os.kill(int(file.read()), signal.SIGTERM)
    sys.exit(0)
with open(pid_path, "w") as file:
    file.write(str(os.getpid()))
with open(os.path.join(here, "arguments.json"), "w") as file:
    json.dump(sys.argv[1:], file)
if replay["ignore_terminate"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
stream = open(arguments.logfile, "w") if arguments.logfile else sys.stdout
number = 0
while True:
    time.sleep(arguments.interval / 1000.0)
    line = replay["lines"][number % len(replay["lines"])] + "\\n"
    half = len(line) // 2
    if replay["die_after"] == number:
        stream.write(line[:half])
        stream.flush()
        sys.stderr.write(replay["stderr"])
        sys.exit(replay["exit_code"])
    if replay["hang_after"] == number:
        time.sleep(3600)
    if replay["partial"]:
        stream.write(line[:half])
        stream.flush()
        time.sleep(0.002)
        stream.write(line[half:])
    else:
        stream.write(line)
    stream.flush()
    number += 1
"""
