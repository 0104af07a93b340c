"""The sampling thread, the warm-up, and what measuring costs: with sensors that are scripted."""

import time
from collections import namedtuple

import numpy as np
import pytest
from fakes.clock import SteppedTelemetry

from edgeqlora_jetson.bench.overhead import describe_ratios, measure_overhead
from edgeqlora_jetson.bench.warmup import warm_up
from edgeqlora_jetson.sensors.telemetry import Telemetry

Sample = namedtuple("Sample", "time_s rails_mw")


class Source(object):
    """A power source that gives a sample at every poll, and dies when told to."""

    name, interval_s, averaging_s = "scripted", 0.01, None

    def __init__(self, dies_after=None, clock=time.monotonic):
        self.error = None
        self.events = []
        self.n_polls = 0
        self._dies_after, self._clock = dies_after, clock

    def start(self):
        self.events.append("start")

    def stop(self):
        self.events.append("stop")

    def poll(self):
        self.n_polls += 1
        if self._dies_after is not None and self.n_polls > self._dies_after:
            self.error = "it died"
            return []
        return [Sample(self._clock(), {"VDD_IN": 1000.0})]


class Monitor(object):
    def __init__(self, error=None):
        self.n_polls = 0
        self._error = error

    def poll(self):
        self.n_polls += 1
        if self._error:
            raise self._error


def wait_for_samples(telemetry, n):
    end_s = time.monotonic() + 60
    while len(telemetry.samples()) < n and time.monotonic() < end_s:
        time.sleep(0.005)
    assert len(telemetry.samples()) >= n


def test_samples_come_in_order_and_the_source_is_stopped():
    source, memory = Source(), Monitor()
    telemetry = Telemetry(source, memory, period_s=0.01)
    telemetry.start()
    wait_for_samples(telemetry, 5)
    now_s = time.monotonic()
    assert telemetry.wait_for_sample_after(now_s)
    telemetry.stop()
    telemetry.stop()
    stamps_s = [sample.time_s for sample in telemetry.samples()]
    assert stamps_s == sorted(stamps_s)
    assert stamps_s[-1] >= now_s
    assert source.events == ["start", "stop"]
    assert memory.n_polls >= 1
    cost = telemetry.cost()
    assert 0 < cost["cpu_s"] < cost["active_s"]


def test_a_sensor_that_raises_is_left_alone_and_named(monkeypatch):
    monkeypatch.setattr("edgeqlora_jetson.sensors.telemetry.MEMORY_EVERY_S", 0.0)
    broken = Monitor(ValueError("no such zone"))
    telemetry = Telemetry(Source(), broken, period_s=0.01)
    telemetry.start()
    wait_for_samples(telemetry, 5)
    telemetry.stop()
    assert telemetry.errors == {"memory": "ValueError: no such zone"}
    assert broken.n_polls == 1
    assert telemetry.power_error is None


def test_a_source_that_dies_is_not_waited_for(virtual_time):
    telemetry = SteppedTelemetry(virtual_time, Source(2, virtual_time.monotonic), period_s=0.01)
    telemetry.start()
    begun_s = virtual_time.now_s
    assert not telemetry.wait_for_sample_after(begun_s + 3600.0)
    assert virtual_time.now_s - begun_s < 1.0
    telemetry.stop()
    assert telemetry.power_error == "it died"


def test_paused_reads_nothing():
    source = Source()
    telemetry = Telemetry(source, period_s=0.005)
    telemetry.start()
    telemetry.pause(True)
    n_polls = source.n_polls
    time.sleep(0.1)
    assert source.n_polls == n_polls
    telemetry.pause(False)
    assert telemetry.wait_for_sample_after(time.monotonic())
    telemetry.stop()
    assert source.events == ["start", "stop", "start", "stop"]


def test_old_samples_are_forgotten_but_the_last_of_them():
    telemetry = Telemetry(Source(), period_s=0.005)
    telemetry.start()
    wait_for_samples(telemetry, 5)
    telemetry.stop()
    stamps_s = [sample.time_s for sample in telemetry.samples()]
    telemetry.forget_before(stamps_s[3])
    assert [sample.time_s for sample in telemetry.samples()] == stamps_s[2:]


class Clock(object):
    def __init__(self, times_s):
        self.now_s, self._times_s = 0.0, list(times_s)

    def __call__(self):
        return self.now_s

    def run(self, audios):
        self.now_s += self._times_s.pop(0) if len(self._times_s) > 1 else self._times_s[0]


CALLS = [[np.zeros(1)], [np.zeros(1)]]


def test_warm_up_goes_on_until_two_rounds_take_the_same():
    """Rounds of 2 calls: 10 + 8, 4 + 3, 2 + 2, 2 + 2 s."""
    clock = Clock([10.0, 8.0, 4.0, 3.0, 2.0])
    warmed = warm_up(clock.run, CALLS, 1, max_s=1000.0, clock=clock)
    assert warmed.n_calls == 8
    assert warmed.is_stable
    assert warmed.seconds == 33.0
    assert warmed.clips_per_s == pytest.approx(0.5)


def test_warm_up_takes_the_calls_asked_for_though_stable_before():
    clock = Clock([1.0])
    assert warm_up(clock.run, CALLS, 9, max_s=1000.0, clock=clock).n_calls == 10


def test_warm_up_gives_up_and_says_so():
    """Every round 10 % slower than the one before: never stable."""
    clock = Clock([1.1**i for i in range(400)])
    warmed = warm_up(clock.run, CALLS, 1, max_s=60.0, clock=clock)
    assert not warmed.is_stable
    assert warmed.seconds >= 60.0


def test_every_kind_of_call_is_warmed_up():
    calls = [[np.full(1, i)] for i in range(9)]
    seen = []

    def run(audios):
        seen.append(int(audios[0][0]))

    warm_up(run, calls, 1, n_kinds=7)
    assert set(seen) == set(range(7))


def test_no_warm_up_is_one_call():
    clock = Clock([1.0])
    warmed = warm_up(clock.run, CALLS, 0, clock=clock)
    assert (warmed.n_calls, warmed.is_stable) == (1, False)


class Switch(object):
    """Telemetry whose presence slows the work down by a known share."""

    is_paused = False

    def pause(self, is_paused):
        self.is_paused = is_paused


def test_overhead_finds_a_known_slowdown():
    """2 ms a call without sensors, 2.5 ms with: 25 %, on a clock of our own."""
    telemetry = Switch()
    now_s = [0.0]

    def run(audios):
        now_s[0] += 0.002 if telemetry.is_paused else 0.0025

    result = measure_overhead(run, CALLS, telemetry, n_pairs=8, clock=lambda: now_s[0], sleep=lambda seconds: None)
    assert result["value"] == pytest.approx(25.0)
    assert (result["low"], result["high"]) == (pytest.approx(25.0), pytest.approx(25.0))
    assert result["n_pairs"] == 8
    assert result["calls_per_block"] == 200  # half a second
    assert not telemetry.is_paused


def test_the_median_forgets_a_bad_pair():
    ratios = [0.001] * 9 + [4.0]
    result = describe_ratios(ratios, 10)
    assert result["value"] == pytest.approx(0.1)
    assert result["unit"] == "%"
