"""A sensor that lives is told from one that stands still, however its readings arrive."""

from edgeqlora_jetson.power.sample import Sample
from edgeqlora_jetson.power.watch import MIN_READINGS, SensorWatch


def readings(powers_mw, every_s=0.1, together=1):
    """Samples of VDD_IN; `together` of them have one time, as lines that were read at once."""
    return [Sample(i // together * together * every_s, {"VDD_IN": p}, {}) for i, p in enumerate(powers_mw)]


def watched(samples):
    watch = SensorWatch(["VDD_IN"])
    watch.add(samples)
    return watch


def test_readings_that_arrive_in_pairs_are_all_looked_at():
    """A machine under load reads two lines of tegrastats at once: they have one time, and differ."""
    powers_mw = [4066.0, 4067.0] * MIN_READINGS
    for together in (1, 2, 3, 4):
        watch = watched(readings(powers_mw, together=together))
        assert watch.n_readings == 2 * MIN_READINGS
        assert watch.problem() is None


def test_readings_that_were_seen_are_not_counted_again():
    samples = readings([4066.0] * 10, together=2)
    watch = watched(samples[:5])
    watch.add(samples[:5])
    assert watch.n_readings == 5
    watch.add(samples)
    watch.add(samples)
    assert watch.n_readings == 10
    assert watch.problem() is None  # too few to say


def test_a_sensor_that_stands_still_is_found():
    assert (
        "20 readings of VDD_IN (4,066 mW), all equal"
        in watched(readings([4066.0] * MIN_READINGS, together=2)).problem()
    )
