"""Checks of a hardware profile beyond its own model: operator tables, the memory a model needs, what is still unknown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqlora.errors import UserError
from edgeqlora.profiles.fields import Profile
from edgeqlora.profiles.load import choose_jetpack, list_profiles, load_profile

NOT_TOTALS = {"VIN_SYS_5V0", "SYS5V"}
"""5 V system rails that have been mistaken for the total (rbonghi/jetson_stats#344)."""

_WEIGHTS_MIB, _KV_MIB_PER_S = 283, 35 / 30
"""Whisper base in fp32: 74 million weights, and per clip and second of window 6 layers of cross-attention K and V
(2 x 50 positions x 512 x 4 bytes). The smallest load that a profile's limits should bear."""


@dataclass(frozen=True)
class ProfileFinding:
    """One result of a check."""

    level: str
    """ "error": the profile contradicts itself or what is known; "note": worth knowing."""
    text: str
    """What it is, with the values."""


def check_profile(profile: Profile) -> list[ProfileFinding]:
    """All findings on a profile, errors first; no errors: it can be exported for."""
    errors = [*_board(profile), *_operators(profile), *_memory(profile)]
    notes = []
    if profile.unsourced:
        notes.append(f"no public document confirms {', '.join(profile.unsourced)}")
    if profile.absent:
        notes.append(f"not known: {', '.join(profile.absent)}")
    return [ProfileFinding("error", text) for text in errors] + [ProfileFinding("note", text) for text in notes]


def run_checks(names_or_paths: Sequence[str | Path] = ()) -> tuple[str, bool]:
    """Check profiles by name or path (none: all shipped ones). Returns the report and whether there is no error.

    A file that cannot be loaded is an error in the report, or several; the others are still checked.
    """
    lines, n_errors = [], 0
    wanted = list(names_or_paths) or list_profiles()
    for name in wanted:
        try:
            findings = _check_releases(load_profile(name))
        except UserError as error:
            findings = [ProfileFinding("error", line) for line in str(error).splitlines()]
        bad = sum(finding.level == "error" for finding in findings)
        n_errors += bad
        lines.append(f"{name}: {'ok' if not bad else f'{bad} error' + 's' * (bad > 1)}")
        lines += [f"  {finding.level}: {finding.text}" for finding in findings]
    lines.append(
        f"{len(wanted)} profile{'s' * (len(wanted) != 1)} checked, {n_errors or 'no'} error{'s' * (n_errors != 1)}"
    )
    return "\n".join(lines), not n_errors


def _check_releases(profile: Profile) -> list[ProfileFinding]:
    """All findings on a profile, then the errors that only another JetPack release of the board has."""
    findings = check_profile(profile)
    for release in profile.jetpacks:
        if release.jetpack != profile.jetpack:
            known = {finding.text for finding in findings}
            findings += [
                ProfileFinding("error", f"with JetPack {release.jetpack}: {finding.text}")
                for finding in check_profile(choose_jetpack(profile, release.jetpack))
                if finding.level == "error" and finding.text not in known
            ]
    return findings


def _board(profile: Profile) -> Iterator[str]:
    if profile.kind == "jetson":
        if not (profile.part_numbers or profile.compatible or profile.models):
            yield "no part_numbers, compatible or models: the board could never be recognised; give at least one"
        if not profile.jetpacks:
            yield "no jetpacks: a Jetson's TensorRT comes with its JetPack; give at least one release"
    if profile.total_rail in NOT_TOTALS:
        yield f"total_rail = {profile.total_rail!r} is a 5 V system rail, never the total: leave total_rail out"


def _operators(profile: Profile) -> Iterator[str]:
    """The opset against the operator table of the profile's TensorRT."""
    if profile.tensorrt is None:
        return
    from edgeqlora_export.lint import load_operators

    try:
        table = load_operators(profile.tensorrt)
    except UserError as error:
        yield str(error)
        return
    if profile.opset > table.max_opset:
        yield f"opset = {profile.opset}, but {table.title} reads up to {table.max_opset}"
    elif profile.opset >= 17 and "LayerNormalization" not in table.operators:
        # PyTorch's exporter writes LayerNormalization as one operator from opset 17 on.
        yield (
            f"opset = {profile.opset} exports LayerNormalization as one operator, which {table.title} does not take: "
            "at most 16"
        )


def _memory(profile: Profile) -> Iterator[str]:
    room, workspace = profile.memory_budget_mib or profile.memory_mib, profile.workspace_mib
    needed = round(_WEIGHTS_MIB + profile.max_batch * profile.max_window_s * _KV_MIB_PER_S) + (workspace or 0)
    if room and needed > room:
        yield (
            f"max_batch = {profile.max_batch} and max_window_s = {profile.max_window_s:g} need about {needed} MiB "
            f"with Whisper base and workspace_mib = {workspace}, but there are {room} MiB: lower one of them"
        )
