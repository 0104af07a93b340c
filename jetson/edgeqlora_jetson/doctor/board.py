"""What the doctor says of the board: which, its release, power mode, clocks, what is hidden, whether a bundle fits."""

import re
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from ..board.detect import Board
from ..board.identity import soc_of
from ..board.l4t import sister_release, version_key
from ..board.nvpmodel import Conf, NvpMode
from .findings import Finding, listed, note, ok, warning


@listed
def examine_board(board: Board, boards: Mapping[str, Dict[str, Any]]) -> Iterator[Finding]:
    """Which board, and by what it was known."""
    memory = "{:,.0f} MiB of memory".format(board.memory_total_mib) if board.memory_total_mib else "memory not known"
    if not board.is_jetson:
        yield note("This is no Jetson ({}), {}".format(board.how, memory), "Figures from it say nothing of a board.")
    elif board.id is None:
        yield warning(
            "Jetson not recognised: {}, {}".format(board.how, memory),
            "Its power rails are not known: energy can be measured only if it has one known input rail; see Power "
            "below. Everything else works. A profile of your own brings the rails with the bundle: make one on "
            "the workstation from the nearest board's, correct it, and check it with edgeqlora profiles check.",
            "edgeqlora profiles show {} --toml --name my-board > my-board.toml".format(_nearest(board, boards)),
        )
    else:
        known = board.title if "MiB of memory" in board.how else "{}, {}".format(board.title, memory)
        yield ok("{}: {}".format(known, board.how))
        used = _USED + tuple(key for key, kinds in _IDENTIFIES.items() if board.how.startswith(kinds))
        unsourced = [key for key in boards.get(board.id, {}).get("unsourced") or [] if key.split(".")[0] in used]
        if unsourced:
            yield note(
                "No public document confirms these facts of the board table: {}".format(", ".join(unsourced)),
                "Figures that rest on them are to be read with that in mind.",
            )


_USED = ("total_rail", "sum_rails", "optional_rails", "rails", "energy_scope", "memory_mib")
_IDENTIFIES = {
    "part_numbers": ("part number",),
    "compatible": ("compatible string",),
    "models": ("model ", "words of the model"),
    "soc": ("SoC",),
}
"""Facts that decide which board it is -> how Board.how begins where they did."""


def _nearest(board: Board, boards: Mapping[str, Dict[str, Any]]) -> str:
    """A board of the table with the same chip, to start a profile of one's own from."""
    soc = soc_of(board.compatible)
    same = sorted(name for name, facts in boards.items() if soc and facts.get("soc") == soc)
    return same[0] if same else "jetson-orin-nano"


@listed
def examine_release(board: Board) -> Iterator[Finding]:
    """L4T and JetPack."""
    if not board.is_jetson:
        return
    if board.l4t is None:
        reason = [text for text in board.notes if text.startswith("L4T and JetPack")] or ["L4T is not known"]
        yield note(reason[0], "TensorRT and Python still say what is there; the report has no JetPack in it.")
    elif board.jetpack is None:
        yield note("L4T {}, of a JetPack that is not in the table".format(board.l4t), "The report names L4T only.")
    else:
        yield ok("L4T {}, JetPack {}".format(board.l4t, board.jetpack))


