"""The runner of EdgeQLoRA bundles: standard library and numpy only, Python 3.6 and newer."""

__version__ = "0.1.0"
