"""Hours of the same work, with a verdict."""
