"""Which board of the table a system is: by part number, names, model text, SoC and memory, in that order."""

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

# MemTotal is what the kernel leaves of the memory after its carve-outs: 7,337 MiB of 8,192 on an Orin NX, 125,749 of
# 131,072 on a Thor (recorded tegrastats lines). No carve-out takes half, and the next smaller board has half.
_LEAST_SHARE = 0.6


class Evidence(NamedTuple):
    """What the system says of its board."""

    compatible: List[str]
    tnspec: Optional[str]
    """Board line of /etc/nv_boot_control.conf, written when the board was flashed."""
    model: Optional[str]
    memory_total_mib: Optional[float]


class Identity(NamedTuple):
    """Which board the evidence means."""

    id: Optional[str]
    how: str
    part_number: Optional[str]
    notes: List[str]


def parse_tnspec(text: str) -> Optional[str]:
    """The TNSPEC line of nv_boot_control.conf: "3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-"."""
    match = re.search(r"^\s*TNSPEC\s+(\S+)", text, re.MULTILINE)
    return match.group(1) if match else None


def part_numbers(texts: List[str]) -> List[str]:
    """Numbers like "p3767-0005" in texts, in order, each once; a carrier's number looks the same."""
    numbers: List[str] = []
    for text in texts:
        numbers += [number for number in re.findall(r"(?<![0-9a-z])p\d{4}-\d{4}", text) if number not in numbers]
    return numbers


def tnspec_part_number(tnspec: str) -> Optional[str]:
    """ "3767-300-0005-..." (board, version, SKU) and the older "3448-0002-300-..." as "p3767-0005", "p3448-0002"."""
    match = re.match(r"[pP]?(\d{4})-(?:(\d{4})-|[^-]*-(\d{4})-)", tnspec)
    return "p{}-{}".format(match.group(1), match.group(2) or match.group(3)) if match else None


def identify(evidence: Evidence, boards: Mapping[str, Dict[str, Any]]) -> Identity:
    """Which board of the table the evidence means.

    Order: part number in the device tree, part number of the boot control file, names in both, model text, its words, SoC; where
    one of them leaves several boards, the memory decides. Memory overrules a part number as well: NVIDIA's
    device trees say p2888-0001 on every AGX Xavier and p3668-0001 on Xavier NX of both sizes.
    """
    tree = "/proc/device-tree/compatible"
    boot = "/etc/nv_boot_control.conf"
    boards = {name: board for name, board in boards.items() if board.get("part_numbers")}
    for numbers, where in (
        (part_numbers(evidence.compatible), tree),
        ([number for number in [tnspec_part_number(evidence.tnspec or "")] if number], boot),
    ):
        for number in numbers:
            if any(number in part_numbers(board.get("part_numbers") or []) for board in boards.values()):
                return _by_number(number, where, evidence, boards)
    if not is_tegra(evidence) and not evidence.tnspec:
        # Other makers' boards are called nano as well.
        return Identity(None, "no Tegra in {}".format(tree), None, [])
    for found, how in (
        (_by_names(evidence.compatible, boards), "compatible string in " + tree),
        (_by_names([evidence.tnspec or ""], boards), "TNSPEC in " + boot),
        (_by_model(evidence.model, boards), 'model "{}"'.format(evidence.model)),
        (_by_model_words(evidence, boards), 'words of the model "{}"'.format(evidence.model)),
        (_by_soc(evidence, boards), "SoC {} in {}".format(soc_of(evidence.compatible), tree)),
    ):
        if found:
            return _choose(found, how, None, evidence, boards)
    unknown = part_numbers(evidence.compatible)
    how = "this Jetson is not in the board table ({} boards): {}".format(
        len(boards), ", ".join(unknown) or evidence.model or "no part number is readable"
    )
    return Identity(
        None, how, None, ["the rails of a board not in the table are not added up: energy takes one known input rail"]
    )


def is_tegra(evidence: Evidence) -> bool:
    """Whether the evidence names NVIDIA's SoC."""
    model = evidence.model or ""
    return bool(soc_of(evidence.compatible) or re.search(r"\bJetson\b|\bNVIDIA Orin\b", model))


