"""Soak: the same work for hours, to see what a short run cannot: leaks, drift, throttling."""

import gc
import resource
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from ..bench.run import runtime_settings
from ..bench.scenarios import run_single_stream
from ..bench.warmup import warm_up
from ..bench.workload import load_workload
from ..board.machine import measure_rss_mib
from ..bundle import Bundle, EvalClip
from ..errors import UserError
from ..power.energy import RailVanished
from ..runtimes import open_runtime
from ..sensors.session import Sensors
from ..sensors.thermal import ThermalMonitor
from ..transcribe import Transcriber
from .histogram import LatencyHistogram

N_INTERVALS = 60
MAX_INTERVAL_S = 60.0
"""A row is what a power cut can take, and samples of a row are held."""

MIN_DURATION_S = 60.0


class SoakSettings(NamedTuple):
    """How long, and what is still good."""

    duration_s: float = 3600.0
    settle_s: Optional[float] = None
    """Left out of slope and drift; None: a sixth of the run, 10 minutes at most."""
    interval_s: Optional[float] = None
    """One row of the report; None: a sixtieth of the run, 1 s to 60 s."""
    max_rss_slope_mib_per_h: float = 1.0
    max_p99_drift_percent: float = 5.0
    max_energy_drift_percent: float = 5.0
    threads: Optional[int] = None
    seed: int = 0
    power: str = "auto"
    power_mode: Optional[str] = None
    runtime: str = "onnxruntime"
    providers: Optional[Sequence[str]] = None
    precision: Optional[str] = None
    """Of TensorRT's engines; None: what the bundle asks for first."""
    cache_dir: Optional[str] = None
    """Folder of TensorRT's engines; None: ~/.cache/edgeqlora/engines."""


class Interval(NamedTuple):
    """One row: what happened in a stretch of whole passes over the clips."""

    start_s: float  # since the soak began
    end_s: float
    n: int  # clips transcribed
    p50_ms: float
    p99_ms: float
    rss_mib: Optional[float]  # mean over the passes
    energy_j: Optional[float]
    energy_j_per_audio_s: Optional[float]
    temperature_c: Optional[float]  # hottest zone
    throttled: Optional[bool]
    n_preempted: int  # times that the system took the processor away: other work on this machine


class Soak(object):
    """A soak being run: rows so far, and histograms of the first and the last third after settling."""

    def __init__(self, settings: SoakSettings) -> None:
        self.settings = settings
        self.rows: List[Interval] = []
        self.is_complete = False
        self.problems: List[str] = []
        self.thermal: Dict[str, Any] = {}
        self.settle_s = settings.settle_s
        if self.settle_s is None:
            self.settle_s = min(settings.duration_s / 6, 600.0)
        self.interval_s = settings.interval_s or min(MAX_INTERVAL_S, max(1.0, settings.duration_s / N_INTERVALS))
        self.first, self.last = LatencyHistogram(), LatencyHistogram()
        self._third_s = (settings.duration_s - self.settle_s) / 3

    def count(self, since_start_s: float, latency_ms: float) -> None:
        """Put a latency into the first or last third after settling."""
        settled_s = since_start_s - (self.settle_s or 0.0)
        if 0 <= settled_s < self._third_s:
            self.first.add(latency_ms)
        elif settled_s >= 2 * self._third_s:
            self.last.add(latency_ms)

    def settled_rows(self) -> List[Interval]:
        """Rows that begin after settling."""
        return [row for row in self.rows if row.start_s >= (self.settle_s or 0.0)]


def run_soak(
    bundle: Bundle,
    clips: Sequence[EvalClip],
    settings: SoakSettings,
    progress: Optional[Callable[[float, Soak], None]] = None,
    root: str = "/",
    open_model: Callable[..., Any] = open_runtime,
) -> Any:
    """Transcribe the clips over and over for duration_s; returns (Soak, runtime, Sensors).

    progress(seconds so far, soak) is called after every row. Ctrl-C ends the soak early, with what it found so far
    (soak.is_complete False).
    Raises UserError for settings out of range, no clips, a power source that was asked for and does not work.
    """
    check_soak(settings, clips)
    sensors = Sensors.open(bundle, settings.power, None, settings.power_mode, root)
    with sensors:
        opened = open_model(bundle, **runtime_settings(settings))
        transcriber = Transcriber(bundle, opened)
        workload = load_workload(clips, transcriber, settings.seed)
        audio_s = sum(len(audio) for audio in workload.audios) / float(transcriber.sample_rate_hz)
        soak = Soak(settings)

        def run(audios: List[np.ndarray]) -> List[Any]:
            return [transcriber.transcribe(audios[0])]

        warm_up(run, [[audio] for audio in workload.audios], 5)
        sensors.start_run()
        start_s = time.monotonic()
        histogram = LatencyHistogram()
        try:
            while time.monotonic() - start_s < settings.duration_s:
                histogram.clear()
                soak.rows.append(_interval(run, workload, soak, sensors, histogram, start_s, audio_s, root))
                if progress is not None:
                    progress(time.monotonic() - start_s, soak)
            soak.is_complete = True
        except KeyboardInterrupt:
            pass
        sensors.end_run(start_s, time.monotonic(), with_energy=False)
    if sensors.sensor_problem:
        sensors.doubt("no energy: {}".format(sensors.sensor_problem))
    if sensors.is_stuck:  # the first rows were too short to tell
        soak.rows[:] = [row._replace(energy_j=None, energy_j_per_audio_s=None) for row in soak.rows]
    soak.thermal = sensors.thermal
    soak.problems += [text for text in sensors.problems if text not in soak.problems]
    return soak, opened, sensors


