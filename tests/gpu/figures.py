"""Figures of one GPU: QLoRA steps of two published sizes of Whisper, and latency of a bundle; JSON and a table.

    python tests/gpu/figures.py [--only NAME ...] [--output FOLDER] [--budget-s 240]

No download: the models have the published sizes and random weights, the clips are noise. Each part runs in a process of its
own, so that one that fails or takes too long costs nothing but its own figures: null, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpu_machine import edgeqlora, no_cuda_provider, no_gpu, no_tensorrt

from edgeqlora.card import library_versions, measured, missing
from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.training.machine.gpu_memory import Sizes, step_bytes
from edgeqlora_jetson.board.machine import read_machine
from edgeqlora_jetson.files import read_json, write_json

SCHEMA = "edgeqlora.gpu-figures/1"

SMALL = Sizes(768, 12, 12, 3072, 80, 51865)
LARGE_V3 = Sizes(1280, 32, 32, 5120, 128, 51866)
"""config.json of openai/whisper-small and openai/whisper-large-v3; heads are 64 wide in both."""

BATCHES = (16, 8, 4, 2, 1)
"""The first one whose memory, by the formula, leaves a fifth of the free memory is taken."""
PHRASE = "turn on the kitchen light "


class Part(NamedTuple):
    """Some figures that are measured together."""

    measure: Callable[[Path], dict[str, Any]]
    """Called with a folder that all parts share."""
    figures: tuple[str, ...]
    missing: Callable[[], str | None]
    """Why it cannot be measured here; None: it can."""
    limit_s: int = 120


# Training


def make_model(folder: Path, sizes: Sizes) -> Path:
    """A model folder of these sizes with random weights in 16 bits, and the embedded model's tokenizer.

    The tokenizer's ids are the first 512 of the vocabulary: embedding and logits have the size of the whole.
    """
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from edgeqlora.models.family import load_processor

    if (folder / "config.json").exists():
        return folder
    embedded = json.loads((model_dir() / "config.json").read_text())
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    config = WhisperConfig(
        **{name: embedded[name] for name in ids},
        vocab_size=sizes.vocabulary,
        num_mel_bins=sizes.n_mels,
        d_model=sizes.width,
        encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers,
        encoder_attention_heads=sizes.width // 64,
        decoder_attention_heads=sizes.width // 64,
        encoder_ffn_dim=sizes.ffn,
        decoder_ffn_dim=sizes.ffn,
        max_source_positions=sizes.encoder_positions,
        max_target_positions=sizes.decoder_positions,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = WhisperForConditionalGeneration(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig.from_pretrained(str(model_dir()))
    model.generation_config.is_multilingual = False
    model.save_pretrained(folder)
    load_processor(str(model_dir())).save(folder)
    WhisperFeatureExtractor(feature_size=sizes.n_mels).save_pretrained(folder)
    return folder


def write_clips(folder: Path, seconds: float, text: str, n: int) -> Path:
    """manifest.jsonl of n clips of noise, each with the text."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        audio = 0.1 * rng.standard_normal(round(16000 * seconds))
        soundfile.write(folder / f"{i}.wav", audio.astype(np.float32), 16000)
        rows.append({"audio": f"{i}.wav", "text": text})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def training(name: str, sizes: Sizes, window_s: float, work: Path, steps: int = 12) -> dict[str, Any]:
    """Time and memory of a QLoRA step, all adapters of rank 8, on clips that fill the window."""
    import torch

    from edgeqlora.models.family import load_processor
    from edgeqlora.settings import make_settings
    from edgeqlora.train import train

    model = make_model(work / name, sizes)
    processor = load_processor(str(model))
    # A dozen words in five seconds of speech.
    text = (PHRASE * max(1, round(window_s / 2))).strip()
    n_tokens = len(processor.text_ids(text)) + len(processor.end_ids) + processor.n_prompt_ids - 1
    memory = partial(step_bytes, sizes, window_s=window_s, n_tokens=n_tokens, rank=8)
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 2**32
    batch = next((b for b in BATCHES if memory(batch=b).total < 0.8 * free), 1)
    # One epoch a step: from the second on, features come from the cache, and the step is the GPU's.
    clips = write_clips(work / f"clips-{window_s:g}", window_s - 0.4, text, BATCHES[0])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    settings = {
        "base_model": str(model),
        "train": str(clips),
        "output": str(work / f"{name}-{window_s:g}"),
        "window_s": f"{window_s:g}",
        "steps": steps,
        "limit": batch,
        "batch_size": batch,
        "cache": str(work / "features"),
    }
    card = train(make_settings(settings), overwrite=True)
    figures, expected = card["figures"], memory(batch=batch)
    how = {"batch_size": batch, "window_s": window_s, "n_tokens": n_tokens, **card["computed_with"]}
    speed = figures["samples_per_s"]["value"]
    return {
        "step": measured(round(batch / speed, 4), "s", **how) if speed else figures["samples_per_s"],
        "clips_per_s": measured(round(speed, 2), "clips/s", **how) if speed else figures["samples_per_s"],
        "peak_vram": {**figures["peak_vram"], **how},
        "expected_vram": measured(
            round(expected.total / 2**20, 1),
            "MiB",
            **how,
            **{part: round(n_bytes / 2**20, 1) for part, n_bytes in expected._asdict().items()},
        ),
    }


# A bundle


