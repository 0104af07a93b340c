"""The parity gate: exported graphs, run as the board runs them, against transformers' own model in fp32.

Measuring and judging are apart: `measure_parity` returns one gate for each window and kind of output; `verify_gates`
(family.py) raises on the first that failed. A bundle is written only after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from edgeqlora_export.family import Progress, difference_gate, text_gate, token_gate
from edgeqlora_export.onnx_graph import evaluating
from edgeqlora_export.whisper.decoding import torch_greedy
from edgeqlora_export.whisper.windowed import base_whisper, windowed
from edgeqlora_jetson.decoders import DECODERS, KeyValueDecoder
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.schema import Decoder, Gate, Manifest

Read = Callable[[Sequence[int]], str]

BATCH_SIZES = (1, 2, 4)
PAST_LENGTHS = (0, 1, 7, 200)

RELATIVE_LIMIT = 5e-4
"""Largest difference allowed, times the largest magnitude of the reference (at least 1).

Measured on whisper-tiny.en: up to 3e-5 (encoder, 30 s); deeper models add up more rounding. A wrong mask, position
or weight differs by far more, and the greedy tokens must be equal in any case.
"""


class _Worst(NamedTuple):
    """The case that is nearest to its limit, or furthest beyond it."""

    difference: float
    limit: float
    case: str

    @property
    def share(self) -> float:
        # A NaN is no small difference.
        return self.difference / self.limit if np.isfinite(self.difference) else np.inf


def measure_parity(
    model: Any,
    runtime: Any,
    mels: Mapping[float, np.ndarray],
    manifest: Manifest,
    read_torch: Read,
    read_board: Read,
    progress: Progress = lambda message: None,
) -> list[Gate]:
    """Compare `runtime` (of edgeqlora_jetson, holding the exported graphs) with `model`, on real clips.

    mels: for each window in seconds, float32 (n_clips, n_mels, 100 x window_s), at least one clip.
    manifest: the bundle's, of which `model` and `decoder` are read. read_torch, read_board: how each side reads tokens.
    Four gates a window: encoder outputs, decoder logits after each past length the model can hold, and tokens and
    texts of free-running greedy decoding of every clip, which must all be equal.
    """
    base, spec = base_whisper(model), manifest["decoder"]
    decoder: KeyValueDecoder = DECODERS[spec["kind"]](runtime, manifest)
    gates: list[Gate] = []
    with evaluating(base):
        for window_s, clips in sorted(mels.items()):
            if not len(clips):
                raise UserError(f"window {window_s:g} s: 0 clips for the parity check; give at least one")
            progress(f"parity with torch at {window_s:g} s: {len(clips)} clips")
            with windowed(base, window_s):
                gates += _tensor_gates(base, decoder, window_s, clips, spec)
                expected, found = _tokens(base, decoder, window_s, clips, spec)
                gates.append(token_gate(window_s, expected, found))
                gates.append(text_gate(window_s, list(map(read_torch, expected)), list(map(read_board, found))))
    return gates


def _tensor_gates(
    model: Any, decoder: KeyValueDecoder, window_s: float, clips: np.ndarray, spec: Decoder
) -> list[Gate]:
    encoder_cases, decoder_cases = [], []
    positions = model.config.max_target_positions
    prompt = spec["prompt_ids"]
    # Past 0 is the prefill: the whole prompt at once.
    fitting = [n for n in PAST_LENGTHS if n + (1 if n else len(prompt)) <= positions]
    for batch in BATCH_SIZES:
        mel = np.ascontiguousarray(np.resize(clips, (batch, *clips.shape[1:])))
        with torch.no_grad():
            audio_features = model.model.encoder(torch.from_numpy(mel)).last_hidden_state
            expected = _cross_projections(model, audio_features)
        encoded = decoder.encode(mel)
        values = decoder.read_cross(mel)
        for name, reference in zip(decoder.cross_names, expected, strict=True):
            encoder_cases.append(_compare(values[name], reference, f"{name}, batch {batch}"))
        for n_past in fitting:
            tokens = _forced_tokens(prompt, batch, n_past, model.config.vocab_size, min(spec["eos_ids"]))
            with torch.no_grad():
                hidden = model.model.decoder(
                    input_ids=torch.from_numpy(tokens).long(), encoder_hidden_states=audio_features, use_cache=False
                ).last_hidden_state[:, -1]
                reference = model.proj_out(hidden).numpy()
            state = decoder.start(encoded)
            if n_past:
                state.step(tokens[:, :n_past])
            decoder_cases.append(_compare(state.step(tokens[:, n_past:]), reference, f"batch {batch}, past {n_past}"))
    done = f"batch {_listed(BATCH_SIZES)}"
    skipped = [n for n in PAST_LENGTHS if n not in fitting]
    pasts = f", past {_listed(fitting)}"
    if skipped:
        pasts += f"; past {_listed(skipped)} skipped: the model holds {positions} positions"
    return [
        _gate(f"encoder parity at {window_s:g} s", encoder_cases, done),
        _gate(f"decoder parity at {window_s:g} s", decoder_cases, done + pasts),
    ]


def _tokens(
    model: Any, decoder: KeyValueDecoder, window_s: float, clips: np.ndarray, spec: Decoder
) -> tuple[list[list[int]], list[list[int]]]:
    """Greedy tokens of every clip: by torch, and by the exported graphs."""
    limit = spec["max_new_tokens"][str(float(window_s))]
    expected: list[list[int]] = []
    found: list[list[int]] = []
    for start in range(0, len(clips), max(BATCH_SIZES)):
        mel = np.ascontiguousarray(clips[start : start + max(BATCH_SIZES)])
        expected += torch_greedy(model, mel, spec, limit)[0]
        found += decoder.greedy(mel, limit).tokens
    return expected, found


def _cross_projections(model: Any, audio_features: torch.Tensor) -> list[np.ndarray]:
    """What transformers' cross-attention makes of the encoder's output, in the graph's order and layout."""
    expected: list[np.ndarray] = []
    for layer in model.model.decoder.layers:
        attention = layer.encoder_attn
        shape = (*audio_features.shape[:2], attention.num_heads, attention.head_dim)
        expected.append(attention.k_proj(audio_features).view(shape).permute(0, 2, 3, 1).numpy())
        expected.append(attention.v_proj(audio_features).view(shape).transpose(1, 2).numpy())
    return expected