def check_soak(settings: SoakSettings, clips: Sequence[EvalClip]) -> None:
    """Raise UserError naming the setting that is out of range."""
    for name, low, high in (
        ("duration_s", MIN_DURATION_S, 30 * 86400),
        ("settle_s", 0, settings.duration_s / 2),
        ("interval_s", 0.1, settings.duration_s / 4),
        ("max_rss_slope_mib_per_h", 0, 1e6),
        ("max_p99_drift_percent", 0, 1e6),
        ("max_energy_drift_percent", 0, 1e6),
    ):
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise UserError("{}={:g}, allowed {:g} to {:g}".format(name, value, low, high))
    if not clips:
        raise UserError("no clips to soak with, at least one is needed")


def _interval(
    run: Any,
    workload: Any,
    soak: Soak,
    sensors: Sensors,
    histogram: LatencyHistogram,
    start_s: float,
    audio_s_per_pass: float,
    root: str,
) -> Interval:
    heat = _Heat(root, sensors)
    begun_s = time.monotonic()
    preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    rss_mib: List[float] = []
    n_passes = 0

    def is_enough(passes: int, n_done: int) -> bool:
        nonlocal n_passes
        if passes > n_passes:
            n_passes = passes
            now_mib = measure_rss_mib()
            if now_mib is not None:
                rss_mib.append(now_mib)
        return passes > 0 and time.monotonic() - begun_s >= soak.interval_s

    # The seed moves on from row to row, or every row would run the clips in the same order.
    for group in run_single_stream(run, workload.audios, soak.settings.seed + len(soak.rows), is_enough):
        for measurement in group:
            histogram.add(measurement.latency_ms)
            soak.count(time.monotonic() - start_s, measurement.latency_ms)
    end_s = time.monotonic()
    gc.collect()
    energy_j = _energy_j(soak, sensors, begun_s, end_s)
    thermal = heat.finish()
    hottest = [zone["max"]["value"] for zone in (thermal.get("zones") or {}).values()]
    known = [celsius for celsius in hottest if celsius is not None]
    return Interval(
        start_s=begun_s - start_s,
        end_s=end_s - start_s,
        n=histogram.n,
        p50_ms=histogram.percentile(50),
        p99_ms=histogram.percentile(99),
        rss_mib=sum(rss_mib) / len(rss_mib) if rss_mib else None,
        energy_j=energy_j,
        energy_j_per_audio_s=None if energy_j is None else energy_j / (audio_s_per_pass * n_passes),
        temperature_c=max(known) if known else None,
        throttled=thermal.get("throttled"),
        n_preempted=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted,
    )


class _Heat(object):
    """Heat of one row; a sensor that fails leaves the row without it, and is named once."""

    def __init__(self, root: str, sensors: Sensors) -> None:
        self._errors = sensors.telemetry.errors
        self._monitor: Optional[ThermalMonitor] = ThermalMonitor(root, sensors.board.clocks_locked)
        self._guarded("start")

    def finish(self) -> Dict[str, Any]:
        """The thermal part of the row; {} where it is not known."""
        self._guarded("poll")
        part: Dict[str, Any] = self._guarded("finish") or {}
        return part

    def _guarded(self, step: str) -> Any:
        if self._monitor is None:
            return None
        try:
            return getattr(self._monitor, step)()
        except Exception as error:  # as in Telemetry: hours of work must not be lost for a sensor
            self._errors.setdefault("thermal", "{}: {}".format(type(error).__name__, error))
            self._monitor = None
            return None


def _energy_j(soak: Soak, sensors: Sensors, begun_s: float, end_s: float) -> Optional[float]:
    if sensors.source is None:
        return None
    sensors.telemetry.wait_for_sample_after(end_s)
    try:
        energy_j: Optional[float] = sensors.measure_energy(begun_s, end_s)["energy"]["value"]
    except RailVanished as error:
        if str(error) not in soak.problems:
            soak.problems.append(str(error))
        energy_j = None
    sensors.telemetry.forget_before(end_s)
    return energy_j
