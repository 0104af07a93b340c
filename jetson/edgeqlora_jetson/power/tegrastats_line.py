"""The power rails in one line of tegrastats, in every grammar seen from L4T R28 to R39.

A line is a row of fields separated by blanks, most of them a name and a value. The grammar was read off recorded lines
(jetson.md 3.1); NVIDIA's documentation of it is prose. The other fields are recognised only so that a new one is
noticed: it is in `unknown` and changes nothing else. Memory and temperatures are read from /proc and /sys.
"""

import re
from typing import Dict, List, NamedTuple, Pattern


class TegrastatsLine(NamedTuple):
    """What one line says."""

    rails_mw: Dict[str, int]  # power now, the value to integrate; negative values occur
    dropped: Dict[str, str]  # name of a rail -> why its value is not used
    unknown: List[str]  # words of no known field
    is_stats: bool  # a line of statistics, and not a message of the program


def _field(pattern: str) -> Pattern[str]:
    """A pattern of whole words. # stands for a whole number; nine digits, as Python refuses to read endless ones."""
    return re.compile(r"(?<!\S)(?:" + pattern.replace("#", r"\d{1,9}") + r")(?!\S)", re.ASCII)


_LOAD = "(?:#%(?:@#)?|@#)"
_CORE = " ?(?:off|" + _LOAD + ")? ?"
_DEGREES = r"-?#(?:\.#)?C"
# One of these makes a line one of statistics.
_STATS = (
    _field(r"RAM #/#MB(?: \(lfb #x#[kM]B\))?"),
    _field(r"CPU \[ ?(?:off|" + _LOAD + ")" + "(?:," + _CORE + r")*\](?:@#)?"),
    _field(r"[A-Za-z]\w*@" + _DEGREES + "(?:/" + _DEGREES + ")?"),
)
_OTHERS = (
    re.compile(r"^\d\d-\d\d-\d{4} \d\d:\d\d:\d\d(?!\S)", re.ASCII),  # from R35
    _field(r"SWAP #/#MB(?: \(cached #MB\))?"),
    _field(r"IRAM #/#kB(?: ?\(lfb #kB\))?"),
    _field("MTS fg #% bg #%"),
    _field(r"(?:EMC_FREQ|GR3D2?_FREQ) (?:#%)?(?:@(?:\[#(?:,#)*\]|#))?"),
    _field(r"(?:NVENC|NVDEC|NVJPG|NVDLA|MSENC|OFA|PVA|VIC|APE|SE)\d{0,2}(?:_FREQ)? (?:off|@?#)"),
)
# now/average[/highest]; either all values carry the unit or none does: a mixture is a line that lost a piece.
_PLAIN, _WITH_UNIT = r"(-?\d{1,9})(?:/-?\d{1,9}){1,2}", r"(-?\d{1,9})mW(?:/-?\d{1,9}mW){1,2}"
_RAIL = _field(r"(?!(?:RAM|SWAP|IRAM) )([A-Z][A-Z0-9_]*) (?:" + _PLAIN + "|" + _WITH_UNIT + ")")
_NOT_CONNECTED = re.compile(r"NC(_?\d+)?$")
_TAKEN = "\0"
"""Mark in place of a field that was recognised: it keeps the neighbours apart."""


def parse_line(text: str) -> TegrastatsLine:
    """Parse one line of tegrastats. Never raises: what is not recognised is in `unknown`."""
    rest = " ".join(text.replace(_TAKEN, " ").split())
    n_stats = 0
    for pattern in _STATS + _OTHERS:
        rest, n = pattern.subn(_TAKEN, rest)
        n_stats += n if pattern in _STATS else 0
    rails_mw: Dict[str, int] = {}
    dropped: Dict[str, str] = {}
    for name, plain, with_unit in _RAIL.findall(rest):
        power_mw = int(plain or with_unit)
        if _NOT_CONNECTED.match(name):
            dropped[name] = "channel not connected"
        elif rails_mw.get(name, power_mw) != power_mw:
            # Two lines run into one: which is right cannot be known, and a wrong total is worse than none.
            dropped[name] = "given twice with different values"
        else:
            rails_mw[name] = power_mw
    rails_mw = {name: power_mw for name, power_mw in rails_mw.items() if name not in dropped}
    unknown = _RAIL.sub(_TAKEN, rest).replace(_TAKEN, " ").split()
    return TegrastatsLine(rails_mw, dropped, unknown, bool(n_stats or rails_mw))
