"""Write the bundle: one folder with all that a board needs, from graphs to hashes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgeqlora_export.eval_clips import write_eval_clips
from edgeqlora_jetson.bundle import MANIFEST, SCHEMA, Bundle
from edgeqlora_jetson.files import sha256_file, write_json, write_text
from edgeqlora_jetson.pyz import build_pyz
from edgeqlora_jetson.schema import Audio, Decoder, Features, Graph, Manifest, Model

RUNNER = "edgeqlora-jetson.pyz"

_README = """\
{name}

Speech recognition, made by EdgeQLoRA. Everything it needs is in this folder; copy the whole folder to the board.

On the board (Python 3.6 or newer, with numpy and onnxruntime):

    python3 {runner} info
    python3 {runner} transcribe recording.wav{runtime}
    python3 {runner} bench{bench_note}{runtime}
{engines}
The model sees {windows} of audio at a time; longer recordings are cut at quiet places.
Python 3.6 takes onnxruntime 1.10.0, and needs pip 19.3 or newer to find it.
Every file but {manifest} is listed there with its SHA-256; the runner checks them before it starts.
"""

_ENGINES = """\

With TensorRT {tensorrt} (once, minutes; the engines hold for this board, TensorRT and power mode):

    python3 {runner} build
    python3 {runner} bench{bench_note} --runtime tensorrt

This was not run on the board itself when the bundle was made: bench prints error rates beside the times, and the
same bench without --runtime gives those of onnxruntime to compare with.
"""


def draft_manifest(
    *,
    name: str,
    model: Model,
    audio: Audio,
    features: Features,
    decoder: Decoder,
    graphs: Mapping[str, Graph],
    profile: Mapping[str, Any],
    parents: Mapping[str, Any],
    normaliser: str,
) -> Manifest:
    """A manifest with all that is known before any file is written; gates, eval and files are still empty.

    The arguments are the manifest's parts of the same name. Nothing is read or checked here.
    """
    return {
        "schema": SCHEMA,
        "name": name,
        "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": tool_versions(),
        "model": model,
        "audio": audio,
        "features": features,
        "decoder": decoder,
        "graphs": dict(graphs),
        "profile": dict(profile),
        "engine_request": None,
        "gates": [],
        "parents": dict(parents),
        "normaliser": normaliser,
        "eval": None,
        "files": {},
    }


def with_engine_request(manifest: Manifest, request: Mapping[str, Any] | None) -> Manifest:
    """The manifest with what its board is asked to build, and a note of it in the profile."""
    found: Mapping[str, Any] = manifest.get("precision") or {}
    parts = [(name, found.get(name) or []) for name in ("int8", "fp16", "bf16", "fp32")]
    is_mixed = any(names for name, names in parts if name != "fp32")
    mix = ", ".join(f"{len(names)} {name}" for name, names in parts if names)
    note = f"parts of the graphs: {mix}" if is_mixed else "the graphs are fp32"
    if request is None:
        note += "; engine_request is null: the profile names no TensorRT, onnxruntime runs them"
    else:
        # Engines hold for one GPU and one TensorRT only: the board builds them.
        note += (
            f"; engines are not in the bundle: the board builds them for TensorRT {request['tensorrt']} "
            f"({' or '.join(request['precisions'])}) with the runner's build command"
        )
    profile = {**manifest["profile"], "note": note}
    return {**manifest, "profile": profile, "engine_request": None if request is None else dict(request)}


def write_bundle(
    folder: Path | str,
    manifest: Manifest,
    *,
    eval_clips: Sequence[tuple[np.ndarray, str]] = (),
) -> Manifest:
    """Complete a folder that holds graphs and tables to a bundle, and return its final manifest.

    The caller makes the folder with edgeqlora_jetson.files.atomic_folder, so that a bundle is whole or absent.
    manifest: a draft with its gates, all passed.
    eval_clips: (audio float32 (n_samples,) at 16 kHz, reference). Raises UserError if the runner refuses the result.
    """
    folder, final = Path(folder), manifest.copy()
    if eval_clips:
        write_eval_clips(folder / "eval", eval_clips)
        final["eval"] = {"manifest": "eval/manifest.jsonl", "n_clips": len(eval_clips)}
    build_pyz(folder / RUNNER)
    write_text(folder / "README.txt", _readme(final))
    final["files"] = hash_files(folder)
    write_json(folder / MANIFEST, final)
    # The runner's own reading of what it will be given.
    Bundle.load(folder, verify=True)
    return final


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size in bytes of every file below `folder` but the manifest; names with forward slashes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in paths
    }


def tool_versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    return {
        "edgeqlora": importlib.metadata.version("edgeqlora"),
        "torch": str(torch.__version__),
        "onnx": str(onnx.__version__),
    }


def _readme(manifest: Manifest) -> str:
    windows = ", ".join(f"{float(window_s):g}" for window_s in manifest["audio"]["windows_s"])
    bench_note = "" if manifest["eval"] else " --manifest clips.jsonl"
    request = manifest["engine_request"]
    engines = _ENGINES.format(tensorrt=request["tensorrt"], runner=RUNNER, bench_note=bench_note) if request else ""
    is_bf16 = any(graph["precision"] == "bf16" for graph in manifest["graphs"].values())
    return _README.format(
        # onnxruntime computes no bf16 on a CPU.
        runtime=" --runtime tensorrt" if is_bf16 else "",
        name=manifest["name"],
        runner=RUNNER,
        windows=f"{windows} s",
        manifest=MANIFEST,
        bench_note=bench_note,
        engines=engines,
    )
