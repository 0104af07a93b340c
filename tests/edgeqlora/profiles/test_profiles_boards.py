"""The shipped boards against what was recorded from them, against each other, and against the runner's own table."""

import json
from pathlib import Path
from runpy import run_path

import pytest

from edgeqlora.profiles import board_table as boardtable
from edgeqlora.profiles.load import list_profiles, load_profile
from edgeqlora_jetson.board.detect import detect_board
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.power.sample import rail_table, resolve_scope
from edgeqlora_jetson.power.tegrastats_line import parse_line

RECORDED = Path(__file__).resolve().parents[2] / "jetson" / "fixtures" / "tegrastats_lines.txt"

PROFILE_OF = {
    "jetson-nano 4GB": ["jetson-nano"],
    "jetson-tx2 8GB": ["jetson-tx2"],
    "jetson-xavier-nx 8GB": ["jetson-xavier-nx-8gb", "jetson-xavier-nx-16gb"],
    "jetson-agx-xavier": ["jetson-agx-xavier-32gb", "jetson-agx-xavier-64gb"],
    "orin-nano 8GB": ["jetson-orin-nano", "jetson-orin-nano-4gb"],
    "orin-nano or": ["jetson-orin-nano", "jetson-orin-nx-8gb"],
    "orin-nx 16GB": ["jetson-orin-nx-16gb", "jetson-orin-nx-8gb"],
    "agx-orin": ["jetson-agx-orin-32gb", "jetson-agx-orin-64gb"],
    "agx-thor T5000": ["jetson-thor-t5000", "jetson-thor-t4000"],
}
"""Head of a block -> profiles whose board prints such lines (8GB and 16GB modules of a family share the sensors)."""

TOTALS_MW = [row["total_mw"] for row in run_path(str(RECORDED.with_name("tegrastats_expected.py")))["EXPECTED"]]
"""By hand, in the order of the file: what each line's board takes, mW; None: its rails are hidden."""


def _recorded():
    """(head of the block, line) of every recorded line, in order."""
    head, lines = "", []
    for text in RECORDED.read_text(encoding="utf-8").splitlines():
        if text.startswith("## "):
            head = text[3:]
        elif text and not text.startswith("#"):
            lines.append((head, text))
    return lines


def _profiles_of(head):
    return [load_profile(name) for start, names in PROFILE_OF.items() if head.startswith(start) for name in names]


def _rails(text):
    return {name: power_mw for name, power_mw in parse_line(text).rails_mw.items() if name != "NC"}


def test_every_recorded_line_counts_what_was_worked_out_by_hand():
    lines = _recorded()
    assert len(lines) == len(TOTALS_MW) == 41
    for (head, text), total_mw in zip(lines, TOTALS_MW, strict=True):
        rails, profiles = _rails(text), _profiles_of(head)
        assert profiles, head
        for profile in profiles:
            table = rail_table(profile.to_plain())
            assert set(rails) <= set(profile.rails), (profile.name, head)
            if total_mw is None:
                with pytest.raises(UserError, match="no power rail was seen"):
                    resolve_scope(table, list(rails))
                continue
            scope = resolve_scope(table, list(rails))
            assert sum(rails[rail] for rail in scope.rails) == total_mw, (profile.name, head)
            expected = "sum_of_rails" if "VIN" not in rails and profile.sum_rails else profile.energy_scope
            assert scope.energy_scope == expected


def test_a_line_without_one_rail_of_the_sum_is_refused_not_called_a_total():
    for name in ("jetson-agx-orin-64gb", "jetson-agx-xavier-32gb", "jetson-thor-t5000"):
        profile = load_profile(name)
        for missing in profile.sum_rails:
            seen = [rail for rail in profile.sum_rails if rail != missing]
            with pytest.raises(UserError, match=missing):
                resolve_scope(rail_table(profile.to_plain()), seen)


def test_every_rail_of_a_profile_was_seen_in_a_recorded_line_or_is_unsourced():
    seen: dict[str, set[str]] = {}
    for head, text in _recorded():
        for profile in _profiles_of(head):
            seen.setdefault(profile.name, set()).update(_rails(text))
    for name in list_profiles():
        profile = load_profile(name)
        if profile.kind == "jetson" and "rails" not in profile.unsourced:
            assert set(profile.rails) == seen[name], name
        elif profile.kind == "jetson":
            sisters = [rails for sister, rails in seen.items() if load_profile(sister).soc == profile.soc]
            assert any(set(profile.rails) <= rails for rails in sisters), name


