"""INA3221 and INA238 in made-up /sys trees of every layout, with the faults that real boards have."""

import os

import pytest
from fakes import power as fake_power
from test_tegrastats import TABLES

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.power import Unavailable
from edgeqlora_jetson.power.ina import Channel, InaSource, find_channels, read_averaging_s, read_power_mw
from edgeqlora_jetson.sensors.session import Sensors

AGX_ORIN, THOR = TABLES["agx-orin"], TABLES["thor"]
# kind -> rails in mW by hand: mV x mA / 1000, on R32 what the driver says, Thor's VIN uW / 1000; averaging
TREES = {
    "nano-r32": ({"POM_5V_IN": 2038, "POM_5V_GPU": 121, "POM_5V_CPU": 325}, None),
    "tx2-r32": (
        {
            "VDD_SYS_GPU": 153,
            "VDD_SYS_SOC": 459,
            "VDD_4V0_WIFI": 0,
            "VDD_IN": 3063,
            "VDD_SYS_CPU": 306,
            "VDD_SYS_DDR": 880,
        },
        None,
    ),
    "xavier-nx-r35": ({"VDD_IN": 4066.944, "VDD_CPU_GPU_CV": 736.448, "VDD_SOC": 1353.472}, 0.43),
    "orin-nano-r36": ({"VDD_IN": 5250.0, "VDD_CPU_GPU_CV": 714.24, "VDD_SOC": 1785.6}, 0.43),
    "agx-orin-r36": (
        {"VDD_GPU_SOC": 4800.0, "VDD_CPU_CV": 1000.0, "VIN_SYS_5V0": 4440.0, "VDDQ_VDD2_1V8AO": 300.0},
        0.43,
    ),
    "thor-ina238": ({"VDD_GPU": -400.0, "VDD_CPU_SOC_MSS": 4160.0, "VIN_SYS_5V0": 4125.0, "VIN": 15004.0}, 0.43),
    "thor-no-ina238": ({"VDD_GPU": -400.0, "VDD_CPU_SOC_MSS": 4160.0, "VIN_SYS_5V0": 4125.0}, 0.43),
}


@pytest.fixture
def tree(tmp_path):
    def make(kind):
        fake_power.write_power_tree(tmp_path, kind)
        return str(tmp_path)

    return make


def read(source):
    (sample,) = source.poll()
    return sample.rails_mw


@pytest.mark.parametrize("kind", sorted(TREES))
def test_rails_of_every_layout(tree, kind):
    rails_mw, averaging_s = TREES[kind]
    source = InaSource(root=tree(kind))
    source.start()
    assert read(source) == pytest.approx(rails_mw)
    assert sorted(source.rails) == sorted(rails_mw)
    assert source.averaging_s == averaging_s
    assert source.error is None
    source.stop()


@pytest.mark.parametrize("kind", ["container", "workstation", "none"])
def test_no_power_monitor(tree, kind):
    with pytest.raises(Unavailable, match=r"no ina3221 or ina238 .* under /sys .in a container mount /sys"):
        InaSource(root=tree(kind))


def test_a_chip_reached_by_driver_and_by_class_is_one(tree):
    assert len(find_channels(tree("orin-nano-r36")).channels) == 3


def test_a_chip_reached_only_by_class(tree, tmp_path):
    root = tree("orin-nano-r36")
    os.unlink(os.path.join(root, "sys/bus/i2c/drivers/ina3221/1-0040"))
    assert len(find_channels(root).channels) == 3


def test_agx_orin_two_chips_nc_labels_and_a_channel_with_an_io_error(tree):
    root = tree("agx-orin-r36")
    source = InaSource(root=root)
    reasons = source.describe()["skipped"]
    assert sorted(reasons.values()) == ["NC: not connected", "NC: not connected"]
    # The channel is disabled: reading it is an I/O error, which must not take the chip's other channels along.
    with open(os.path.join(root, "sys/class/hwmon/hwmon4/in3_input"), "rb") as broken:
        with pytest.raises(OSError, match="Input/output error"):
            broken.read()
    assert source.resolve_scope(AGX_ORIN) == (
        "sum_of_rails",
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"),
    )
    rails_mw = read(source)
    assert sum(rails_mw[rail] for rail in source.resolve_scope(AGX_ORIN).rails) == 10540.0


