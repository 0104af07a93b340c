"""Whether a Whisper model's prompt names language and task: one rule for training, scoring, data check and export."""

from __future__ import annotations

from typing import Any

MULTILINGUAL_VOCAB_SIZE = 51865
"""Smallest vocabulary of a multilingual Whisper (openai/whisper, `Whisper.is_multilingual`)."""


def is_multilingual(config: Any, generation: Any) -> bool:
    """What generation_config.json says; by the size of the vocabulary where it says nothing, or is not there."""
    said = getattr(generation, "is_multilingual", None)
    return bool(config.vocab_size >= MULTILINGUAL_VOCAB_SIZE if said is None else said)