def _forced_tokens(prompt: Sequence[int], batch: int, n_past: int, vocab_size: int, end_id: int) -> np.ndarray:
    """Prompt, then arbitrary text tokens, other ones in each row: int32 (batch, n_past + 1), or the prompt alone."""
    length = n_past + 1 if n_past else len(prompt)
    # Below the end token are the text tokens of every real Whisper vocabulary.
    text = np.random.default_rng(0).integers(0, min(end_id, vocab_size) or vocab_size, (batch, length))
    start = min(len(prompt), length)
    text[:, :start] = np.asarray(prompt)[:start]
    return text.astype(np.int32)


def _compare(found: np.ndarray, reference: np.ndarray, case: str) -> _Worst:
    if found.shape != reference.shape:
        return _Worst(np.inf, 1.0, f"{case}: shape {found.shape}, expected {reference.shape}")
    limit = RELATIVE_LIMIT * max(1.0, float(np.abs(reference).max()))
    return _Worst(float(np.abs(found - reference).max()), limit, case)


def _gate(name: str, cases: Sequence[_Worst], done: str) -> Gate:
    worst = max(cases, key=lambda case: case.share)
    detail = f"max abs difference over {done}; worst: {worst.case}"
    return difference_gate(name, worst.difference, worst.limit, detail)


def _listed(values: Sequence[int]) -> str:
    return "/".join(str(value) for value in values)
