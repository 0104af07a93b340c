"""Heat and throttling: temperatures, counters, cooling devices, clocks below their pin, from written /sys trees."""

import os

import pytest
from fakes import boards as fake_boards
from fakes import power as fake_power
from fakes.boards import cooling_path, oc_path, write, zone_path

from edgeqlora_jetson.board.clocks import Clock, judge_lock, read_clocks, read_gpu_clocks
from edgeqlora_jetson.sensors.thermal import ThermalMonitor, find_zones, parse_temperature, read_event_counters

ORIN = "orin-nano-r36"


@pytest.fixture
def orin(tmp_path):
    fake_boards.write_board_tree(tmp_path, ORIN)
    return tmp_path


def watch(root, change=None, clocks_locked=None):
    """The thermal part of a run in which change() happened between two readings."""
    monitor = ThermalMonitor(str(root), clocks_locked)
    monitor.start()
    if change is not None:
        change()
        monitor.poll()
    return monitor.finish()


def test_temperatures():
    assert parse_temperature("44531") == 44.531
    assert parse_temperature("-5000") == -5.0
    # A zone that is switched off, an old TX2 reading out of its fixture, a broken sensor, no number.
    assert parse_temperature("-256000") is None
    assert parse_temperature("999999") is None
    assert parse_temperature("") is None
    assert parse_temperature(None) is None


def test_zones_rise_and_fall(orin):
    def heat():
        write(orin, zone_path(ORIN, "gpu-thermal"), "71250\n")

    monitor = ThermalMonitor(str(orin))
    monitor.start()
    heat()
    monitor.poll()
    write(orin, zone_path(ORIN, "gpu-thermal"), "60000\n")
    zones = monitor.finish()["zones"]
    assert zones["gpu-thermal"] == {
        "start": {"value": 44.531, "unit": "degC"},
        "max": {"value": 71.25, "unit": "degC"},
        "end": {"value": 60.0, "unit": "degC"},
    }
    assert zones["cpu-thermal"]["max"]["value"] == 44.125
    assert len(zones) == 6


def test_a_gated_zone_is_null_until_it_wakes(tmp_path):
    fake_boards.write_board_tree(tmp_path, "agx-orin-r36")
    zone = watch(tmp_path)["zones"]["cv0-thermal"]
    assert zone["max"] == {"value": None, "unit": "degC", "reason": "the zone was switched off or not readable"}


def test_the_placeholder_zone_is_left_out_and_same_names_get_numbers(tmp_path):
    fake_boards.write_board_tree(tmp_path, "nano-r32")
    assert [zone.name for zone in find_zones(str(tmp_path))] == ["AO-therm", "CPU-therm", "GPU-therm"]
    for number in (11, 12):
        write(tmp_path, "sys/class/thermal/thermal_zone{}/type".format(number), "acpitz\n")
    assert [zone.name for zone in find_zones(str(tmp_path))][3:] == ["acpitz", "acpitz-2"]


def test_a_quiet_run_is_not_throttled(orin):
    result = watch(orin)
    assert result["throttled"] is False
    assert result["reasons"] == []
    # Counters since boot are not the run's.
    assert result["throttle_events"]["oc3_event_cnt"] == 0
    assert result["judged_by"] == ["cooling_devices", "temperatures", "throttle_counters"]


def test_over_current_events_are_counted_as_differences(orin):
    result = watch(orin, lambda: write(orin, oc_path(3), "41\n"))
    assert result["throttle_events"] == {
        "oc1_event_cnt": 0,
        "oc2_event_cnt": 0,
        "oc3_event_cnt": 4,
        "VDD_IN crit_alarm": 0,
        "VDD_CPU_GPU_CV crit_alarm": 0,
        "VDD_SOC crit_alarm": 0,
    }
    assert result["throttled"] is True
    assert result["reasons"] == ["4 instantaneous over-current events during the run (oc3_event_cnt)"]


