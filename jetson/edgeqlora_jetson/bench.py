"""Measure a bundle on this machine: latency, throughput, memory, error rates."""

import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .audio import load_audio
from .bundle import Bundle, EvalClip
from .errors import UserError
from .machine import measure_peak_rss_mib, measure_rss_mib
from .report import build_report
from .runtimes import open_runtime
from .transcribe import Transcriber, Transcript
from .windows import window_samples


class Measurement(NamedTuple):
    """One clip transcribed once. In a batch its times are those of the batch."""

    clip: int  # index into the clips
    repeat: int  # from 0
    batch: int  # number of the model call it was part of, from 0
    transcript: Transcript


class Loading(NamedTuple):
    """What opening the bundle took."""

    load_ms: float
    rss_before_mib: Optional[float]
    rss_after_mib: Optional[float]


class Settings(NamedTuple):
    """How the measurement is taken."""

    warmup: int  # batches run before measuring, not counted
    repeats: int  # how often every clip is measured
    batch_size: int  # clips given to the model together
    threads: Optional[int]  # None: as the bundle's profile says


def run_bench(
    bundle: Bundle,
    clips: Sequence[EvalClip],
    warmup: int = 3,
    repeats: int = 1,
    batch_size: int = 1,
    threads: Optional[int] = None,
    progress: Optional[Callable[[int, int], None]] = None,
    runtime: str = "onnxruntime",
    providers: Optional[Sequence[str]] = None,
) -> Dict[str, Any]:
    """Transcribe every clip `repeats` times and report (schema "edgeqlora.report/1", see report.py).

    Reading and decoding of audio files is outside the measured time; log-mel to text is inside. Warm-up batches are
    not counted. progress(n_done, n_total) is called after each batch.
    Raises UserError for settings out of range, no clips, an audio file that cannot be read.
    """
    settings = Settings(warmup, repeats, batch_size, threads)
    _check_settings(settings, clips)
    rss_before_mib = measure_rss_mib()
    start_s = time.perf_counter()
    opened = open_runtime(bundle, runtime, threads=threads, providers=providers)
    transcriber = Transcriber(bundle, opened)
    loading = Loading((time.perf_counter() - start_s) * 1e3, rss_before_mib, measure_rss_mib())
    _warm_up(transcriber, clips, settings)
    measurements: List[Measurement] = []
    n_total = len(clips) * repeats
    n_batches = 0
    for repeat in range(repeats):
        for indices, audios in _batches(transcriber, clips, batch_size):
            for clip, transcript in zip(indices, _run(transcriber, audios)):
                measurements.append(Measurement(clip, repeat, n_batches, transcript))
            n_batches += 1
            if progress is not None:
                progress(len(measurements), n_total)
    return build_report(bundle, opened, clips, measurements, settings, loading, measure_peak_rss_mib())


def _check_settings(settings: Settings, clips: Sequence[EvalClip]) -> None:
    for name, value, low, high in (
        ("warmup", settings.warmup, 0, 10000),
        ("repeats", settings.repeats, 1, 10000),
        ("batch_size", settings.batch_size, 1, 1024),
    ):
        if not low <= value <= high:
            raise UserError("{}={}, allowed {} to {}".format(name, value, low, high))
    if not clips:
        raise UserError("no clips to measure on, at least one is needed")


def _warm_up(transcriber: Transcriber, clips: Sequence[EvalClip], settings: Settings) -> None:
    """Run `warmup` batches of the first clips, round and round if there are few."""
    n_done = 0
    while n_done < settings.warmup:
        for _, audios in _batches(transcriber, clips, settings.batch_size):
            _run(transcriber, audios)
            n_done += 1
            if n_done >= settings.warmup:
                return


def _run(transcriber: Transcriber, audios: List[np.ndarray]) -> List[Transcript]:
    if len(audios) == 1:
        return [transcriber.transcribe(audios[0])]
    return transcriber.transcribe_batch(audios)


def _batches(
    transcriber: Transcriber, clips: Sequence[EvalClip], batch_size: int
) -> Iterator[Tuple[List[int], List[np.ndarray]]]:
    """Clips of one window together, at most batch_size; those longer than any window alone.

    Audio is read as it is needed: an hour of it does not fit beside the model on a small board.
    """
    waiting: Dict[float, Tuple[List[int], List[np.ndarray]]] = {}
    longest = window_samples(max(transcriber.windows_s), transcriber.sample_rate_hz)
    for i, clip in enumerate(clips):
        audio = load_audio(clip.path, transcriber.sample_rate_hz)
        if len(audio) > longest:
            yield [i], [audio]
            continue
        indices, audios = waiting.setdefault(transcriber.choose_window(len(audio)), ([], []))
        indices.append(i)
        audios.append(audio)
        if len(indices) == batch_size:
            yield list(indices), list(audios)
            del indices[:], audios[:]
    for indices, audios in waiting.values():
        if indices:
            yield indices, audios
