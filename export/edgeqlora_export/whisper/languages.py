"""Whether a Whisper model's prompt names language and task: one rule for training, scoring, data check and export."""

from __future__ import annotations

from typing import Any

MULTILINGUAL_VOCAB_SIZE = 51865
"""Smallest vocabulary of a multilingual Whisper (openai/whisper, `Whisper.is_multilingual`)."""


def is_multilingual(config: Any, generation: Any) -> bool:
    """What generation_config.json says; by the size of the vocabulary where it says nothing, or is not there."""
    said = getattr(generation, "is_multilingual", None)
    return bool(config.vocab_size >= MULTILINGUAL_VOCAB_SIZE if said is None else said)


def language_code(language: str) -> str:
    """'German', 'DE' or 'de-AT' -> 'de'."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = language.strip().lower().replace("_", "-")
    return TO_LANGUAGE_CODE.get(name, name.split("-")[0])