CHIPS = {
    "tegra210": ("5.3", {"fp32", "fp16"}),
    "tegra186": ("6.2", {"fp32", "fp16"}),
    "tegra194": ("7.2", {"fp32", "fp16", "int8"}),
    "tegra234": ("8.7", {"fp32", "fp16", "bf16", "int8"}),
    "tegra264": ("11.0", {"fp32", "fp16", "bf16", "int8"}),
}
"""Compute capability of each chip's GPU (rbonghi/jetson_stats jtop/core/jetson_variables.py, OE4T/meta-tegra), and what
TensorRT offers on it: NVIDIA's hardware and precision matrices. bf16 needs TensorRT 9 or newer too."""

PYTHON_OF_L4T = {"32": "3.6", "35": "3.8", "36": "3.10", "38": "3.12", "39": "3.12"}
"""Python of the Ubuntu that each Jetson Linux is built on (dusty-nv/jetson-containers l4t_version.py)."""


@pytest.mark.parametrize("name", list_profiles())
def test_a_board_offers_what_its_chip_and_its_jetpacks_have(name):
    releases = load_profile(name).jetpacks
    for profile in (load_profile(name), *(load_profile(name, release.jetpack) for release in releases)):
        if profile.kind == "jetson":
            compute_capability, offered = CHIPS[profile.soc]
            assert profile.compute_capability == compute_capability
            assert set(profile.precisions) <= offered
        if "bf16" in profile.precisions:
            assert int(profile.tensorrt.split(".")[0]) >= 9, profile.jetpack
    for release in releases:
        assert release.python == PYTHON_OF_L4T[release.l4t.split(".")[0]], release


EXPECTED_BOARDS = {
    # profile: part number, compute capability, GB, modes, fastest mode, default mode, scope, JetPack
    "jetson-nano": ("p3448-0000", "5.3", 4, 2, "MAXN", "MAXN", "module_input", "4.6.6"),
    "jetson-nano-2gb": ("p3448-0003", "5.3", 2, 2, "MAXN", "MAXN", "module_input", "4.6.6"),
    "jetson-tx2": ("p3310-1000", "6.2", 8, 5, "MAXN", "MAXP_CORE_ALL", "module_input", "4.6.6"),
    "jetson-tx2-nx": ("p3636-0001", "6.2", 4, 4, "MAXN", "MAXP_CORE_ALL", "module_input", "4.6.6"),
    "jetson-xavier-nx-8gb": ("p3668-0001", "7.2", 8, 9, "MODE_20W_6CORE", "MODE_10W_DESKTOP", "module_input", "5.1.6"),
    "jetson-xavier-nx-16gb": (
        "p3668-0003",
        "7.2",
        16,
        9,
        "MODE_20W_6CORE",
        "MODE_10W_DESKTOP",
        "module_input",
        "5.1.6",
    ),
    "jetson-agx-xavier-32gb": ("p2888-0004", "7.2", 32, 8, "MAXN", "MODE_15W_DESKTOP", "sum_of_rails", "5.1.6"),
    "jetson-agx-xavier-64gb": ("p2888-0005", "7.2", 64, 8, "MAXN", "MODE_15W_DESKTOP", "sum_of_rails", "5.1.6"),
    "jetson-orin-nano": ("p3767-0005", "8.7", 8, 6, "MAXN_SUPER", "15W", "module_input", "6.2.2"),
    "jetson-orin-nano-4gb": ("p3767-0004", "8.7", 4, 6, "MAXN_SUPER", "10W", "module_input", "6.2.2"),
    "jetson-orin-nx-8gb": ("p3767-0001", "8.7", 8, 9, "MAXN_SUPER", "15W", "module_input", "6.2.2"),
    "jetson-orin-nx-16gb": ("p3767-0000", "8.7", 16, 9, "MAXN_SUPER", "15W", "module_input", "6.2.2"),
    "jetson-agx-orin-32gb": ("p3701-0004", "8.7", 32, 4, "MAXN", "MODE_30W", "sum_of_rails", "6.2.2"),
    "jetson-agx-orin-64gb": ("p3701-0005", "8.7", 64, 4, "MAXN", "MODE_30W", "sum_of_rails", "6.2.2"),
    "jetson-thor-t5000": ("p3834-0008", "11.0", 128, 4, "MAXN", "120W", "system_input", "7.2"),
    "jetson-thor-t4000": ("p3834-0000", "11.0", 64, 0, None, None, "system_input", "7.2"),
}


