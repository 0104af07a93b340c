"""Export, from a merged folder to a bundle: load, export, lint, prove, write. The family's own parts: see family.py."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeqlora_export.also import check_also, write_also
from edgeqlora_export.compile_check import compile_gate
from edgeqlora_export.engine_request import engine_precisions, engine_request
from edgeqlora_export.family import Progress, load_exporter, verify_gates
from edgeqlora_export.lint import lint_graph, load_operators
from edgeqlora_export.margin import LEAST_WORDS, MARGINS_S, find_margin
from edgeqlora_export.onnx_graph import graph_entries
from edgeqlora_export.precision import PrecisionSettings, choose_for_board, choose_for_cpu
from edgeqlora_export.write_bundle import draft_manifest, with_engine_request, write_bundle
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import atomic_folder
from edgeqlora_jetson.runtimes import open_runtime

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
    tokens_per_s: float | None = None,
    name: str | None = None,
    cut_in_training: bool = False,
    tuned_windows_s: Sequence[float] = (),
    base_model: str | None = None,
    parents: Mapping[str, Any] | None = None,
    normaliser: str = "basic-unicode",
    n_parity: int = 8,
    margins_s: Sequence[float] = MARGINS_S,
    margin_clips: Sequence[Clip] = (),
    n_shipped: int = 0,
    least_words: int = LEAST_WORDS,
    precision: PrecisionSettings = PrecisionSettings("fp32"),
    overwrite: bool = False,
    compile_check: bool = False,
    also: Sequence[str] = (),
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Make a bundle of a merged folder, proven against torch, or raise and leave nothing.

    merged_dir: transformers folder with tokenizer and preprocessor_config.json. windows_s: audio seconds that the
    model may see at a time. profile: plain values of the hardware profile; all are recorded, and read are `name`,
    `threads`, `kind` (cpu: its graphs are for onnxruntime alone), `tensorrt` (a version, whose operator table the graphs must fit, or None), `compute_capability` and, for
    the engines asked of that TensorRT, `max_batch`, `precisions`, `workspace_mib`.
    clips: (audio float32 (n_samples,) at 16 kHz, reference); the first `n_parity` are used for the parity gates, the
    first `n_eval` travel with the bundle. tokens_per_s: most label tokens in a second of the training data (see decoding).

    cut_in_training: the model learned from audio without silence, which the board does not cut: recorded.
    tuned_windows_s: windows of its training, recorded where they are not all of windows_s.
    margins_s: seconds after a clip of which the first that costs no accuracy on margin_clips (default: `clips`) is what the
    encoder hears of its window, if they have least_words (see margin.py); empty: it hears whole windows. n_shipped: how many
    of margin_clips travel with the bundle.
    precision: int8 on a CPU, fp16 or int8 for TensorRT, as far as it costs no more than the limit on margin_clips (see precision/).
    compile_check: also compile the graphs with TensorRT-RTX (see compile_check.py), which must be installed; not those for a CPU.

    also: formats of other runtimes that are written beside the bundle (see also.py).

    Returns a summary: bundle (path), name, windows_s, gates, bytes, graph_bytes, n_eval, also, seconds.
    Raises UserError for a wrong window, folder, language, existing `out_dir`, or a gate that failed.
    """
    start_s = time.monotonic()
    merged_dir, out_dir = Path(merged_dir), Path(out_dir)
    if not clips:
        raise UserError("0 clips: export proves the graphs on real audio; give at least one clip")
    with atomic_folder(out_dir, overwrite=overwrite) as temporary:
        folder = Path(temporary)
        progress(f"loading {merged_dir}")
        exporter = load_exporter(merged_dir)
        check_also(also, exporter)
        windows_s = exporter.check_windows(windows_s)
        for_cpu = not profile.get("tensorrt") and profile.get("kind", "cpu") == "cpu"
        parts = exporter.describe(windows_s, language, task, tokens_per_s, for_cpu)
        name = name or merged_dir.resolve().name
        parts["model"]["base_model"] = _public_name(base_model or name)
        progress(f"exporting the graphs at opset {opset}")
        graphs = exporter.export_graphs(folder, opset, for_cpu)
        if profile.get("tensorrt"):
            _lint(graphs, str(profile["tensorrt"]), progress)
        manifest = draft_manifest(
            name=name,
            audio={
                "sample_rate_hz": SAMPLE_RATE_HZ,
                "windows_s": list(windows_s),
                **({"cut_in_training": True} if cut_in_training else {}),
                **(
                    {"tuned_windows_s": list(tuned_windows_s)}
                    if set(windows_s) - set(tuned_windows_s or windows_s)
                    else {}
                ),
            },
            graphs=graph_entries(graphs, opset),
            profile=profile,
            parents=parents or {},
            normaliser=normaliser,
            **parts,
        )
        max_batch = profile.get("max_batch") or 1
        engine_graphs = None if for_cpu else exporter.engine_graphs(manifest, max_batch)
        exporter.write_tables(folder, manifest)
        bundle = Bundle(temporary, manifest)
        runtime = open_runtime(bundle, "onnxruntime", threads=torch.get_num_threads())
        manifest["gates"] = exporter.prove(bundle, runtime, [audio for audio, _ in clips[:n_parity]], progress)
        verify_gates(manifest["gates"])
        if margins_s:
            margin = find_margin(bundle, runtime, margin_clips or clips, margins_s, least_words, progress)
            margin["n_shipped"] = n_shipped if margin_clips else len(clips[:n_eval])
            manifest["audio"]["margin"] = margin
        if for_cpu and precision.asked != "fp32":
            manifest = choose_for_cpu(bundle, graphs, margin_clips or clips, precision, progress)
        request, tensorrt = None, str(profile.get("tensorrt") or "")
        if engine_graphs is not None:
            offered = profile.get("precisions") or ["fp32"]
            if tensorrt and precision.asked != "fp32" and "fp16" in offered:
                on_device = {graph: asked["on_device"] for graph, asked in engine_graphs.items()}
                manifest = choose_for_board(
                    bundle, graphs, margin_clips or clips, precision, progress, on_device, tensorrt
                )
                _lint(graphs, tensorrt, progress)
            request = engine_request(
                engine_graphs,
                max_batch=max_batch,
                precisions=engine_precisions(manifest, offered),
                tensorrt=tensorrt or "0",
                workspace_mib=profile.get("workspace_mib"),
            )
            if compile_check:
                gate = compile_gate(folder, manifest, request, profile.get("compute_capability"), progress)
                manifest["gates"].append(gate)
        manifest = with_engine_request(manifest, request if tensorrt else None)
        progress("writing clips, runner and manifest")
        final = write_bundle(folder, manifest, eval_clips=clips[:n_eval])
    parity = [audio for audio, _ in clips[:n_parity]]
    others = write_also(also, exporter, out_dir, parity, torch.get_num_threads(), overwrite, progress) if also else {}
    return {
        "bundle": str(out_dir),
        "name": name,
        "windows_s": list(windows_s),
        "gates": final["gates"],
        "bytes": sum(entry["bytes"] for entry in final["files"].values()),
        "graph_bytes": sum(e["bytes"] for file, e in final["files"].items() if ".onnx" in file),
        "n_eval": len(clips[:n_eval]),
        "also": others,
        "seconds": time.monotonic() - start_s,
    }


def _lint(graphs: Mapping[str, Path], tensorrt: str, progress: Progress) -> None:
    table = load_operators(tensorrt)
    n_nodes = sum(lint_graph(path, table) for path in graphs.values())
    progress(f"all {n_nodes} nodes are in TensorRT {table.version}'s operator table")


def _public_name(base_model: str) -> str:
    """A hub name as it is; of a local folder only its name, since the bundle goes to other machines."""
    path = Path(base_model).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else base_model