def test_a_labelled_channel_with_an_io_error_is_left_out_and_said(tree):
    root = tree("agx-orin-r36")
    fake_power.break_rail(root, "VDDQ_VDD2_1V8AO")
    source = InaSource(root=root)
    assert source.resolve_scope(AGX_ORIN).rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert "VDDQ_VDD2_1V8AO: cannot be read: Input/output error" in source.describe()["skipped"].values()


def test_a_needed_channel_with_an_io_error_leaves_no_total(tree):
    root = tree("agx-orin-r36")
    fake_power.break_rail(root, "VDD_CPU_CV")
    with pytest.raises(UserError, match="it has no input rail, and of the rails to add up VDD_CPU_CV is missing"):
        InaSource(root=root).resolve_scope(AGX_ORIN)


def test_all_channels_broken(tree):
    root = tree("nano-r32")
    for label in ("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"):
        fake_power.break_rail(root, label)
    with pytest.raises(Unavailable, match="POM_5V_CPU: cannot be read: Input/output error"):
        InaSource(root=root)


@pytest.mark.parametrize(("kind", "label"), [("nano-r32", "POM_5V_IN"), ("orin-nano-r36", "VDD_IN")])
def test_a_rail_that_vanishes_is_missing_from_the_sample_and_not_zero(tree, kind, label):
    root = tree(kind)
    source = InaSource(root=root)
    fake_power.break_rail(root, label)
    rails_mw = read(source)
    assert label not in rails_mw
    assert len(rails_mw) == 2
    assert source.error is None


def test_all_rails_vanish(tree):
    root = tree("thor-ina238")
    source = InaSource(root=root)
    for label in source.rails:
        fake_power.break_rail(root, label)
    assert source.poll() == []
    assert source.error == "no power monitor in /sys can be read any more"


def test_values_are_read_anew(tree):
    root = tree("thor-ina238")
    source = InaSource(root=root)
    fake_power.set_rail_mw(root, "VIN", 87426)
    fake_power.set_rail_mw(root, "VDD_GPU", 37528)
    rails_mw = read(source)
    assert rails_mw["VIN"] == pytest.approx(87426)
    assert rails_mw["VDD_GPU"] == pytest.approx(37528)


