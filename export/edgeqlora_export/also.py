"""A model in formats of other runtimes, beside the bundle, each heard by that runtime on real clips."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqlora_export.gates import frames_of
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import atomic_folder, write_json
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.text import NORMALISERS
from edgeqlora_jetson.transcribe import Transcriber

MARK, SCHEMA = "edgeqlora.json", "edgeqlora.also/1"
"""What was written and heard; by it a folder is known as ours, and may be overwritten."""


def folder_of(bundle: Path, kind: str) -> Path:
    """Where a format lies: BUNDLE-KIND."""
    return bundle.with_name(f"{bundle.name}-{kind}")


def check_also(kinds: Sequence[str], exporter: Any) -> None:
    """Raise UserError for a format that this model cannot have, or whose runtime is not installed."""
    for kind in kinds:
        if kind not in exporter.others:
            of_family = ", ".join(exporter.others) or "none"
            raise UserError(f"--also {kind}: models of this family have {of_family}: leave it away")
        if frames_of(exporter.base_model) is not None:
            raise UserError(
                f"--also {kind}: this model has gates in time, which that format cannot hold: merge without --keep-gates"
            )
        module, package = exporter.others[kind].PACKAGE
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"--also {kind} hears what it wrote by {package}, which is not installed: python -m pip install 'edgeqlora[also]'"
            )
        exporter.others[kind].check(exporter)


def write_also(
    kinds: Sequence[str],
    exporter: Any,
    bundle_folder: Path,
    clips: Sequence[np.ndarray],
    threads: int,
    overwrite: bool,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Write each format beside a finished bundle; its runtime then transcribes clips (float32 (n_samples,) at 16 kHz).

    Returns for each its package and version, and n_clips with n_same: texts equal to the bundle's, normalised.
    Raises UserError where the runtime cannot read what was written; the bundle stays.
    """
    bundle, normalise = Bundle.load(bundle_folder), NORMALISERS["basic-unicode"]
    spec = bundle.manifest["decoder"]
    transcriber = Transcriber(bundle, open_runtime(bundle, "onnxruntime", threads=threads))
    ours = [transcriber.transcribe(audio).text for audio in clips]
    made: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        out, other = folder_of(bundle_folder, kind), exporter.others[kind]
        package = f"{other.PACKAGE[1]} {importlib.metadata.version(other.PACKAGE[1])}"
        progress(f"writing {out}")
        try:
            with atomic_folder(out, overwrite=overwrite) as temporary:
                other.write(exporter, Path(temporary), spec)
                read = other.reader(Path(temporary), spec, threads)
                theirs = [read(audio) for audio in clips]
                del read
                differing = [
                    i
                    for i, pair in enumerate(zip(ours, theirs, strict=True))
                    if len({normalise(text, spec["language"]) for text in pair}) > 1
                ]
                made[kind] = {"package": package, "n_clips": len(clips), "n_same": len(clips) - len(differing)}
                write_json(Path(temporary) / MARK, {"schema": SCHEMA, "bundle": bundle.name, **made[kind]})
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(
                f"{package} cannot read what was written for it: {reason}. The bundle in {bundle_folder} is "
                f"complete; export again without --also {kind}, and report this with the model's config.json"
            ) from error
        progress(f"{package} hears {len(clips)} clips: {len(clips) - len(differing)} texts as the bundle's")
        for i in differing:
            progress(f"  clip {i + 1}: bundle {ours[i]!r}\n          {kind} {theirs[i]!r}")
        if len(differing) == len(clips):
            progress(f"no text of {kind} is the bundle's: listen to {out} before you use it")
    return made
