"""Measure a bundle on this machine in one run: latency, throughput, error rates, power, energy, memory, heat."""

import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..board.machine import measure_rss_mib
from ..bundle import Bundle, EvalClip
from ..errors import UserError
from ..figures import figure
from ..power import MAX_INTERVAL_S, MIN_INTERVAL_S
from ..runtimes import open_runtime
from ..runtimes.onnxruntime import choose_threads
from ..schema import Figure
from ..sensors.session import Sensors
from ..transcribe import Transcriber, Transcript
from .overhead import measure_overhead
from .report import build_report
from .scenarios import SCENARIOS, Measurement, batches, run_offline, run_server, run_single_stream, server_queries
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
    precision: Optional[str] = None
    """Of TensorRT's engines; None: what the bundle asks for first."""
    cache_dir: Optional[str] = None
    """Folder of TensorRT's engines; None: ~/.cache/edgeqlora/engines."""


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
    offered_per_s: Optional[float]  # the rate that was really drawn
    overhead: Optional[Figure]
    min_duration_s: float = 0.0  # as given, or the default for this machine
    streams: int = 1  # clips of a batch at one time (see Transcriber)


def run_bench(
    bundle: Bundle,
    clips: Sequence[EvalClip],
    settings: Settings = Settings(),
    progress: Optional[Callable[[int, int], None]] = None,
    say: Callable[[str], None] = lambda text: None,
    root: str = "/",
    open_model: Callable[..., Any] = open_runtime,
) -> Dict[str, Any]:
    """Transcribe the clips under a scenario and report (schema "edgeqlora.report/2", see report.py).

    Clips are decoded before; log-mel to text is inside the measured time. progress(n_done, n_total) in clips;
    say(text) tells what is done before that.
    Ctrl-C during the run ends it early: the report has what was measured, marked as cut short.
    Raises UserError for settings out of range, no clips, an audio file that cannot be read, a power source that was
    asked for and does not work.
    """
    check_settings(settings, clips)
    sensors = Sensors.open(bundle, settings.power, settings.power_interval_s, settings.power_mode, root)
    with sensors:  # from before the model is loaded: the most memory may be taken while it is
        say("loading the model")
        rss_before_mib = measure_rss_mib()
        start_s = time.perf_counter()
        streams, threads = choose_streams(settings, bundle)
        opened = open_model(bundle, **dict(runtime_settings(settings), threads=threads))
        transcriber = Transcriber(bundle, opened, streams)
        loading = Loading((time.perf_counter() - start_s) * 1e3, rss_before_mib, measure_rss_mib())
        workload = load_workload(clips, transcriber, settings.seed)
        untimed = [
            Measurement(clip, 0, -1, transcript, transcript.total_ms, 0.0, is_timed=False)
            for clip, transcript in transcribe_others(clips, workload, transcriber)
        ]
        if sensors.has_power and settings.idle_s:
            say("resting for {:g} s to measure idle power".format(settings.idle_s))
        sensors.rest(settings.idle_s)
        run = measure(transcriber, workload, settings, sensors, progress, say)
    run = run._replace(measurements=untimed + run.measurements)
    sensors.memory["held_audio"] = figure(sum(audio.nbytes for audio in workload.audios) / 2.0**20, "MiB")
    return build_report(bundle, opened, clips, run, settings, loading, sensors)


def runtime_settings(settings: Any) -> Dict[str, Any]:
    """What open_runtime is told, of a bench's or a soak's settings."""
    return {
        "name": settings.runtime,
        "threads": settings.threads,
        "providers": settings.providers,
        "precision": settings.precision,
        "cache_dir": settings.cache_dir,
    }


def check_settings(settings: Settings, clips: Sequence[EvalClip]) -> None:
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
        ("power_interval_s", MIN_INTERVAL_S, MAX_INTERVAL_S),
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


def choose_streams(settings: Settings, bundle: Bundle) -> Tuple[int, Optional[int]]:
    """Clips of a batch at one time where the graphs take them one by one, and threads of the runtime; (1, as asked) where they do not.

    Each stream computes, too, and all share the runtime's other threads.
    """
    batch_size = choose_batch(settings, bundle)
    if not bundle.is_int8 or batch_size == 1:
        return 1, settings.threads
    threads = choose_threads(bundle, settings.threads)
    streams = min(threads, batch_size)
    return streams, threads - streams + 1


