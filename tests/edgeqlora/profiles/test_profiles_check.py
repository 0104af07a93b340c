"""What contradicts itself or its TensorRT is found, with its values; every shipped profile passes."""

from pathlib import Path

import pytest

from edgeqlora.errors import UserError
from edgeqlora.profiles.check import check_profile, run_checks
from edgeqlora.profiles.load import list_profiles, load_profile, profiles_dir
from edgeqlora.profiles.parse import parse_profile


def _errors(profile):
    return [finding.text for finding in check_profile(profile) if finding.level == "error"]


def _values(profile):
    """What stands in the profile's file, flat."""
    return profile.model_dump(mode="json", exclude_unset=True)


def _errors_with(name, **changes):
    """What is said of a shipped profile with these values changed, None: left out."""
    values = {**_values(load_profile(name)), **changes}
    values = {key: value for key, value in values.items() if value is not None}
    sources = dict.fromkeys(set(values) - {"name", "title", "notes", "kind", "sources", "absent"}, "a page")
    try:
        profile = parse_profile({**values, "sources": sources, "absent": {}}, Path(f"{name}.toml"))
    except UserError as error:
        return str(error).splitlines()
    return _errors(profile)


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_fits_together_with_every_jetpack_it_has(name):
    profile = load_profile(name)
    assert _errors(profile) == []
    for release in profile.jetpacks:
        assert _errors(load_profile(name, jetpack=release.jetpack)) == []


ORIN, AGX, NANO = "jetson-orin-nano", "jetson-agx-orin-64gb", "jetson-nano"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        (ORIN, {"part_numbers": None, "compatible": None, "models": None}, "the board could never be recognised"),
        (ORIN, {"jetpacks": None, "jetpack": None}, "no jetpacks: a Jetson's TensorRT comes with its JetPack"),
        (ORIN, {"jetpack": "6.1"}, "jetpack = '6.1' is not among jetpacks (5.1.6, 6.0, 6.2.2, 7.2)"),
        (ORIN, {"jetpack": None}, "jetpack is missing: name the release of opset"),
        (ORIN, {"tensorrt": "10.1"}, "tensorrt = '10.1', but JetPack 6.2.2 has '10.3'"),
        (ORIN, {"python": "3.8"}, "python = '3.8', but JetPack 6.2.2 has '3.10'"),
        (NANO, {"opset": 14}, "opset = 14, but JetPack 4.6.6 has 13"),
        ("workstation-gpu", {"tensorrt": "8.2", "opset": 14}, "opset = 14, but TensorRT 8.2 reads up to 13"),
        ("workstation-gpu", {"tensorrt": "8.5", "opset": 17}, "which TensorRT 8.5 does not take: at most 16"),
        ("workstation-gpu", {"tensorrt": "7.1"}, "tensorrt='7.1': no operator table"),
        (ORIN, {"precisions": ["fp16"]}, "precisions has no fp32"),
        (ORIN, {"memory_budget_mib": 9000}, "memory_budget_mib = 9000 is more than memory_mib = 8192"),
        (ORIN, {"workspace_mib": 4915}, "workspace_mib = 4915 leaves nothing of 4915 MiB"),
        # 283 MiB of weights + 64 clips x 30 s x 35/30 MiB + 256 MiB of workspace
        ("jetson-nano-2gb", {"max_batch": 64}, "need about 2779 MiB with Whisper base and workspace_mib = 256"),
        (ORIN, {"total_rail": "VDD"}, "total_rail = 'VDD' is not among rails (VDD_IN, VDD_CPU_GPU_CV, VDD_SOC)"),
        (ORIN, {"total_rail": None}, "energy_scope = 'module_input' needs a total_rail"),
        (ORIN, {"sum_rails": ["VDD_SOC"]}, "the parts of a module's input do not add up to it"),
        (ORIN, {"energy_scope": "none"}, "energy_scope = 'none', but there is a total_rail"),
        (
            AGX,
            {"total_rail": "VIN_SYS_5V0", "energy_scope": "system_input", "sum_rails": None},
            "total_rail = 'VIN_SYS_5V0' is a 5 V system rail, never the total",
        ),
        (AGX, {"sum_rails": None}, "energy_scope = 'sum_of_rails' needs sum_rails and no total_rail; here [], None"),
        (AGX, {"optional_rails": ["VDD_X"]}, "optional_rails has VDD_X, not among rails"),
        (AGX, {"optional_rails": ["VDD_CPU_CV"]}, "it would be counted twice"),
        (ORIN, {"default_power_mode": "MAXN"}, "default_power_mode = 'MAXN' is not among power_modes (15W, 7W)"),
        (
            ORIN,
            {"default_power_mode_super": "7W_AI"},
            "default_power_mode_super = '7W_AI' is not among power_modes (variant 'super')",
        ),
        (
            NANO,
            {"power_modes": [{"id": 0, "name": "MAXN"}, {"id": 1, "name": "MAXN"}]},
            "power_modes: name 'MAXN' stands 2 times",
        ),
        (
            NANO,
            {"power_modes": [{"id": 0, "name": "MAXN"}, {"id": 0, "name": "5W"}]},
            "power_modes: id 0 stands 2 times",
        ),
    ],
)
def test_each_contradiction_is_an_error_with_its_values(name, changes, expected):
    errors = _errors_with(name, **changes)
    assert any(expected in error for error in errors), errors


