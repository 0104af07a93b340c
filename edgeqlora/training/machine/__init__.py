"""What a run takes of the machine: memory, the GPU, energy."""