def test_a_current_alarm_that_is_gone_again_was_seen(orin):
    alarm = os.path.join(os.path.dirname(fake_power.channel_prefix(orin, "VDD_IN")), "curr1_crit_alarm")
    monitor = ThermalMonitor(str(orin))
    monitor.start()
    write("/", alarm, "1\n")
    # One alarm is read in each turn of 0.2 s: three turns see them all.
    for _ in range(3):
        monitor._slow_due_s = 0.0
        monitor.poll()
    write("/", alarm, "0\n")
    result = monitor.finish()
    assert result["throttled"] is True
    assert result["reasons"] == ["current alarm of VDD_IN crit"]


def test_alarms_of_unconnected_channels_are_not_asked(tmp_path):
    fake_boards.write_board_tree(tmp_path, "agx-orin-r36")
    folder = os.path.dirname(fake_power.channel_prefix(tmp_path, "NC"))
    for channel in (1, 3):
        write("/", os.path.join(folder, "curr{}_crit_alarm".format(channel)), "1\n")
    assert watch(tmp_path)["throttled"] is False


@pytest.mark.parametrize(
    ("device", "is_throttled"),
    [
        ("gpu-throttle-alert", True),
        ("cpufreq-cpu0", True),
        ("devfreq-17000000.gpu", True),
        ("pwm-fan", False),
        ("hot-surface-alert", False),
    ],
)
def test_cooling_devices(orin, device, is_throttled):
    result = watch(orin, lambda: write(orin, cooling_path(ORIN, device), "1\n"))
    assert result["throttled"] is is_throttled
    assert [name.split("#")[0] for name in result["cooling"]] == [device]
    if is_throttled:
        steps = dict(fake_boards.TREES[ORIN].cooling)[device]
        assert result["reasons"] == ["cooling device {} at step 1 of {}".format(device, steps)]


def test_a_run_that_starts_throttled_is_throttled(orin):
    write(orin, cooling_path(ORIN, "cpufreq-cpu0"), "3\n")
    result = watch(orin)
    assert result["throttled"] is True
    assert result["cooling"] == {}
    assert result["reasons"] == ["cooling device cpufreq-cpu0 at step 3 of 48"]


def test_a_firmware_limit_that_was_there_before_counts_only_when_it_rises(tmp_path):
    fake_boards.write_board_tree(tmp_path, "workstation")
    folder = "sys/class/thermal/cooling_device7/"
    for name, text in (("type", "TCPU"), ("cur_state", "2"), ("max_state", "9")):
        write(tmp_path, folder + name, text + "\n")
    assert watch(tmp_path)["throttled"] is False
    result = watch(tmp_path, lambda: write(tmp_path, folder + "cur_state", "5\n"))
    assert result["reasons"] == ["cooling device TCPU at step 5 of 9"]


def test_a_pinned_clock_that_falls(orin):
    fake_boards.lock_clocks(orin, ORIN)
    result = watch(orin, lambda: write(orin, "sys/class/devfreq/17000000.gpu/cur_freq", "408000000\n"), True)
    assert result["throttled"] is True
    assert result["reasons"] == ["clock gpu fell to 408 MHz, pinned at 612 MHz (2 of 3 readings)"]
    assert result["clocks"]["gpu"] == {
        "low": {"value": 408.0, "unit": "MHz"},
        "high": {"value": 612.0, "unit": "MHz"},
        "allowed": {"value": 612.0, "unit": "MHz"},
    }


def test_free_clocks_may_fall(orin):
    result = watch(orin, lambda: write(orin, "sys/class/devfreq/17000000.gpu/cur_freq", "306000000\n"), False)
    assert result["throttled"] is False


def test_a_pinned_clock_may_wobble_by_a_few_percent(orin):
    fake_boards.lock_clocks(orin, ORIN)
    policy = "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq"
    assert watch(orin, lambda: write(orin, policy, "1480000\n"), True)["throttled"] is False


def test_a_gpu_that_is_switched_off_is_not_throttled(orin):
    fake_boards.lock_clocks(orin, ORIN)
    result = watch(orin, lambda: write(orin, "sys/class/devfreq/17000000.gpu/cur_freq", "0\n"), True)
    assert result["throttled"] is False


