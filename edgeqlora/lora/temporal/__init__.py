"""Gates in time: on adapters in training, in folders, and in a merge."""
