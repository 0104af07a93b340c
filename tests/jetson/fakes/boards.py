"""Made-up /proc, /sys and /etc trees of boards, as their systems write them.

Strings come from published captures: compatible strings and TNSPEC lines from device trees and boot control files in
public repositories, memory sizes from recorded tegrastats lines, mode names and caps from NVIDIA's nvpmodel conf files.
Numbers that no capture gives (temperatures, counters) are chosen.
"""

import os
import shutil
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

from fakes.power import write_power_tree


class Tree(NamedTuple):
    """What a board's system says of itself."""

    power: str  # kind of fake_power
    memory_mib: int  # MemTotal
    compatible: Sequence[str] = ()
    model: Optional[str] = None
    tnspec: Optional[str] = None
    tegra_release: Optional[str] = None  # "R36 (release), REVISION: 4.3"
    modes: Sequence[Tuple[str, int, int, int]] = ()  # name, GPU cap in MHz (-1: none), TPC mask, cores on
    default_mode: int = 0
    mode: Optional[int] = None  # the one in force
    gpu: Optional[str] = None  # folder in /sys/class/devfreq
    gpu_mhz: Tuple[int, int, int] = (0, 0, 0)  # lowest, highest allowed, now
    cpu_mhz: Tuple[int, int, int] = (0, 0, 0)
    policies: Sequence[int] = ()  # first core of each group
    zones: Sequence[Tuple[str, int]] = ()  # name, milli-degC
    cooling: Sequence[Tuple[str, int]] = ()  # name, highest step; all at 0
    oc_events: Sequence[int] = ()  # counts since boot of oc1, oc2, oc3
    swaps: Sequence[Tuple[str, int, int]] = ()  # path, MiB, used MiB
    in_container: bool = False


_R36_ZONES = (
    ("cpu-thermal", 44125),
    ("gpu-thermal", 44531),
    ("soc0-thermal", 42125),
    ("soc1-thermal", 43156),
    ("soc2-thermal", 43375),
    ("tj-thermal", 44531),
)
_R36_COOLING = (
    ("cpufreq-cpu0", 48),
    ("devfreq-17000000.gpu", 10),
    ("pwm-fan", 4),
    ("cpu-throttle-alert", 2),
    ("gpu-throttle-alert", 2),
    ("hot-surface-alert", 1),
)
_ORIN_NANO_SUPER = (("15W", 612, 240, 6), ("25W", 918, 240, 6), ("MAXN_SUPER", -1, 240, 6), ("7W", 408, 252, 4))
_THOR = (("MAXN", -1, 64, 14), ("120W", 1386, 64, 12), ("90W", 1386, 15873, 12), ("70W", 1386, 15873, 12))
_ORIN_NX = (("MAXN", 918, 240, 8), ("10W", 612, 252, 4), ("15W", 612, 252, 4), ("25W", 408, 240, 8))
_XAVIER_NX = (
    ("MODE_15W_2CORE", 1109, 1, 2),
    ("MODE_15W_4CORE", 1109, 1, 4),
    ("MODE_15W_6CORE", 1109, 1, 6),
    ("MODE_10W_2CORE", 803, 1, 2),
    ("MODE_10W_4CORE", 803, 1, 4),
    ("MODE_10W_DESKTOP", 510, 1, 4),
    ("MODE_20W_2CORE", 1109, 1, 2),
    ("MODE_20W_4CORE", 1109, 1, 4),
    ("MODE_20W_6CORE", 1109, 1, 6),
)
_AGX_ORIN = (("MAXN", -1, 0, 12), ("MODE_15W", 408, 248, 4), ("MODE_30W", 612, 240, 8), ("MODE_50W", 816, 0, 12))
_THOR_ZONES = (("cpu-thermal", 37343), ("tj-thermal", 38875), ("soc012-thermal", 37468), ("soc345-thermal", 37406))

TREES: Dict[str, Tree] = {
    "nano-r32": Tree(
        "nano-r32",
        3964,
        ("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210"),
        "NVIDIA Jetson Nano Developer Kit",
        "3448-300---1-0-jetson-nano-qspi-sd-mmcblk0p1",
        "R32 (release), REVISION: 7.1",
        (("MAXN", -1, 0, 4), ("5W", 640, 0, 2)),
        mode=0,
        gpu="57000000.gpu",
        gpu_mhz=(77, 922, 77),
        cpu_mhz=(102, 1479, 204),
        policies=(0,),
        zones=(("AO-therm", 39500), ("CPU-therm", 36500), ("GPU-therm", 36000), ("PMIC-Die", 100000)),
        cooling=(("pwm-fan", 10), ("gpu-throttle-alert", 1)),
        swaps=(("/dev/zram0", 495, 5), ("/dev/zram1", 495, 0), ("/dev/zram2", 496, 0), ("/dev/zram3", 496, 0)),
    ),
    "nano-2gb-r32": Tree(
        "nano-r32",
        1979,
        ("nvidia,p3542-0000+p3448-0003-b00", "nvidia,jetson-nano-2gb", "nvidia,jetson-nano", "nvidia,tegra210"),
        "NVIDIA Jetson Nano 2GB Developer Kit",
        None,
        "R32 (release), REVISION: 6.1",
        (("MAXN", -1, 0, 4), ("5W", 640, 0, 2)),
        mode=0,
    ),
    "xavier-nx-r35": Tree(
        "xavier-nx-r35",
        7772,
        ("nvidia,p3509-0000+p3668-0000", "nvidia,p3449-0000+p3668-0000", "nvidia,tegra194"),
        "NVIDIA Jetson Xavier NX Developer Kit",
        "3668-100-0000-F.0-1-2-jetson-xavier-nx-devkit-mmcblk0p1",
        "R35 (release), REVISION: 4.1",
        _XAVIER_NX,
        mode=0,
        gpu="17000000.gv11b",
        gpu_mhz=(115, 1109, 115),
        cpu_mhz=(1190, 1907, 1420),
        policies=(0, 2, 4),
        zones=(("CPU-therm", 43500), ("GPU-therm", 43000), ("AUX-therm", 41500), ("PMIC-Die", 50000)),
        cooling=(("pwm-fan", 10), ("cpu-throttle-alert", 1)),
    ),
    # NVIDIA flashes 16 GB modules with the device tree of the 8 GB ones.
    "xavier-nx-16gb-r35": Tree(
        "xavier-nx-r35",
        15825,
        ("nvidia,p3449-0000+p3668-0001", "nvidia,p3509-0000+p3668-0001", "nvidia,tegra194"),
        "NVIDIA Jetson Xavier NX Developer Kit",
        "3668-301-0003-A.0-1-2-jetson-xavier-nx-devkit-emmc-mmcblk0p1",
        "R35 (release), REVISION: 6.4",
        _XAVIER_NX,
        mode=2,
    ),
    "orin-nano-r36": Tree(
        "orin-nano-r36",
        7620,
        ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-",
        "R36 (release), REVISION: 4.3",
        _ORIN_NANO_SUPER,
        default_mode=1,
        mode=0,
        gpu="17000000.gpu",
        gpu_mhz=(306, 612, 306),
        cpu_mhz=(729, 1510, 729),
        policies=(0, 4),
        zones=_R36_ZONES,
        cooling=_R36_COOLING,
        oc_events=(0, 15, 37),
        swaps=tuple(("/dev/zram{}".format(i), 635, 40 if i == 0 else 0) for i in range(6)),
    ),
    "agx-orin-r36": Tree(
        "agx-orin-r36",
        30697,
        # The developer kit's p3701-0000 was sold with 32 GB and 64 GB.
        ("nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234"),
        "NVIDIA Jetson AGX Orin Developer Kit",
        "3701-500-0000-J.0-1-1-jetson-agx-orin-devkit-",
        "R36 (release), REVISION: 4.4",
        _AGX_ORIN,
        default_mode=2,
        mode=2,
        gpu="17000000.gpu",
        gpu_mhz=(306, 612, 306),
        cpu_mhz=(729, 1728, 729),
        policies=(0, 4, 8),
        zones=_R36_ZONES + (("cv0-thermal", -256000),),
        cooling=_R36_COOLING,
        oc_events=(0, 0, 0),
    ),
    "thor-r38": Tree(
        "thor-no-ina238",
        125772,
        ("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
        "NVIDIA Jetson AGX Thor Developer Kit",
        None,
        "R38 (release), REVISION: 4.0",
        _THOR,
        default_mode=1,
        mode=1,
        gpu="gpu-gpc-0",
        gpu_mhz=(315, 1386, 315),
        cpu_mhz=(972, 2601, 972),
        policies=(0, 2, 4, 6, 8, 10, 12),
        zones=_THOR_ZONES,
        cooling=(("devfreq-gpu-gpc-0", 169), ("pwm-fan", 10), ("soc012-throttle-alert", 2)),
        oc_events=(0, 0, 179),
    ),
    # An SBSA-style JetPack 7.2: no /etc/nv_tegra_release, the version is the package's.
    "thor-r39": Tree(
        "thor-ina238",
        125749,
        ("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
        "NVIDIA Jetson AGX Thor Developer Kit",
        modes=_THOR,
        default_mode=1,
        mode=0,
        gpu="gpu-gpc-0",
        gpu_mhz=(1575, 1575, 1575),
        cpu_mhz=(2601, 2601, 2601),
        policies=(0, 2, 4, 6, 8, 10, 12),
        zones=_THOR_ZONES + (("gpu-thermal", 62906),),
        cooling=(("devfreq-gpu-gpc-0", 169), ("pwm-fan", 10), ("gpu-throttle-alert", 2)),
        oc_events=(0, 0, 0),
        swaps=(("/swapfile", 4096, 11),),
    ),
    # Another firm's carrier: its own model text, no part number in the device tree, but one in the boot control file.
    "third-party-orin-nx": Tree(
        "orin-nano-r36",
        15656,
        ("nvidia,tegra234",),
        "NVIDIA Orin NX T801-16GB",
        "3767-300-0000-H.2-1-0-recomputer-orin-j401-",
        "R36 (release), REVISION: 3.0",
        _ORIN_NX,
        default_mode=2,
        mode=3,
        gpu="17000000.gpu",
        gpu_mhz=(408, 408, 408),
        cpu_mhz=(1984, 1984, 1984),
        policies=(0, 4),
        zones=_R36_ZONES,
        cooling=_R36_COOLING,
        oc_events=(0, 0, 0),
    ),
    # Docker on an Orin Nano: /sys is the host's, /proc/device-tree is hidden, /etc is the image's.
    "container": Tree(
        "orin-nano-r36",
        7620,
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        gpu="17000000.gpu",
        gpu_mhz=(306, 1020, 306),
        cpu_mhz=(729, 1728, 729),
        policies=(0, 4),
        zones=_R36_ZONES,
        cooling=_R36_COOLING,
        oc_events=(0, 0, 0),
        in_container=True,
    ),
    "workstation": Tree(
        "workstation",
        64215,
        cpu_mhz=(800, 4700, 2100),
        policies=(0, 1),
        zones=(("acpitz", 27800), ("x86_pkg_temp", 41000)),
        cooling=(("Processor", 10), ("intel_powerclamp", 50), ("TCC Offset", 63)),
        swaps=(("/dev/nvme0n1p3", 8192, 0),),
    ),
}


def write_board_tree(root: Any, kind: str) -> Tree:
    """Write the tree of a board under `root`; returns what it says. kinds: the keys of TREES."""
    root, tree = str(root), TREES[kind]
    write_power_tree(root, tree.power)
    if os.path.exists(os.path.join(root, "proc/device-tree")):
        shutil.rmtree(os.path.join(root, "proc/device-tree"))
    if tree.in_container:
        write(root, ".dockerenv", "")
        write(root, "sys/devices/soc0/family", "Tegra\n")
        write(root, "sys/devices/soc0/machine", tree.model + "\n")
    elif tree.compatible:
        write(root, "proc/device-tree/compatible", "".join(text + "\0" for text in tree.compatible))
        write(root, "proc/device-tree/model", tree.model + "\0")
    if tree.tnspec:
        write(root, "etc/nv_boot_control.conf", "TNSPEC {}\nTEGRA_LEGACY_UPDATE true\n".format(tree.tnspec))
    if tree.tegra_release:
        text = "# {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
        write(root, "etc/nv_tegra_release", text.format(tree.tegra_release))
    if tree.modes:
        write(root, "etc/nvpmodel.conf", nvpmodel_conf(tree))
        write(root, "var/lib/nvpmodel/status", "pmode:{:04d} fmode:quiet".format(tree.mode))
    _write_clocks(root, tree)
    _write_heat(root, tree)
    write_memory(root, tree.memory_mib, available_mib=tree.memory_mib - 1200, swaps=tree.swaps)
    return tree


def write_memory(
    root: Any, total_mib: int, available_mib: int, swaps: Sequence[Tuple[str, int, int]] = (), swapped_out: int = 0
) -> None:
    """/proc/meminfo, swaps, vmstat and buddyinfo; swapped_out in pages."""
    size_mib, used_mib = (sum(swap[i] for swap in swaps) for i in (1, 2))
    fields = (
        ("MemTotal", total_mib),
        ("MemFree", available_mib // 2),
        ("MemAvailable", available_mib),
        ("SwapTotal", size_mib),
        ("SwapFree", size_mib - used_mib),
    )
    write(root, "proc/meminfo", "".join("{:<16}{:>8} kB\n".format(name + ":", mib * 1024) for name, mib in fields))
    lines = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"]
    lines += ["{}\tpartition\t{}\t{}\t5".format(path, mib * 1024, used * 1024) for path, mib, used in swaps]
    write(root, "proc/swaps", "\n".join(lines) + "\n")
    write(root, "proc/vmstat", "nr_free_pages 100\npswpin 7\npswpout {}\n".format(swapped_out))
    write(
        root,
        "proc/buddyinfo",
        "Node 0, zone      DMA      1      0      1      0      2      1      1      0      1      1     20\n"
        "Node 0, zone   Normal     72    256     43     21     10      4      2      1      0      3      2\n",
    )


def nvpmodel_conf(tree: Tree) -> str:
    """The text of nvpmodel.conf: paths under the same words as the settings first, then the modes."""
    lines = [
        "# nvpmodel configuration",
        "< PARAM TYPE=FILE NAME=CPU_ONLINE >",
        "CORE_0 /sys/devices/system/cpu/cpu0/online",
        "< PARAM TYPE=CLOCK NAME=GPU >",
        "MAX_FREQ /sys/class/devfreq/17000000.gpu/max_freq",
    ]
    for number, (name, gpu_mhz, mask, cores) in enumerate(tree.modes):
        lines += ["", "# note: {}".format(name), "< POWER_MODEL ID={} NAME={} >".format(number, name)]
        lines += ["CPU_ONLINE CORE_{} {}".format(i, int(i < cores)) for i in range(max(m[3] for m in tree.modes))]
        lines += ["TPC_POWER_GATING TPC_PG_MASK {}".format(mask), "GPU MIN_FREQ 0"]
        lines += ["GPU MAX_FREQ {}".format(gpu_mhz if gpu_mhz < 0 else gpu_mhz * 1000000), "EMC MAX_FREQ 0"]
    lines += ["", "# mandatory", "< PM_CONFIG DEFAULT={} >".format(tree.default_mode), "< FAN_CONFIG DEFAULT=quiet >"]
    return "\n".join(lines) + "\n"


def lock_clocks(root: Any, kind: str) -> None:
    """What jetson_clocks does: the lowest allowed clock becomes the highest, and the clock goes there."""
    tree = TREES[kind]
    high = tree._replace(gpu_mhz=(tree.gpu_mhz[1],) * 3, cpu_mhz=(tree.cpu_mhz[1],) * 3)
    _write_clocks(str(root), high)


def zone_path(kind: str, name: str) -> str:
    """The file with the temperature of a zone."""
    names = [zone[0] for zone in TREES[kind].zones]
    return "sys/class/thermal/thermal_zone{}/temp".format(names.index(name))


def cooling_path(kind: str, name: str) -> str:
    """The file with the present step of a cooling device."""
    names = [cooling[0] for cooling in TREES[kind].cooling]
    return "sys/class/thermal/cooling_device{}/cur_state".format(names.index(name))


def oc_path(number: int) -> str:
    """The file with the count of over-current events of a kind, 1 to 3."""
    return "sys/class/hwmon/hwmon9/oc{}_event_cnt".format(number)


def write(root: Any, path: str, text: str) -> None:
    """Write a file in place: programs that keep it open see the new text, as with the kernel's files."""
    path = os.path.join(str(root), path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def _write_clocks(root: str, tree: Tree) -> None:
    if tree.gpu:
        folder = "sys/class/devfreq/" + tree.gpu
        for name, mhz in zip(("min_freq", "max_freq", "cur_freq"), tree.gpu_mhz):
            write(root, folder + "/" + name, "{}\n".format(mhz * 1000000))
        # Other devices scale in the same folder: the video clock, the memory.
        write(root, "sys/class/devfreq/15480000.nvdec/min_freq", "115000000\n")
    for number in tree.policies:
        folder = "sys/devices/system/cpu/cpufreq/policy{}".format(number)
        write(root, folder + "/affected_cpus", "{0}\n".format(number))
        for name, mhz in zip(("min", "max", "cur"), tree.cpu_mhz):
            write(root, "{}/scaling_{}_freq".format(folder, name), "{}\n".format(mhz * 1000))


def _write_heat(root: str, tree: Tree) -> None:
    for number, (name, millidegrees) in enumerate(tree.zones):
        folder = "sys/class/thermal/thermal_zone{}".format(number)
        write(root, folder + "/type", name + "\n")
        write(root, folder + "/temp", "{}\n".format(millidegrees))
    for number, (name, highest) in enumerate(tree.cooling):
        folder = "sys/class/thermal/cooling_device{}".format(number)
        write(root, folder + "/type", name + "\n")
        write(root, folder + "/max_state", "{}\n".format(highest))
        # An idle power clamp reads -1.
        write(root, folder + "/cur_state", "-1\n" if name == "intel_powerclamp" else "0\n")
    if tree.oc_events:
        write(root, "sys/class/hwmon/hwmon9/name", "soctherm_oc\n")
        for number, count in enumerate(tree.oc_events, start=1):
            write(root, oc_path(number), "{}\n".format(count))
            write(root, "sys/class/hwmon/hwmon9/oc{}_throt_en".format(number), "1\n")
    if not tree.compatible and not tree.in_container:
        for core in (0, 1):
            folder = "sys/devices/system/cpu/cpu{}/thermal_throttle".format(core)
            write(root, folder + "/core_throttle_count", "3\n")
            write(root, folder + "/package_throttle_count", "5\n")
