"""Adapters that are no LoRA: vectors that scale activations (ia3), and keys and values in front of the text (prefix)."""