def test_one_name_may_stand_in_both_tables_of_an_orin():
    modes = [mode.name for mode in load_profile(ORIN).power_modes]
    assert modes.count("15W") == 2
    assert _errors(load_profile(ORIN)) == []


def test_a_release_that_stands_twice_is_found():
    releases = _values(load_profile(ORIN))["jetpacks"]
    assert _errors_with(ORIN, jetpacks=[*releases, releases[1]]) == [
        "jetson-orin-nano.toml: JetPack 6.0 stands 2 times; allowed: once"
    ]


def test_each_contradiction_has_its_own_line():
    errors = _errors_with(ORIN, total_rail=None, python="3.8", precisions=["fp16"])
    assert errors == [
        "jetson-orin-nano.toml: python = '3.8', but JetPack 6.2.2 has '3.10'",
        "jetson-orin-nano.toml: energy_scope = 'module_input' needs a total_rail",
        "jetson-orin-nano.toml: precisions has no fp32: the graphs are exported in it and it always runs; add it",
    ]


def test_unsourced_and_absent_values_are_notes():
    notes = [f.text for f in check_profile(load_profile("jetson-tx2-nx")) if f.level == "note"]
    assert notes == [
        "no public document confirms energy_scope, rails, total_rail",
        "not known: memory_bandwidth_gbs, models",
    ]


def test_the_report_of_all_shipped_profiles():
    text, ok = run_checks()
    assert ok
    assert text.splitlines()[0] == "cpu: ok"
    assert text.endswith("18 profiles checked, no errors")


def test_a_profile_of_ones_own_is_checked_by_path_and_the_rest_goes_on(tmp_path):
    own = tmp_path / "mine.toml"
    text = (profiles_dir() / "jetson-nano.toml").read_text(encoding="utf-8")
    own.write_text(text.replace('"jetson-nano"', '"mine"').replace('total_rail = "POM_5V_IN"', 'total_rail = "VDD_IN"'))
    report, ok = run_checks([str(own), tmp_path / "absent.toml", "cpu"])
    lines = report.splitlines()
    assert not ok
    assert lines[0] == f"{own}: 1 error"
    assert lines[1] == f"  error: {own}: total_rail = 'VDD_IN' is not among rails (POM_5V_IN, POM_5V_GPU, POM_5V_CPU)"
    assert lines[2] == f"{tmp_path / 'absent.toml'}: 1 error"
    assert "this profile cannot be read: No such file" in lines[3]
    assert lines[4] == "cpu: ok"
    assert lines[-1] == "3 profiles checked, 2 errors"


def test_an_error_of_another_jetpack_release_names_the_release(tmp_path):
    own = tmp_path / "mine.toml"
    text = (profiles_dir() / "jetson-orin-nano.toml").read_text(encoding="utf-8")
    old = 'cuda = "11.4"\nopset = 13'
    assert old in text
    own.write_text(text.replace('"jetson-orin-nano"', '"mine"').replace(old, 'cuda = "11.4"\nopset = 17'))
    report, ok = run_checks([own])
    assert not ok
    assert "error: with JetPack 5.1.6: opset = 17 exports LayerNormalization" in report
