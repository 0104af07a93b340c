"""Hardware profiles as text: one with every value and its source, or a list of all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from edgeqlora.profiles.fields import JetpackRelease, PowerMode, Profile

_WIDTH = 28
_MARK = "  [unsourced]"


def format_profiles(profiles: Iterable[Profile]) -> str:
    """One line a profile: name, title, JetPack, TensorRT, and how many values have no source."""
    rows = [
        (
            profile.name,
            profile.title,
            f"JetPack {profile.jetpack}" if profile.jetpack else "-",
            f"TensorRT {profile.tensorrt}" if profile.tensorrt else "-",
            f"{len(profile.unsourced)} unsourced" if profile.unsourced else "",
        )
        for profile in profiles
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def format_profile(profile: Profile) -> str:
    """All values of a profile as text, each with its source below it; unsourced ones are marked."""
    lines = [f"{profile.name}: {profile.title}", ""]
    unsourced = profile.unsourced
    plain = profile.to_plain()
    for key, value in plain.items():
        if key in ("name", "title", "notes", "unsourced"):
            continue
        mark = _MARK if key in unsourced else ""
        shown = list(_shown(key, value))
        lines.append(f"  {key:<{_WIDTH - 2}}{shown[0]}{mark}")
        lines += [" " * _WIDTH + text for text in shown[1:]]
        for name, text in profile.sources.items():
            whole, _, part = name.partition(".")
            if whole == key:
                lines.append(_paragraph(f"{part}: {text}" if part else text))
        if key in profile.absent:
            lines.append(_paragraph(f"not known: {profile.absent[key]}"))
    if unsourced:
        lines += ["", textwrap.fill(f"No public document confirms: {', '.join(unsourced)}.", 100)]
    return "\n".join([*lines, "", textwrap.fill(profile.notes, 100)])


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=" " * (_WIDTH + 2), subsequent_indent=" " * (_WIDTH + 2))


def _shown(key: str, value: Any) -> Iterator[str]:
    """A value in one line, or one line an entry."""
    if value is None or value == [] or value == ():
        yield "-"
    elif key == "power_modes":
        yield from (_mode(PowerMode(**mode)) for mode in value)
    elif key == "jetpacks":
        yield from (_release(JetpackRelease(**release)) for release in value)
    elif key in ("models", "compatible"):
        yield from value
    else:
        yield ", ".join(value) if isinstance(value, list) else f"{value}"


def _mode(mode: PowerMode) -> str:
    parts = [
        f"{mode.watt_cap:g} W" if mode.watt_cap else "",
        f"GPU to {mode.gpu_max_mhz} MHz" if mode.gpu_max_mhz else "",
        f"{bin(mode.tpc_pg_mask).count('1')} TPC off" if mode.tpc_pg_mask else "",
        "Super" if mode.variant else "",
    ]
    return f"{mode.id} {mode.name:<18}{', '.join(part for part in parts if part)}".rstrip()


def _release(release: JetpackRelease) -> str:
    return (
        f"{release.jetpack:<7}L4T {release.l4t}, TensorRT {release.tensorrt}, CUDA {release.cuda}, "
        f"Python {release.python}, opset {release.opset}"
    )