@listed
def examine_power_mode(board: Board, conf: Conf, facts: Optional[Mapping[str, Any]] = None) -> Iterator[Finding]:
    """The power mode by name, what it takes away, and which mode is the fastest. Never by number.

    facts: the board's entry in the board table, for its Super modes.
    """
    if not board.is_jetson:
        return
    if board.power_mode is None:
        command = "docker run ... -v /etc/nvpmodel.conf:/etc/nvpmodel.conf -v /var/lib/nvpmodel:/var/lib/nvpmodel"
        yield warning(
            "Power mode not known: {}".format(board.power_mode_how),
            "Speed and energy depend on it more than on anything else: figures without it cannot be compared.",
            command if board.in_container else "sudo nvpmodel -q",
        )
        return
    names = {mode.name: mode for mode in conf.modes}
    mode, fastest = names.get(board.power_mode), fastest_mode(conf.modes, facts)
    what = "Power mode {} (number {} here, by {})".format(board.power_mode, board.power_mode_id, board.power_mode_how)
    if mode is not None:
        what += mode_text(mode)
    if fastest is None or mode is None or fastest.name == mode.name:
        yield ok(what)
    else:
        yield note(
            what,
            "Not the fastest mode of this board, which is {}{}. Both are fair, as long as the report says "
            "which.".format(fastest.name, mode_text(fastest)),
            "sudo nvpmodel -m {}   # {}, on this board".format(fastest.id, fastest.name),
        )
    least_off = min([n_off(m.tpc_pg_mask) for m in conf.modes if m.tpc_pg_mask is not None] or [0])
    if mode is not None and mode.tpc_pg_mask is not None and n_off(mode.tpc_pg_mask) > least_off:
        yield warning(
            "Mode {} switches off {} groups of GPU cores that other modes of this board leave on (TPC mask {})".format(
                mode.name, n_off(mode.tpc_pg_mask) - least_off, mode.tpc_pg_mask
            ),
            "The GPU is a smaller one, not only a slower one: a TensorRT engine is built for one mode and rebuilt "
            "for another.",
        )
    yield from _examine_super(conf, facts or {})


