"""Memory, heat and power, read beside a run."""
