"""Profiles: every shipped file loads, and a wrong one says file, key, value and what is allowed."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.errors import UserError
from edgeqlora.profiles.check import run_checks
from edgeqlora.profiles.fields import JetpackRelease, Profile, ProfilePowerMode
from edgeqlora.profiles.load import (
    ENERGY_USES,
    list_profiles,
    load_profile,
    profile_toml,
    profiles_dir,
    unsourced_of,
)
from edgeqlora.profiles.parse import parse_profile
from edgeqlora.profiles.text import format_profile, format_profiles

GOOD = {
    "name": "board",
    "title": "A board",
    "opset": 13,
    "precisions": ["fp16", "fp32"],
    "max_window_s": 10,
    "max_batch": 2,
    "python": "3.8",
    "tensorrt": "8.5",
    "notes": "none",
    "sources": dict.fromkeys(("opset", "precisions", "max_window_s", "max_batch", "python", "tensorrt"), "our choice"),
}
BOARD = Path("board.toml")


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_loads_under_its_own_name(name):
    profile = load_profile(name)
    assert profile.name == name
    assert "sources" not in profile.to_plain()
    assert profile.to_plain()["max_batch"] == profile.max_batch


def test_the_readme_lists_every_profile_and_every_key():
    table = (profiles_dir() / "README.md").read_text(encoding="utf-8")
    for name in list_profiles():
        profile = load_profile(name)
        assert f"| `{name}` | {profile.title} |" in table
        assert f"| {profile.tensorrt or 'none'} | {profile.opset} | {profile.python} |" in table
    for key in load_profile("cpu").to_plain():
        assert f"| `{key}` |" in table or key == "unsourced"


def test_a_printed_profile_gives_each_value_with_its_source():
    text = format_profile(load_profile("jetson-nano"))
    assert text.startswith("jetson-nano: NVIDIA Jetson Nano 4GB (2019)\n")
    nano = "JetPack 4.6.6 (L4T 32.7.6) has TensorRT 8.2.1: OE4T/meta-tegra"
    assert f"\n  tensorrt                  8.2\n{' ' * 30}{nano}" in text
    assert "\n  precisions                fp16, fp32\n" in text
    assert "\n  threads                   -\n" in text
    assert "\n  power_modes               0 MAXN              10 W, GPU to 921 MHz\n" in text
    assert "4.6.6  L4T 32.7.6, TensorRT 8.2.1, CUDA 10.2, Python 3.6, opset 13\n" in text


def test_a_printed_profile_marks_what_is_unsourced_and_says_why_a_value_is_absent():
    text = format_profile(load_profile("jetson-tx2-nx"))
    assert "\n  total_rail                VDD_IN  [unsourced]\n" in text
    assert "\n  memory_mib                4096\n" in text
    assert f"\n  memory_bandwidth_gbs      -\n{' ' * 30}not known: no public source" in text
    assert "\nNo public document confirms: energy_scope, rails, total_rail.\n" in text
    super_ = format_profile(load_profile("jetson-orin-nano"))
    assert "\n                            0 15W               15 W, GPU to 612 MHz, 4 TPC off, Super\n" in super_
    assert "bf16: unsourced: the GPU is Ampere" in super_


def test_the_list_names_jetpack_tensorrt_and_how_much_is_unsourced():
    lines = format_profiles(load_profile(name) for name in ("cpu", "jetson-nano-2gb")).splitlines()
    assert lines[0].split() == ["cpu", "Any", "Linux", "machine", "with", "a", "CPU", "-", "-"]
    assert lines[1].endswith("NVIDIA Jetson Nano 2GB        JetPack 4.6.6  TensorRT 8.2  6 unsourced")


def test_the_2019_nano_is_what_jetpack_4_gives_it():
    nano = load_profile("jetson-nano")
    assert (nano.opset, nano.tensorrt, nano.python, nano.precisions[0]) == (13, "8.2", "3.6", "fp16")


def test_an_unknown_name_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(
        UserError,
        match=r"'jetson-orin-nono' is not known.*cpu, jetson-agx-orin-32gb, .*; did you mean 'jetson-orin-nano'",
    ):
        load_profile("jetson-orin-nono")


def test_an_unheard_of_name_suggests_nothing():
    with pytest.raises(UserError, match=r"workstation-gpu$"):
        load_profile("zzz")


def test_a_profile_of_ones_own_is_loaded_by_path(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text((profiles_dir() / "cpu.toml").read_text().replace('name = "cpu"', 'name = "mine"'))
    assert load_profile(own).name == "mine"
    assert load_profile(str(own)).tensorrt is None


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("opset", 12, "13 to 20"),
        ("opset", "13", "13 to 20"),
        ("opset", 13.0, "13 to 20"),
        ("max_batch", True, "1 to 64 clips"),
        ("max_window_s", 31, "0.02 to 30 s"),
        ("max_window_s", True, "0.02 to 30 s"),
        ("max_window_s", float("nan"), "0.02 to 30 s"),
        ("memory_bandwidth_gbs", "68", "1 to 10000 GB/s"),
        ("memory_bandwidth_gbs", 0.5, "1 to 10000 GB/s"),
        ("precisions", [], "a list out of fp32, fp16, bf16, int8"),
        ("tensorrt", "eight", 'a version such as "8.2"'),
        ("title", " ", "a text"),
        ("sources", "none", "a table"),
        ("kind", "phone", '"jetson", "cpu" or "gpu"'),
        ("part_numbers", ["p3767-0005", "p3767-0005"], "without repeats"),
        ("compatible", "nvidia,tegra234", "a list"),
        ("energy_scope", "wall", "module_input"),
        ("compute_capability", "87", "8.7"),
        ("power_modes", {"id": 0}, "a list of tables"),
    ],
)
def test_a_wrong_value_names_file_key_value_and_allowed(key, value, allowed):
    text = _outcome({**GOOD, key: value})
    assert text.startswith(f"board.toml: {key} = {value!r}; allowed: ")
    assert allowed in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("precisions", "fp8", "fp32, fp16, bf16, int8"),
        ("part_numbers", "3767-0005", "p3767-0005"),
        ("rails", "vdd_in", "VDD_IN"),
        ("models", 3, "a list of texts"),
        ("power_modes", "MAXN", "a list of tables"),
    ],
)
def test_a_wrong_entry_of_a_list_is_named_by_its_place(key, value, allowed):
    text = _outcome({**GOOD, key: [value]})
    assert text.startswith(f"board.toml: {key}[0] = {value!r}; allowed: ")
    assert allowed in text


def test_every_wrong_value_has_its_own_line():
    assert _outcome({**GOOD, "opset": 12, "max_batch": 0, "xyz": 5, "kind": "phone"}).splitlines() == [
        "board.toml: opset = 12; allowed: ONNX opset of the exported graphs, 13 to 20",
        "board.toml: max_batch = 0; allowed: Largest batch, 1 to 64 clips",
        'board.toml: kind = \'phone\'; allowed: What it is: "jetson", "cpu" or "gpu" (a workstation\'s); '
        'left out: "jetson" with a tensorrt, else "cpu"',
        f"board.toml: key 'xyz' is not known; allowed are {', '.join(Profile.model_fields)}",
    ]


@pytest.mark.parametrize("model", [Profile, ProfilePowerMode, JetpackRelease])
def test_each_field_says_what_is_allowed_in_it(model):
    for key, field in model.model_fields.items():
        assert field.description, key
        limits = [getattr(part, side) for side in ("ge", "le") for part in field.metadata if hasattr(part, side)]
        if limits:
            assert f"{limits[0]} to {limits[1]}" in field.description, key


@given(st.one_of(st.none(), st.booleans(), st.text(), st.integers(max_value=0), st.lists(st.integers()), st.floats()))
def test_no_odd_batch_size_slips_through(value):
    with pytest.raises(UserError, match="max_batch"):
        parse_profile({**GOOD, "max_batch": value}, BOARD)


def test_unknown_and_missing_keys_and_sources_are_named():
    with pytest.raises(UserError, match=r"key 'max_bach' is not known.*did you mean 'max_batch'"):
        parse_profile({**GOOD, "max_bach": 1}, BOARD)
    with pytest.raises(
        UserError, match=r"key 'opset' is missing; add it: ONNX opset of the exported graphs, 13 to 20$"
    ):
        parse_profile({k: v for k, v in GOOD.items() if k != "opset"}, BOARD)
    with pytest.raises(UserError, match=r"key 'sources\.opset' is missing; add it: a text that says where"):
        parse_profile({**GOOD, "sources": {k: v for k, v in GOOD["sources"].items() if k != "opset"}}, BOARD)
    with pytest.raises(UserError, match=r"sources\.memory_mib names no key"):
        parse_profile({**GOOD, "sources": {**GOOD["sources"], "memory_mib": "x"}}, BOARD)
    with pytest.raises(UserError, match="name = 'board'"):
        parse_profile(GOOD, Path("other.toml"))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*Profile.model_fields, "identification", "power"]), ANYTHING)
def test_whatever_stands_in_a_key_it_is_a_profile_or_one_message(key, value):
    sources = {**_board()["sources"], **({key: "a page"} if key in Profile.model_fields else {})}
    outcome = _outcome({**_board(), "sources": sources, key: value})
    if isinstance(outcome, str):
        assert outcome.startswith("board.toml: ")
    else:
        assert json.loads(json.dumps(outcome.to_plain()))["name"] == "board"


def _outcome(values):
    try:
        return parse_profile(values, BOARD)
    except UserError as error:
        return str(error)


BOARD_FACTS = {
    "identification": {"soc": "tegra234", "part_numbers": ["p3767-0005"]},
    "power": {"total_rail": "VDD_IN", "rails": ["VDD_IN"], "energy_scope": "module_input"},
    "power_modes": [{"id": 0, "name": "15W", "watt_cap": 15}],
    "jetpack": "5.1.6",
    "jetpacks": [
        {"jetpack": "5.1.6", "l4t": "35.6.4", "tensorrt": "8.5.2", "python": "3.8", "cuda": "11.4", "opset": 13}
    ],
}
FACT_KEYS = ("soc", "part_numbers", "total_rail", "rails", "energy_scope", "power_modes", "jetpack", "jetpacks")


def _board(**sources):
    return {**GOOD, **BOARD_FACTS, "sources": {**GOOD["sources"], **dict.fromkeys(FACT_KEYS, "a page"), **sources}}


def test_groups_of_the_file_are_flat_in_the_profile():
    plain = parse_profile(_board(), BOARD).to_plain()
    assert plain["part_numbers"] == ["p3767-0005"]
    assert (plain["total_rail"], plain["sum_rails"], plain["kind"]) == ("VDD_IN", [], "jetson")
    mode = {"id": 0, "name": "15W", "watt_cap": 15, "gpu_max_mhz": None, "tpc_pg_mask": None, "variant": ""}
    assert plain["power_modes"] == [mode]
    assert plain["jetpacks"] == BOARD_FACTS["jetpacks"]
    assert not {"identification", "power", "sources", "absent"} & set(plain)


def test_a_profile_without_the_newer_keys_still_loads():
    profile = parse_profile(GOOD, BOARD)
    assert (profile.kind, profile.energy_scope, profile.rails, profile.unsourced) == ("jetson", "none", (), ())
    assert parse_profile({**GOOD, "kind": "gpu"}, BOARD).kind == "gpu"


def test_misplaced_and_wrong_keys_inside_tables_are_named():
    board = _board()
    with pytest.raises(UserError, match=r"key power\.'soc' is not known; allowed there are .*total_rail"):
        parse_profile({**board, "power": {"soc": "tegra234"}}, BOARD)
    with pytest.raises(UserError, match=r"key 'soc' stands twice, once in \[identification\]"):
        parse_profile({**board, "soc": "tegra234"}, BOARD)
    with pytest.raises(UserError, match=r"power = 3; allowed: a table of default_power_mode"):
        parse_profile({**board, "power": 3}, BOARD)
    with pytest.raises(UserError, match=r"key 'power_modes\[0\]\.wat_cap' is not known; .*did you mean 'watt_cap'"):
        parse_profile({**board, "power_modes": [{"id": 0, "name": "x", "wat_cap": 1}]}, BOARD)
    with pytest.raises(UserError, match=r"key 'power_modes\[0\]\.name' is missing"):
        parse_profile({**board, "power_modes": [{"id": 0}]}, BOARD)
    with pytest.raises(UserError, match=r"jetpacks\[0\]\.l4t = 36; allowed: Jetson Linux: a version such as"):
        parse_profile({**board, "jetpacks": [{**BOARD_FACTS["jetpacks"][0], "l4t": 36}]}, BOARD)


def test_sources_may_name_parts_and_unsourced_is_found_in_both():
    unsourced = {"total_rail": "Unsourced", "power_modes.watt_cap": "unsourced: a guess", "rails": "not unsourced"}
    assert parse_profile(_board(**unsourced), BOARD).unsourced == ("power_modes.watt_cap", "total_rail")
    assert parse_profile(_board(**{"jetpacks.5.1.6": "a page"}), BOARD).unsourced == ()
    with pytest.raises(UserError, match=r"sources\.'power_modes\.volts' names no part of power_modes; .*watt_cap, 15W"):
        parse_profile(_board(**{"power_modes.volts": "x"}), BOARD)
    with pytest.raises(UserError, match=r"sources\.power_modes\.watt_cap = 3; allowed: .* a text for each key"):
        parse_profile(_board(**{"power_modes.watt_cap": 3}), BOARD)


def test_an_absent_value_has_a_reason():
    assert parse_profile({**GOOD, "absent": {"memory_mib": "differs"}}, BOARD).absent == {"memory_mib": "differs"}
    for absent in ({"opset": "x"}, {"volts": "x"}):
        with pytest.raises(UserError, match=r"absent\.\w+: allowed: a key of profiles that this one does not give"):
            parse_profile({**GOOD, "absent": absent}, BOARD)
    with pytest.raises(UserError, match=r"absent\.memory_mib = ''; allowed: Why a key has no value: .* a text"):
        parse_profile({**GOOD, "absent": {"memory_mib": ""}}, BOARD)


def test_an_older_jetpack_brings_its_tensorrt_python_and_opset():
    own = load_profile("jetson-orin-nano")
    assert (own.jetpack, own.tensorrt, own.python, own.opset) == ("6.2.2", "10.3", "3.10", 17)
    older = load_profile("jetson-orin-nano", jetpack="5.1")
    assert (older.jetpack, older.tensorrt, older.python, older.opset) == ("5.1.6", "8.5", "3.8", 13)
    assert older.precisions == ("fp16", "fp32", "int8")  # TensorRT 8.5 has no bf16
    assert "precisions.bf16" not in older.unsourced
    assert "L4T 35.6.4, TensorRT 8.5.2" in older.sources["tensorrt"]
    assert (older.rails, older.power_modes) == (own.rails, own.power_modes)
    newer = load_profile("jetson-orin-nano", jetpack="7")
    assert (newer.jetpack, newer.tensorrt, newer.python) == ("7.2", "10.16", "3.12")
    assert load_profile("jetson-orin-nano", jetpack="6").jetpack == "6.2.2"  # the newest of 6.0 and 6.2.2


def test_a_jetpack_the_board_has_not_is_refused_with_those_it_has():
    for wrong in ("4.6", "6.2.1", "6.", "", "six"):
        with pytest.raises(
            UserError, match=r"is not known for jetson-orin-nano; its releases are 5\.1\.6, 6\.0, 6\.2\.2, 7"
        ):
            load_profile("jetson-orin-nano", jetpack=wrong)
    with pytest.raises(UserError, match=r"jetpack='6.2': cpu has no JetPack releases; leave it out"):
        load_profile("cpu", jetpack="6.2")


def test_unsourced_values_are_told_by_what_uses_them():
    assert unsourced_of(load_profile("jetson-orin-nano")) == []  # bf16 is offered, not asked for
    nano = load_profile("jetson-nano-2gb")
    assert unsourced_of(nano) == []
    assert unsourced_of(nano, ENERGY_USES)[2] == "total_rail = POM_5V_IN"
    own = parse_profile({**GOOD, "sources": {**GOOD["sources"], "max_batch": "unsourced"}}, BOARD)
    assert unsourced_of(own) == ["max_batch = 2"]


def test_broken_and_absent_files_are_named(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("opset = ")
    with pytest.raises(UserError, match=r"broken\.toml: this profile is not TOML"):
        load_profile(broken)
    with pytest.raises(UserError, match=r"absent\.toml: this profile cannot be read: No such file"):
        load_profile(tmp_path / "absent.toml")


def test_the_checkout_comes_first_then_the_packaged_copy(tmp_path):
    package = tmp_path / "site" / "edgeqlora"
    package.mkdir(parents=True)
    with pytest.raises(UserError, match="install edgeqlora again"):
        profiles_dir(package)
    (package.parent / "profiles").mkdir()  # somebody else's
    shutil.copytree(profiles_dir(), package / "_profiles")
    assert profiles_dir(package) == package / "_profiles"
    shutil.copy(package / "_profiles" / "cpu.toml", package.parent / "profiles")
    assert profiles_dir(package) == package.parent / "profiles"


def test_a_profile_of_ones_own_starts_from_a_boards_file(tmp_path):
    path = tmp_path / "my-board.toml"
    path.write_text(profile_toml("jetson-orin-nano", "my-board"))
    text, is_good = run_checks([path])
    assert is_good, text
    own, nano = load_profile(path), load_profile("jetson-orin-nano")
    assert (own.name, own.rails, own.sources) == ("my-board", nano.rails, nano.sources)
    # Without a new name it is the file as it is; from one's own file as well.
    assert profile_toml("cpu") == (profiles_dir() / "cpu.toml").read_text()
    assert profile_toml(path, "other").startswith('name = "other"\n')


@pytest.mark.parametrize("name", ["", "a/b", "x.toml", 'x"', ".hidden"])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(UserError, match=r"name=.*allowed: letters, digits"):
        profile_toml("cpu", name)
