"""From a sound file to log-mel windows."""

from .load import load_audio

__all__ = ["load_audio"]