def bundle_of(work: Path) -> Path:
    """The embedded model's bundle, made once."""
    folder = work / "bundle"
    if not folder.exists():
        clips = ["-d", speech_dir() / "test.jsonl", "--eval-clips", 16]
        edgeqlora("export", model_dir(), "-t", "workstation-gpu", "--window-s", 3, *clips, "-o", folder)
    return folder


def latency(work: Path, *flags: object) -> dict[str, Any]:
    """Samples to text, a clip at a time, and energy of the GPU board for each."""
    report_path = work / "report.json"
    edgeqlora("bench", bundle_of(work), *flags, "--idle", 2, "--min-duration", 8, "-o", report_path)
    report = read_json(report_path, "report")
    total, software = report["latency_ms"]["total"], report["software"]
    how = {"runtime": software["runtime"], "version": software["runtime_version"], "providers": software["providers"]}
    return {
        "latency_p50": {**total["p50"], **how},
        "latency_p99": {**total["p99"], **how},
        "energy_per_clip": report["energy"]["energy_per_clip"],
    }


def tensorrt(work: Path) -> dict[str, Any]:
    """Build of all engines in fp16 with an empty timing cache, then latency."""
    cache = ["--precision", "fp16", "--cache", work / "engines"]
    start_s = time.monotonic()
    edgeqlora("build", bundle_of(work), *cache, "--force")
    build_s = time.monotonic() - start_s
    found = latency(work, "--runtime", "tensorrt", *cache)
    return {"build": measured(round(build_s, 1), "s", how="the whole command, all engines, fp16"), **found}


_TRAINING = ("step", "clips_per_s", "peak_vram", "expected_vram")
_LATENCY = ("latency_p50", "latency_p99", "energy_per_clip")
PARTS = {
    "train small, 30 s": Part(partial(training, "small", SMALL, 30.0), _TRAINING, no_gpu),
    "train small, 2 s": Part(partial(training, "small", SMALL, 2.0), _TRAINING, no_gpu),
    "train large-v3, 2 s": Part(partial(training, "large-v3", LARGE_V3, 2.0), _TRAINING, no_gpu),
    "train large-v3, 30 s": Part(partial(training, "large-v3", LARGE_V3, 30.0), _TRAINING, no_gpu),
    "bundle, onnxruntime CPU": Part(partial(latency), _LATENCY, no_gpu),
    "bundle, onnxruntime CUDA": Part(lambda work: latency(work, "--provider", "cuda"), _LATENCY, no_cuda_provider),
    "bundle, TensorRT": Part(tensorrt, ("build", *_LATENCY), no_tensorrt, 180),
}


def run_part(name: str, work: Path, left_s: float) -> dict[str, Any]:
    """The figures of a part, measured in a process of its own; each null with the reason where that did not work."""
    part = PARTS[name]
    reason = part.missing()
    if reason is None and left_s < 15:
        reason = "no time was left for it"
    if reason is None:
        limit_s, result = min(part.limit_s, left_s), work / "part.json"
        result.unlink(missing_ok=True)
        try:
            code, said = run_process([sys.executable, __file__, "--part", name, "--work", str(work)], limit_s)
        except subprocess.TimeoutExpired:
            reason = f"not done in {limit_s:.0f} s"
        else:
            if code == 0:
                found: dict[str, Any] = read_json(result, "figures of a part")
                return found
            print(said[-3000:], file=sys.stderr)
            reason = (said.strip().splitlines() or [f"exit code {code}"])[-1][:300]
    return {figure: missing(reason) for figure in part.figures}


def run_process(command: list[str], limit_s: float) -> tuple[int, str]:
    """Exit code and output; with all that it started, it does not outlive this call. TimeoutExpired after limit_s."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def describe_gpu() -> dict[str, Any]:
    """Name, memory and compute capability; null where there is none."""
    import torch

    if no_gpu():
        return {"name": None, "reason": no_gpu()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_mib": round(properties.total_memory / 2**20),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def format_table(report: dict[str, Any]) -> str:
    """One line a figure under the GPU's name."""
    gpu = report["gpu"]
    lines = [f"GPU  {gpu['name'] or 'none: ' + gpu['reason']}", ""]
    for part, figures in report["figures"].items():
        lines.append(part)
        for name, figure in figures.items():
            shown = (
                f"{'--':>12}  {figure['reason']}"
                if figure["value"] is None
                else f"{figure['value']:>12,.4g}  {figure['unit']}"
            )
            lines.append(f"  {name:<16}{shown}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("gpu-figures"))
    parser.add_argument("--budget-s", type=float, default=240.0, help="parts that do not fit into it are left out")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        from edgeqlora.quiet import hush

        hush()
        write_json(arguments.work / "part.json", PARTS[arguments.part].measure(arguments.work))
        return
    until_s = time.monotonic() + arguments.budget_s
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {
        "schema": SCHEMA,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": describe_gpu(),
        "machine": read_machine(),
        "versions": library_versions(),
        "figures": {},
    }
    with tempfile.TemporaryDirectory(prefix="edgeqlora-gpu-") as work:
        for name in arguments.only:
            report["figures"][name] = run_part(name, Path(work), until_s - time.monotonic())
            write_json(arguments.output / "figures.json", report)  # after each: a run that is stopped keeps the others
    table = format_table(report)
    (arguments.output / "figures.txt").write_text(table + "\n")
    print(table)
    print(f"Done: figures in {arguments.output}")


if __name__ == "__main__":
    main()
