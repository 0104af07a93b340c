"""Measure a bundle on this machine in one run: latency, throughput, error rates, power, energy, memory, heat."""

import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .bundle import Bundle, EvalClip
from .errors import UserError
from .machine import measure_rss_mib
from .overhead import measure_overhead
from .report import build_report
from .runtimes import open_runtime
from .scenarios import (
    SCENARIOS,
    Measurement,
    batches,
    run_offline,
    run_server,
    run_single_stream,
    server_queries,
)
from .sensors import Sensors
from .transcribe import Transcriber, Transcript
from .warmup import WarmUp, warm_up
from .workload import Workload, load_workload, transcribe_others

ENERGY_MIN_S = 20.0
"""Least length of a run whose energy counts: one 430 ms window of a Jetson's sensor is then 2 % of it."""

IDLE_S = 10.0


class Settings(NamedTuple):
    """How the measurement is taken."""

    scenario: Optional[str] = None
    """single-stream, offline or server; None: single-stream, or offline where batch_size is above 1."""
    warmup: int = 5
    """Least calls before measuring; goes on until they are stable. 0: none but one."""
    repeats: int = 3
    """Least passes over the clips."""
    min_duration_s: Optional[float] = None
    """Least length of the run; None: 20 s where power is measured, else 0."""
    min_count: int = 1
    """Least number of clips transcribed; whole passes are run."""
    batch_size: Optional[int] = None
    """Clips in one call; None: 1, offline: what the bundle's profile allows."""
    threads: Optional[int] = None
    """None: as the bundle's profile says."""
    rate_per_s: Optional[float] = None
    """Server: mean arrivals per second; None: half of what the warm-up reached."""
    target_latency_ms: Optional[float] = None
    """Server: the run is valid only when the p99 from arrival to text is not above this."""
    seed: int = 0
    power: str = "auto"
    """Power source: auto, none, or a name of power.SOURCES."""
    power_interval_s: Optional[float] = None
    """None: what suits the source."""
    idle_s: float = IDLE_S
    """Idle baseline, taken just before the run with the model loaded; 0: none."""
    power_mode: Optional[str] = None
    """Set this power mode (by name) first; None: leave it, and record it."""
    strict: bool = False
    """A throttled run is not valid."""
    measure_overhead: bool = False
    """Measure what the measuring costs: alternate calls with and without sensors."""
    runtime: str = "onnxruntime"
    providers: Optional[Sequence[str]] = None


class Loading(NamedTuple):
    """What opening the bundle took."""

    load_ms: float
    rss_before_mib: Optional[float]
    rss_after_mib: Optional[float]


class Run(NamedTuple):
    """The measured run: its window on time.monotonic(), and what happened in it."""

    start_s: float
    end_s: float
    measurements: List[Measurement]
    warm_up: WarmUp
    scenario: str
    batch_size: int
    rate_per_s: Optional[float]
    overhead: Optional[Dict[str, Any]]


def run_bench(
    bundle: Bundle,
    clips: Sequence[EvalClip],
    settings: Settings = Settings(),
    progress: Optional[Callable[[int, int], None]] = None,
    root: str = "/",
    open_model: Callable[..., Any] = open_runtime,
) -> Dict[str, Any]:
    """Transcribe the clips under a scenario and report (schema "edgeqlora.report/2", see report.py).

    Clips are decoded before; log-mel to text is inside the measured time. progress(n_done, n_total) in clips, or in
    seconds where the length of the run decides.
    Raises UserError for settings out of range, no clips, an audio file that cannot be read, a power source that was
    asked for and does not work.
    """
    check_settings(settings, clips, bundle)
    sensors = Sensors.open(bundle, settings.power, settings.power_interval_s, settings.power_mode, root)
    rss_before_mib = measure_rss_mib()
    start_s = time.perf_counter()
    opened = open_model(bundle, settings.runtime, threads=settings.threads, providers=settings.providers)
    transcriber = Transcriber(bundle, opened)
    loading = Loading((time.perf_counter() - start_s) * 1e3, rss_before_mib, measure_rss_mib())
    workload = load_workload(clips, transcriber, settings.seed)
    untimed = [
        Measurement(clip, 0, -1, transcript, transcript.total_ms, 0.0, is_timed=False)
        for clip, transcript in transcribe_others(clips, workload, transcriber)
    ]
    with sensors:
        sensors.rest(settings.idle_s)
        run = measure(transcriber, workload, settings, sensors, progress)
    run = run._replace(measurements=untimed + run.measurements)
    return build_report(bundle, opened, clips, run, settings, loading, sensors)


