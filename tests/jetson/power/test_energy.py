"""Joules against curves worked out by hand: edges, gaps, jitter, signs, counters, rails that vanish."""

import math
import random

import pytest

from edgeqlora_jetson.power import Sample, Scope
from edgeqlora_jetson.power.energy import RailVanished, measure_energy

VDD_IN = Scope("module_input", ("VDD_IN",))
SUM = Scope("sum_of_rails", ("GPU", "CPU"))


def curve(times_s, power_mw, rail="VDD_IN"):
    return [Sample(t, {rail: float(power_mw(t))}, {}) for t in times_s]


def grid(start_s, end_s, step_s):
    return [start_s + i * step_s for i in range(round((end_s - start_s) / step_s) + 1)]


def value(figure):
    assert figure["value"] is not None, figure
    return figure["value"]


def test_constant_power():
    result = measure_energy(curve(grid(0, 100, 0.2), lambda t: 5000), 10, 90, VDD_IN, idle_power_mw=2000)
    assert result["energy"] == {"value": 400.0, "unit": "J"}  # 5 W x 80 s
    assert result["net_energy"] == {"value": 240.0, "unit": "J"}  # less 2 W x 80 s
    assert result["mean_power"] == {"value": 5000.0, "unit": "mW"}
    assert result["peak_power"] == {"value": 5000.0, "unit": "mW"}
    assert result["idle_power"] == {"value": 2000, "unit": "mW"}
    assert result["per_rail"] == {"VDD_IN": {"value": 400.0, "unit": "J"}}
    assert (result["energy_scope"], result["rails"]) == ("module_input", ["VDD_IN"])
    assert (result["coverage"], result["largest_gap_s"], result["duration_s"]) == (1.0, 0.2, 80)
    assert result["n_samples"] == 401
    assert result["warnings"] == []


def test_ramp_with_edges_between_samples():
    # P = 1 W + 0.1 W/s t, sampled every second; from 2.5 to 27.5 s: 25 s x (1.25 + 3.75) / 2 W = 62.5 J
    result = measure_energy(curve(grid(0, 30, 1), lambda t: 1000 + 100 * t), 2.5, 27.5, VDD_IN)
    assert value(result["energy"]) == pytest.approx(62.5, abs=1e-6)
    assert value(result["peak_power"]) == 3700.0  # at 27 s, the last sample inside
    assert result["n_samples"] == 25


def test_triangle_by_hand():
    # 0 -> 4 W -> 0 over 2 s: 4 J; a window of its left half 2 J; of its middle second, 2 to 4 to 2 W: 3 J
    samples = curve([0, 1, 2], lambda t: 4000 - 4000 * abs(t - 1))
    assert value(measure_energy(samples, 0, 2, VDD_IN)["energy"]) == 4.0
    assert value(measure_energy(samples, 0, 1, VDD_IN)["energy"]) == 2.0
    assert value(measure_energy(samples, 0.5, 1.5, VDD_IN)["energy"]) == 3.0


def test_a_window_between_two_samples_is_interpolated():
    result = measure_energy(curve([0, 1], lambda t: 1000 + 1000 * t), 0.25, 0.75, VDD_IN)
    assert value(result["energy"]) == pytest.approx(0.75)  # 0.5 s x 1.5 W
    assert result["peak_power"]["reason"] == "the run is shorter than the time between two samples"


def test_sum_of_rails_with_a_negative_one():
    samples = [Sample(float(t), {"GPU": -392.0, "CPU": 3924.0, "OTHER": 1e6}, {}) for t in range(31)]
    result = measure_energy(samples, 0, 30, SUM)
    assert value(result["per_rail"]["GPU"]) == pytest.approx(-11.76)
    assert value(result["per_rail"]["CPU"]) == pytest.approx(117.72)
    assert value(result["energy"]) == pytest.approx(105.96)
    assert value(result["peak_power"]) == 3532.0


@pytest.mark.parametrize("seed", range(5))
def test_known_watts_within_1_percent_with_jitter_and_gaps(seed):
    """Clips of 2.4 s: 5 W, 13 W in the first 0.8 s of each, over a slow wave of 1 W. The sensor averages over 0.43 s as
    an INA3221 does; samples jitter by half their interval, single ones are lost, and 12 s in one piece.
    """
    rng = random.Random(seed)

    def used_j(t):
        clips, rest_s = divmod(t, 2.4)
        return 5 * t + 6.4 * clips + 8 * min(rest_s, 0.8) - 60 / (2 * math.pi) * math.cos(2 * math.pi * t / 60)

    times = [t + rng.uniform(-0.1, 0.1) for t in grid(-5, 245, 0.2)]
    times = [t for t in times if rng.random() > 0.02 and not 40 < t < 52]
    samples = curve(sorted(times), lambda t: (used_j(t) - used_j(t - 0.43)) / 0.43 * 1000)
    result = measure_energy(samples, 0, 240, VDD_IN)
    assert value(result["energy"]) == pytest.approx(
        1840, rel=0.01
    )  # 5 W x 240 s + 100 clips x 6.4 J; the wave ends at 0
    assert 0.94 <= result["coverage"] <= 0.96
    assert result["largest_gap_s"] > 12
    assert len(result["warnings"]) == 1
    assert result["warnings"][0].startswith("power samples cover 9")
    assert result["warnings"][0].endswith("the rest is filled with the mean power")


