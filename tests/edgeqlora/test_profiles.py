"""Profiles: every shipped file loads, and a wrong one says file, key, value and what is allowed."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.errors import UserError
from edgeqlora.profiles import format_profile, list_profiles, load_profile, parse_profile, profiles_dir

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


def test_the_boards_of_the_readme_are_there():
    assert list_profiles() == ["cpu", "jetson-nano", "jetson-orin-nano"]
    table = (profiles_dir() / "README.md").read_text(encoding="utf-8")
    for name in list_profiles():
        profile = load_profile(name)
        assert f"| `{name}` |" in table
        assert f"| {profile.tensorrt or 'none'} | {profile.opset} | {profile.python}" in table


def test_a_printed_profile_gives_each_value_with_its_source():
    text = format_profile(load_profile("jetson-nano"))
    assert text.startswith("jetson-nano: NVIDIA Jetson Nano 4GB (2019), JetPack 4.6\n")
    assert (
        "\n  tensorrt       8.2\n                   JetPack 4.6.6 (L4T 32.7.6) has TensorRT 8.2.1: OE4T/meta-tegra"
        in text
    )
    assert "\n  precisions     fp16, fp32\n" in text
    assert "\n  threads        -\n" in text


def test_the_2019_nano_is_what_jetpack_4_gives_it():
    nano = load_profile("jetson-nano")
    assert (nano.opset, nano.tensorrt, nano.python, nano.precisions[0]) == (13, "8.2", "3.6", "fp16")


def test_an_unknown_name_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(
        UserError, match=r"'jetson-orin'.*cpu, jetson-nano, jetson-orin-nano; did you mean 'jetson-orin-nano'"
    ):
        load_profile("jetson-orin")


def test_an_unheard_of_name_suggests_nothing():
    with pytest.raises(UserError, match=r"jetson-orin-nano$"):
        load_profile("zzz")


def test_a_profile_of_ones_own_is_loaded_by_path(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text((profiles_dir() / "cpu.toml").read_text().replace('"cpu"', '"mine"'))
    assert load_profile(own).name == "mine"
    assert load_profile(str(own)).tensorrt is None


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("opset", 12, "13 to 20"),
        ("opset", "13", "13 to 20"),
        ("max_batch", True, "1 to 64"),
        ("max_window_s", 31, "0.02 to 30"),
        ("precisions", ["fp8"], "fp32, fp16, bf16, int8"),
        ("precisions", [], "a list"),
        ("tensorrt", "eight", "a version"),
        ("title", " ", "a text"),
        ("sources", "none", "a table"),
    ],
)
def test_a_wrong_value_names_file_key_value_and_allowed(key, value, allowed):
    with pytest.raises(UserError) as error:
        parse_profile({**GOOD, key: value}, BOARD)
    text = str(error.value)
    assert text.startswith(f"board.toml: {key} = {value!r}; allowed: ")
    assert allowed in text


@given(st.one_of(st.none(), st.booleans(), st.text(), st.integers(max_value=0), st.lists(st.integers()), st.floats()))
def test_no_odd_batch_size_slips_through(value):
    with pytest.raises(UserError, match="max_batch"):
        parse_profile({**GOOD, "max_batch": value}, BOARD)


def test_unknown_and_missing_keys_and_sources_are_named():
    with pytest.raises(UserError, match=r"key 'max_bach' is not known.*did you mean 'max_batch'"):
        parse_profile({**GOOD, "max_bach": 1}, BOARD)
    with pytest.raises(UserError, match="key 'opset' is missing"):
        parse_profile({k: v for k, v in GOOD.items() if k != "opset"}, BOARD)
    with pytest.raises(UserError, match=r"sources\.opset = None"):
        parse_profile({**GOOD, "sources": {k: v for k, v in GOOD["sources"].items() if k != "opset"}}, BOARD)
    with pytest.raises(UserError, match=r"sources\.memory_mib names no key"):
        parse_profile({**GOOD, "sources": {**GOOD["sources"], "memory_mib": "x"}}, BOARD)
    with pytest.raises(UserError, match="name = 'board'"):
        parse_profile(GOOD, Path("other.toml"))


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
