"""Decoding rules of a Whisper model, and greedy decoding in torch by the very rules the board follows.

Training, evaluation, parity and the bundle all take their prompt and suppressed tokens from here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperDecoder
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE as LANGUAGES

from edgeqlora_export.whisper.checks import end_ids
from edgeqlora_export.whisper.languages import is_multilingual, language_code
from edgeqlora_export.whisper.windowed import FRAMES_PER_S, base_whisper, windowed
from edgeqlora_jetson.decoders import loop_start, said_before
from edgeqlora_jetson.errors import NotFiniteError, UserError
from edgeqlora_jetson.schema import Decoder

ENGLISH_TOKENS_PER_S = 14.0
"""Fast English has about 6 syllables a second, so at most some 8 byte-pair tokens. Other scripts need up to 45."""


def max_new_tokens_of(window_s: float, n_prompt: int, max_target_positions: int, tokens_per_s: float | None) -> int:
    """Most tokens that one window may produce: ceil(32 + tokens_per_s x window_s), within the model's positions.

    tokens_per_s: None where no data tell how many a second of speech needs: then all positions. A decoder that loops on
    noise would run to the end of its position table: the limit bounds what such a clip costs.
    """
    most = max_target_positions - n_prompt
    return most if tokens_per_s is None else min(most, math.ceil(32 + tokens_per_s * window_s))


def _prompt(vocabulary: dict[str, int], multilingual: bool, language: str | None, task: str | None) -> list[str]:
    """The tokens that start every decoding, as text. Raises UserError for a language or task that cannot be."""
    if not multilingual:
        if language not in (None, "en"):
            raise UserError(
                f"language={language!r} cannot be asked of an English-only model: allowed is 'en'; "
                "take a multilingual base model for other languages"
            )
        if task not in (None, "transcribe"):
            raise UserError(f"task={task!r} cannot be asked of an English-only model: allowed is 'transcribe'")
        return ["<|startoftranscript|>", "<|notimestamps|>"]
    task = task or "transcribe"
    if task not in ("transcribe", "translate"):
        raise UserError(f"task={task!r} is unknown: allowed are 'transcribe' and 'translate'")
    if language is None:
        raise UserError("language=None: a multilingual model needs one; say which language is spoken, such as 'en'")
    if f"<|{language}|>" not in vocabulary:
        known = sorted(code for code in set(LANGUAGES.values()) if f"<|{code}|>" in vocabulary)
        raise UserError(f"language={language!r} is not in the tokenizer: it knows {', '.join(known) or 'none'}")
    return ["<|startoftranscript|>", f"<|{language}|>", f"<|{task}|>", "<|notimestamps|>"]


def _suppressed(ids: Any, vocab_size: int) -> list[int]:
    """Suppressed ids within the vocabulary, in order; None and the old placeholder -1 mean nothing."""
    return sorted({int(i) for i in ids or [] if 0 <= int(i) < vocab_size})


def decoding_spec(
    model: Any,
    tokenizer: Any,
    generation_config: Any,
    windows_s: list[float] | tuple[float, ...],
    language: str | None = None,
    task: str | None = None,
    tokens_per_s: float | None = None,
) -> dict[str, Any]:
    """The `decoding` part of a bundle's manifest: plain values only.

    English-only models are prompted with start-of-transcript and no-timestamps; multilingual ones have language and task
    in between. Without `language`, a multilingual model is told that of its generation config. `generation_config` may be None, and so may its suppressed tokens. tokens_per_s: most label
    tokens in a second of the training data, for the limit of tokens in a window; never taken below what English needs.

    Raises UserError for an unknown language or task, or a tokenizer without Whisper's control tokens.
    """
    base = base_whisper(model)
    config = base.config
    multilingual = is_multilingual(base.config, generation_config, tokenizer)
    if multilingual and not language:
        language = getattr(generation_config, "language", None)
    language = language_code(language.strip("<|>")) if language else None
    vocabulary = tokenizer.get_vocab()
    prompt = _prompt(vocabulary, multilingual, language, task)
    missing = [token for token in prompt if token not in vocabulary]
    if missing:
        raise UserError(
            f"the tokenizer has no {', '.join(missing)}: these control tokens start every transcript; "
            "use the tokenizer that came with the model"
        )
    prompt_ids = [vocabulary[token] for token in prompt]
    spoken = language if multilingual else "en"
    if tokens_per_s is not None or spoken == "en":
        tokens_per_s = max(tokens_per_s or 0.0, ENGLISH_TOKENS_PER_S)
    limits = {
        str(float(w)): max_new_tokens_of(float(w), len(prompt_ids), config.max_target_positions, tokens_per_s)
        for w in windows_s
    }
    return {
        "prompt_ids": prompt_ids,
        "eos_ids": end_ids(config, generation_config),
        "suppress_ids": _suppressed(getattr(generation_config, "suppress_tokens", None), config.vocab_size),
        "begin_suppress_ids": _suppressed(getattr(generation_config, "begin_suppress_tokens", None), config.vocab_size),
        "max_new_tokens": limits,
        "language": spoken,
        "task": (task or "transcribe") if multilingual else "transcribe",
        "detokenizer": "detokenizer.json",
    }


@contextmanager
def _cache_usable(model: Any) -> Iterator[None]:
    """Gradient checkpointing drops the K/V cache in training mode: off for the while, as it was afterwards."""
    touched = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in touched:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in touched:
            module.gradient_checkpointing = True


@torch.no_grad()
def torch_encode(model: Any, mel: torch.Tensor | np.ndarray) -> torch.Tensor:
    """What the encoder makes of a batch, shape (batch, n_frames / 2, d_model).

    mel: shape (batch, n_mels, n_frames), any even n_frames up to the model's own (the window follows from it).

    The model is left in the mode it is in: a bitsandbytes 4-bit layer that ran once in eval mode on CPU is
    repacked and cannot be trained any more, so the caller decides. Dropout, if any, is the caller's too.
    """
    base = base_whisper(model)
    reference = base.model.encoder.conv1.weight
    features = torch.as_tensor(mel).to(device=reference.device, dtype=reference.dtype)
    n_frames = features.shape[-1]
    native = n_frames == 2 * base.config.max_source_positions
    with _cache_usable(base), nullcontext() if native else windowed(base, n_frames / FRAMES_PER_S):
        hidden: torch.Tensor = base.model.encoder(features).last_hidden_state
    return hidden


@torch.no_grad()
def torch_decode(
    model: Any,
    audio_features: torch.Tensor,
    spec: Decoder,
    max_new_tokens: int,
    on_rows: Callable[[torch.Tensor], None] | None = None,
) -> tuple[list[list[int]], list[bool]]:
    """Greedy transcripts of a batch with transformers' model and K/V cache, by the rules of the board's loop.

    audio_features: of torch_encode. Returns the tokens of each clip, without prompt and end token, and whether it ended by
    itself. `suppress_ids` are out at every step, `begin_suppress_ids` at the first. Each of `eos_ids` ends a clip, and so
    does a loop, of which one round is kept; such a clip feeds the first of `eos_ids` until its row is dropped: on_rows is
    then given the indices of those that go on. At the limit the end goes that says again what was said. Raises
    NotFiniteError where the decoder answers NaN or infinity.
    """
    base = base_whisper(model)
    limit = min(max_new_tokens, base.config.max_target_positions - len(spec["prompt_ids"]))
    with _cache_usable(base):
        return _decode(base, audio_features, spec, limit, on_rows)


def torch_greedy(
    model: Any, mel: torch.Tensor | np.ndarray, spec: Decoder, max_new_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """torch_decode of what torch_encode makes of `mel`."""
    return torch_decode(model, torch_encode(model, mel), spec, max_new_tokens)


CACHE_NAME = "cache" if "cache" in inspect.signature(WhisperDecoder.forward).parameters else "past_key_values"
"""The decoder's argument for its cache: transformers 5.24 renamed it, and drops the old name in 5.40."""


