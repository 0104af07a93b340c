"""The report of one bench run, schema "edgeqlora.report/2".

Every figure is an object of one shape: {"value": number, "unit": "ms"}; a figure that is not known is
{"value": null, "unit": "mW", "reason": "why"}, never 0. Facts without a unit (power_mode) have unit null.
Names and settings are plain values. The parts:

schema, created_utc   when (UTC)
validity              is_valid, problems (why not), warnings (what to know before comparing), checks (what was asked of it)
bundle                name, base_model, profile, precision of each graph, manifest_sha256
board                 id, how it was known, jetpack, l4t, power_mode, clocks_locked, is_root, in_container, notes
machine               machine, cpu_model, n_cores, memory_total_mib, board, system, kernel (null: does not say)
software              python, numpy, runtime and its version, providers, which provider ran how many nodes, this version
method                scenario, warm-up, repeats, batch, rate, seed, threads, clock, percentiles, what latency includes
latency_ms            query (server: from arrival), waiting, total, features, the decoder's phases, first_token, decoder_step
throughput            rtf, clips_per_s, audio_s_per_s, run_s
energy                gross and net energy, mean, peak and idle power, J per audio second and per clip, scope, rails, coverage, source
memory                system use over baseline, RSS, PSS, GPU, swap, method; rss_before_load, rss_after_load
thermal               zones, throttling, clocks
harness               what the measuring itself cost
accuracy              per normaliser: wer, cer, with the counts behind them (wer null: texts without spaces between words)
leading               wer or cer: the one of them to read
clips                 n, audio_s, n_per_window, n_cut, n_incomplete, heard_s, n_again, n_unstable, n_untimed
utterances            per clip: audio, reference, hypothesis, latency_ms of each repeat, audio_s, window_s, heard_s, n_pieces
"""

import platform
import time
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from .. import __version__
from ..board.machine import measure_peak_rss_mib, read_machine
from ..bundle import Bundle, EvalClip
from ..figures import figure, nearest_rank, spread
from ..files import write_json
from ..schema import Decoder, Figure, Manifest
from ..text import NORMALISERS, why_no_words, written_language
from ..wer import error_figures
from .table import format_table
from .validity import judge

__all__ = ["SCHEMA", "build_report", "figure", "format_table", "nearest_rank", "write_report"]

SCHEMA = "edgeqlora.report/2"


def build_report(
    bundle: Bundle,
    runtime: Any,
    clips: Sequence[EvalClip],
    run: Any,
    settings: Any,
    loading: Any,
    sensors: Any,
) -> Dict[str, Any]:
    """Put a bench run (bench.Run) together as a report. sensors: sensors.Sensors whose run has ended."""
    manifest = bundle.manifest
    timed = [m for m in run.measurements if m.is_timed]
    report: Dict[str, Any] = {
        "schema": SCHEMA,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "validity": None,
        "bundle": {
            "name": bundle.name,
            "base_model": manifest["model"].get("base_model"),
            "profile": (manifest.get("profile") or {}).get("name"),
            "precision": _precision(runtime, manifest),
            "windows_s": bundle.windows_s,
            "manifest_sha256": bundle.manifest_sha256,
        },
        "board": dict(sensors.board._asdict()),
        "machine": read_machine(),
        "software": dict(
            describe_software(runtime),
            notes=list(getattr(runtime, "notes", ())),
            node_placement=runtime.node_placement() if hasattr(runtime, "node_placement") else None,
        ),
        "method": {
            "scenario": run.scenario,
            "warmup": dict(run.warm_up._asdict()),
            "repeats": settings.repeats,
            "min_duration_s": run.min_duration_s,
            "min_count": settings.min_count,
            "batch_size": run.batch_size,
            "rate_per_s": run.rate_per_s,
            "offered_per_s": run.offered_per_s,
            "differs_from_mlperf": "whole passes over the clips instead of samples drawn with replacement; length and "
            "count as given here, not MLPerf's minima",
            "target_latency_ms": settings.target_latency_ms,
            "seed": settings.seed,
            "threads": runtime.threads,
            "streams": run.streams,
            "clock": "time.perf_counter, window of the run on time.monotonic",
            "percentiles": "nearest-rank",
            "synchronisation": "each call returns with its result in host memory",
            "latency": "from samples in memory to text: features, graphs, decoding, detokenizing; reading and decoding "
            "of the audio file is not included; in the server scenario from the arrival of the clip",
            "decoding": "greedy",
            "power_mode": figure_of(sensors.board.power_mode, sensors.board.power_mode_how),
            "clocks_locked": figure_of(sensors.board.clocks_locked, sensors.board.clocks_how),
        },
        "latency_ms": _latency(timed),
        "throughput": _throughput(timed, run),
        "energy": _energy(sensors.energy, timed),
        "memory": {
            **sensors.memory,
            "rss_before_load": _rss(loading.rss_before_mib),
            "rss_after_load": _rss(loading.rss_after_mib),
            "peak_rss": figure(measure_peak_rss_mib(), "MiB"),
        },
        "load_ms": figure(loading.load_ms, "ms"),
        "thermal": sensors.thermal,
        "harness": {"sampler": sensors.telemetry.cost(), "overhead": run.overhead},
        **_accuracy(clips, run.measurements, manifest["decoder"]),
        "clips": _clips(clips, run.measurements),
        "utterances": _utterances(clips, run.measurements),
    }
    report["validity"] = judge(report, settings, sensors.problems, sensors.warnings)
    return report


