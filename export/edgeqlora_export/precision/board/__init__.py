"""Graphs for TensorRT: fp16 with fp32 where it is needed, and int8 linear layers, as types in the graph."""
