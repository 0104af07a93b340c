"""A Whisper of given sizes with random weights and few layers, as a bundle that can be run and counted: see plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from edgeqlora_export.onnx_graph import graph_entries
from edgeqlora_export.whisper.checks import HOP_LENGTH, N_FFT
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.graphs.modules import model_constants
from edgeqlora_jetson.bundle import Bundle


def depth(config: Any) -> tuple[int, int]:
    """Layers of encoder and decoder."""
    return config.encoder_layers, config.decoder_layers


def empty_model(config: WhisperConfig) -> WhisperForConditionalGeneration:
    """A model of these sizes; on torch's meta device it takes no memory."""
    return WhisperForConditionalGeneration(config)


def longest_window_s(config: WhisperConfig) -> float:
    """Audio seconds that its encoder has positions for."""
    return float(config.max_source_positions) / 50


def skeleton(
    config: WhisperConfig, encoder_layers: int, decoder_layers: int, folder: Path, opset: int, for_cpu: bool
) -> Bundle:
    """Graphs of a model of these sizes, in `folder`; its manifest has what decoding needs and no more."""
    sizes = {**config.to_dict(), "encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes)).eval()
    positions = config.max_target_positions
    manifest: dict[str, Any] = {
        "model": model_constants(model),
        "audio": {"sample_rate_hz": 16000, "windows_s": [config.max_source_positions / 50]},
        "features": {"kind": "log-mel", "n_fft": N_FFT, "hop_length": HOP_LENGTH, "n_mels": config.num_mel_bins},
        "decoder": {
            "kind": "greedy-buffered" if for_cpu else "greedy", "prompt_ids": [0, 1], "eos_ids": [0], "suppress_ids": [],
            "begin_suppress_ids": [], "max_new_tokens": {"30.0": positions - 2}, "language": None, "task": None,
        },
        "graphs": graph_entries(export_whisper(model, folder, opset, buffered=for_cpu), opset),
        "profile": {},
    }  # fmt: skip
    return Bundle(str(folder), manifest)  # type: ignore[arg-type]