def describe_software(runtime: Any) -> Dict[str, Any]:
    """Versions of what ran."""
    return {
        "edgeqlora_jetson": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "providers": runtime.providers,
    }


def figure_of(value: Any, how: Optional[str]) -> Dict[str, Any]:
    """A fact without unit, with how it was known, or null with the reason."""
    return {"value": value, "unit": None, "reason" if value is None else "how": how or "this system does not say"}


def _precision(runtime: Any, manifest: Manifest) -> Dict[str, Any]:
    """What each graph really runs in: as its engine was built, else as it was exported."""
    engines = getattr(runtime, "engines", None) or {}
    whole = getattr(runtime, "precision", None)  # of onnxruntime's TensorRT provider, whose engines have no records
    if whole != "fp16" or any(entry.get("precision") != "fp32" for entry in manifest["graphs"].values()):
        whole = None  # each graph says for itself what it has
    return {
        graph: (engines.get(graph) or {}).get("precision") or whole or entry.get("precision")
        for graph, entry in manifest["graphs"].items()
    }


def write_report(path: Any, report: Dict[str, Any]) -> None:
    """Write a report as JSON, atomically. Raises UserError when it cannot be written."""
    write_json(path, report)


def _latency(timed: Sequence[Any]) -> Dict[str, Any]:
    """Phases per model call: in a batch, every clip waits for all, so the batch counts once; query and waiting per clip."""
    calls = _calls(timed)
    values = {
        "query": [m.latency_ms for m in timed],
        "waiting": [m.waiting_ms for m in timed],
        "total": [call.total_ms for call in calls],
    }
    values.update((phase, [call.phases_ms[phase] for call in calls]) for phase in calls[0].phases_ms)
    if calls[0].first_token_ms is not None:
        values["first_token"] = [call.first_token_ms for call in calls]
        values["decoder_step"] = [call.phases_ms["decoder"] / call.n_steps for call in calls]
    return {phase: spread(times_ms, "ms") for phase, times_ms in values.items()}


def _calls(measurements: Sequence[Any]) -> List[Any]:
    """One transcript for each model call."""
    return list({m.batch: m.transcript for m in measurements}.values())


def _throughput(timed: Sequence[Any], run: Any) -> Dict[str, Any]:
    """rtf is of the model calls alone; the rates are of the whole run, what is between the calls included."""
    processing_s = sum(call.total_ms for call in _calls(timed)) / 1e3
    audio_s, run_s = sum(m.transcript.audio_s for m in timed), run.end_s - run.start_s
    return {
        "rtf": figure(processing_s / audio_s, "processing s / audio s"),
        "clips_per_s": figure(len(timed) / run_s, "clips/s"),
        "audio_s_per_s": figure(audio_s / run_s, "audio s/s"),
        "run_s": figure(run_s, "s"),
    }


def _energy(energy: Dict[str, Any], timed: Sequence[Any]) -> Dict[str, Any]:
    """The sensors' part, with energy for each second of audio and each clip."""
    audio_s = sum(m.transcript.audio_s for m in timed)
    result = dict(energy)
    for name in ("energy", "net_energy"):
        total = energy[name]
        for per, divisor, unit in (("audio_s", audio_s, "J/audio s"), ("clip", len(timed), "J/clip")):
            value = None if total["value"] is None else total["value"] / divisor
            result["{}_per_{}".format(name, per)] = figure(value, unit, total.get("reason"))
    return result


def _rss(mib: Optional[float]) -> Figure:
    return figure(mib, "MiB", "this system has no /proc/self/status")


def _accuracy(clips: Sequence[EvalClip], measurements: Sequence[Any], decoder: Decoder) -> Dict[str, Any]:
    pairs = [(clips[m.clip].reference, m.transcript.text) for m in measurements if m.repeat == 0]
    known = [(reference, text) for reference, text in pairs if reference is not None]
    language = written_language(decoder.get("language"), decoder.get("task"))
    no_words = why_no_words([reference for reference, _ in known], language)
    empty = "the references are empty" if known else "the clips have no references"
    accuracy = {
        name: error_figures([(apply(left, language), apply(right, language)) for left, right in known], no_words, empty)
        for name, apply in NORMALISERS.items()
    }
    return {"accuracy": accuracy, "leading": "cer" if no_words else "wer"}


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
        "heard_s": round(sum(transcript.heard_s for transcript in first), 3),
        "n_again": sum(transcript.n_again > 0 for transcript in first),
        "n_unstable": sum(len(different) > 1 for different in texts.values()),
        "n_untimed": sum(not m.is_timed for m in measurements),
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
                "heard_s": round(t.heard_s, 3),
                "n_pieces": t.n_pieces,
                "n_tokens": len(t.tokens),
                "latency_ms": [],
            },
        )
        if m.is_timed:
            row["latency_ms"].append(m.latency_ms)
    return [rows[i] for i in sorted(rows)]
