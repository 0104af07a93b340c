"""Whisper: log-mel in, subword tokens out, an encoder-decoder."""

from edgeqlora.models.whisper.learner import load_learner
from edgeqlora.models.whisper.processor import load_processor

__all__ = ["load_learner", "load_processor"]
