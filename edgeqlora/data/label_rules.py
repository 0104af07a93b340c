"""What a base model can write: its tokens, their limit, and the scripts it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeqlora.data.text import TextEncoder, scripts_of_language
from edgeqlora.errors import UserError

# Smallest vocabulary of a multilingual Whisper (openai/whisper, `Whisper.is_multilingual`).
MULTILINGUAL_VOCAB_SIZE = 51865


@dataclass(frozen=True)
class LabelRules:
    """Rules that transcripts are held against; with none set, transcripts are not tokenised at all."""

    tokenise: Callable[[str], Sequence[int]] | None = None
    """Text to subword ids, without prompt and end of text."""
    max_text_tokens: int | None = None
    """Most such ids that one label has room for."""
    suppressed_ids: frozenset[int] = frozenset()
    """Ids that decoding never produces."""
    expected_scripts: frozenset[str] | None = None
    """Scripts that the model writes; None: those of each row's own language."""


def load_label_rules(base_model: str, language: str | None = None) -> LabelRules:
    """Read the rules of a Whisper folder or hub name; weights are not loaded.

    `language` is what a multilingual model will be told is spoken. Raises UserError as `load_tokenizer` does.
    """
    from edgeqlora.models.whisper import check_is_whisper, load_tokenizer

    check_is_whisper(base_model)
    from transformers import AutoConfig, GenerationConfig

    tokenizer, _ = load_tokenizer(base_model)
    try:
        config = AutoConfig.from_pretrained(base_model)
        generation = GenerationConfig.from_pretrained(base_model)
    except (OSError, ValueError) as error:
        raise UserError(f"{base_model}: config.json or generation_config.json cannot be read: {error}") from error
    said = getattr(generation, "is_multilingual", None)
    multilingual = config.vocab_size >= MULTILINGUAL_VOCAB_SIZE if said is None else bool(said)
    # Start of transcript, (language, task,) no timestamps: the limit depends on how many, not on which.
    n_prompt = 4 if multilingual else 2
    encoder = TextEncoder(tokenizer, [0] * n_prompt, config.max_target_positions, tokenizer.eos_token_id)
    expected = {"LATIN"} if not multilingual else scripts_of_language(language) if language else None
    return LabelRules(
        tokenise=encoder.text_ids,
        max_text_tokens=encoder.max_text_tokens,
        suppressed_ids=frozenset(i for i in generation.suppress_tokens or () if i >= 0),
        expected_scripts=None if expected is None else frozenset(expected),
    )
