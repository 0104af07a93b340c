"""The bundle folder: manifest, graphs and tables, checked before anything runs."""

from .folder import MANIFEST, Bundle, EvalClip, read_clips
from .manifest import SCHEMA

__all__ = ["MANIFEST", "SCHEMA", "Bundle", "EvalClip", "read_clips"]