def test_there_is_one_profile_for_every_board():
    assert list_profiles() == sorted([*EXPECTED_BOARDS, "cpu", "workstation-gpu"])


@pytest.mark.parametrize("name", EXPECTED_BOARDS)
def test_a_board_has_the_facts_of_its_sources(name):
    part, capability, memory_gb, n_modes, fastest, default, scope, jetpack = EXPECTED_BOARDS[name]
    profile = load_profile(name)
    assert part in profile.part_numbers
    assert (profile.compute_capability, profile.memory_mib) == (capability, memory_gb * 1024)
    assert len(profile.power_modes) == n_modes
    assert fastest is None or fastest in [mode.name for mode in profile.power_modes]
    assert (profile.default_power_mode, profile.energy_scope, profile.jetpack) == (default, scope, jetpack)


def test_mode_number_0_is_not_the_fastest_everywhere():
    # Orin Nano Super: 0 is 15W, MAXN_SUPER is 2; Orin NX: 25W has a slower GPU than 15W, with twice the SMs.
    by_name = {(m.name, m.variant): m for m in load_profile("jetson-orin-nano").power_modes}
    assert by_name["15W", "super"].id == 0
    assert by_name["MAXN_SUPER", "super"].id == 2
    nx = {m.name: m for m in load_profile("jetson-orin-nx-16gb").power_modes if not m.variant}
    assert nx["25W"].gpu_max_mhz < nx["15W"].gpu_max_mhz
    assert (nx["25W"].tpc_pg_mask, nx["15W"].tpc_pg_mask) == (0b11110000, 0b11111100)


def test_boards_that_share_an_identification_differ_in_memory():
    owners: dict[str, list[str]] = {}
    for name in EXPECTED_BOARDS:
        profile = load_profile(name)
        for text in (*profile.part_numbers, *profile.compatible, *profile.models):
            owners.setdefault(text, []).append(name)
    shared = {text: names for text, names in owners.items() if len(names) > 1}
    for text, names in shared.items():
        sizes = [load_profile(name).memory_mib for name in names]
        assert len(set(sizes)) == len(sizes), (text, names)
    # The one module number with two memory sizes: the AGX Orin developer kit's.
    assert [text for text in shared if text.startswith("p")] == ["p3701-0000"]


@pytest.mark.parametrize("name", EXPECTED_BOARDS)
def test_the_runner_recognises_a_board_by_each_of_its_strings_and_its_memory(name, tmp_path):
    boards = json.loads(boardtable.table_text())["boards"]
    profile = load_profile(name)
    tree = tmp_path / "proc" / "device-tree"
    tree.mkdir(parents=True)
    # What the kernel leaves of the memory: 7.5 % less in the recorded lines of Orin boards.
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {int(profile.memory_mib * 1024 * 0.925)} kB\n")
    strings = [*profile.compatible, *(f"nvidia,{number}" for number in profile.part_numbers)]
    for text in strings:
        if "p2888-0001" in text and profile.memory_mib != 32768:
            continue
        (tree / "compatible").write_bytes(f"{text}\0nvidia,{profile.soc}\0".encode())
        board = detect_board(root=str(tmp_path), boards=boards, run=lambda argv: (127, ""))
        assert (board.id, board.is_jetson) == (name, True), (text, board.how, board.notes)


def test_the_table_of_the_runner_is_what_the_profiles_say():
    stale = "stale: run python -m edgeqlora.profiles.board_table"
    assert boardtable.table_path().read_text(encoding="utf-8") == boardtable.table_text(), stale


