"""The report of one bench run, schema "edgeqlora.report/1".

Every figure is an object of one shape: {"value": number, "unit": "ms"}; a figure that could not be had is
{"value": null, "unit": "mW", "reason": "why"}, never 0. Facts without a unit (power_mode) have unit null.
Names and settings are plain values. The parts:

schema, created_utc   when (UTC)
bundle                name, base_model, profile, precision of each graph, manifest_sha256
machine               machine, cpu_model, n_cores, memory_total_mib, board, system, kernel (null: does not say)
software              python, numpy, runtime and its version, active providers, this runner's version
method                warmup, repeats, batch_size, threads, clock, percentiles, what latency includes
latency_ms            total, mel, encoder, decoder, first_token, decoder_step: each p50 p90 p99 mean max
throughput            rtf, clips_per_s, audio_s_per_s
memory                rss_before_load, rss_after_load, peak_rss; load_ms beside it
power                 power_mw, energy_j, temperature_c
accuracy              per normaliser: wer, cer, with the counts behind them
clips                 n, audio_s, n_per_window, n_cut, n_incomplete, n_unstable
utterances            per clip: audio, reference, hypothesis, latency_ms of each repeat, audio_s, window_s, n_pieces
"""

import platform
import time
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from . import __version__
from .bundle import Bundle, EvalClip
from .figures import figure, nearest_rank, spread
from .files import write_json
from .machine import read_machine
from .table import format_table
from .wer import NORMALISERS, corpus_error_rate

__all__ = ["SCHEMA", "build_report", "figure", "format_table", "nearest_rank", "write_report"]

SCHEMA = "edgeqlora.report/1"
_NO_SENSOR = "this version of the runner reads no power or temperature sensor"
_NO_BOARD = "this version of the runner does not read the board's power mode and clocks"
_PHASES = ("total", "mel", "encoder", "decoder", "first_token")


def build_report(
    bundle: Bundle,
    runtime: Any,
    clips: Sequence[EvalClip],
    measurements: Sequence[Any],
    settings: Any,
    loading: Any,
    peak_rss_mib: float,
) -> Dict[str, Any]:
    """Put a bench run's measurements (bench.Measurement) together as a report."""
    manifest = bundle.manifest
    return {
        "schema": SCHEMA,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "bundle": {
            "name": bundle.name,
            "base_model": manifest["model"].get("base_model"),
            "profile": (manifest.get("profile") or {}).get("name"),
            "precision": {graph: entry.get("precision") for graph, entry in manifest["graphs"].items()},
            "windows_s": bundle.windows_s,
            "manifest_sha256": bundle.manifest_sha256,
        },
        "machine": read_machine(),
        "software": {
            "edgeqlora_jetson": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "runtime": runtime.name,
            "runtime_version": runtime.version,
            "providers": runtime.providers,
        },
        "method": {
            "warmup": settings.warmup,
            "repeats": settings.repeats,
            "batch_size": settings.batch_size,
            "threads": runtime.threads,
            "clock": "time.perf_counter (monotonic)",
            "percentiles": "nearest-rank",
            "synchronisation": "each call returns with its result in host memory",
            "latency": "one clip (or batch) from samples in memory to text: log-mel, encoder, decoder, detokenizing; "
            "reading and decoding of the audio file is not included",
            "decoding": "greedy",
            "power_mode": figure(None, None, _NO_BOARD),
            "clocks_locked": figure(None, None, _NO_BOARD),
        },
        "latency_ms": _latency(measurements),
        "throughput": _throughput(measurements),
        "memory": {
            "rss_before_load": _rss(loading.rss_before_mib),
            "rss_after_load": _rss(loading.rss_after_mib),
            "peak_rss": figure(peak_rss_mib, "MiB"),
        },
        "load_ms": figure(loading.load_ms, "ms"),
        "power": {
            "power_mw": figure(None, "mW", _NO_SENSOR),
            "energy_j": figure(None, "J", _NO_SENSOR),
            "temperature_c": figure(None, "degC", _NO_SENSOR),
        },
        "accuracy": _accuracy(clips, measurements),
        "clips": _clips(clips, measurements),
        "utterances": _utterances(clips, measurements),
    }


