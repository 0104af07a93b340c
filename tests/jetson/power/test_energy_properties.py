"""Energy: laws that hold for every curve."""

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from edgeqlora_jetson.power import Sample, Scope
from edgeqlora_jetson.power.energy import measure_energy

SCOPE = Scope("module_input", ("VDD_IN",))
STEPS = st.lists(st.tuples(st.floats(0.01, 2.4), st.floats(-500, 60000)), min_size=3, max_size=60)


def build(steps):
    time_s, samples = 0.0, []
    for step_s, power_mw in steps:
        time_s += step_s
        samples.append(Sample(time_s, {"VDD_IN": power_mw}, {}))
    return samples


@given(STEPS, st.floats(0.1, 0.9))
def test_two_windows_are_the_whole(steps, part):
    samples = build(steps)
    first_s, last_s = samples[0].time_s, samples[-1].time_s
    middle_s = first_s + part * (last_s - first_s)
    whole = measure_energy(samples, first_s, last_s, SCOPE)["energy"]["value"]
    parts = [
        measure_energy(samples, a, b, SCOPE)["energy"]["value"] for a, b in ((first_s, middle_s), (middle_s, last_s))
    ]
    assert sum(parts) == pytest.approx(whole, abs=1e-4)


@given(STEPS)
def test_mean_lies_between_lowest_and_highest(steps):
    samples = build(steps)
    values = [sample.rails_mw["VDD_IN"] for sample in samples]
    result = measure_energy(samples, samples[0].time_s, samples[-1].time_s, SCOPE)
    assert min(values) - 0.01 <= result["mean_power"]["value"] <= max(values) + 0.01
    assert result["peak_power"]["value"] == pytest.approx(max(values), abs=0.001)


@given(STEPS, st.floats(-5, 5), st.floats(0.01, 20))
def test_energy_is_mean_power_times_duration_or_null(steps, start_s, duration_s):
    result = measure_energy(build(steps), start_s, start_s + duration_s, SCOPE)
    assert 0 <= result["coverage"] <= 1
    if result["coverage"] < 0.9:
        assert result["energy"]["value"] is None
        assert "at least 90% needed" in result["energy"]["reason"]
    elif result["energy"]["value"] is not None:
        energy_j = result["mean_power"]["value"] / 1000 * result["duration_s"]
        assert result["energy"]["value"] == pytest.approx(energy_j, rel=1e-3, abs=1e-3)
