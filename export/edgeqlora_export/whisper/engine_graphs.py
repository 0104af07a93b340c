"""Shapes that TensorRT engines of Whisper's two graphs must take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeqlora_export.whisper.graphs.modules import cache_names
from edgeqlora_export.whisper.windowed import window_frames
from edgeqlora_jetson.errors import UserError

Shapes = dict[str, dict[str, list[int]]]


def engine_graphs(
    *,
    model: Mapping[str, Any],
    windows_s: Sequence[float],
    n_prompt: int,
    max_new_tokens: Mapping[str, int],
    max_batch: int,
) -> dict[str, Any]:
    """The engine request's "graphs": encoder and decoder, with every shape that they must take.

    model: n_layers, n_heads, head_dim, n_mels and max_target_positions of the manifest's "model". n_prompt: tokens of
    the prompt, which the decoder's first run takes. max_new_tokens: by window, as in the manifest's "decoder".
    Kernels are chosen for batch 1.

    Optimization profiles: the encoder has one for each window, whose frames are fixed; the decoder has "prefill" (the
    prompt, no past) and "step" (one token, past 1 to the last position needed). Past lengths end at the longest
    transcript asked for, not at the model's last position: K/V buffers are held at their maximum on the board.
    Raises UserError for a prompt or window out of range.
    """
    positions_limit = int(model["max_target_positions"])
    if not windows_s:
        raise UserError("windows_s is empty, an engine needs one or more windows")
    if not max_new_tokens:
        raise UserError("max_new_tokens is empty, it names the most tokens for each window")
    max_positions = n_prompt + max(max_new_tokens.values())
    if n_prompt < 1 or max_positions > positions_limit:
        raise UserError(
            f"n_prompt={n_prompt} with {max(max_new_tokens.values())} new tokens: at least 1, and together at most "
            f"the model's {positions_limit} positions"
        )
    frames = sorted({window_frames(window_s) for window_s in windows_s})
    batches = {"min": 1, "opt": 1, "max": max_batch}
    # A single past length would make the step a fixed shape: the transcript of one token has no step at all.
    n_past = {"min": 1, "opt": max(1, (n_prompt + max_positions) // 2), "max": max(1, max_positions - 1)}
    heads, head_dim, n_audio = int(model["n_heads"]), int(model["head_dim"]), frames[-1] // 2
    n_layers = int(model["n_layers"])
    cross_k, cross_v = [max_batch, heads, head_dim, n_audio], [max_batch, heads, n_audio, head_dim]
    cross = {name: cross_k if "_k_" in name else cross_v for name in cache_names("cross", n_layers)}
    present = {name: [max_batch, heads, max_positions, head_dim] for name in cache_names("present", n_layers)}
    return {
        "encoder": {
            "optimization_profiles": [
                {
                    "name": f"window {n / 100:g} s",
                    "inputs": {"mel": {key: [batch, int(model["n_mels"]), n] for key, batch in batches.items()}},
                }
                for n in frames
            ],
            "outputs": cross,
            "on_device": list(cross),
        },
        "decoder": {
            "optimization_profiles": [
                {
                    "name": "prefill",
                    "inputs": _decoder_inputs(model, batches, n_prompt, dict.fromkeys(batches, 0), frames),
                },
                {"name": "step", "inputs": _decoder_inputs(model, batches, 1, n_past, frames)},
            ],
            "outputs": {"logits": [max_batch, int(model["vocab_size"])], **present},
            "on_device": [*cache_names("past", n_layers), *cross, *present],
        },
    }


def _decoder_inputs(
    model: Mapping[str, Any], batches: Mapping[str, int], n_new: int, past: Mapping[str, int], frames: Sequence[int]
) -> Shapes:
    """Min, opt and max of every decoder input. Kernels are chosen for the longest window: it costs the most."""
    heads, head_dim = int(model["n_heads"]), int(model["head_dim"])
    n_audio = {"min": frames[0] // 2, "opt": frames[-1] // 2, "max": frames[-1] // 2}
    inputs: Shapes = {"tokens": {key: [batch, n_new] for key, batch in batches.items()}}
    for i in range(int(model["n_layers"])):
        for kind in ("k", "v"):
            inputs[f"past_{kind}_{i}"] = {key: [batch, heads, past[key], head_dim] for key, batch in batches.items()}
        inputs[f"cross_k_{i}"] = {key: [batch, heads, head_dim, n_audio[key]] for key, batch in batches.items()}
        inputs[f"cross_v_{i}"] = {key: [batch, heads, n_audio[key], head_dim] for key, batch in batches.items()}
    return inputs
