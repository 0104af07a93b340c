"""Wav2Vec 2.0 with a CTC head: one graph, its tables and its proofs."""

from edgeqlora_export.wav2vec2.exporter import load_exporter

__all__ = ["load_exporter"]
