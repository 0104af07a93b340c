"""What may be called the consumption of a board, and which source is chosen where."""

import itertools
import os
import re

import pytest
from fakes import power as fake_power
from test_tegrastats import LINES, TABLES

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.power import RailTable, is_jetson, open_power_source, rail_table, resolve_scope
from edgeqlora_jetson.power.ina import InaSource


def test_rail_table_of_a_profile():
    assert TABLES["agx-orin"] == RailTable(
        None, "sum_of_rails", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("VDDQ_VDD2_1V8AO",)
    )
    assert rail_table({"total_rail": "VDD_IN", "energy_scope": "module_input"}) == TABLES["orin-nano"]


@pytest.mark.parametrize("plain", [None, {}, {"name": "cpu"}, {"energy_scope": "none"}])
def test_a_profile_without_rails(plain):
    assert rail_table(plain) is None


def test_a_profile_with_wrong_rails():
    with pytest.raises(UserError, match=r"energy_scope='wall' in the profile, allowed module_input, system_input"):
        rail_table({"energy_scope": "wall"})
    with pytest.raises(UserError, match=r"total_rail='VDD_IN' in the profile contradicts energy_scope='sum_of_rails'"):
        rail_table({"energy_scope": "sum_of_rails", "total_rail": "VDD_IN"})


def test_the_total_rail_alone_is_counted():
    seen = ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert resolve_scope(TABLES["orin-nano"], seen) == ("module_input", ("VDD_IN",))


def test_parts_of_vdd_in_are_not_added_up():
    with pytest.raises(UserError) as error:
        resolve_scope(TABLES["orin-nano"], ["VDD_CPU_GPU_CV", "VDD_SOC"])
    assert str(error.value) == (
        "the rails seen (VDD_CPU_GPU_CV, VDD_SOC) are not the whole consumption of this board: its input rail VDD_IN is "
        "missing, and its other rails do not add up to the input. None of them belongs to the profile: was the bundle "
        "exported for another board?"
    )


def test_a_sum_needs_all_its_rails():
    with pytest.raises(UserError) as error:
        resolve_scope(TABLES["agx-orin"], ["VDD_GPU_SOC", "VIN_SYS_5V0"])
    assert str(error.value) == (
        "the rails seen (VDD_GPU_SOC, VIN_SYS_5V0) are not the whole consumption of this board: it has no input rail, and "
        "of the rails to add up VDD_CPU_CV is missing. Run with sudo (some releases hide rails), or measure without power"
    )


def test_vin_sys_5v0_alone_is_never_a_total():
    for name, table in list(TABLES.items()) + [("unknown", None)]:
        with pytest.raises(UserError):
            resolve_scope(table, ["VIN_SYS_5V0"])
        with pytest.raises(UserError):
            resolve_scope(table, ["SYS5V"])
        assert name


def test_bundle_for_another_board():
    with pytest.raises(UserError, match="None of them belongs to the profile: was the bundle exported for another"):
        resolve_scope(TABLES["nano"], ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"])


@pytest.mark.parametrize(
    ("seen", "scope"),
    [
        (["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"], ("module_input", ("POM_5V_IN",))),
        (["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], ("module_input", ("VDD_IN",))),
        (["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"], ("system_input", ("VIN",))),
    ],
)
def test_an_unknown_board_with_an_input_rail(seen, scope):
    assert resolve_scope(None, seen) == scope


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], "hold none of the known input rails"),
        (["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"], "hold none of the known input rails"),
        (["VDD_IN", "VIN"], "hold more than one of the known input rails"),
    ],
)
def test_an_unknown_board_without_one_input_rail(seen, text):
    with pytest.raises(UserError, match=text + r" \(POM_5V_IN, VDD_IN, VIN\).*export the bundle with the profile"):
        resolve_scope(None, seen)