def test_thor_with_ina238_counts_the_input_and_without_it_the_sum(tree, tmp_path):
    source = InaSource(root=tree("thor-ina238"))
    assert source.resolve_scope(THOR) == ("system_input", ("VIN",))
    os.unlink(str(tmp_path / "sys/class/hwmon/hwmon5"))
    os.unlink(str(tmp_path / "sys/bus/i2c/drivers/ina238/1-0044"))
    scope = InaSource(root=str(tmp_path)).resolve_scope(THOR)
    assert scope == ("sum_of_rails", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"))


def test_an_ina238_without_label_is_vin_on_thor_alone(tree, tmp_path):
    root = tree("thor-ina238")
    fake_power.write_file(str(tmp_path / "proc/device-tree"), "compatible", "nvidia,p3701-0005\0nvidia,tegra234\0")
    source = InaSource(root=root)
    assert "VIN" not in source.rails
    assert "no label: it cannot be known which rail this is" in source.describe()["skipped"].values()
    fake_power.write_file(str(tmp_path / "sys/devices/soc0"), "machine", "NVIDIA Jetson AGX Thor Developer Kit")
    assert "VIN" in InaSource(root=root).rails
    fake_power.write_file(str(tmp_path / "sys/class/hwmon/hwmon5"), "label", "CARRIER_12V")
    assert "CARRIER_12V" in InaSource(root=root).rails


def test_two_channels_of_one_label_are_neither(tree, tmp_path):
    root = tree("agx-orin-r36")
    fake_power.write_file(str(tmp_path / "sys/class/hwmon/hwmon4"), "in1_label", "VDD_CPU_CV")
    source = InaSource(root=root)
    assert "VDD_CPU_CV" not in source.rails
    assert "VDD_CPU_CV: more than one channel has this label" in source.describe()["skipped"].values()


def test_channels_without_label_and_the_sum_of_shunts_are_no_rails(tree, tmp_path):
    root = tree("orin-nano-r36")
    os.unlink(str(tmp_path / "sys/class/hwmon/hwmon1/in2_label"))
    source = InaSource(root=root)
    assert source.rails == ("VDD_IN", "VDD_SOC")
    assert list(source.describe()["skipped"].values()) == ["no label: it cannot be known which rail this is"]


def test_description_names_files_and_averaging(tree):
    description = InaSource(root=tree("xavier-nx-r35"), interval_s=0.5).describe()
    assert [os.path.basename(path) for path in description["paths"]["VDD_IN"]] == ["in1_input", "curr1_input"]
    assert description["averaging_from"] == "update_interval of ina3221 in /sys; an INA238 does not say"
    assert description["interval_s"] == 0.5


def test_averaging_without_update_interval(tree, tmp_path):
    root = tree("xavier-nx-r35")
    os.unlink(str(tmp_path / "sys/class/hwmon/hwmon3/update_interval"))
    assert read_averaging_s(root) is None
    assert InaSource(root=root).describe()["averaging_from"] == "not known"


def test_units_in_the_file_and_no_number(tmp_path):
    path = str(tmp_path / "in_power0_input")
    for text, power_mw in (("1022 mW\n", 1022.0), ("-392\n", -392.0)):
        with open(path, "w") as file:
            file.write(text)
        assert read_power_mw(Channel("VDD", (path,), 1.0)) == power_mw
    with open(path, "w") as file:
        file.write("\n")
    with pytest.raises(ValueError):
        read_power_mw(Channel("VDD", (path,), 1.0))


@pytest.mark.parametrize(
    ("power_mw", "reason"), [(0, "the sensor reads 0: VDD_IN"), (4046, "the sensor does not move")]
)
def test_a_monitor_that_is_not_fed_or_asleep_gives_no_energy(tree, power_mw, reason, virtual_time):
    root = tree("orin-nano-r36")
    fake_power.set_rail_mw(root, "VDD_IN", power_mw)
    source = InaSource(interval_s=0.02, root=root)
    fake_power.assert_no_energy(*fake_power.run_with(virtual_time, source, TABLES["orin-nano"]), reason)


def test_a_monitor_that_stops_moving_before_the_run_gives_no_energy(tree, virtual_time):
    root = tree("orin-nano-r36")
    source = InaSource(interval_s=0.02, root=root)
    rest = Sensors.rest

    def rest_and_fall_asleep(self, idle_s):
        with fake_power.live_rail(virtual_time, root, "VDD_IN", (4000, 4100)):
            rest(self, idle_s)

    Sensors.rest = rest_and_fall_asleep
    try:
        fake_power.assert_no_energy(
            *fake_power.run_with(virtual_time, source, TABLES["orin-nano"]), "the sensor does not move"
        )
    finally:
        Sensors.rest = rest


def test_two_readings_in_turns_are_a_measurement(tree, virtual_time):
    root = tree("orin-nano-r36")
    source = InaSource(interval_s=0.02, root=root)
    with fake_power.live_rail(virtual_time, root, "VDD_IN", (4000, 4040)):
        energy, problems = fake_power.run_with(virtual_time, source, TABLES["orin-nano"])
    assert 4000 <= energy["mean_power"]["value"] <= 4040
    assert problems == []
