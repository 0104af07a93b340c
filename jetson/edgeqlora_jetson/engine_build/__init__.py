"""Building TensorRT engines in a process of its own."""
