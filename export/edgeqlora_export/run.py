"""Export, from a merged folder to a bundle: load, export, lint, prove, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from edgeqlora_export.compile_check import compile_gate
from edgeqlora_export.engine_request import engine_request
from edgeqlora_export.lint import lint_graph, load_operators
from edgeqlora_export.whisper.decoding import decoding_spec, is_multilingual
from edgeqlora_export.whisper.detokenizer import detokenizer_table
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.modules import model_constants
from edgeqlora_export.whisper.parity import Gate, Progress, measure_parity, verify_gates
from edgeqlora_export.whisper.windowed import model_window_s, window_frames
from edgeqlora_export.write_bundle import draft_manifest, write_bundle
from edgeqlora_jetson.audio.logmel import LogMel
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import atomic_folder, write_json
from edgeqlora_jetson.runtimes import open_runtime

SAMPLE_RATE_HZ, N_FFT, HOP_LENGTH = 16000, 400, 160
"""Whisper's audio constants, on which graphs and runner are built."""

MEL_LIMIT = 1e-4
"""Largest difference allowed between the runner's log-mel and the model's own feature extractor."""

Clip = tuple[np.ndarray, str]


def export_bundle(
    merged_dir: Path | str,
    out_dir: Path | str,
    *,
    opset: int,
    windows_s: Sequence[float],
    profile: Mapping[str, Any],
    clips: Sequence[Clip],
    n_eval: int = 0,
    language: str | None = None,
    task: str | None = None,
    name: str | None = None,
    base_model: str | None = None,
    parents: Mapping[str, Any] | None = None,
    normaliser: str = "basic",
    n_parity: int = 8,
    overwrite: bool = False,
    compile_check: bool = False,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Make a bundle of a merged Whisper folder, proven against torch, or raise and leave nothing.

    merged_dir: transformers folder with tokenizer and preprocessor_config.json. windows_s: audio seconds that the
    encoder may see, multiples of 0.02 up to the model's native window. profile: plain values of the hardware
    profile; all are recorded, and read are `name`, `threads`, `tensorrt` (a version, whose operator table the graphs
    must fit, or None) and, for the engines asked of that TensorRT, `max_batch`, `precisions`, `workspace_mib`.
    clips: (audio float32 (n_samples,) at 16 kHz, reference); the first `n_parity` are used for the parity gates, the
    first `n_eval` travel with the bundle.

    compile_check: also compile both graphs with TensorRT-RTX (see compile_check.py), which must be installed.

    Returns a summary: bundle (path), name, windows_s, gates, bytes, graph_bytes, n_eval, seconds.
    Raises UserError for a wrong window, folder, language, existing `out_dir`, or a gate that failed.
    """
    start_s = time.monotonic()
    merged_dir, out_dir = Path(merged_dir), Path(out_dir)
    if not clips:
        raise UserError("0 clips: export proves the graphs on real audio; give at least one clip")
    with atomic_folder(out_dir, overwrite=overwrite) as temporary:
        folder = Path(temporary)
        progress(f"loading {merged_dir}")
        model, tokenizer, extractor, generation_config = load_merged(merged_dir)
        windows_s = _checked_windows(windows_s, model_window_s(model))
        spec = decoding_spec(model, tokenizer, generation_config, windows_s, language, task)
        name = name or merged_dir.resolve().name
        filters = np.asarray(extractor.mel_filters, dtype=np.float32)
        progress(f"exporting encoder and decoder at opset {opset}")
        graphs = export_whisper(model, folder, opset)
        if profile.get("tensorrt"):
            table = load_operators(str(profile["tensorrt"]))
            n_nodes = sum(lint_graph(path, table) for path in graphs.values())
            progress(f"all {n_nodes} nodes are in TensorRT {table.version}'s operator table")
        constants = model_constants(model)
        manifest = draft_manifest(
            name=name,
            model={
                "family": "whisper",
                "base_model": _public_name(base_model or name),
                **constants,
                "multilingual": is_multilingual(model, generation_config),
            },
            audio={
                "sample_rate_hz": SAMPLE_RATE_HZ,
                "n_fft": N_FFT,
                "hop_length": HOP_LENGTH,
                "n_mels": filters.shape[1],
                "windows_s": list(windows_s),
                "mel_filters": "mel_filters.npy",
            },
            decoding=spec,
            graphs={key: {"file": path.name, "opset": opset, "precision": "fp32"} for key, path in graphs.items()},
            profile=profile,
            parents=parents or {},
            normaliser=normaliser,
            engine_request=_engine_request(profile, constants, windows_s, spec),
        )
        audios = [audio for audio, _ in clips[:n_parity]]
        mels = {w: extract_mel(extractor, audios, window_frames(w)) for w in windows_s}
        runtime = open_runtime(Bundle(temporary, manifest), "onnxruntime", threads=torch.get_num_threads())
        manifest["gates"] = [_mel_gate(filters, audios, mels)]
        manifest["gates"] += measure_parity(model, runtime, mels, spec, progress=progress)
        if compile_check:
            manifest["gates"].append(compile_gate(folder, manifest, progress))
        verify_gates(manifest["gates"])
        spelling = getattr(tokenizer, "english_spelling_normalizer", None)
        if spelling:  # so that `whisper-english` scores a bundle as it scores the folder
            write_json(folder / "normalizer.json", spelling)
        progress("writing tables, clips, runner and manifest")
        final = write_bundle(
            folder,
            manifest,
            mel_filters=filters,
            detokenizer=detokenizer_table(tokenizer, model.config.vocab_size),
            eval_clips=clips[:n_eval],
        )
    return {
        "bundle": str(out_dir),
        "name": name,
        "windows_s": list(windows_s),
        "gates": final["gates"],
        "bytes": sum(entry["bytes"] for entry in final["files"].values()),
        "graph_bytes": sum(e["bytes"] for file, e in final["files"].items() if ".onnx" in file),
        "n_eval": len(clips[:n_eval]),
        "seconds": time.monotonic() - start_s,
    }


def _engine_request(
    profile: Mapping[str, Any], constants: Mapping[str, Any], windows_s: Sequence[float], spec: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What the profile's TensorRT is asked for; None where the profile names none."""
    if not profile.get("tensorrt"):
        return None
    return engine_request(
        model=constants,
        windows_s=windows_s,
        n_prompt=len(spec["prompt_ids"]),
        max_new_tokens=spec["max_new_tokens"],
        max_batch=profile.get("max_batch") or 1,
        precisions=profile.get("precisions") or ["fp32"],
        tensorrt=str(profile["tensorrt"]),
        workspace_mib=profile.get("workspace_mib"),
    )


def load_merged(folder: Path | str) -> tuple[Any, Any, Any, Any]:
    """Model in fp32 and eval mode, tokenizer, feature extractor, generation config (None if the folder has none).

    Raises UserError when the folder is not a merged Whisper folder, or its audio constants are not Whisper's.
    """
    folder = Path(folder)
    missing = [file for file in ("config.json", "preprocessor_config.json") if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not a merged folder: it has no {' and no '.join(missing)}; run edgeqlora merge first"
        )
    model = _read(
        folder, "weights", lambda: WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    )
    tokenizer = _read(folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder))
    extractor = _read(folder, "preprocessor", lambda: WhisperFeatureExtractor.from_pretrained(folder))
    found = (extractor.sampling_rate, extractor.n_fft, extractor.hop_length)
    if found != (SAMPLE_RATE_HZ, N_FFT, HOP_LENGTH):
        raise UserError(
            f"{folder}: sampling rate, n_fft and hop length are {found}; "
            f"a Whisper model has {(SAMPLE_RATE_HZ, N_FFT, HOP_LENGTH)}"
        )
    has_generation = (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if has_generation else None
    return model.eval(), tokenizer, extractor, generation


def extract_mel(extractor: Any, audios: Sequence[np.ndarray], n_frames: int) -> np.ndarray:
    """Log-mel by the model's own extractor, clips zero-padded or cut: float32 (n_clips, n_mels, n_frames)."""
    n_samples = n_frames * HOP_LENGTH
    padded = np.zeros((len(audios), n_samples), dtype=np.float32)
    for row, audio in zip(padded, audios, strict=True):
        row[: len(audio)] = audio[:n_samples]
    rows = [
        extractor(row, sampling_rate=SAMPLE_RATE_HZ, padding="do_not_pad", truncation=False, return_tensors="np")
        for row in padded
    ]
    return np.concatenate([row["input_features"] for row in rows]).astype(np.float32)


def _read(folder: Path, what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder}: the {what} cannot be read as Whisper's: {reason}") from error


def _public_name(base_model: str) -> str:
    """A hub name as it is; of a local folder only its name, since the bundle goes to other machines."""
    path = Path(base_model).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else base_model


def _checked_windows(windows_s: Sequence[float], native_s: float) -> list[float]:
    """Windows ascending and without repeats; raises UserError for one that is out of range, or none."""
    if not windows_s:
        raise UserError(f"windows_s is empty: give one or more windows of at most {native_s:g} s, such as 2")
    for window_s in windows_s:
        window_frames(window_s, max_window_s=native_s)
    return sorted({float(window_s) for window_s in windows_s})


def _mel_gate(filters: np.ndarray, audios: Sequence[np.ndarray], mels: Mapping[float, np.ndarray]) -> Gate:
    """The runner's numpy log-mel against the model's own feature extractor."""
    log_mel = LogMel(filters, N_FFT, HOP_LENGTH)
    worst = max(
        float(np.abs(log_mel(audio, mel.shape[1]) - mel).max())
        for batch in mels.values()
        for audio, mel in zip(audios, batch, strict=True)
    )
    return {
        "name": "log-mel",
        "passed": worst <= MEL_LIMIT,
        "measured": worst,
        "limit": MEL_LIMIT,
        "detail": f"max abs difference from the model's extractor over {len(audios)} clips, {len(mels)} windows",
    }