def check_settings(settings: Settings, clips: Sequence[EvalClip], bundle: Bundle) -> None:
    """Raise UserError naming the first setting that is out of range, its value and what is allowed."""
    for name, low, high in (
        ("warmup", 0, 10000),
        ("repeats", 1, 1000000),
        ("min_duration_s", 0, 7 * 86400),
        ("min_count", 1, 10**9),
        ("batch_size", 1, 1024),
        ("rate_per_s", 1e-3, 1e5),
        ("target_latency_ms", 1e-3, 1e7),
        ("seed", 0, 2**32 - 1),
        ("power_interval_s", 0.01, 60),
        ("idle_s", 0, 3600),
    ):
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise UserError("{}={:g}, allowed {:g} to {:g}".format(name, value, low, high))
    if settings.scenario is not None and settings.scenario not in SCENARIOS:
        raise UserError("scenario {!r} is not known, allowed: {}".format(settings.scenario, ", ".join(SCENARIOS)))
    scenario = choose_scenario(settings)
    if scenario == "single-stream" and (settings.batch_size or 1) > 1:
        raise UserError(
            "batch_size={}: single-stream gives one clip at a time; for batches use --scenario offline".format(
                settings.batch_size
            )
        )
    if scenario != "server" and (settings.rate_per_s or settings.target_latency_ms):
        raise UserError("rate and target latency belong to the server scenario, this is {}".format(scenario))
    if not clips:
        raise UserError("no clips to measure on, at least one is needed")


def choose_scenario(settings: Settings) -> str:
    """The scenario asked for, else the one that the batch size means."""
    return settings.scenario or ("offline" if (settings.batch_size or 1) > 1 else "single-stream")


def choose_batch(settings: Settings, bundle: Bundle) -> int:
    """The batch asked for, else the profile's largest offline, else 1."""
    if settings.batch_size is not None:
        return settings.batch_size
    if choose_scenario(settings) == "offline":
        return int((bundle.manifest.get("profile") or {}).get("max_batch") or 1)
    return 1


def measure(
    transcriber: Transcriber,
    workload: Workload,
    settings: Settings,
    sensors: Sensors,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Run:
    """Warm up, then run the scenario over the clips held in memory. Sensors are already running."""
    scenario, batch_size = choose_scenario(settings), choose_batch(settings, transcriber.bundle)

    def run(audios: List[np.ndarray]) -> List[Transcript]:
        return transcribe(transcriber, audios)

    calls = [[workload.audios[i] for i in group] for group in first_calls(workload, batch_size)]
    warmed = warm_up(run, calls, settings.warmup)
    overhead = measure_overhead(run, calls, sensors.telemetry) if settings.measure_overhead else None
    sensors.start_run()
    min_s = settings.min_duration_s
    if min_s is None:
        min_s = ENERGY_MIN_S if sensors.has_power else 0.0
    start_s = time.monotonic()
    least = max(settings.repeats * len(workload.audios), settings.min_count)
    rate_per_s = settings.rate_per_s or warmed.clips_per_s / 2 if scenario == "server" else None

    def is_enough(n_passes: int, n_done: int) -> bool:
        return n_passes > 0 and n_done >= least and time.monotonic() - start_s >= min_s

    if scenario == "single-stream":
        groups: Iterator[List[Measurement]] = run_single_stream(run, workload.audios, settings.seed, is_enough)
    elif scenario == "offline":
        groups = run_offline(run, workload.audios, workload.windows, batch_size, settings.seed, is_enough)
    else:
        assert rate_per_s is not None
        queries = server_queries(
            len(workload.audios), max(least, int(np.ceil(rate_per_s * min_s))), rate_per_s, settings.seed
        )
        least = len(queries)
        groups = run_server(run, workload.audios, workload.windows, batch_size, queries)
    measurements: List[Measurement] = []
    for group in groups:
        measurements.extend(m._replace(clip=workload.clips[m.clip]) for m in group)
        if progress is not None:
            progress(*how_far(len(measurements), least, time.monotonic() - start_s, min_s))
    end_s = time.monotonic()
    sensors.end_run(start_s, end_s)
    return Run(start_s, end_s, measurements, warmed, scenario, batch_size, rate_per_s, overhead)


def how_far(n_done: int, least: int, elapsed_s: float, min_s: float) -> Tuple[int, int]:
    """(done, total) in clips; where the time decides, the total is what it will come to at this speed."""
    expected = int(n_done * min_s / elapsed_s) if elapsed_s > 0 else 0
    return n_done, max(n_done, least, expected)


def transcribe(transcriber: Transcriber, audios: List[np.ndarray]) -> List[Transcript]:
    """One call of the model."""
    if len(audios) == 1:
        return [transcriber.transcribe(audios[0])]
    return transcriber.transcribe_batch(audios)


def first_calls(workload: Workload, batch_size: int) -> List[List[int]]:
    """Calls to warm up with: every window that occurs is among the first."""
    calls = list(batches(range(len(workload.audios)), workload.windows, batch_size))
    first = [next(c for c in calls if workload.windows[c[0]] == window) for window in dict.fromkeys(workload.windows)]
    return first + [call for call in calls if call not in first]