def test_a_gap_is_not_bridged():
    # 1 W, then nothing for 8 s, then 11 W: a bridge would count 6 W across the gap.
    samples = curve(grid(0, 46, 1), lambda t: 1000) + curve(grid(54, 100, 1), lambda t: 11000)
    result = measure_energy(samples, 0, 100, VDD_IN)
    assert result["coverage"] == 0.92
    assert value(result["mean_power"]) == pytest.approx(6000)  # 46 s of 1 W and 46 s of 11 W
    assert value(result["energy"]) == pytest.approx(600)
    assert result["largest_gap_s"] == 8


def test_gaps_up_to_the_limit_are_integrated():
    assert measure_energy(curve(grid(0, 50, 2.5), lambda t: 1000), 0, 50, VDD_IN)["coverage"] == 1.0
    assert measure_energy(curve(grid(0, 52, 2.6), lambda t: 1000), 0, 52, VDD_IN)["coverage"] == 0.0


def test_too_little_covered_is_null_with_the_reason():
    result = measure_energy(curve(grid(0, 85, 1), lambda t: 1000), 0, 100, VDD_IN, source_error="tegrastats ended")
    reason = "power samples cover 85% of the 100.0 s measured, at least 90% needed (the last 85.0 s into it): tegrastats ended"
    for name, unit in (("energy", "J"), ("net_energy", "J"), ("mean_power", "mW"), ("peak_power", "mW")):
        assert result[name] == {"value": None, "unit": unit, "reason": reason}
    assert result["per_rail"]["VDD_IN"]["value"] is None
    assert result["largest_gap_s"] == 15
    assert result["warnings"] == ["the power source failed: tegrastats ended"]


def test_a_window_whose_beginning_is_not_covered():
    result = measure_energy(curve(grid(50, 100, 1), lambda t: 1000), 0, 100, VDD_IN)
    assert result["coverage"] == 0.5
    assert result["largest_gap_s"] == 50
    assert result["energy"]["value"] is None


def test_no_samples():
    result = measure_energy([], 0, 30, VDD_IN)
    assert result["energy"]["reason"] == (
        "power samples cover 0% of the 30.0 s measured, at least 90% needed (none in it)"
    )
    assert (result["coverage"], result["largest_gap_s"], result["n_samples"]) == (0.0, 30, 0)


def test_an_empty_window():
    assert measure_energy([], 3, 3, VDD_IN)["energy"]["reason"] == "the measured window is empty (0.000 s)"


def test_a_source_that_died_at_the_very_end_is_said():
    result = measure_energy(
        curve(grid(0, 96, 1), lambda t: 1000), 0, 100, VDD_IN, source_error="tegrastats ended, exit code 1"
    )
    assert value(result["energy"]) == pytest.approx(100)
    assert "the power source failed: tegrastats ended, exit code 1" in result["warnings"]


def test_a_rail_that_vanishes_is_an_error():
    samples = [Sample(float(t), {"GPU": 1.0, "CPU": 1.0} if t < 13 else {"GPU": 1.0}, {}) for t in range(31)]
    with pytest.raises(RailVanished) as error:
        measure_energy(samples, 0.5, 30, SUM)
    assert str(error.value) == (
        "power rail CPU vanished 12.5 s into the measurement (readings then: GPU): the energy of this run is not known. "
        "Repeat it; if it vanishes again choose another source with --power"
    )


def test_a_rail_that_vanishes_for_one_reading_is_an_error_even_where_the_gap_is_short():
    samples = curve(grid(0, 30, 0.2), lambda t: 1000)
    samples[75] = Sample(samples[75].time_s, {}, {})
    with pytest.raises(RailVanished, match=r"VDD_IN vanished 15.0 s into the measurement \(readings then: none\)"):
        measure_energy(samples, 0, 30, VDD_IN)


def test_a_rail_missing_outside_the_window_does_no_harm():
    samples = [Sample(0.0, {}, {})] + curve(grid(1, 40, 1), lambda t: 1000) + [Sample(41.0, {}, {})]
    assert value(measure_energy(samples, 5, 35, VDD_IN)["energy"]) == pytest.approx(30)


def test_warning_of_a_short_run():
    result = measure_energy(curve(grid(0, 30, 1), lambda t: 1000), 5, 24, VDD_IN)
    assert result["warnings"] == ["the run took 19.0 s; energy is repeatable from 20 s on: raise --min-duration"]


