"""Whether a Whisper model's prompt names language and task: one rule for training, scoring, data check and export."""

from __future__ import annotations

from typing import Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

GPT2_END_ID = 50256
"""End of text of GPT-2's tokens, with which OpenAI's English-only models write; their tokenizers name all languages too
(openai/whisper, tokenizer.py)."""


def is_multilingual(config: Any, generation: Any, tokenizer: Any) -> bool:
    """What the model's own tokens say, never the size of its vocabulary, to which anybody may add.

    generation_config.json says it outright or lists language tokens; older checkpoints force the first token of the
    prompt in config.json: a language, or no timestamps. Where nothing is said, the tokenizer knows other languages
    than English, and is not that of OpenAI's English-only models.
    """
    said = getattr(generation, "is_multilingual", None)
    if said is not None:
        return bool(said)
    if getattr(generation, "lang_to_id", None):
        return True
    vocabulary = tokenizer.get_vocab()
    languages = {vocabulary[token]: code for code in LANGUAGES if (token := f"<|{code}|>") in vocabulary}
    forced = dict(getattr(generation, "forced_decoder_ids", None) or getattr(config, "forced_decoder_ids", None) or [])
    if forced.get(1) is not None:
        return forced[1] in languages
    return bool(set(languages.values()) - {"en"}) and tokenizer.eos_token_id != GPT2_END_ID


def language_code(language: str) -> str:
    """'German', 'DE' or 'de-AT' -> 'de'."""
    name = language.strip().lower().replace("_", "-")
    return TO_LANGUAGE_CODE.get(name, name.split("-")[0])
