"""EdgeQLoRA: from a speech data set to a fine-tuned speech model on an edge board, with honest numbers."""

__version__ = "0.1.0"