def write_report(path: Any, report: Dict[str, Any]) -> None:
    """Write a report as JSON, atomically. Raises UserError when it cannot be written."""
    write_json(path, report)


def _latency(measurements: Sequence[Any]) -> Dict[str, Any]:
    """Per model call: in a batch, every clip waits for all, so the batch counts once."""
    calls = _calls(measurements)
    values = {phase: [getattr(call, phase + "_ms") for call in calls] for phase in _PHASES}
    values["decoder_step"] = [call.decoder_ms / call.n_steps for call in calls if call.n_steps]
    return {phase: spread(times_ms, "ms") for phase, times_ms in values.items()}


def _calls(measurements: Sequence[Any]) -> List[Any]:
    """One transcript for each model call."""
    return list({m.batch: m.transcript for m in measurements}.values())


def _throughput(measurements: Sequence[Any]) -> Dict[str, Any]:
    processing_s = sum(call.total_ms for call in _calls(measurements)) / 1e3
    audio_s = sum(m.transcript.audio_s for m in measurements)
    return {
        "rtf": figure(processing_s / audio_s, "processing s / audio s"),
        "clips_per_s": figure(len(measurements) / processing_s, "clips/s"),
        "audio_s_per_s": figure(audio_s / processing_s, "audio s/s"),
    }


def _rss(mib: Optional[float]) -> Dict[str, Any]:
    return figure(mib, "MiB", "this system has no /proc/self/status")


def _accuracy(clips: Sequence[EvalClip], measurements: Sequence[Any]) -> Dict[str, Any]:
    pairs = [(clips[m.clip].reference, m.transcript.text) for m in measurements if m.repeat == 0]
    known = [(reference, text) for reference, text in pairs if reference is not None]
    accuracy = {}
    for name, normalise in NORMALISERS.items():
        normalised = [(normalise(reference), normalise(text)) for reference, text in known]
        entry: Dict[str, Any] = {}
        for rate, unit in (("wer", "word"), ("cer", "char")):
            counts = corpus_error_rate(normalised, unit)
            reason = "the clips have no references" if not known else "the references are empty"
            percent = None if counts["rate"] is None else 100.0 * counts["rate"]
            entry[rate] = figure(percent, "%", reason)
            entry[rate].update(
                (key, counts[key]) for key in ("substitutions", "deletions", "insertions", "n_reference")
            )
        accuracy[name] = entry
    return accuracy


def _clips(clips: Sequence[EvalClip], measurements: Sequence[Any]) -> Dict[str, Any]:
    first = [m.transcript for m in measurements if m.repeat == 0]
    per_window: Dict[str, int] = {}
    for transcript in first:
        key = str(transcript.window_s)
        per_window[key] = per_window.get(key, 0) + 1
    texts: Dict[int, set] = {}
    for m in measurements:
        texts.setdefault(m.clip, set()).add(m.transcript.text)
    return {
        "n": len(clips),
        "n_with_reference": sum(clip.reference is not None for clip in clips),
        "audio_s": sum(transcript.audio_s for transcript in first),
        "n_per_window": per_window,
        "n_cut": sum(transcript.n_pieces > 1 for transcript in first),
        "n_incomplete": sum(transcript.n_incomplete > 0 for transcript in first),
        "n_unstable": sum(len(different) > 1 for different in texts.values()),
    }


def _utterances(clips: Sequence[EvalClip], measurements: Sequence[Any]) -> List[Dict[str, Any]]:
    rows: Dict[int, Dict[str, Any]] = {}
    for m in measurements:
        t = m.transcript
        row = rows.setdefault(
            m.clip,
            {
                "audio": clips[m.clip].name,
                "reference": clips[m.clip].reference,
                "hypothesis": t.text,
                "audio_s": t.audio_s,
                "window_s": t.window_s,
                "n_pieces": t.n_pieces,
                "n_tokens": len(t.tokens),
                "latency_ms": [],
            },
        )
        row["latency_ms"].append(t.total_ms)
    return [rows[i] for i in sorted(rows)]
