"""Graphs in lower precision: what is low and how, what it costs in words, and which of it is worth that."""

from edgeqlora_export.precision.choose import PrecisionSettings, choose_for_board, choose_for_cpu

__all__ = ["PrecisionSettings", "choose_for_board", "choose_for_cpu"]
