"""Graphs for a CPU in int8: inputs are rounded as they come, the vocabulary is turned."""