def test_warning_of_a_sensor_that_averages_long():
    samples = curve(grid(0, 40, 1), lambda t: 1000)
    (warning,) = measure_energy(samples, 5, 26, VDD_IN, averaging_s=0.43)["warnings"]  # 2.05 % of 21 s
    assert warning.startswith("the sensor averages over 0.43 s, more than 2% of the 21.0 s measured")
    assert measure_energy(samples, 5, 27, VDD_IN, averaging_s=0.43)["warnings"] == []  # 1.95 % of 22 s


def test_warning_of_a_baseline_that_was_not_idle():
    result = measure_energy(curve(grid(0, 30, 1), lambda t: 1000), 0, 30, VDD_IN, idle_power_mw=1200)
    assert value(result["net_energy"]) == pytest.approx(-6)
    assert result["warnings"] == [
        "the run took no more than the idle power of 1200 mW: the baseline was not idle, or the run did next to nothing"
    ]


def test_without_a_baseline_net_is_null():
    result = measure_energy(curve(grid(0, 30, 1), lambda t: 1000), 0, 30, VDD_IN)
    assert result["net_energy"] == {"value": None, "unit": "J", "reason": "no idle baseline was measured"}
    assert result["idle_power"]["reason"] == "no idle baseline was measured"


def counter(times_s, energy_j, rail="package-0"):
    return [Sample(t, {}, {rail: float(energy_j(t))}) for t in times_s]


PACKAGE = Scope("cpu_package", ("package-0",))


def test_counters_are_differences_interpolated_at_the_edges():
    # 12 W from the start on: 300 J in 25 s, whatever the samples' times
    result = measure_energy(counter([0, 0.7, 1.9, 14, 15, 25.2, 26.4, 27], lambda t: 12 * t), 1, 26, PACKAGE)
    assert value(result["energy"]) == pytest.approx(300)
    assert result["coverage"] == 1.0  # long intervals inside are no loss: a counter does not forget
    assert result["largest_gap_s"] == pytest.approx(12.1)
    assert value(result["peak_power"]) == pytest.approx(12000)


def test_counters_with_a_long_interval_across_an_edge():
    # When in the interval from -20 to 5 s the energy was used is not known: 5 of 100 s are not covered.
    samples = counter([-20] + grid(5, 101, 1), lambda t: 12 * max(t, 5))
    result = measure_energy(samples, 0, 100, PACKAGE)
    assert result["coverage"] == 0.95
    assert value(result["energy"]) == pytest.approx(1200)


def test_counter_of_a_burst():
    # 10 W, and 50 W between 10 and 11 s: the peak is seen between the two readings
    samples = counter(grid(0, 30, 1), lambda t: 10 * t + (40 if t > 10 else 0))
    result = measure_energy(samples, 0, 30, PACKAGE)
    assert value(result["energy"]) == pytest.approx(340)
    assert value(result["peak_power"]) == pytest.approx(50000)


def test_a_counter_that_falls_is_not_counted_there():
    # A driver loaded anew starts its counter again: 1 of 30 s is not covered, and nothing is negative.
    samples = counter(grid(0, 30, 1), lambda t: 10 * t + (1000 if t < 15 else 0))
    result = measure_energy(samples, 0, 30, PACKAGE)
    assert result["coverage"] == pytest.approx(29 / 30, abs=1e-4)
    assert value(result["energy"]) == pytest.approx(300)


def test_power_and_counters_together():
    samples = [Sample(float(t), {"gpu0": 30000.0}, {"package-0": 10.0 * t}) for t in range(31)]
    result = measure_energy(samples, 0, 30, Scope("cpu_package+gpu_board", ("gpu0", "package-0")))
    assert value(result["energy"]) == pytest.approx(1200)
    assert value(result["per_rail"]["gpu0"]) == pytest.approx(900)
    assert value(result["peak_power"]) == pytest.approx(40000)


def test_samples_out_of_order_and_twice():
    samples = curve(grid(0, 30, 1), lambda t: 1000 + 100 * t)
    shuffled = samples + samples[5:8]
    random.Random(1).shuffle(shuffled)
    expected = value(measure_energy(samples, 2, 28, VDD_IN)["energy"])
    assert value(measure_energy(shuffled, 2, 28, VDD_IN)["energy"]) == pytest.approx(expected)


def test_mean_power_for_the_baseline():
    samples = curve(grid(0, 10, 0.5), lambda t: 2000 + 100 * t)
    assert measure_energy(samples, 2, 8, VDD_IN)["mean_power"] == {"value": 2500.0, "unit": "mW"}
    assert measure_energy(samples, 8, 20, VDD_IN)["mean_power"]["value"] is None
    with pytest.raises(RailVanished):
        measure_energy(samples, 2, 8, SUM)
