"""One thread that reads power, memory and heat beside a run, and says what it cost itself."""

import threading
import time
from typing import Any, Dict, List, Optional

MEMORY_EVERY_S = 0.25
THERMAL_EVERY_S = 1.0


class Telemetry(object):
    """Polls sensors from start() to stop().

    power: a power.PowerSource, started and stopped here, or None. memory: a monitor with poll(), started and finished by
    its owner, or None; `thermal`, set later, is another.
    period_s: how often the power source is asked; memory and heat are read less often, as they change slowly.
    A sensor that raises is not asked again and is named in `errors`; the run goes on.
    """

    def __init__(self, power: Any = None, memory: Any = None, period_s: float = 0.1) -> None:
        self.errors: Dict[str, str] = {}
        self.memory = memory
        self.thermal: Any = None
        self._power = power
        self.period_s = period_s
        self._samples: List[Any] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held while sensors are read
        self._stopping = threading.Event()
        self._paused = False
        self._thread: Optional[threading.Thread] = None
        self._cpu_s = self._active_s = 0.0
        self._n_polls = 0

    def start(self) -> None:
        """Start the power source and the thread."""
        if self._power is not None:
            self._power.start()
        self._thread = threading.Thread(target=self._loop, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read once more, then stop thread and power source. May be called twice."""
        if self._thread is None:
            return
        self._stopping.set()
        self._thread.join(timeout=10.0)
        self._thread = None
        if self._power is not None:
            self._keep(self._ask("power", self._power))
            self._power.stop()

    def pause(self, is_paused: bool) -> None:
        """Stop all reading, the power source's own threads and programs too, to measure what reading costs."""
        with self._turn:
            if is_paused == self._paused:
                return
            self._paused = is_paused
            if self._power is not None:
                if is_paused:
                    self._power.stop()
                else:
                    self._power.start()

    @property
    def power_error(self) -> Optional[str]:
        """Why power is no longer read; None: it is."""
        return self.errors.get("power") or (self._power.error if self._power is not None else None)

    def samples(self) -> List[Any]:
        """All power samples kept so far, in the order of time."""
        with self._lock:
            return list(self._samples)

    def forget_before(self, time_s: float) -> None:
        """Drop samples older than time_s but the last of them: a run of hours keeps no list of hours."""
        with self._lock:
            older = sum(1 for sample in self._samples if sample.time_s < time_s)
            del self._samples[: max(0, older - 1)]

    def wait_for_sample_after(self, time_s: float) -> bool:
        """Wait, at most 5 s, until a power sample from time_s or later is there, so that a window's far edge is covered."""
        deadline_s = time.monotonic() + 5.0
        while time.monotonic() < deadline_s:
            with self._lock:
                if self._samples and self._samples[-1].time_s >= time_s:
                    return True
            if self._power is None or self.power_error:
                return False
            time.sleep(0.01)
        return False

    def cost(self) -> Dict[str, Any]:
        """What the sampling thread took: processor seconds, seconds it ran, polls. Not what child programs took."""
        return {"cpu_s": self._cpu_s, "active_s": self._active_s, "n_polls": self._n_polls, "period_s": self.period_s}

    def read_now(self) -> None:
        """Read memory and heat at this moment, besides the regular times: the edges of a run."""
        with self._turn:
            for name, monitor in (("memory", self.memory), ("thermal", self.thermal)):
                if monitor is not None:
                    self._ask(name, monitor)

    def _loop(self) -> None:
        started_s = time.monotonic()
        due_s = {"memory": started_s, "thermal": started_s}
        while not self._stopping.wait(self.period_s):
            with self._turn:
                if not self._paused:
                    self._read(due_s)
            self._cpu_s = time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)
            self._active_s = time.monotonic() - started_s

    def _read(self, due_s: Dict[str, float]) -> None:
        self._n_polls += 1
        now_s = time.monotonic()
        if self._power is not None:
            self._keep(self._ask("power", self._power))
        for name, monitor, every_s in (
            ("memory", self.memory, MEMORY_EVERY_S),
            ("thermal", self.thermal, THERMAL_EVERY_S),
        ):
            if monitor is not None and now_s >= due_s[name]:
                self._ask(name, monitor)
                due_s[name] = now_s + every_s

    def _ask(self, name: str, sensor: Any) -> Any:
        if name in self.errors:
            return None
        try:
            return sensor.poll()
        except Exception as error:  # a sensor of some board we never saw must not end the measurement
            self.errors[name] = "{}: {}".format(type(error).__name__, error)
            return None

    def _keep(self, samples: Optional[List[Any]]) -> None:
        if samples:
            with self._lock:
                self._samples.extend(samples)
