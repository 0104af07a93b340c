"""Wav2Vec 2.0 with a CTC head: audio samples in, one character or blank every 20 ms out."""

from edgeqlora.models.wav2vec2.learner import load_learner
from edgeqlora.models.wav2vec2.processor import load_processor

__all__ = ["load_learner", "load_processor"]
