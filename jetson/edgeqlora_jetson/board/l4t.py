"""L4T (Jetson Linux) and JetPack versions of a board."""

import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from .sysfs import Run, read_text, runner

# L4T -> JetPack. dusty-nv/jetson-containers jetson_containers/l4t_version.py (MIT), 36.5.0 and newer OE4T/meta-tegra
# and NVIDIA's release notes. The two disagree on 39.1.0, which is left out.
_JETPACK = {
    "32.1.0": "4.2",
    "32.2.0": "4.2.1",
    "32.2.1": "4.2.2",
    "32.2.3": "4.2.3",
    "32.3.1": "4.3",
    "32.4.2": "4.4 DP",
    "32.4.3": "4.4",
    "32.4.4": "4.4.1",
    "32.5.0": "4.5",
    "32.5.1": "4.5.1",
    "32.5.2": "4.5.1",
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "34.1.0": "5.0 DP",
    "34.1.1": "5.0.1 DP",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.4": "5.1.6",
    "36.2.0": "6.0 DP",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.2": "6.1.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}


class Release(NamedTuple):
    """The board's system."""

    l4t: Optional[str]
    """Such as "36.4.3"; None: not known."""
    jetpack: Optional[str]
    """Such as "6.2"; None: not known."""
    how: str
    """Where L4T was read, or why it could not be."""


def read_release(root: str = "/", boards: Optional[Mapping[str, Any]] = None, run: Optional[Run] = None) -> Release:
    """L4T from /etc/nv_tegra_release, else from the package nvidia-l4t-core; JetPack by table.

    The file is missing in containers and may be on Yocto images and on JetPack 7 installed from the SBSA packages.
    boards: the board table, whose own JetPack releases are looked up too.
    """
    text = read_text(root, "etc/nv_tegra_release")
    l4t = parse_tegra_release(text or "")
    how = "/etc/nv_tegra_release"
    if l4t is None:
        code, output = runner(root, run)(["dpkg-query", "--show", "--showformat=${Version}", "nvidia-l4t-core"])
        l4t = parse_package_version(output) if code == 0 else None
        how = "version of the package nvidia-l4t-core"
    if l4t is None:
        missing = "there is no /etc/nv_tegra_release" if text is None else "/etc/nv_tegra_release names no release"
        return Release(None, None, missing + " and no package nvidia-l4t-core")
    return Release(l4t, jetpack_of(l4t, boards), how)


def parse_tegra_release(text: str) -> Optional[str]:
    """ "# R36 (release), REVISION: 4.3, GCID: ..." -> "36.4.3"."""
    match = re.search(r"R(\d+)\s*\(release\)\s*,\s*REVISION:\s*(\d+(?:\.\d+)*)", text)
    return _three("{}.{}".format(*match.groups())) if match else None


def parse_package_version(text: str) -> Optional[str]:
    """ "36.4.3-20250107174145" -> "36.4.3"."""
    match = re.match(r"\s*(\d+\.\d+(?:\.\d+)?)\b", text)
    return _three(match.group(1)) if match else None


def jetpack_of(l4t: str, boards: Optional[Mapping[str, Any]] = None) -> Optional[str]:
    """JetPack of an L4T release; None for one not in the tables."""
    known: Dict[str, str] = {}
    for board in (boards or {}).values():
        for release in board.get("jetpacks") or ():
            if release.get("l4t") and release.get("jetpack"):
                known[_three(str(release["l4t"]))] = str(release["jetpack"])
    known.update(_JETPACK)
    return known.get(_three(l4t))


def sister_release(
    jetpacks: Optional[Sequence[Mapping[str, Any]]], l4t: Optional[str], tensorrt: Optional[str] = None
) -> Optional[Mapping[str, Any]]:
    """The board table's release that stands for the installed one; None: none does.

    The table has one release for each TensorRT: with the same TensorRT (its first two numbers), else of the same L4T
    series (35 of 35.4.1); of several the one nearest below this L4T, else the oldest.
    """
    rows = sorted(jetpacks or (), key=lambda row: version_key(str(row["l4t"])))
    same = [row for row in rows if tensorrt and version_key(str(row["tensorrt"]))[:2] == version_key(tensorrt)[:2]]
    same = same or [row for row in rows if l4t and version_key(str(row["l4t"]))[:1] == version_key(l4t)[:1]]
    below = [row for row in same if l4t and version_key(str(row["l4t"])) <= version_key(l4t)]
    return below[-1] if below else same[0] if same else None


def version_key(version: str) -> Tuple[int, ...]:
    """Numbers of a version, to compare by: "36.4.3" -> (36, 4, 3)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _three(version: str) -> str:
    """ "36.5" and "36.5.0" are one release."""
    return ".".join((version.split(".") + ["0", "0"])[:3])
