"""Time that passes only when somebody looks at it or sleeps: a run is the same on every machine, and waits for nothing."""

import functools
import importlib
import sys
import time

from edgeqlora_jetson.bench import run as bench_run
from edgeqlora_jetson.sensors import session
from edgeqlora_jetson.sensors.telemetry import Telemetry
from edgeqlora_jetson.soak import run as soak_run


class VirtualTime(object):
    """Stands for the module `time`. Every look takes step_s; calls registered with `every` come at their turn."""

    def __init__(self, step_s=0.005):
        self.now_s, self.step_s = 1000.0, step_s
        self._turns = []
        self._is_in_turn = False

    def monotonic(self):
        self.sleep(self.step_s)
        return self.now_s

    perf_counter = monotonic

    def __getattr__(self, name):
        return getattr(time, name)  # the date, which no run goes by

    def sleep(self, seconds):
        end_s = self.now_s + seconds
        while not self._is_in_turn:
            due = [turn for turn in self._turns if turn.due_s <= end_s]
            if not due:
                break
            turn = min(due, key=lambda turn: turn.due_s)
            self.now_s = max(self.now_s, turn.due_s)
            turn.due_s += turn.period_s
            self._is_in_turn = True
            try:
                turn.call()
            finally:
                self._is_in_turn = False
        self.now_s = max(self.now_s, end_s)

    def every(self, period_s, call):
        """Have `call` called every period_s until the turn that is returned is joined."""
        turn = Turn(self._turns, self.now_s + period_s, period_s, call)
        self._turns.append(turn)
        return turn

    def install(self, monkeypatch):
        """Put it under all of the runner: what it looks at, its warm-up, and its sampling thread."""
        importlib.import_module("edgeqlora_jetson.power.ina")  # read only when it is opened
        for name, module in list(sys.modules.items()):
            if name.startswith("edgeqlora_jetson.") and getattr(module, "time", None) is time:
                monkeypatch.setattr(module, "time", self)
        for module in (bench_run, soak_run):
            monkeypatch.setattr(module, "warm_up", functools.partial(module.warm_up, clock=self.perf_counter))
        monkeypatch.setattr(session, "Telemetry", functools.partial(SteppedTelemetry, self))
        return self


class Turn(object):
    """A call that comes again and again; ended as a thread is."""

    def __init__(self, turns, due_s, period_s, call):
        self._turns, self.due_s, self.period_s, self.call = turns, due_s, period_s, call

    def join(self, timeout=None):
        self._turns.remove(self)


class SteppedTelemetry(Telemetry):
    """Telemetry that reads when its turn comes on a virtual clock, and not in a thread."""

    def __init__(self, clock, *args, **kwargs):
        super(SteppedTelemetry, self).__init__(*args, **kwargs)
        self._clock = clock

    def start(self):
        if self._power is not None:
            self._power.start()
        due_s = {"memory": self._clock.now_s, "thermal": self._clock.now_s}
        self._thread = self._clock.every(self.period_s, lambda: self._read(due_s))
