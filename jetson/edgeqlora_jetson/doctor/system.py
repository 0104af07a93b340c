"""What the doctor says of the system: memory, swap, disk, heat so far, power source."""

import os
import shlex
from typing import Any, Iterator, List, Mapping, Optional, Tuple

from ..board.detect import Board
from ..board.sysfs import join, read_text
from ..errors import UserError
from ..sensors.memory import Swap, parse_lfb, parse_meminfo, parse_swaps
from ..sensors.thermal import find_zones, parse_temperature, read_event_counters
from .findings import Finding, listed, note, ok, problem, warning

HEADLESS = "sudo systemctl isolate multi-user.target   # stops the desktop; back: isolate graphical.target"
# Blocks of 4 MiB are the largest the kernel keeps; NvMap asks for large pieces.
_FEW_BLOCKS = 4
_DISK_LOW_MIB, _DISK_WANTED_MIB = 300, 2048
_SMALL_MIB = 8192
_WARM_C = 70.0


@listed
def examine_memory(root: str = "/", need_mib: Optional[float] = None, is_jetson: bool = True) -> Iterator[Finding]:
    """Free memory against what model and runtime may take (need_mib: the profile's budget), and its largest blocks."""
    info = parse_meminfo(read_text(root, "proc/meminfo") or "")
    if info.available_mib is None or info.total_mib is None:
        yield note("Free memory is not known: /proc/meminfo has no MemAvailable", "Nothing can be checked before.")
        return
    what = "{:,.0f} of {:,.0f} MiB of memory available".format(info.available_mib, info.total_mib)
    if need_mib and info.available_mib < need_mib:
        yield warning(
            "{}, the profile counts on {:,.0f} MiB".format(what, need_mib),
            "Loading or building an engine may swap or be killed; a run that swaps is not valid.",
            HEADLESS,
        )
    else:
        yield ok(what)
    lfb = parse_lfb(read_text(root, "proc/buddyinfo") or "", os.sysconf("SC_PAGE_SIZE") // 1024)
    if is_jetson and lfb is not None:
        text = "Largest free blocks of memory: {} of {:,.0f} KiB (lfb)".format(*lfb)
        if lfb[1] < 4096 or lfb[0] < _FEW_BLOCKS:
            yield warning(
                text,
                "Memory is in pieces: CUDA may fail to allocate (NvMapMemAlloc error 12) although enough is free.",
                "sync && sudo sysctl vm.drop_caches=3   # or reboot",
            )
        else:
            yield ok(text)


@listed
def examine_swap(root: str, board: Board) -> Iterator[Finding]:
    """Swap areas, and whether they are in use. Without any, only a small board needs a word."""
    swaps = parse_swaps(read_text(root, "proc/swaps") or "")
    if not swaps:
        yield from _examine_no_swap(root, board)
        return
    used_mib, size_mib = sum(swap.used_mib for swap in swaps), sum(swap.size_mib for swap in swaps)
    zram = [swap for swap in swaps if swap.is_zram]
    what = "Swap: {:,.0f} of {:,.0f} MiB in use, in {} area{}{}".format(
        used_mib,
        size_mib,
        len(swaps),
        "" if len(swaps) == 1 else "s",
        " ({} zram, which is memory itself, compressed)".format(len(zram)) if zram else "",
    )
    if used_mib > 0.05 * size_mib:
        yield warning(
            what,
            "Something was short of memory already; a run during which it grows is not valid.",
            empty_swap_command(swaps) + "   # empties it; needs that much free memory",
        )
    else:
        yield ok(what)
    if board.is_jetson and zram and len(zram) == len(swaps):
        yield note(
            "All swap is zram",
            "It takes processor time and memory while an engine is built; a file on disk takes neither.",
            "sudo systemctl disable nvzramconfig   # then a swap file, and reboot",
        )


def empty_swap_command(swaps: List[Swap]) -> str:
    """Switches the areas in use off and on again, each with its priority.

    By name: `swapon -a` brings back only what /etc/fstab lists, neither zram nor a file made by hand.
    """
    used = [swap for swap in swaps if swap.used_mib > 0]
    parts = ["sudo swapoff " + " ".join(shlex.quote(swap.path) for swap in used)]
    for priority in sorted({swap.priority for swap in used}, key=lambda p: -1 if p is None else p, reverse=True):
        paths = " ".join(shlex.quote(swap.path) for swap in used if swap.priority == priority)
        parts.append("sudo swapon {}{}".format("" if priority is None else "-p {} ".format(priority), paths))
    return " && ".join(parts)


def _examine_no_swap(root: str, board: Board) -> Iterator[Finding]:
    if not board.is_jetson:
        return
    if board.in_container or not board.memory_total_mib or board.memory_total_mib > _SMALL_MIB:
        yield ok("No swap", "Fair for measuring.")
        return
    free_mib = _free_disk_mib(join(root, "/"))
    means = "Fair for measuring. Building an engine on a board with 8 GB or less may be killed without it."
    for size_gib in (8, 4):
        if free_mib >= size_gib * 1024 + _DISK_WANTED_MIB:
            command = (
                "sudo fallocate -l {}G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
                "sudo swapon /swapfile"
            )
            yield note("No swap", means, command.format(size_gib))
            return
    yield note("No swap", "{} The disk has no room for a swap file ({:,.0f} MiB free).".format(means, free_mib))


def _free_disk_mib(folder: str) -> float:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize / 2.0**20


@listed
def examine_disk(folder: str) -> Iterator[Finding]:
    """Free space where results are written."""
    try:
        free_mib = _free_disk_mib(folder)
    except OSError as error:
        yield problem("{}: {}".format(folder, error.strerror or error), "Nothing can be written there.")
        return
    text = "{:,.0f} MiB free on the disk of {} (bundle, reports and engines)".format(free_mib, os.path.abspath(folder))
    if free_mib < _DISK_LOW_MIB:
        yield problem(
            text, "Engines and reports will not fit.", "sudo apt-get clean; sudo journalctl --vacuum-size=100M"
        )
    elif free_mib < _DISK_WANTED_MIB:
        yield warning(text, "Little: an engine is as large as its graph, and a cache keeps several.")
    else:
        yield ok(text)


@listed
def examine_heat(root: str = "/", is_jetson: bool = True) -> Iterator[Finding]:
    """How warm it is before the run, and whether the board was throttled since boot."""
    readings: List[Tuple[float, str]] = []
    for zone in find_zones(root):
        celsius = parse_temperature(read_text(root, zone.path))
        if celsius is not None:
            readings.append((celsius, zone.name))
    if readings:
        celsius, name = max(readings)
        text = "Warmest zone {} at {:.1f} degC, {} zones readable".format(name, celsius, len(readings))
        if celsius >= _WARM_C:
            yield warning(text, "A warm start throttles sooner: let it cool down, turn the fan up.")
        else:
            yield ok(text)
    elif is_jetson:
        yield note("No temperature can be read", "A throttled run may go unnoticed.")
    events = {name: count for name, count in read_event_counters(root).items() if count}
    if events:
        text = ", ".join("{} {}".format(name, count) for name, count in sorted(events.items()))
        yield note(
            "Throttled since boot: " + text,
            "Counts only what happens during a run. oc1 is under-voltage, oc2 and oc3 over-current: with many of "
            "them look at the supply and its cable.",
        )


@listed
def examine_power(table: Optional[Mapping[str, Any]], root: str = "/", is_jetson: bool = True) -> Iterator[Finding]:
    """The power source that a run would take, and what it covers.

    table: plain rail values of the profile or the board table; None: none.
    """
    from ..power import open_power_source
    from ..power.sample import rail_table

    means = "No Joules in the report: energy is null with this reason."
    try:
        source, scope, notes = open_power_source("auto", rail_table(table), root=root)
    except UserError as error:
        yield problem("Power: {}".format(error), means)
        return
    if source is None or scope is None:
        # What failed together with another source is said of each alone.
        reasons = "; ".join(text for text in notes if "+" not in text.split(":")[0]) or "none found"
        yield (warning if is_jetson else note)("No power source: {}".format(reasons), means)
        return
    covers = {
        "module_input": "all that the module takes, without carrier and power supply",
        "system_input": "all that the board takes, carrier included, without the power supply",
        "sum_of_rails": "the sum of the rails that are measured: less than what the module takes",
    }.get(scope.energy_scope, "what these rails carry")
    yield ok(
        "Power from {}: {} ({})".format(source.name, " + ".join(scope.rails), scope.energy_scope),
        "Energy covers {}. Compare Joules only with figures of the same scope.".format(covers),
    )
    for text in notes:
        if text.startswith(source.name + ": "):
            yield warning(
                "Power sensor {}".format(text),
                "A processor was kept busy beside it. Where they do not change in a run either, its Joules are null.",
            )
    if source.averaging_s:
        yield note(
            "This sensor averages over {:.0f} ms".format(source.averaging_s * 1e3),
            "Measure runs of at least {:.0f} s, so that one average is less than 2 % of them.".format(
                max(20.0, source.averaging_s / 0.02)
            ),
        )
