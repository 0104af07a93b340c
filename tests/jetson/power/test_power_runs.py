"""Whole runs from a power source to Joules: known watts, a sampler that dies, a rail that vanishes, pauses."""

import pytest
from fakes import power as fake_power
from test_tegrastats import LINES, TABLES, collect

from edgeqlora_jetson.power.energy import RailVanished, measure_energy
from edgeqlora_jetson.power.ina import InaSource
from edgeqlora_jetson.power.rapl import RaplSource
from edgeqlora_jetson.power.tegrastats import TegrastatsSource

THOR_IDLE, THOR_BUSY = LINES[37], LINES[39]  # VIN 16802 mW and 124486 mW


def samples_of(source, n):
    """n samples (fewer where the source dies), put a second apart: when they arrive is a matter of the machine."""
    source.start()
    samples = collect(source, n)
    source.stop()
    samples = (samples + source.poll())[:n]
    return [sample._replace(time_s=float(i)) for i, sample in enumerate(samples)]


def test_known_watts_through_tegrastats(tmp_path):
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE])
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    scope = source.resolve_scope(TABLES["thor"])
    samples = samples_of(source, 11)
    idle = measure_energy(samples, 0.0, 5.0, scope)["mean_power"]
    result = measure_energy(samples, 0.0, 10.0, scope, idle_power_mw=idle["value"])
    assert result["energy"]["value"] == pytest.approx(168.02)
    assert result["net_energy"]["value"] == pytest.approx(0, abs=0.01)
    assert result["coverage"] == 1.0
    assert result["energy_scope"] == "system_input"


def test_two_levels_through_tegrastats(tmp_path):
    """Lines in turns of 16.802 and 124.486 W: over whole turns 70.644 W on average."""
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE, THOR_BUSY])
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    result = measure_energy(samples_of(source, 11), 0.0, 10.0, source.resolve_scope(TABLES["thor"]))
    assert result["mean_power"]["value"] == pytest.approx(70644)
    assert result["peak_power"]["value"] == 124486


def test_tegrastats_that_dies_gives_no_energy_and_says_so(tmp_path):
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE], die_after=10, stderr="Killed by watchdog\n")
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    scope = source.resolve_scope(TABLES["thor"])
    samples = samples_of(source, 1000)
    assert len(samples) == 10
    assert source.error == 'tegrastats died, exit code 1; it said "Killed by watchdog"'
    result = measure_energy(samples, 0.0, 20.0, scope, source_error=source.error)
    assert result["energy"]["value"] is None
    assert result["energy"]["reason"].endswith(': tegrastats died, exit code 1; it said "Killed by watchdog"')


def test_a_rail_that_tegrastats_stops_printing(tmp_path):
    without = THOR_IDLE[: THOR_IDLE.index(" VIN 16802mW")]
    program = fake_power.write_tegrastats(tmp_path, [THOR_IDLE] * 8 + [without] * 1000)
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    scope = source.resolve_scope(TABLES["thor"])
    samples = samples_of(source, 11)
    with pytest.raises(
        RailVanished, match=r"power rail VIN vanished 8\.0 s into the measurement \(readings then: VDD_CP"
    ):
        measure_energy(samples, 0.0, 10.0, scope)


def polled(source, clock, seconds):
    """Samples of a polled source over `seconds` of a virtual clock."""
    source.start()
    samples = []
    end_s = clock.now_s + seconds
    while not samples or samples[-1].time_s < end_s:
        samples += source.poll()
        clock.sleep(source.interval_s)
    source.stop()
    return samples


def test_known_watts_through_sysfs_with_a_step(tmp_path, virtual_time):
    """0.8 s of 4 W, then 0.7 s of 12 W; the step falls between two readings, 30 ms apart."""
    fake_power.write_power_tree(tmp_path, "orin-nano-r36")
    fake_power.set_rail_mw(tmp_path, "VDD_IN", 4000)
    source = InaSource(interval_s=0.02, root=str(tmp_path))
    virtual_time.every(0.81, lambda: fake_power.set_rail_mw(tmp_path, "VDD_IN", 12000))
    start_s = virtual_time.now_s + 0.01
    samples = polled(source, virtual_time, 1.51)
    result = measure_energy(samples, start_s, start_s + 1.5, source.resolve_scope(TABLES["orin-nano"]))
    assert result["coverage"] == 1.0
    assert result["energy"]["value"] == pytest.approx(4.0 * 0.8 + 12.0 * 0.7, abs=8.0 * 0.03 / 2)


def test_a_rail_that_sysfs_stops_giving(tmp_path, virtual_time):
    fake_power.write_power_tree(tmp_path, "agx-orin-r36")
    source = InaSource(interval_s=0.02, root=str(tmp_path))
    scope = source.resolve_scope(TABLES["agx-orin"])
    virtual_time.every(0.3, lambda: fake_power.break_rail(tmp_path, "VDD_CPU_CV"))
    start_s = virtual_time.now_s
    samples = polled(source, virtual_time, 0.5)
    with pytest.raises(RailVanished, match=r"power rail VDD_CPU_CV vanished 0\.3 s into the measurement"):
        measure_energy(samples, start_s, start_s + 0.5, scope)


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
    samples = samples_of(source, 5)
    assert len(samples) == 5
    assert all(sample.rails_mw["VIN"] == 16802.0 for sample in samples)
    assert source.describe()["unknown"] == []
    assert source.describe()["n_messages"] == 0


def test_tegrastats_can_be_stopped_and_started_again(tmp_path):
    source = TegrastatsSource(
        interval_s=0.02, program=fake_power.write_tegrastats(tmp_path, [THOR_IDLE]), root=str(tmp_path)
    )
    runs = []
    for _ in range(2):
        source.start()
        runs.append(collect(source, 3))
        source.stop()
    assert runs[0][-1].time_s < runs[1][0].time_s
    assert source.error is None