def _by_number(number: str, where: str, evidence: Evidence, boards: Mapping[str, Dict[str, Any]]) -> Identity:
    found = [name for name, board in boards.items() if number in part_numbers(board.get("part_numbers") or [])]
    how = "part number {} in {}".format(number, where)
    if any(_fits(boards[name], evidence.memory_total_mib) for name in found):
        return _choose(found, how, number, evidence, boards)
    family = number.split("-")[0]
    siblings = [
        name
        for name, board in boards.items()
        if any(other.split("-")[0] == family for other in part_numbers(board.get("part_numbers") or []))
        and _fits(board, evidence.memory_total_mib)
    ]
    boot = tnspec_part_number(evidence.tnspec or "")
    if boot and len(siblings) > 1:
        named = [name for name in siblings if boot in part_numbers(boards[name].get("part_numbers") or [])]
        siblings = named or siblings
    memory = "{:,.0f} MiB".format(evidence.memory_total_mib or 0)
    if len(siblings) == 1:
        how += ", but {} of memory: a {} board".format(memory, family)
        note = "{} says {}, whose memory would be {} MiB: {} of the same module family has {}".format(
            where, number, boards[found[0]].get("memory_mib"), siblings[0], memory
        )
        return Identity(siblings[0], how, number, [note])
    note = "memory {} does not fit {} ({} MiB in the table)".format(
        memory, found[0], boards[found[0]].get("memory_mib")
    )
    return Identity(found[0], how, number, [note])


def _choose(
    found: List[str], how: str, number: Optional[str], evidence: Evidence, boards: Mapping[str, Dict[str, Any]]
) -> Identity:
    """One board of several that the same evidence names: the memory decides, else none does."""
    memory = evidence.memory_total_mib
    if len(found) > 1:
        fitting = [name for name in found if _fits(boards[name], memory)]
        if len(fitting) != 1:
            names = ", ".join(sorted(fitting or found))
            note = "{} does not tell these boards apart: {}".format(how, names)
            return Identity(None, "{}, which several boards have".format(how), number, [note])
        return Identity(fitting[0], "{}, {:,.0f} MiB of memory".format(how, memory or 0), number, [])
    if not _fits(boards[found[0]], memory):
        note = "memory {:,.0f} MiB does not fit {} ({} MiB in the table)".format(
            memory or 0, found[0], boards[found[0]].get("memory_mib")
        )
        return Identity(found[0], how, number, [note])
    return Identity(found[0], how, number, [])


def _fits(board: Mapping[str, Any], memory_total_mib: Optional[float]) -> bool:
    size_mib = board.get("memory_mib")
    if memory_total_mib is None or not size_mib:
        return True
    return _LEAST_SHARE * size_mib <= memory_total_mib <= size_mib


def _by_names(texts: List[str], boards: Mapping[str, Dict[str, Any]]) -> List[str]:
    """Boards one of whose compatible strings is among the texts, or whose own name is part of one of them."""
    names = []
    for name, board in boards.items():
        known = [text for text in board.get("compatible") or [] if not re.match(r"^nvidia,tegra\d+$", text)]
        if set(known) & set(texts) or any(re.search(re.escape(name) + r"(?![0-9a-z])", text) for text in texts):
            names.append(name)
    if names:
        return names
    # The boot control file has jetson-agx-thor-t4000 for our jetson-thor-t4000, and no memory size.
    return _by_words([text.split("-") for text in texts], boards)


def _by_words(texts: List[List[str]], boards: Mapping[str, Dict[str, Any]]) -> List[str]:
    """Boards all words of whose name, but jetson and the memory size, are in one text; those with the most words."""
    scores = {}
    for name in boards:
        words = [word for word in name.split("-") if word != "jetson" and not re.match(r"^\d+gb$", word)]
        if any(set(words) <= set(text) for text in texts):
            scores[name] = len(words)
    return [name for name, score in scores.items() if score == max(scores.values())]


def _by_model(model: Optional[str], boards: Mapping[str, Dict[str, Any]]) -> List[str]:
    """Boards that have exactly this model text, else those whose text is its longest beginning."""
    if not model:
        return []
    lengths: List[Tuple[int, str]] = []
    for name, board in boards.items():
        texts = [text for text in board.get("models") or [] if model.startswith(text)]
        if texts:
            lengths.append((max(len(text) for text in texts), name))
    longest = max(lengths)[0] if lengths else 0
    return [name for length, name in lengths if length == longest]


def _by_model_words(evidence: Evidence, boards: Mapping[str, Dict[str, Any]]) -> List[str]:
    """Boards that a third party's model text names ("NVIDIA Orin NX T801-16GB"), of this SoC and memory."""
    fitting = {name: boards[name] for name in _by_soc(evidence, boards)} if soc_of(evidence.compatible) else boards
    return _by_words([re.findall(r"[a-z]+|\d+", (evidence.model or "").lower())], fitting)


def _by_soc(evidence: Evidence, boards: Mapping[str, Dict[str, Any]]) -> List[str]:
    """Boards with this SoC and memory."""
    soc = soc_of(evidence.compatible)
    return [name for name, b in boards.items() if soc and b.get("soc") == soc and _fits(b, evidence.memory_total_mib)]


def soc_of(compatible: List[str]) -> Optional[str]:
    """The SoC that a device tree names, such as "tegra234"; None: none of NVIDIA's."""
    for text in compatible:
        match = re.match(r"^nvidia,(tegra\d+)$", text)
        if match:
            return match.group(1)
    return None
