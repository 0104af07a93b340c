"""TensorRT engines: what is asked for, and where built ones are kept."""