@pytest.fixture
def no_path(tmp_path, monkeypatch):
    """No tegrastats, no jtop and no NVML of the machine the tests run on."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setitem(__import__("sys").modules, "jtop", None)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)


def board(tmp_path, kind):
    fake_power.write_power_tree(tmp_path, kind)
    return str(tmp_path)


def test_auto_takes_tegrastats_first(tmp_path, monkeypatch, no_path):
    root = board(tmp_path, "orin-nano-r36")
    program = fake_power.write_tegrastats(tmp_path / "bin", [LINES[21], LINES[22]])
    monkeypatch.setenv("PATH", os.path.dirname(program))
    source, scope, notes = open_power_source("auto", TABLES["orin-nano"], 0.02, root)
    assert (source.name, source.interval_s, source.averaging_s) == ("tegrastats", 0.02, 0.43)
    assert scope == ("module_input", ("VDD_IN",))
    assert notes == []


def test_auto_passes_to_sysfs_where_tegrastats_hides_the_rails(tmp_path, monkeypatch, no_path):
    root = board(tmp_path, "agx-orin-r36")
    program = fake_power.write_tegrastats(tmp_path / "bin", [LINES[33]])  # AGX Orin without root: no rails
    monkeypatch.setenv("PATH", os.path.dirname(program))
    source, scope, notes = open_power_source("auto", TABLES["agx-orin"], 0.02, root)
    assert source.name == "ina"
    assert scope.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    assert notes[0].startswith("tegrastats: it prints no power rails")


def test_auto_passes_on_where_the_rails_are_no_total(tmp_path, monkeypatch, no_path):
    root = board(tmp_path, "orin-nano-r36")
    line = LINES[21].replace("VDD_IN", "VDD_XX")
    monkeypatch.setenv("PATH", os.path.dirname(fake_power.write_tegrastats(tmp_path / "bin", [line])))
    source, scope, notes = open_power_source("auto", TABLES["orin-nano"], 0.02, root)
    assert (source.name, scope.rails) == ("ina", ("VDD_IN",))
    assert "tegrastats: the rails seen (VDD_XX, VDD_CPU_GPU_CV, VDD_SOC) are not the whole" in notes[0]


@pytest.mark.parametrize("power_mw", [0, 4046])
def test_auto_passes_to_the_next_where_a_sensor_reads_0_or_does_not_move(tmp_path, monkeypatch, no_path, power_mw):
    root = board(tmp_path, "orin-nano-r36")
    line = LINES[21].replace("VDD_IN 4046mW", "VDD_IN {}mW".format(power_mw))
    monkeypatch.setenv("PATH", os.path.dirname(fake_power.write_tegrastats(tmp_path / "bin", [line])))
    powers_mw, poll = itertools.cycle((4000, 4040)), InaSource.poll
    with monkeypatch.context() as alive:
        # Not on a clock: tegrastats is a program of its own here, and its seconds are real.
        alive.setattr(
            InaSource, "poll", lambda self: [fake_power.set_rail_mw(root, "VDD_IN", next(powers_mw)), poll(self)][1]
        )
        source, scope, notes = open_power_source("auto", TABLES["orin-nano"], 0.02, root)
    assert (source.name, scope.rails) == ("ina", ("VDD_IN",))
    told = r"tegrastats: the sensor does not move: \d+ readings of VDD_IN \({:,} mW\)".format(power_mw)
    assert re.match(told, notes[0])
    source, _, notes = open_power_source("auto", TABLES["orin-nano"], 0.02, root)
    assert source.name == "tegrastats"  # no other moves: the run tells
    assert len(notes) == 3


def test_auto_in_a_container_says_why_of_each(tmp_path, no_path):
    source, scope, notes = open_power_source("auto", TABLES["orin-nano"], root=board(tmp_path, "container"))
    assert (source, scope) == (None, None)
    assert [note.split(":")[0] for note in notes] == ["tegrastats", "ina", "jtop"]
    assert "in a container mount it from the host" in notes[0]
    assert "in a container mount /sys" in notes[1]
    assert "jetson-stats is not installed" in notes[2]


def test_auto_on_a_workstation(tmp_path, no_path):
    source, scope, notes = open_power_source("auto", root=board(tmp_path, "workstation"))
    assert source.name == "rapl"
    assert scope == ("cpu_package", ("package-0", "package-1"))
    assert [note.split(":")[0] for note in notes] == ["nvml", "rapl"]
    assert re.search(r"the sensor does not move: 2\d readings of the counter of package-0", notes[1])


def test_auto_with_nothing(tmp_path, no_path):
    source, scope, notes = open_power_source("auto", root=board(tmp_path, "none"))
    assert (source, scope) == (None, None)
    assert notes[1] == "rapl: no energy counter: /sys/class/powercap has no intel-rapl package"


def test_none_and_unknown_and_out_of_range(tmp_path):
    assert open_power_source("none") == (None, None, ["power is not measured: asked for none"])
    with pytest.raises(
        UserError, match=r"power source 'zeus' is not known, allowed: auto, none, tegrastats, ina, jtop"
    ):
        open_power_source("zeus")
    with pytest.raises(UserError, match=r"interval_s=0\.001, allowed 0.02 to 2"):
        open_power_source("auto", interval_s=0.001)


def test_a_named_source_that_does_not_work_is_an_error(tmp_path, no_path):
    root = board(tmp_path, "container")
    with pytest.raises(UserError, match=r"power source ina cannot be used here: no ina3221 .* --power, or auto"):
        open_power_source("ina", TABLES["orin-nano"], root=root)
    root = board(tmp_path / "nano", "nano-r32")
    with pytest.raises(UserError, match=r"power source ina cannot be used here: the rails seen \(POM_5V_IN"):
        open_power_source("ina", TABLES["thor"], root=root)


def test_is_jetson(tmp_path):
    assert is_jetson(board(tmp_path / "a", "thor-no-ina238"))
    assert is_jetson(board(tmp_path / "b", "container"))
    assert not is_jetson(board(tmp_path / "c", "workstation"))
    fake_power.write_file(str(tmp_path / "d/etc"), "nv_tegra_release", "# R32 (release)")
    assert is_jetson(str(tmp_path / "d"))
    fake_power.write_file(str(tmp_path / "e/sys/devices/soc0"), "family", "Tegra")
    assert is_jetson(str(tmp_path / "e"))


def test_a_known_board_needs_no_other_sign_of_a_jetson(tmp_path, no_path):
    root = board(tmp_path, "orin-nano-r36")
    os.unlink(os.path.join(root, "proc/device-tree/compatible"))
    assert open_power_source("auto", None, root=root)[0] is None
    assert open_power_source("auto", TABLES["orin-nano"], root=root)[0].name == "ina"
