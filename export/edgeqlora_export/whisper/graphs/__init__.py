"""Whisper's two graphs: in the form that TensorRT takes (modules.py), and in the one that a CPU runs fastest (buffered.py)."""

from edgeqlora_export.whisper.graphs.write import export_whisper

__all__ = ["export_whisper"]
