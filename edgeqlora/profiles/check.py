"""Cross-checks of a hardware profile: its values against each other, operator tables, and what its chip is known for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqlora.errors import UserError
from edgeqlora.profiles.fields import JetpackRelease, Profile

COMPUTE_CAPABILITY = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
"""Of each chip's GPU (rbonghi/jetson_stats jtop/core/jetson_variables.py, OE4T/meta-tegra)."""

PRECISIONS = {
    "5.3": {"fp32", "fp16"},
    "6.2": {"fp32", "fp16"},
    "7.2": {"fp32", "fp16", "int8"},
    "8.7": {"fp32", "fp16", "bf16", "int8"},
    "11.0": {"fp32", "fp16", "bf16", "int8"},
}
"""What TensorRT offers on each GPU: NVIDIA's hardware and precision matrices. bf16 needs TensorRT 9 or newer too."""

RAIL_FAMILIES = {
    "tegra210": [{"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"}],
    "tegra186": [
        {"VDD_IN", "VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_4V0_WIFI", "VDD_SYS_CPU", "VDD_SYS_DDR"}
        | {"VDD_CPU", "VDD_GPU", "VDD_SOC", "VDD_WIFI", "VDD_DDR"}
    ],
    "tegra194": [{"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}, {"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}],
    "tegra234": [
        {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"},
        {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"},
    ],
    "tegra264": [{"VIN", "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}],
}
"""Rails in recorded tegrastats lines, by chip and, where a chip has several modules, by family."""

NOT_TOTALS = {"VIN_SYS_5V0", "SYS5V"}
"""5 V system rails that have been mistaken for the total (rbonghi/jetson_stats#344)."""

PYTHON_OF_L4T = {"32": "3.6", "35": "3.8", "36": "3.10", "38": "3.12", "39": "3.12"}
"""Python of the Ubuntu that each Jetson Linux is built on (dusty-nv/jetson-containers l4t_version.py)."""

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
    """All findings on a profile, errors first; no errors: its values fit together."""
    errors = [
        *_identification(profile),
        *_software(profile),
        *_limits(profile),
        *_rails(profile),
        *_power_modes(profile),
    ]
    notes = []
    if profile.unsourced:
        notes.append(f"no public document confirms {', '.join(profile.unsourced)}")
    if profile.absent:
        notes.append(f"not known: {', '.join(profile.absent)}")
    return [ProfileFinding("error", text) for text in errors] + [ProfileFinding("note", text) for text in notes]


def run_checks(names_or_paths: Sequence[str | Path] = ()) -> tuple[str, bool]:
    """Check profiles by name or path (none: all shipped ones). Returns the report and whether there is no error.

    A file that cannot be loaded is an error in the report; the others are still checked.
    """
    from edgeqlora.profiles.load import list_profiles, load_profile

    lines, n_errors = [], 0
    wanted = list(names_or_paths) or list_profiles()
    for name in wanted:
        try:
            profile = load_profile(name)
            findings = check_profile(profile)
            for release in profile.jetpacks:
                if release.jetpack != profile.jetpack:
                    findings += _other_release(name, release, findings)
        except UserError as error:
            findings = [ProfileFinding("error", str(error))]
        bad = sum(finding.level == "error" for finding in findings)
        n_errors += bad
        lines.append(f"{name}: {'ok' if not bad else f'{bad} error' + 's' * (bad > 1)}")
        lines += [f"  {finding.level}: {finding.text}" for finding in findings]
    lines.append(
        f"{len(wanted)} profile{'s' * (len(wanted) != 1)} checked, {n_errors or 'no'} error{'s' * (n_errors != 1)}"
    )
    return "\n".join(lines), not n_errors


def _other_release(name: str | Path, release: JetpackRelease, seen: Sequence[ProfileFinding]) -> list[ProfileFinding]:
    """What is wrong only with another JetPack release of the same board."""
    from edgeqlora.profiles.load import load_profile

    known = {finding.text for finding in seen}
    found = check_profile(load_profile(name, jetpack=release.jetpack))
    return [
        ProfileFinding("error", f"with JetPack {release.jetpack}: {finding.text}")
        for finding in found
        if finding.level == "error" and finding.text not in known
    ]


def _identification(profile: Profile) -> Iterator[str]:
    if profile.kind != "jetson":
        return
    if profile.soc not in COMPUTE_CAPABILITY:
        yield f"soc = {profile.soc!r}; a Jetson's is one of {', '.join(COMPUTE_CAPABILITY)}"
    elif profile.compute_capability != COMPUTE_CAPABILITY[profile.soc]:
        yield (
            f"compute_capability = {profile.compute_capability!r}, but {profile.soc} has "
            f"{COMPUTE_CAPABILITY[profile.soc]}"
        )
    if not (profile.part_numbers or profile.compatible or profile.models):
        yield "no part_numbers, compatible or models: the board could never be recognised; give at least one"
    if not profile.jetpacks:
        yield "no jetpacks: a Jetson's TensorRT comes with its JetPack; give at least one release"


def _software(profile: Profile) -> Iterator[str]:
    for release in profile.jetpacks:
        series = release.l4t.split(".")[0]
        if series not in PYTHON_OF_L4T:
            yield f"l4t = {release.l4t!r} of JetPack {release.jetpack}; known series are {', '.join(PYTHON_OF_L4T)}"
        elif release.python != PYTHON_OF_L4T[series]:
            yield (
                f"python = {release.python!r} of JetPack {release.jetpack}, but L4T {series} has {PYTHON_OF_L4T[series]}"
            )
    names = [release.jetpack for release in profile.jetpacks]
    yield from (f"JetPack {name} stands {n} times; allowed: once" for name, n in Counter(names).items() if n > 1)
    if profile.jetpack is not None and profile.jetpack not in names:
        yield f"jetpack = {profile.jetpack!r} is not among jetpacks ({', '.join(names) or 'none'})"
    elif profile.jetpacks and profile.jetpack is None:
        yield f"jetpack is missing: name the release of opset, tensorrt and python, one of {', '.join(names)}"
    for release in profile.jetpacks:
        if release.jetpack == profile.jetpack:
            yield from _against_release(profile, release)
    yield from _operators(profile)
    yield from _precisions(profile)


def _against_release(profile: Profile, release: JetpackRelease) -> Iterator[str]:
    wanted = {
        "tensorrt": ".".join(release.tensorrt.split(".")[:2]),
        "python": release.python,
        "opset": release.opset,
    }
    for key, value in wanted.items():
        if getattr(profile, key) != value:
            yield f"{key} = {getattr(profile, key)!r}, but JetPack {release.jetpack} has {value!r}"


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


def _precisions(profile: Profile) -> Iterator[str]:
    offered = PRECISIONS.get(profile.compute_capability or "")
    for precision in profile.precisions:
        if offered is not None and precision not in offered:
            yield (
                f"precisions has {precision}, which TensorRT does not offer on compute capability "
                f"{profile.compute_capability}; it offers {', '.join(p for p in ('fp32', 'fp16', 'bf16', 'int8') if p in offered)}"
            )
        elif precision == "bf16" and profile.tensorrt and int(profile.tensorrt.split(".")[0]) < 9:
            yield f"precisions has bf16, which TensorRT {profile.tensorrt} does not know; 9 and newer do"
    if "fp32" not in profile.precisions:
        yield "precisions has no fp32: the graphs are exported in it and it always runs"


def _limits(profile: Profile) -> Iterator[str]:
    memory, budget, workspace = profile.memory_mib, profile.memory_budget_mib, profile.workspace_mib
    if memory and budget and budget > memory:
        yield f"memory_budget_mib = {budget} is more than memory_mib = {memory}"
    room = budget or memory
    if room and workspace and workspace >= room:
        yield f"workspace_mib = {workspace} leaves nothing of {room} MiB for the model"
    elif room:
        needed = round(_WEIGHTS_MIB + profile.max_batch * profile.max_window_s * _KV_MIB_PER_S) + (workspace or 0)
        if needed > room:
            yield (
                f"max_batch = {profile.max_batch} and max_window_s = {profile.max_window_s:g} need about {needed} MiB "
                f"with Whisper base and workspace_mib = {workspace}, but there are {room} MiB: lower one of them"
            )


def _rails(profile: Profile) -> Iterator[str]:
    scope, total, rails = profile.energy_scope, profile.total_rail, set(profile.rails)
    for key in ("sum_rails", "optional_rails"):
        missing = [rail for rail in getattr(profile, key) if rail not in rails]
        if missing:
            yield f"{key} has {', '.join(missing)}, not among rails ({', '.join(profile.rails) or 'none'})"
    if total is not None and total not in rails:
        yield f"total_rail = {total!r} is not among rails ({', '.join(profile.rails) or 'none'})"
    if total in NOT_TOTALS:
        yield f"total_rail = {total!r} is a 5 V system rail, never the total: leave total_rail out"
    if scope in ("module_input", "system_input") and total is None:
        yield f"energy_scope = {scope!r} needs a total_rail"
    if scope == "module_input" and profile.sum_rails:
        yield "energy_scope = 'module_input' with sum_rails: the parts of a module's input do not add up to it"
    if scope == "sum_of_rails" and (total is not None or not profile.sum_rails):
        yield f"energy_scope = 'sum_of_rails' needs sum_rails and no total_rail; here {list(profile.sum_rails)}, {total!r}"
    if scope == "none" and (total is not None or profile.sum_rails):
        yield "energy_scope = 'none', but there is a total_rail or sum_rails: say what they cover"
    if total in profile.sum_rails or set(profile.optional_rails) & set(profile.sum_rails):
        yield "sum_rails holds the total_rail or an optional rail: it would be counted twice"
    families = RAIL_FAMILIES.get(profile.soc or "")
    if families is not None and not any(rails <= family for family in families):
        best = max(families, key=lambda family: len(rails & family))
        yield (
            f"rails has {', '.join(sorted(rails - best))}, which no recorded tegrastats line of {profile.soc} shows; "
            f"known are {', '.join(sorted(best))}"
        )


def _power_modes(profile: Profile) -> Iterator[str]:
    for variant, default_key in (("", "default_power_mode"), ("super", "default_power_mode_super")):
        modes = [mode for mode in profile.power_modes if mode.variant == variant]
        which = "power_modes" + (f" (variant {variant!r})" if variant else "")
        for field in ("name", "id"):
            counts = Counter(getattr(mode, field) for mode in modes)
            yield from (f"{which}: {field} {value!r} stands {n} times" for value, n in counts.items() if n > 1)
        default = getattr(profile, default_key)
        if default is not None and default not in [mode.name for mode in modes]:
            yield f"{default_key} = {default!r} is not among {which} ({', '.join(m.name for m in modes) or 'none'})"
