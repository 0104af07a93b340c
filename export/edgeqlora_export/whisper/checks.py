"""What training, scoring and export ask of a Whisper model's parts before they take it, once for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ
from edgeqlora_jetson.errors import UserError

N_FFT, HOP_LENGTH = 400, 160
"""Whisper's audio constants, on which graphs and runner are built."""

_OWN = "use the one that came with the model"


def load_generation(source: Any, config: Any) -> Any:
    """Decoding settings: generation_config.json, and where it is absent those in config.json, as transformers takes them.

    transformers before 4.26 wrote no generation_config.json. Raises OSError or ValueError where the file is damaged.
    """
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        if Path(source, "generation_config.json").exists():
            raise
        return GenerationConfig.from_model_config(config)


def end_ids(config: Any, generation: Any) -> list[int]:
    """Ids that each end a text: generation_config.json's, else config.json's, one or several."""
    said = getattr(generation, "eos_token_id", None)
    said = getattr(config, "eos_token_id", None) if said is None else said
    ids = list(said) if isinstance(said, list | tuple) else [] if said is None else [said]
    return list(dict.fromkeys(int(i) for i in ids))


def check_parts(source: Any, tokenizer: Any, extractor: Any, config: Any, generation: Any) -> None:
    """Raise UserError unless tokenizer, feature extractor, config and generation config belong to one Whisper model."""
    _check_audio(source, extractor, config)
    vocabulary, size = tokenizer.get_vocab(), int(config.vocab_size)
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= size)
    if beyond:
        number, token = beyond[-1]
        raise UserError(
            f"{source}: config.json says {size} token ids, and the tokenizer has {len(beyond)} beyond them, such as "
            f"{number} ({token!r}): tokens were added without the model, or it is another model's tokenizer; {_OWN}"
        )
    ends = end_ids(config, generation)
    if tokenizer.eos_token_id not in ends:
        raise UserError(
            f"{source}: the tokenizer ends a text with id {tokenizer.eos_token_id}, and generation_config.json or "
            f"config.json with {', '.join(map(str, ends)) or 'none'}: it is another model's tokenizer; {_OWN}"
        )
    named = {
        "<|startoftranscript|>": getattr(config, "decoder_start_token_id", None),
        "<|notimestamps|>": getattr(generation, "no_timestamps_token_id", None),
        **(getattr(generation, "lang_to_id", None) or {}),
        **{f"<|{task}|>": n for task, n in (getattr(generation, "task_to_id", None) or {}).items()},
    }
    for token, number in named.items():
        if number is not None and token in vocabulary and vocabulary[token] != number:
            raise UserError(
                f"{source}: {token} is id {vocabulary[token]} in the tokenizer and {number} in config.json or "
                f"generation_config.json: it is another model's tokenizer; {_OWN}"
            )
    outside = [number for number in (*ends, *filter(None, named.values())) if not 0 <= number < size]
    if outside:
        raise UserError(
            f"{source}: generation_config.json or config.json names the token id {outside[0]}, and the model has ids 0 to "
            f"{size - 1}: it is another model's file; {_OWN}"
        )


def _check_audio(source: Any, extractor: Any, config: Any) -> None:
    """Mel bins are the model's own (80, or 128 since large-v3), all else is the same in every Whisper."""
    for field, wanted, why in (
        ("feature_size", int(config.num_mel_bins), "config.json has num_mel_bins="),
        ("sampling_rate", SAMPLE_RATE_HZ, "a Whisper model has "),
        ("n_fft", N_FFT, "a Whisper model has "),
        ("hop_length", HOP_LENGTH, "a Whisper model has "),
    ):
        found = int(getattr(extractor, field))
        if found != wanted:
            raise UserError(f"{source}/preprocessor_config.json: {field}={found}, and {why}{wanted}: {_OWN}")