def _examine_super(conf: Conf, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Super modes come with the -super device tree (JetPack 6.2, L4T 35.6), not with an update of packages."""
    modes = facts.get("power_modes") or []
    plain = {mode["name"] for mode in modes if mode.get("variant") != "super"}
    missing = [mode["name"] for mode in modes if mode.get("variant") == "super" and mode["name"] not in plain]
    if missing and conf.modes and not any(mode.name in missing for mode in conf.modes):
        yield note(
            "This image is without the Super modes of this module ({})".format(", ".join(missing)),
            "The module can run faster than any mode offered here, after flashing the -super configuration of "
            "JetPack 6.2 or newer.",
        )


@listed
def examine_clocks(board: Board) -> Iterator[Finding]:
    """Whether clocks are locked; nothing for a workstation that does not say."""
    if board.clocks_locked:
        yield ok("Clocks locked: {}".format(board.clocks_how))
    elif board.clocks_locked is None and board.is_jetson:
        yield note("Not known whether clocks are locked: {}".format(board.clocks_how), "The report says so.")
    elif board.clocks_locked is False and not board.is_jetson:
        yield note("Clocks are {}".format(board.clocks_how), "Latencies wander by some percent from run to run.")
    elif board.clocks_locked is False:
        yield warning(
            "Clocks are {}".format(board.clocks_how),
            "Short runs are measured while clocks still rise, and throttling cannot be told from saving power.",
            "sudo jetson_clocks --store && sudo jetson_clocks   # undo: sudo jetson_clocks --restore",
        )


@listed
def examine_hidden(board: Board) -> Iterator[Finding]:
    """What this user cannot see here."""
    if not board.is_jetson:
        return
    if board.is_root:
        yield ok("Running as root: nothing is hidden")
    else:
        hidden = [text[len("not root: ") :] for text in board.notes if text.startswith("not root: ")]
        yield note(
            "Not root: " + "; ".join(hidden),
            "Latency and accuracy are the same; memory and power say how they were taken.",
            "sudo -E python3 edgeqlora-jetson.pyz bench",
        )
    if board.in_container:
        yield warning(
            "In a container",
            "Only what is mounted is seen. tegrastats is a program of the host; /sys is enough for the power sensors.",
            "docker run --runtime nvidia -v /etc/nv_tegra_release:/etc/nv_tegra_release "
            "-v /usr/bin/tegrastats:/usr/bin/tegrastats -v /sys:/sys ...",
        )
    for text in board.notes:
        if not text.startswith(("not root", "in a container", "L4T and JetPack")):
            yield note(text[0].upper() + text[1:])


@listed
def examine_fit(
    board: Board,
    profile: Optional[Mapping[str, Any]],
    tensorrt: Optional[str],
    boards: Optional[Mapping[str, Dict[str, Any]]] = None,
) -> Iterator[Finding]:
    """Whether the bundle's hardware profile is this board's.

    profile: manifest["profile"]. tensorrt: the version installed here, or None. boards: the board table.
    """
    if profile is None:
        return
    name, boards, wanted = profile.get("name"), boards or {}, profile.get("tensorrt")
    if board.is_jetson and board.id is None and name not in boards and profile.get("rails"):
        yield ok("The bundle's profile is {}, not in the board table: taken as this board's own".format(name))
    elif (not board.is_jetson or board.id is None) and profile.get("part_numbers"):
        yield note(
            "The bundle was made for {}".format(profile.get("title") or name),
            "It runs here, but limits and rails in it are of another machine.",
        )
    elif not board.is_jetson or board.id is None:
        yield ok("The bundle's profile is {}".format(name))
    elif name != board.id and profile.get("part_numbers"):
        yield warning(
            "The bundle was made for {}, this is {}".format(profile.get("title") or name, board.title),
            "It runs if the operators and the memory allow; window, batch and workspace limits are the other "
            "board's. Power rails are taken from this board's table.",
            export_command(board, tensorrt, boards),
        )
    elif name != board.id:
        yield note(
            "The bundle's profile is {}, not this board's".format(name),
            "It runs on the processor; no TensorRT engine was asked for.",
            export_command(board, tensorrt, boards),
        )
    elif wanted and tensorrt and version_key(tensorrt)[:2] < version_key(str(wanted))[:2]:
        yield warning(
            "The bundle was checked for TensorRT {}, this board has {}".format(wanted, tensorrt),
            "An older parser may refuse the graphs.",
            export_command(board, tensorrt, boards),
        )
    else:
        yield ok("The bundle was made for this board ({})".format(name))


def export_command(board: Board, tensorrt: Optional[str], boards: Mapping[str, Dict[str, Any]]) -> str:
    """Makes a bundle for this board and what is installed on it, with a JetPack release that the exporter knows.

    The table has one release for each TensorRT, not the JetPack of every image: 5.1.6 stands for 5.1.2.
    """
    release = sister_release(boards.get(board.id or "", {}).get("jetpacks"), board.l4t, tensorrt)
    command = "edgeqlora export MERGED --target {} --output BUNDLE".format(board.id)
    return "{} --jetpack {}".format(command, release["jetpack"]) if release else command


def fastest_mode(modes: List[NvpMode], facts: Optional[Mapping[str, Any]] = None) -> Optional[NvpMode]:
    """The mode without a cap on power: MAXN or MAXN_SUPER; else that with most GPU cores, GPU clock, watts and cores.

    Watts part modes of the same GPU clock, which is only a cap: MODE_15W_6CORE and MODE_20W_6CORE of Xavier NX.
    facts: the board's entry in the board table, for budgets that a mode's name does not say.
    """
    for mode in modes:
        if mode.name.startswith("MAXN"):
            return mode
    watts = {mode["name"]: mode.get("watt_cap") for mode in (facts or {}).get("power_modes") or []}

    def speed(mode: NvpMode) -> Tuple[float, ...]:
        named = re.search(r"(\d+)W", mode.name)
        cap = float(named.group(1)) if named else watts.get(mode.name) or 0.0
        return -n_off(mode.tpc_pg_mask or 0), mode.gpu_max_mhz or 0, cap, mode.cpus_online or 0

    known = [mode for mode in modes if mode.gpu_max_mhz is not None]
    return max(known, key=speed) if known else None


def n_off(tpc_pg_mask: int) -> int:
    """Groups of GPU cores (TPC) a mask switches off, or marks as not there on this module."""
    return bin(tpc_pg_mask).count("1")


def mode_text(mode: NvpMode) -> str:
    """ ": GPU up to 612 MHz, 6 processor cores"."""
    parts = []
    if mode.gpu_max_mhz is not None:
        parts.append("GPU up to {} MHz".format(mode.gpu_max_mhz))
    if mode.cpus_online is not None:
        parts.append("{} processor cores".format(mode.cpus_online))
    return ": " + ", ".join(parts) if parts else ""
