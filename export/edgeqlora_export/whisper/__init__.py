"""Whisper: encoder and decoder graphs, decoding rules, tables and proofs."""

from edgeqlora_export.whisper.exporter import load_exporter

__all__ = ["load_exporter"]
