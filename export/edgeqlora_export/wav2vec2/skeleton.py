"""A Wav2Vec2 with a CTC head of given sizes with random weights and few layers, as a bundle that can be run and counted: see plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from edgeqlora_export.onnx_graph import graph_entries
from edgeqlora_export.wav2vec2.graphs import export_ctc
from edgeqlora_jetson.bundle import Bundle


def depth(config: Any) -> tuple[int, int]:
    """Layers of the encoder; there is no decoder."""
    return config.num_hidden_layers, 0


def empty_model(config: Wav2Vec2Config) -> Wav2Vec2ForCTC:
    """A model of these sizes; on torch's meta device it takes no memory."""
    return Wav2Vec2ForCTC(config)


def longest_window_s(config: Wav2Vec2Config) -> float:
    """Audio seconds that a window may have: the model itself sets no limit."""
    return 30.0


def skeleton(
    config: Wav2Vec2Config, encoder_layers: int, decoder_layers: int, folder: Path, opset: int, for_cpu: bool
) -> Bundle:
    """The graph of a model of these sizes, in `folder`; its manifest has what decoding needs and no more."""
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**{**config.to_dict(), "num_hidden_layers": encoder_layers})).eval()
    path = folder / "ctc.onnx"
    export_ctc(model, path, attention_mask=False, opset=opset)
    manifest: dict[str, Any] = {
        "model": {"vocab_size": config.vocab_size},
        "audio": {"sample_rate_hz": 16000, "windows_s": [30.0]},
        "features": {"kind": "waveform", "normalise": True},
        "decoder": {
            "kind": "ctc", "blank_id": 0, "word_delimiter": "|", "uses_mask": False,
            "conv_kernel": list(config.conv_kernel), "conv_stride": list(config.conv_stride),
        },
        "graphs": graph_entries({"ctc": path}, opset),
        "profile": {},
    }  # fmt: skip
    return Bundle(str(folder), manifest)  # type: ignore[arg-type]