def _decode(
    base: Any,
    audio_features: torch.Tensor,
    spec: Decoder,
    limit: int,
    on_rows: Callable[[torch.Tensor], None] | None,
) -> tuple[list[list[int]], list[bool]]:
    """Of each row of audio_features, shape (batch, n_audio, d_model): tokens, and whether it ended by itself."""
    batch, device = audio_features.shape[0], audio_features.device
    eos = spec["eos_ids"]
    suppress = torch.tensor(spec["suppress_ids"], dtype=torch.long, device=device)
    begin = torch.tensor(spec["begin_suppress_ids"], dtype=torch.long, device=device)
    tokens = torch.tensor([spec["prompt_ids"]] * batch, device=device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    out: list[list[int]] = [[] for _ in range(batch)]
    rows = list(range(batch))  # the clip behind each row; rows whose clip has ended are dropped in halves
    done, is_complete = [False] * batch, [False] * batch
    for step in range(limit):
        hidden = base.model.decoder(
            input_ids=tokens, encoder_hidden_states=audio_features, use_cache=True, **{CACHE_NAME: cache}
        ).last_hidden_state[:, -1]
        logits = base.proj_out(hidden).float()
        logits[:, suppress] = -torch.inf
        if step == 0:
            logits[:, begin] = -torch.inf
        best, indices = logits.max(-1)
        if not best.isfinite().all():  # max takes a NaN for the largest
            raise NotFiniteError(
                f"the decoder in {str(hidden.dtype).removeprefix('torch.')} answers NaN or infinity on this audio: its "
                "training diverged, or the numbers are too large for this precision; train again with a lower "
                "--learning-rate, or take another checkpoint"
            )
        chosen = indices.tolist()
        for i, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            if not done[row] and token in eos:
                done[row] = is_complete[row] = True
            if done[row]:
                chosen[i] = eos[0]
                continue
            out[row].append(token)
            if (start := loop_start(out[row])) is not None:
                done[row] = True
                del out[row][start:]
        if all(done):
            break
        tokens = torch.tensor(chosen, device=device).unsqueeze(1)
        active = [i for i, row in enumerate(rows) if not done[row]]
        if len(active) <= len(rows) // 2:
            # One clip that loops to its limit must not make all the others of its batch run along.
            keep = torch.tensor(active, device=device)
            cache.batch_select_indices(keep)
            if on_rows is not None:
                on_rows(keep)
            audio_features, tokens, rows = audio_features[keep], tokens[keep], [rows[i] for i in active]
    for clip, has_ended in zip(out, done, strict=True):
        if not has_ended:
            del clip[said_before(clip) :]
    return out, is_complete
