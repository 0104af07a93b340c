"""Whisper: encoder and decoder graphs, decoding rules, tables and proofs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeqlora_export.whisper.exporter import WhisperExporter


def load_exporter(folder: Path) -> WhisperExporter:
    """See exporter.py, which is imported here alone: torch and onnx are not needed for the rules of its prompt."""
    from edgeqlora_export.whisper import exporter

    return exporter.load_exporter(folder)
