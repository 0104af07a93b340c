"""CTranslate2's folder, by its own converter; faster-whisper reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeqlora_jetson.errors import UserError

PACKAGE = ("faster_whisper", "faster-whisper")


def check(exporter: Any) -> None:
    """Every Whisper has this form."""
    if not (Path(exporter.folder) / "tokenizer.json").is_file():
        raise UserError(f"--also ct2 needs {exporter.folder}/tokenizer.json, which is not there: merge again")


def write(exporter: Any, folder: Path, spec: dict[str, Any]) -> None:
    """Weights in fp16, which the runtime turns into what it computes in (`compute_type="int8"` on a CPU)."""
    from ctranslate2.converters import TransformersConverter

    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(exporter.folder), copy_files=copied).convert(
        str(folder), quantization="float16", force=True
    )


def reader(folder: Path, spec: dict[str, Any], threads: int) -> Callable[[np.ndarray], str]:
    """Audio float32 (n_samples,) at 16 kHz -> text, greedy, as faster-whisper says it."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=threads)

    def transcribe(audio: np.ndarray) -> str:
        segments, _ = model.transcribe(
            audio, language=spec["language"], task=spec["task"], beam_size=1, temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe
