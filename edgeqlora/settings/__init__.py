"""Settings of a training run, from TOML and flags (flags win)."""

from edgeqlora.settings.checks import check_normaliser, make_settings, parse_windows
from edgeqlora.settings.fields import NORMALISERS, PANELS, TrainSettings
from edgeqlora.settings.toml import in_folder, read_settings, write_settings

__all__ = [
    "NORMALISERS",
    "PANELS",
    "TrainSettings",
    "check_normaliser",
    "in_folder",
    "make_settings",
    "parse_windows",
    "read_settings",
    "write_settings",
]