def test_the_table_holds_every_jetson_flat_and_with_its_unsourced_keys():
    table = json.loads(boardtable.table_text())
    assert table["schema"] == "edgeqlora.boards/1"
    assert sorted(table["boards"]) == sorted(EXPECTED_BOARDS)
    orin = table["boards"]["jetson-orin-nx-8gb"]
    assert set(orin) == {*boardtable.KEYS, "unsourced"}
    assert orin["unsourced"] == ["default_power_mode", "memory_bandwidth_gbs"]  # bf16 is of no use to the board
    assert orin["total_rail"] == "VDD_IN"
    assert orin["jetpacks"][0]["jetpack"] == "5.1.6"
    assert orin["power_modes"][3]["name"] == "20W"


def test_the_command_writes_only_what_changed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "boards.json"
    monkeypatch.setattr(boardtable, "table_path", lambda: path)
    assert boardtable.main(["--check"]) == 1
    assert boardtable.main([]) == 0
    assert path.read_text(encoding="utf-8") == boardtable.table_text()
    assert boardtable.main(["--check"]) == 0
    assert boardtable.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "boards.json is stale: run python -m edgeqlora.profiles.board_table",
        "boards.json: 16 boards, written",
        "boards.json is up to date",
        "boards.json: 16 boards, already up to date",
    ]
    path.write_text("{}")
    assert boardtable.main(["--check"]) == 1


NAME_OF_DEVICE = {"jetson-nano-4gb": "jetson-nano", "orin-nano-8gb": "jetson-orin-nano"}


@pytest.mark.real
def test_the_profiles_repeat_the_collected_device_table(shared):
    collected = json.loads((shared / "reference" / "devices.json").read_text(encoding="utf-8"))
    devices = {_profile_name(device["id"]): device for device in collected["devices"]}
    assert sorted(devices) == sorted(EXPECTED_BOARDS)
    for name, device in devices.items():
        profile = load_profile(name)
        numbers = [number.split()[0] for number in device["part_numbers"] if number.startswith("p")]
        assert set(numbers) <= set(profile.part_numbers), name
        assert (device["soc"], device["compute_capability"].split()[0]) == (profile.soc, profile.compute_capability)
        assert device["memory_gb"] * 1024 == profile.memory_mib
        if not isinstance(device["memory_bandwidth_gbs"], str):
            assert device["memory_bandwidth_gbs"] == profile.memory_bandwidth_gbs
        elif profile.memory_bandwidth_gbs is not None:
            assert "memory_bandwidth_gbs" in profile.unsourced, name
        for key, variant in (("power_modes", ""), ("power_modes_super", "super")):
            ours = {mode.name: mode for mode in profile.power_modes if mode.variant == variant}
            assert [mode["name"] for mode in device.get(key, [])] == list(ours), name
            for mode in device.get(key, []):
                known = {field: value for field, value in mode.items() if value is not None}
                assert known == {field: getattr(ours[mode["name"]], field) for field in known}, (name, mode)
        assert set(device["supported_jetpacks"]) <= {release.jetpack for release in profile.jetpacks}
        rails = {rail.split()[0] for rail in device["power_rails"]["rails"]} - {"NC"}
        assert rails <= set(profile.rails), name
        total = device["power_rails"]["total"]
        assert (total.split()[0] if total else None) == profile.total_rail
        for release in profile.jetpacks:
            fact = collected["jetpack"].get(release.jetpack)
            if fact:  # 6.0 is in jetson.md only
                same = ("l4t", "tensorrt", "python", "cuda")
                assert [fact[key] for key in same] == [getattr(release, key) for key in same]


def _profile_name(device_id):
    plain = NAME_OF_DEVICE.get(device_id) or device_id.replace("agx-thor", "thor")
    return plain if plain.startswith("jetson-") else f"jetson-{plain}"


def test_what_only_a_sister_was_recorded_with_is_said():
    # No line of a T4000 is known: its rails are a guess from another module, marked as one.
    t4000 = load_profile("jetson-thor-t4000")
    assert {"energy_scope", "rails", "sum_rails", "total_rail"} <= set(t4000.unsourced)
    recorded = {"jetson-orin-nano-4gb", "jetson-orin-nx-8gb", "jetson-xavier-nx-16gb", "jetson-agx-xavier-64gb"}
    for name in recorded:
        source = load_profile(name).sources["rails"]
        assert "lines of the board" not in source, name
        assert "of the same family" in source, name
