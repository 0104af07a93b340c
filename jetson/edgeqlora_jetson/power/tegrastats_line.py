"""One line of tegrastats, in every grammar seen from L4T R28 to R39.

A line is a row of fields separated by blanks, most of them a name and a value. The grammar was read off recorded lines
(jetson.md 3.1); NVIDIA's documentation of it is prose. What is not recognised is kept in `unknown` and changes nothing
else.
"""

import re
from typing import Dict, List, Match, NamedTuple, Optional, Pattern, Tuple


class Rail(NamedTuple):
    """A power rail, in mW; negative values occur."""

    power_mw: int  # now: the value to integrate
    average_mw: int  # running mean since tegrastats started, a first 0 included on Thor: not used
    max_mw: Optional[int]  # R39 and later


class Clocked(NamedTuple):
    """Load and clocks of an engine; None or () where the line does not say."""

    load_percent: Optional[int]
    clocks_mhz: Tuple[int, ...]


class Memory(NamedTuple):
    """RAM, SWAP (in MiB) or IRAM (in KiB)."""

    used: int
    total: int


class FreeBlocks(NamedTuple):
    """lfb: free blocks of the largest size there is."""

    n_blocks: int
    size_kib: int


class TegrastatsLine(NamedTuple):
    """The fields of one line; None, empty or absent where the line does not have them."""

    time: Optional[str]  # "MM-DD-YYYY HH:MM:SS", from R35
    ram: Optional[Memory]
    lfb: Optional[FreeBlocks]
    swap: Optional[Memory]
    swap_cached_mib: Optional[int]
    iram: Optional[Memory]
    iram_lfb_kib: Optional[int]
    cpus: List[Optional[Clocked]]  # None: core switched off
    emc: Optional[Clocked]
    gr3d: Optional[Clocked]
    gr3d2: Optional[Clocked]  # second GPC, early R35
    engines: Dict[str, Optional[int]]  # NVENC, NVDEC, VIC ...: MHz, None: off
    ape_mhz: Optional[int]
    mts: Optional[Tuple[int, int]]  # foreground and background load of Denver/Carmel code morphing, %
    temperatures_c: Dict[str, float]
    temperatures_max_c: Dict[str, float]  # R39 and later
    rails: Dict[str, Rail]
    dropped: Dict[str, str]  # name -> why its value is none
    unknown: List[str]

    @property
    def is_stats(self) -> bool:
        """Whether this is a line of statistics, and not a message of the program."""
        return self.ram is not None or bool(self.cpus) or bool(self.rails) or bool(self.temperatures_c)


def _field(pattern: str) -> Pattern[str]:
    """A pattern of whole words. N stands for a whole number; nine digits, as Python refuses to read endless ones."""
    return re.compile(r"(?<!\S)" + pattern.replace("N", r"(\d{1,9})") + r"(?!\S)", re.ASCII)


_TIME = re.compile(r"(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)(?!\S)", re.ASCII)
_RAM = _field(r"RAM N/NMB(?: \(lfb NxN([kM])B\))?")
_SWAP = _field(r"SWAP N/NMB(?: \(cached NMB\))?")
_IRAM = _field(r"IRAM N/NkB(?: ?\(lfb NkB\))?")
_CPU = _field(r"CPU \[([^\][]*)\](?:@N)?")
_MTS = _field(r"MTS fg N% bg N%")
_LIST = r"\[(\d{1,9}(?:,\d{1,9})*)\]"
_LOAD = _field(r"(EMC_FREQ|GR3D2?_FREQ) (?=[\d@])(?:N%)?(?:@(?:" + _LIST + "|N))?")
_CORE = _field(r"(?=[\d@])(?:N%)?(?:@N)?")
_ENGINES = ("NVENC", "NVDEC", "NVJPG", "NVDLA", "MSENC", "OFA", "PVA", "VIC", "APE", "SE")
_ENGINE = re.compile(r"(?<!\S)((?:" + "|".join(_ENGINES) + r")\d{0,2})(?:_FREQ)? (?:(off)|@?(\d{1,9}))(?!\S)", re.ASCII)
_DEGREES = r"(-?\d{1,9}(?:\.\d{1,9})?)C"
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z]\w*)@" + _DEGREES + "(?:/" + _DEGREES + r")?(?!\S)", re.ASCII)
# Either all values carry the unit or none does: a mixture is a line that lost a piece.
_PLAIN, _WITH_UNIT = r"(-?\d{1,9})", r"(-?\d{1,9})mW"
_RAIL = re.compile(
    r"(?<!\S)(?!(?:RAM|SWAP|IRAM) )([A-Z][A-Z0-9_]*) (?:{0}/{0}(?:/{0})?|{1}/{1}(?:/{1})?)(?!\S)".format(
        _PLAIN, _WITH_UNIT
    ),
    re.ASCII,
)
_NOT_CONNECTED = re.compile(r"NC(_?\d+)?$")

# A power-gated zone reads -256 C. Up to R35 the PMIC zone is a constant, 100 C or 50 C, not a measurement.
_GATED_C = -256.0
_PMIC_PLACEHOLDERS_C = (50.0, 100.0)


