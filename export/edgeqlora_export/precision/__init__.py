"""Graphs in int8 for a CPU: what is quantised and how, what it costs in words, and which of it is worth that."""

from edgeqlora_export.precision.choose import PrecisionSettings, choose_precision

__all__ = ["PrecisionSettings", "choose_precision"]
