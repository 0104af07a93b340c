"""One training run: data, trainer, checkpoints, what it says and what it costs."""
