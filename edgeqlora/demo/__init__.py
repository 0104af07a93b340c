"""The embedded demo: tiny speech models and a little speech, made by us and shipped as package data."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def model_dir(name: str = "whisper") -> Path:
    """Folder of a pre-trained model (whisper or wav2vec2): a plain transformers folder, fp16 safetensors."""
    return _HERE / ("model" if name == "whisper" else f"model-{name}")


def speech_dir() -> Path:
    """Folder of the speech: train.jsonl, dev.jsonl, test.jsonl, their audio, and noise/ for augmentation."""
    return _HERE / "speech"
