"""Which board this is, in which state: known by part number, never by guess."""

import json
import os
import pkgutil
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

from .clocks import judge_lock, read_clocks
from .identity import Evidence, identify, is_tegra, parse_tnspec, soc_of
from .l4t import Release, read_release
from .machine import parse_meminfo_mib
from .nvpmodel import read_mode, set_power_mode
from .sysfs import Run, find, read_text

__all__ = ["Board", "detect_board", "load_boards", "set_power_mode"]


class Board(NamedTuple):
    """A machine as a measurement must describe it."""

    id: Optional[str]
    """Name in the board table; None: unknown, or no Jetson."""
    title: str
    how: str
    """By what the board was known, or why it is not."""
    is_jetson: bool
    part_number: Optional[str]
    """Such as "p3767-0005"."""
    model: Optional[str]
    """Text of /proc/device-tree/model; it does not tell memory sizes apart."""
    compatible: List[str]
    memory_total_mib: Optional[float]
    l4t: Optional[str]
    jetpack: Optional[str]
    power_mode: Optional[str]
    power_mode_id: Optional[int]
    power_mode_how: str
    clocks_locked: Optional[bool]
    clocks_how: str
    is_root: bool
    in_container: bool
    notes: List[str]
    """What was hidden, or contradicts, and why."""


def load_boards() -> Dict[str, Dict[str, Any]]:
    """The board table that ships with this package: plain values by profile name; {} where it is not there."""
    try:
        data = pkgutil.get_data(__package__, "boards.json")
    except OSError:
        return {}
    if not data:
        return {}
    boards: Dict[str, Dict[str, Any]] = json.loads(data.decode("utf-8"))["boards"]
    return boards


def detect_board(
    root: str = "/", boards: Optional[Mapping[str, Dict[str, Any]]] = None, run: Optional[Run] = None
) -> Board:
    """Read the system and say which board it is, with release, power mode and clocks.

    boards: the table; by default the one of this package. run(argv) -> (code, output) asks nvpmodel and dpkg-query.
    Never raises: what is not readable is None, with the reason in `how` or `notes`.
    """
    boards = load_boards() if boards is None else boards
    evidence = read_evidence(root)
    identity = identify(evidence, boards)
    release = read_release(root, boards, run)
    is_jetson = bool(identity.id or release.l4t) or is_tegra(evidence)
    mode = read_mode(root, run) if is_jetson else None
    lock = judge_lock(read_clocks(root), is_jetson)
    is_root, in_container = os.geteuid() == 0, is_container(root)
    notes = list(identity.notes)
    if is_jetson:
        soc = boards[identity.id].get("soc") if identity.id else soc_of(evidence.compatible)
        notes += hidden(release, soc, is_root, in_container)
    return Board(
        id=identity.id,
        title=boards[identity.id].get("title") or identity.id if identity.id else evidence.model or "no Jetson",
        how=identity.how,
        is_jetson=is_jetson,
        part_number=identity.part_number,
        model=evidence.model,
        compatible=evidence.compatible,
        memory_total_mib=evidence.memory_total_mib,
        l4t=release.l4t,
        jetpack=release.jetpack,
        power_mode=mode.name if mode else None,
        power_mode_id=mode.id if mode else None,
        power_mode_how=mode.how if mode else "only a Jetson has nvpmodel",
        clocks_locked=lock.locked,
        clocks_how=lock.how,
        is_root=is_root,
        in_container=in_container,
        notes=notes,
    )


def read_evidence(root: str = "/") -> Evidence:
    """What device tree, boot control file and /proc/meminfo say.

    Docker hides /proc/device-tree; /sys/devices/soc0/machine, which the kernel fills with the model, stays visible.
    """
    compatible = read_text(root, "proc/device-tree/compatible") or ""
    return Evidence(
        [text for text in compatible.split("\0") if text],
        parse_tnspec(read_text(root, "etc/nv_boot_control.conf") or ""),
        read_text(root, "proc/device-tree/model") or _soc_machine(root),
        parse_meminfo_mib(read_text(root, "proc/meminfo") or "", "MemTotal"),
    )


def is_container(root: str = "/") -> bool:
    """Whether this runs in a container: the marks of Docker and Podman, or their names in the control group."""
    if any(find(root, path) for path in (".dockerenv", "run/.containerenv")):
        return True
    return bool(re.search(r"docker|kubepods|containerd|lxc|libpod", read_text(root, "proc/1/cgroup") or ""))


def hidden(release: Release, soc: Optional[str], is_root: bool, in_container: bool) -> List[str]:
    """What this user cannot see on this release. Recorded tegrastats lines of root and others show the difference.

    soc: such as "tegra264". A Thor hides more than an Orin with the same release.
    """
    notes = []
    if release.l4t is None:
        notes.append("L4T and JetPack are not known: {}".format(release.how))
    if in_container:
        notes.append(
            "in a container: nvpmodel, tegrastats and /etc/nv_* are the host's and are seen only where they are mounted"
        )
    if is_root:
        return notes
    major = int((release.l4t or "0").split(".")[0])
    if soc == "tegra264":
        notes.append(
            "not root: on a Thor tegrastats hides GPU load and clock, the memory clock and the engines; power rails "
            "stay visible"
        )
    elif major in (32, 34, 35):
        notes.append(
            "not root: on L4T {} tegrastats may hide power rails, memory clock and GPU clock".format(release.l4t)
            + "; the sensors in /sys are read instead where their files allow it"
        )
    elif major >= 36:
        notes.append(
            "not root: tegrastats hides the memory clock, the GPU's clock and the engines on L4T {}; power rails stay "
            "visible".format(release.l4t)
        )
    notes.append("not root: NvMap's list of GPU memory is closed, so it is estimated from MemAvailable")
    return notes


def _soc_machine(root: str) -> Optional[str]:
    """Model text from the SoC device, where it is NVIDIA's."""
    if (read_text(root, "sys/devices/soc0/family") or "").lower() != "tegra":
        return None
    return read_text(root, "sys/devices/soc0/machine")