def measure(
    transcriber: Transcriber,
    workload: Workload,
    settings: Settings,
    sensors: Sensors,
    progress: Optional[Callable[[int, int], None]] = None,
    say: Callable[[str], None] = lambda text: None,
) -> Run:
    """Warm up, then run the scenario over the clips held in memory. Sensors are already running."""
    scenario, batch_size = choose_scenario(settings), choose_batch(settings, transcriber.bundle)

    def run(audios: List[np.ndarray]) -> List[Transcript]:
        return transcribe(transcriber, audios)

    calls = [[workload.audios[i] for i in group] for group in first_calls(workload, batch_size)]
    say("warming up")
    warmed = warm_up(run, calls, settings.warmup, n_kinds=len(kinds_of_calls(workload, batch_size)))
    overhead = None
    if settings.measure_overhead:
        say("measuring what the measuring costs")
        sensors.start_run()
        overhead = measure_overhead(run, calls, sensors.telemetry)
    sensors.start_run()
    min_s = settings.min_duration_s
    if min_s is None:
        min_s = ENERGY_MIN_S if sensors.has_power else 0.0
    start_s = time.monotonic()
    least = max(settings.repeats * len(workload.audios), settings.min_count)
    offered_per_s = None
    rate_per_s = settings.rate_per_s or warmed.clips_per_s / 2 if scenario == "server" else None

    def is_enough(n_passes: int, n_done: int) -> bool:
        return n_passes > 0 and n_done >= least and time.monotonic() - start_s >= min_s

    if scenario == "single-stream":
        groups: Iterator[List[Measurement]] = run_single_stream(run, workload.audios, settings.seed, is_enough)
    elif scenario == "offline":
        groups = run_offline(run, workload.audios, workload.windows, batch_size, settings.seed, is_enough)
    else:
        assert rate_per_s is not None
        queries = server_queries(len(workload.audios), least, min_s, rate_per_s, settings.seed)
        least = len(queries)
        offered_per_s = len(queries) / queries[-1].arrival_s
        groups = run_server(run, workload.audios, workload.windows, batch_size, queries)
    measurements: List[Measurement] = []
    first: Dict[int, Transcript] = {}
    try:
        for group in groups:
            measurements.extend(_kept(m._replace(clip=workload.clips[m.clip]), first) for m in group)
            if progress is not None:
                progress(*how_far(len(measurements), least, time.monotonic() - start_s, min_s))
    except KeyboardInterrupt:
        if not measurements:
            raise
        sensors.problems.append("cut short by Ctrl-C or a signal after {:,} clips".format(len(measurements)))
    end_s = time.monotonic()
    sensors.end_run(start_s, end_s)
    return Run(
        start_s,
        end_s,
        measurements,
        warmed,
        scenario,
        batch_size,
        rate_per_s,
        offered_per_s,
        overhead,
        min_s,
        transcriber.streams,
    )


def _kept(measurement: Measurement, first: Dict[int, Transcript]) -> Measurement:
    """A measurement whose text and tokens are those of the clip's first pass where they are equal: held once."""
    transcript = measurement.transcript
    known = first.setdefault(measurement.clip, transcript)
    if known is transcript or known.tokens != transcript.tokens:
        return measurement
    return measurement._replace(transcript=transcript._replace(text=known.text, tokens=known.tokens))


def how_far(n_done: int, least: int, elapsed_s: float, min_s: float) -> Tuple[int, int]:
    """(done, total) in clips; where the time decides, the total is what it will come to at this speed."""
    expected = int(n_done * min_s / elapsed_s) if elapsed_s > 0 else 0
    return n_done, max(n_done, least, expected)


def transcribe(transcriber: Transcriber, audios: List[np.ndarray]) -> List[Transcript]:
    """One call of the model."""
    if len(audios) == 1:
        return [transcriber.transcribe(audios[0])]
    return transcriber.transcribe_batch(audios)


def kinds_of_calls(workload: Workload, batch_size: int) -> Dict[Any, List[int]]:
    """(window, number of clips) -> the first such call of a pass: each is a shape the model may see for the first time."""
    kinds: Dict[Any, List[int]] = {}
    for call in batches(range(len(workload.audios)), workload.windows, batch_size):
        kinds.setdefault((workload.windows[call[0]], len(call)), call)
    return kinds


def first_calls(workload: Workload, batch_size: int) -> List[List[int]]:
    """Calls to warm up with: one of every kind comes first."""
    first = list(kinds_of_calls(workload, batch_size).values())
    calls = batches(range(len(workload.audios)), workload.windows, batch_size)
    return first + [call for call in calls if call not in first]