def parse_line(text: str) -> TegrastatsLine:
    """Parse one line of tegrastats. Never raises: what is not recognised is in `unknown`."""
    rest = _Rest(text)
    time, ram, swap, iram = rest.take(_TIME), rest.take(_RAM), rest.take(_SWAP), rest.take(_IRAM)
    cpu, mts = rest.take(_CPU), rest.take(_MTS)
    loads = {m.group(1): _clocked(m.group(2), m.group(3) or m.group(4)) for m in rest.take_all(_LOAD)}
    engines = {m.group(1): None if m.group(2) else int(m.group(3)) for m in rest.take_all(_ENGINE)}
    dropped: Dict[str, str] = {}
    temperatures_c, temperatures_max_c = _temperatures(rest.take_all(_TEMPERATURE), dropped)
    rails = _rails(rest.take_all(_RAIL), dropped)
    return TegrastatsLine(
        time=time.group(1) if time else None,
        ram=_memory(ram),
        lfb=_free_blocks(ram),
        swap=_memory(swap),
        swap_cached_mib=int(swap.group(3)) if swap and swap.group(3) else None,
        iram=_memory(iram),
        iram_lfb_kib=int(iram.group(3)) if iram and iram.group(3) else None,
        cpus=_cores(cpu.group(1), cpu.group(2), rest) if cpu else [],
        emc=loads.get("EMC_FREQ"),
        gr3d=loads.get("GR3D_FREQ"),
        gr3d2=loads.get("GR3D2_FREQ"),
        ape_mhz=engines.pop("APE", None),
        engines=engines,
        mts=(int(mts.group(1)), int(mts.group(2))) if mts else None,
        temperatures_c=temperatures_c,
        temperatures_max_c=temperatures_max_c,
        rails=rails,
        dropped=dropped,
        unknown=rest.tokens(),
    )


_TAKEN = "\0"


class _Rest(object):
    """What of a line has not been recognised yet; a taken piece leaves a mark that keeps its neighbours apart."""

    def __init__(self, text: str):
        self._text = " ".join(text.replace(_TAKEN, " ").split())
        self._extra: List[str] = []

    def take(self, pattern: Pattern[str]) -> Optional[Match[str]]:
        """The first match; the time is only at the beginning of a line."""
        match = pattern.match(self._text) if pattern is _TIME else pattern.search(self._text)
        if match:
            self._text = self._text[: match.start()] + _TAKEN + self._text[match.end() :]
        return match

    def take_all(self, pattern: Pattern[str]) -> List[Match[str]]:
        matches = list(pattern.finditer(self._text))
        self._text = pattern.sub(_TAKEN, self._text)
        return matches

    def put_back(self, token: str) -> None:
        self._extra.append(token)

    def tokens(self) -> List[str]:
        return self._text.replace(_TAKEN, " ").split() + self._extra


def _memory(match: Optional[Match[str]]) -> Optional[Memory]:
    return Memory(int(match.group(1)), int(match.group(2))) if match else None


def _free_blocks(ram: Optional[Match[str]]) -> Optional[FreeBlocks]:
    if not ram or not ram.group(3):
        return None
    return FreeBlocks(int(ram.group(3)), int(ram.group(4)) * (1024 if ram.group(5) == "M" else 1))


def _clocked(load: Optional[str], clocks: Optional[str]) -> Clocked:
    return Clocked(int(load) if load else None, tuple(int(clock) for clock in clocks.split(",")) if clocks else ())


def _cores(items: str, common_clock: Optional[str], rest: _Rest) -> List[Optional[Clocked]]:
    """The cores of "12%@729,off"; some old lines give one clock for all after the bracket."""
    cores: List[Optional[Clocked]] = []
    for item in (item.strip() for item in items.split(",")):
        match = _CORE.match(item)
        if item == "off":
            cores.append(None)
        elif match:
            cores.append(_clocked(match.group(1), match.group(2) or common_clock))
        elif item:
            rest.put_back(item)
    return cores


def _temperatures(matches: List[Match[str]], dropped: Dict[str, str]) -> Tuple[Dict[str, float], Dict[str, float]]:
    now_c: Dict[str, float] = {}
    max_c: Dict[str, float] = {}
    for match in matches:
        zone, value_c = match.group(1), float(match.group(2))
        if value_c == _GATED_C:
            dropped[zone + "@"] = "zone powered off (-256 C)"
        elif zone == "PMIC" and value_c in _PMIC_PLACEHOLDERS_C:
            dropped[zone + "@"] = "a constant, not a measurement ({:g} C)".format(value_c)
        else:
            now_c[zone] = value_c
            if match.group(3):
                max_c[zone] = float(match.group(3))
    return now_c, max_c


def _rails(matches: List[Match[str]], dropped: Dict[str, str]) -> Dict[str, Rail]:
    rails: Dict[str, Rail] = {}
    for match in matches:
        name = match.group(1)
        now, average, highest = match.groups()[1:4] if match.group(2) else match.groups()[4:7]
        rail = Rail(int(now), int(average), int(highest) if highest else None)
        if _NOT_CONNECTED.match(name):
            dropped[name] = "channel not connected"
        elif rails.get(name, rail) != rail:
            # Two lines run into one: which is right cannot be known, and a wrong total is worse than none.
            dropped[name] = "given twice with different values"
        else:
            rails[name] = rail
    return {name: rail for name, rail in rails.items() if name not in dropped}
