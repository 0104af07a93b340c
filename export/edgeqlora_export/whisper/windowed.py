"""The audio window of a Whisper encoder: how many seconds it sees, and a model that sees fewer than it was made for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edgeqlora_jetson.errors import UserError

FRAMES_PER_S = 100
"""Mel frames a second: 16 000 samples/s over a hop of 160 samples."""

WINDOW_STEP_S = 0.02
"""One encoder position: two mel frames, because the second convolution has stride 2."""


def window_frames(window_s: float, max_window_s: float = 30.0) -> int:
    """Mel frames of a window of `window_s` seconds: an even number.

    Raises UserError unless `window_s` is a multiple of 0.02 s in [0.02, max_window_s].
    """
    if not (WINDOW_STEP_S - 1e-9 <= window_s <= max_window_s + 1e-9):
        raise UserError(
            f"window_s={window_s:g} is out of range: allowed are {WINDOW_STEP_S} to {max_window_s:g} s; "
            "longer recordings are cut into windows by the runner, so choose the largest window you need"
        )
    frames = round(window_s * FRAMES_PER_S)
    if frames % 2 or abs(frames - window_s * FRAMES_PER_S) > 1e-6:
        nearest = round(window_s / WINDOW_STEP_S) * WINDOW_STEP_S
        raise UserError(
            f"window_s={window_s:g} is not a multiple of {WINDOW_STEP_S} s (one encoder position); "
            f"the nearest allowed value is {max(nearest, WINDOW_STEP_S):.2f}"
        )
    return frames


def base_whisper(model: Any) -> Any:
    """The WhisperForConditionalGeneration inside `model`, which may be wrapped by PEFT."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def model_window_s(model: Any) -> float:
    """Seconds of audio that `model` sees now."""
    return 2 * base_whisper(model).config.max_source_positions / FRAMES_PER_S


@contextmanager
def windowed(model: Any, window_s: float) -> Iterator[Any]:
    """Inside the `with`, `model` takes mel of `window_s` seconds instead of its native 30; after it, it is as before.

    The encoder's position table is cut to its first `window_s` x 50 rows (a view: no copy; it gets no
    gradient, as transformers freezes it: fixed sinusoids in every Whisper), and the configured length, which transformers checks against the
    mel it is given, is cut with it. Weights are not altered. Works on a PEFT-wrapped model and nests with
    ever shorter windows.

    Raises UserError for a window that is longer than what the model sees now, or not a multiple of 0.02 s.
    """
    base = base_whisper(model)
    encoder = base.model.encoder
    table = encoder.embed_positions
    n_positions = window_frames(window_s, max_window_s=model_window_s(model)) // 2
    configs = {id(config): config for config in (base.config, encoder.config)}.values()
    saved_weight, saved_rows = table.weight, table.num_embeddings
    saved_lengths = [(config, config.max_source_positions) for config in configs]
    saved_encoder_length = getattr(encoder, "max_source_positions", None)
    try:
        table.weight = torch.nn.Parameter(saved_weight.detach()[:n_positions], requires_grad=False)
        table.num_embeddings = n_positions
        for config in configs:
            config.max_source_positions = n_positions
        if saved_encoder_length is not None:
            encoder.max_source_positions = n_positions
        yield model
    finally:
        table.weight, table.num_embeddings = saved_weight, saved_rows
        for config, length in saved_lengths:
            config.max_source_positions = length
        if saved_encoder_length is not None:
            encoder.max_source_positions = saved_encoder_length
