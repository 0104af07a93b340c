"""Wav2Vec 2.0 with a CTC head: one graph, its tables and its proofs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeqlora_export.wav2vec2.exporter import Wav2Vec2Exporter


def load_exporter(folder: Path) -> Wav2Vec2Exporter:
    """See exporter.py, which is imported here alone: torch and onnx are not needed to look at a vocabulary."""
    from edgeqlora_export.wav2vec2 import exporter

    return exporter.load_exporter(folder)
