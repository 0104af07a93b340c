"""Whole runs from a power source to Joules: known watts, a sampler that dies, a rail that vanishes, pauses."""

import threading
import time

import pytest
from fakes import power as fake_power
from test_tegrastats import LINES, TABLES

from edgeqlora_jetson.power.energy import RailVanished, measure_energy
from edgeqlora_jetson.power.ina import InaSource
from edgeqlora_jetson.power.rapl import RaplSource
from edgeqlora_jetson.power.tegrastats import TegrastatsSource

THOR_IDLE, THOR_BUSY = LINES[37], LINES[39]  # VIN 16802 mW and 124486 mW


def sample_for(source, seconds):
    """Samples from a little before to a little after a window of `seconds`, and the window."""
    samples, end_s = [], None
    source.start()
    while not samples and source.error is None:
        samples += source.poll()
        time.sleep(0.005)
    start_s = time.monotonic()
    end_s = start_s + seconds
    while (not samples or samples[-1].time_s < end_s) and source.error is None and time.monotonic() < end_s + 5:
        samples += source.poll()
        time.sleep(0.01)
    source.stop()
    return samples, start_s, end_s


def test_known_watts_through_tegrastats(tmp_path):
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE])
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    scope = source.resolve_scope(TABLES["thor"])
    samples, start_s, end_s = sample_for(source, 1.0)
    idle = measure_energy(samples, start_s, start_s + 0.5, scope)["mean_power"]
    result = measure_energy(samples, start_s, end_s, scope, idle_power_mw=idle["value"])
    assert result["energy"]["value"] == pytest.approx(16.802, rel=0.01)
    assert result["net_energy"]["value"] == pytest.approx(0, abs=0.01)
    assert result["coverage"] == 1.0
    assert result["energy_scope"] == "system_input"


def test_two_levels_through_tegrastats(tmp_path):
    # Lines in turns of 16.802 and 124.486 W: on average 70.644 W, whatever the times at which they arrive.
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE, THOR_BUSY])
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    samples, start_s, end_s = sample_for(source, 2.0)
    result = measure_energy(samples, start_s, end_s, source.resolve_scope(TABLES["thor"]))
    assert result["mean_power"]["value"] == pytest.approx(70644, rel=0.1)
    assert result["peak_power"]["value"] == 124486


def test_tegrastats_that_dies_gives_no_energy_and_says_so(tmp_path):
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE], die_after=10, stderr="Killed by watchdog\n")
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    samples, start_s, end_s = sample_for(source, 2.0)
    assert source.error == 'tegrastats died, exit code 1; it said "Killed by watchdog"'
    scope = source.resolve_scope(TABLES["thor"])
    result = measure_energy(samples, start_s, end_s, scope, source_error=source.error)
    assert result["energy"]["value"] is None
    assert result["energy"]["reason"].endswith(': tegrastats died, exit code 1; it said "Killed by watchdog"')


def test_a_rail_that_tegrastats_stops_printing(tmp_path):
    without = THOR_IDLE[: THOR_IDLE.index(" VIN 16802mW")]
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE] * 8 + [without] * 1000)
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    scope = source.resolve_scope(TABLES["thor"])
    samples, start_s, end_s = sample_for(source, 0.5)
    with pytest.raises(
        RailVanished, match=r"power rail VIN vanished \d\.\d s into the measurement \(readings then: VDD_CP"
    ):
        measure_energy(samples, start_s, end_s, scope)


def test_known_watts_through_sysfs_with_a_step(tmp_path):
    fake_power.write_power_tree(tmp_path, "orin-nano-r36")
    fake_power.set_rail_mw(tmp_path, "VDD_IN", 4000)
    source = InaSource(interval_s=0.02, root=str(tmp_path))
    stepped = []

    def step():
        fake_power.set_rail_mw(tmp_path, "VDD_IN", 12000)
        stepped.append(time.monotonic())

    timer = threading.Timer(0.8, step)
    timer.start()
    samples, start_s, end_s = sample_for(source, 1.5)
    timer.join()
    result = measure_energy(samples, start_s, end_s, source.resolve_scope(TABLES["orin-nano"]))
    expected_j = 4.0 * (stepped[0] - start_s) + 12.0 * (end_s - stepped[0])
    # The step falls between two readings: at most half of their distance is counted at the wrong level.
    most_wrong_j = 8.0 * result["largest_gap_s"] / 2
    assert result["energy"]["value"] == pytest.approx(expected_j, abs=most_wrong_j + 0.01 * expected_j)


def test_a_rail_that_sysfs_stops_giving(tmp_path):
    fake_power.write_power_tree(tmp_path, "agx-orin-r36")
    source = InaSource(interval_s=0.02, root=str(tmp_path))
    scope = source.resolve_scope(TABLES["agx-orin"])
    timer = threading.Timer(0.3, fake_power.break_rail, (tmp_path, "VDD_CPU_CV"))
    timer.start()
    samples, start_s, end_s = sample_for(source, 0.6)
    timer.join()
    with pytest.raises(RailVanished, match=r"power rail VDD_CPU_CV vanished \d\.\d s into the measurement"):
        measure_energy(samples, start_s, end_s, scope)


def test_a_counter_goes_on_over_a_pause(tmp_path):
    fake_power.write_power_tree(tmp_path, "workstation")
    source = RaplSource(root=str(tmp_path))
    samples = []
    for energy_uj in (1000000, 3000000, 7000000):
        source.start()
        fake_power.write_file(str(tmp_path / "sys/class/powercap/intel-rapl:0"), "energy_uj", str(energy_uj))
        samples += source.poll()
        source.stop()
    assert [sample.counters_j["package-0"] for sample in samples] == [0.0, 2.0, 6.0]
    result = measure_energy(samples, samples[0].time_s, samples[-1].time_s, source.resolve_scope(None))
    assert result["energy"]["value"] == pytest.approx(6.0)


def test_lines_that_come_in_pieces_are_joined(tmp_path):
    """The replay writes every line in two halves: taken apart, no line would have both its RAM and its rails."""
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE], partial=True)
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    samples, _, _ = sample_for(source, 0.3)
    assert len(samples) >= 5
    assert all(sample.rails_mw["VIN"] == 16802.0 for sample in samples)
    assert source.describe()["unknown"] == []
    assert source.describe()["n_messages"] == 0


def test_tegrastats_can_be_stopped_and_started_again(tmp_path):
    source = TegrastatsSource(
        interval_s=0.02, program=fake_power.write_tegrastats(tmp_path, [THOR_IDLE]), root=str(tmp_path)
    )
    first = sample_for(source, 0.1)[0]
    second = sample_for(source, 0.1)[0]
    assert first[-1].time_s < second[0].time_s
    assert source.error is None
