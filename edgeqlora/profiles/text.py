"""Hardware profiles as text: one with every value and its source, or a list of all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from edgeqlora.profiles.fields import JetpackRelease, Profile, ProfilePowerMode

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
    for key, value in profile:
        if key in ("name", "title", "notes", "sources", "absent"):
            continue
        mark = _MARK if key in unsourced else ""
        shown = _shown(key, value)
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


def _shown(key: str, value: Any) -> list[str]:
    """A value in one line, or one line an entry."""
    if value is None or value == ():
        return ["-"]
    if key == "power_modes":
        return [_mode(mode) for mode in value]
    if key == "jetpacks":
        return [_release(release) for release in value]
    if key in ("models", "compatible"):
        return list(value)
    return [", ".join(value) if isinstance(value, tuple) else f"{value}"]


def _mode(mode: ProfilePowerMode) -> str:
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
