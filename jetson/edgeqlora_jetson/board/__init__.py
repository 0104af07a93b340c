"""Which board this is, and its state."""