def test_an_allowed_clock_that_is_cut(orin):
    policy = "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"
    result = watch(orin, lambda: write(orin, policy, "729000\n"))
    assert result["reasons"] == ["highest allowed clock of cpu0 was cut from 1510 to 729 MHz"]


def test_an_x86_machine_counts_its_own_events(tmp_path):
    fake_boards.write_board_tree(tmp_path, "workstation")
    assert read_event_counters(str(tmp_path)) == {"core_throttle_count": 6, "package_throttle_count": 10}
    path = "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count"
    result = watch(tmp_path, lambda: write(tmp_path, path, "10\n"))
    assert result["reasons"] == ["7 thermal throttle events during the run (core_throttle_count)"]
    # An idle power clamp reads -1 and slows nothing down.
    assert result["cooling"] == {}


def test_a_machine_that_shows_nothing_gives_no_verdict(tmp_path):
    result = watch(tmp_path)
    assert result["throttled"] is None
    assert result["reasons"] == [
        "not known: this machine shows no throttle counter and no cooling device that slows it down, and the clocks "
        "are not locked"
    ]
    assert (result["zones"], result["throttle_events"], result["judged_by"]) == ({}, {}, [])


def test_temperatures_alone_give_no_verdict(tmp_path):
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "50000\n")
    result = watch(tmp_path)
    assert result["throttled"] is None
    assert result["zones"]["cpu-thermal"]["max"]["value"] == 50.0


def test_a_zone_that_raises_an_io_error_is_null(orin):
    folder = os.path.join(str(orin), os.path.dirname(zone_path(ORIN, "soc2-thermal")))
    fake_power.write_broken(folder, "temp")
    result = watch(orin)
    assert result["zones"]["soc2-thermal"]["max"]["value"] is None
    assert result["zones"]["soc1-thermal"]["max"]["value"] == 43.156


def test_this_machine_can_be_watched():
    assert watch("/")["throttled"] in (True, False, None)


def test_files_are_closed_after_the_run(orin):
    before = len(os.listdir("/proc/self/fd"))
    watch(orin)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_gpus_clock_is_found_under_every_releases_name(tmp_path):
    for kind in ("nano-r32", "xavier-nx-r35", ORIN, "thor-r38"):
        root = tmp_path / kind
        fake_boards.write_board_tree(root, kind)
        clocks = read_gpu_clocks(str(root))
        low, high, _ = fake_boards.TREES[kind].gpu_mhz
        assert [(clock.name, clock.min_mhz, clock.max_mhz) for clock in clocks] == [("gpu", low, high)]


def test_processor_groups_that_are_switched_off_are_left_out(orin):
    folder = "sys/devices/system/cpu/cpufreq/policy4/"
    write(orin, folder + "affected_cpus", "\n")
    write(orin, folder + "scaling_cur_freq", "<unknown>\n")
    assert [clock.name for clock in read_clocks(str(orin))] == ["gpu", "cpu0"]


def test_lock_needs_all_clocks():
    def clock(name, low, high):
        return Clock(name, "", low, high, "", "", 1e3)

    assert judge_lock([clock("cpu0", 1510.0, 1510.0), clock("gpu", 306.0, 612.0)]).locked is False
    # Nobody knows what a GPU does whose limits are hidden, or that is not found: never locked.
    lock = judge_lock([clock("cpu0", 1510.0, 1510.0), clock("gpu", None, 612.0)])
    assert (lock.locked, lock.how.split("; ")[1]) == (None, "not readable: the limits of gpu")
    lock = judge_lock([clock("cpu0", 1510.0, 1510.0)], is_jetson=True)
    assert lock.locked is None
    assert lock.how == (
        "lowest and highest allowed clock are equal: cpu0 1510 MHz; not readable: the GPU's clock (/sys/class/devfreq)"
    )
    assert judge_lock([clock("cpu0", 1510.0, 1510.0)]).locked is True
    assert judge_lock([clock("cpu0", 100.0, 1510.0)], is_jetson=True).locked is False
    lock = judge_lock([clock("gpu", None, None)])
    assert lock.locked is None
    assert lock.how == "no clock limits are readable (/sys/devices/system/cpu/cpufreq, /sys/class/devfreq)"
