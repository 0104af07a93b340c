"""The embedded demo: a tiny speech model and a little speech, made by us and shipped as package data."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def model_dir() -> Path:
    """Folder of the pre-trained model: a plain transformers folder (Whisper, fp16 safetensors)."""
    return _HERE / "model"


def speech_dir() -> Path:
    """Folder of the speech: train.jsonl, dev.jsonl, test.jsonl, their audio, and noise/ for augmentation."""
    return _HERE / "speech"
