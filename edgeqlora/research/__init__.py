"""Questions to a model and a data set: which ranks, which settings, and whether anything was gained."""
