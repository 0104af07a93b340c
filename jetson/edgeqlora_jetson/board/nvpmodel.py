"""Power modes of a Jetson, always by name: the numbers differ between boards and images.

Mode 0 is 15 W on an Orin Nano Super and two processor cores on a Xavier NX. Low modes also power off groups of GPU
cores (TPC mask), so that the same kernel runs on another GPU.
"""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional

from ..errors import UserError
from .sysfs import Run, read_text, runner

CONF = "/etc/nvpmodel.conf"
STATUS = "/var/lib/nvpmodel/status"


class NvpMode(NamedTuple):
    """One mode of /etc/nvpmodel.conf."""

    id: int
    name: str
    gpu_max_mhz: Optional[int]
    """Cap on the GPU's clock; None: no cap, or not given."""
    tpc_pg_mask: Optional[int]
    """Each set bit powers off one TPC, two SMs; None: not given."""
    cpus_online: Optional[int]
    """Processor cores left on; None: not given."""


class Conf(NamedTuple):
    """What /etc/nvpmodel.conf offers."""

    modes: List[NvpMode]
    default_id: Optional[int]
    """Mode after flashing."""


class Mode(NamedTuple):
    """The mode in force."""

    name: Optional[str]
    id: Optional[int]
    how: str
    """Where it was read, or why it is not known."""


def parse_conf(text: str) -> Conf:
    """Modes of nvpmodel.conf: `< POWER_MODEL ID=n NAME=x >` and the settings below each.

    Lines before the first mode define paths under the same words (MAX_FREQ, ...) and belong to none.
    """
    blocks: List[Dict[str, Any]] = []
    default_id = None
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        header = re.match(r"<\s*POWER_MODEL\s+(.*?)>", line)
        default = re.match(r"<\s*PM_CONFIG\s+DEFAULT\s*=\s*(\d+)\s*>", line)
        if default:
            default_id = int(default.group(1))
        elif header:
            found_id = re.search(r"\bID\s*=\s*(\d+)", header.group(1))
            name = re.search(r"\bNAME\s*=\s*([^\s>]+)", header.group(1))
            if found_id and name:
                blocks.append({"id": int(found_id.group(1)), "name": name.group(1), "settings": []})
        elif blocks and line and not line.startswith("<"):
            blocks[-1]["settings"].append(line.split())
        elif line.startswith("<"):
            blocks.append({"id": None, "settings": []})
    return Conf([_mode(block) for block in blocks if block["id"] is not None], default_id)


def parse_query(text: str) -> Optional[Mode]:
    """What `nvpmodel -q` prints: "NV Power Mode: 25W", then the number on a line of its own, among warnings."""
    name = re.search(r"NV Power Mode:\s*([^\s]+)", text)
    if not name:
        return None
    number = re.search(r"^\s*(\d+)\s*$", text[name.end() :], re.MULTILINE)
    return Mode(name.group(1), int(number.group(1)) if number else None, "nvpmodel -q")


def parse_status(text: str) -> Optional[int]:
    """ "pmode:0002 fmode:quiet" -> 2."""
    match = re.search(r"\bpmode:\s*(\d+)", text)
    return int(match.group(1)) if match else None


def read_conf(root: str = "/") -> Conf:
    """Modes this board's image offers; none where there is no file."""
    return parse_conf(read_text(root, CONF) or "")


def read_mode(root: str = "/", run: Optional[Run] = None) -> Mode:
    """Mode in force: asked of nvpmodel, else read from its status file and named by its conf file."""
    code, output = runner(root, run)(["nvpmodel", "-q"])
    asked = parse_query(output) if code == 0 else None
    names = {mode.id: mode.name for mode in read_conf(root).modes}
    if asked is not None:
        return asked
    status = read_text(root, STATUS)
    mode_id = parse_status(status or "")
    if mode_id is None:
        return Mode(None, None, "nvpmodel does not answer and there is no {}".format(STATUS))
    if mode_id not in names:
        return Mode(None, mode_id, "{} says mode {}, which {} does not name".format(STATUS, mode_id, CONF))
    return Mode(names[mode_id], mode_id, "{}, named by {}".format(STATUS, CONF))


def set_power_mode(name: str, root: str = "/", run: Optional[Run] = None) -> Mode:
    """Switch to a power mode by its name; gives the mode then in force.

    Raises UserError for a name this board does not have, without root, and where the switch needs a reboot (which is
    never done from here) or did not take.
    """
    modes = {mode.name: mode.id for mode in read_conf(root).modes}
    if not modes:
        raise UserError("power mode {}: this system has no {}, so its modes are not known".format(name, CONF))
    if name not in modes:
        raise UserError("there is no power mode {} on this board: it has {}".format(name, ", ".join(sorted(modes))))
    if read_mode(root, run).name == name:
        return read_mode(root, run)
    by_hand = "sudo nvpmodel -m {}".format(modes[name])
    if os.geteuid() != 0:
        raise UserError("power mode {}: setting it needs root. Run: {}".format(name, by_hand))
    code, output = runner(root, run)(["nvpmodel", "-m", str(modes[name])])
    if re.search(r"reboot required", output, re.IGNORECASE):
        raise UserError(
            "power mode {} takes a reboot on this board, as it switches cores on or off. "
            "Run: {}, answer yes, and measure again after the reboot".format(name, by_hand)
        )
    now = read_mode(root, run)
    if code != 0 or now.name != name:
        last = output.strip().splitlines()[-1:] or ["nothing"]
        raise UserError(
            "power mode {} was not taken: the board is in {}; nvpmodel said: {}. Run by hand: {}".format(
                name, now.name or "a mode not known", last[0].strip(), by_hand
            )
        )
    return now


def _mode(block: Dict[str, Any]) -> NvpMode:
    gpu_max_mhz = mask = None
    online: List[str] = []
    for words in block["settings"]:
        if words[0] == "CPU_ONLINE" and len(words) == 3:
            online.append(words[2])
        elif words[:2] == ["GPU", "MAX_FREQ"] and len(words) == 3 and re.match(r"^\d+$", words[2]):
            gpu_max_mhz = round(int(words[2]) / 1e6)
        elif words[0] == "TPC_POWER_GATING" and len(words) == 3 and re.match(r"^\d+$", words[2]):
            mask = int(words[2])
    return NvpMode(block["id"], block["name"], gpu_max_mhz, mask, online.count("1") if online else None)
