"""sherpa-onnx's files: an encoder and a decoder with one cache for all layers, tokens in base64, and what it reads from the metadata.

Names, shapes and metadata: k2-fsa/sherpa-onnx, sherpa-onnx/csrc/offline-whisper-model.cc.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgeqlora_export.layers import split_heads
from edgeqlora_export.onnx_graph import save_graph, write_graph
from edgeqlora_export.whisper.decoding import LANGUAGES
from edgeqlora_export.whisper.graphs.modules import WhisperDecoderExport, WhisperEncoderExport
from edgeqlora_jetson.files import write_text

PACKAGE = ("sherpa_onnx", "sherpa-onnx")
OPSET = 13
ENCODER, DECODER, TOKENS = "encoder.onnx", "decoder.onnx", "tokens.txt"


class _Encoder(WhisperEncoderExport):
    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """mel (batch, n_mels, n_frames) -> keys and values of all decoder layers, each (n_layers, batch, n_audio, d_model)"""
        x = self.convolve(mel)
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        keys, values = [cross.key(x) for cross in self.cross], [cross.value(x) for cross in self.cross]
        return torch.stack(keys), torch.stack(values)


class _Decoder(WhisperDecoderExport):
    def forward(self, tokens: torch.Tensor, *cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """tokens int64 (batch, n), keys and values of the past (n_layers, batch, n_positions, d_model), of the audio as the encoder gives
        them, offset int64 (1,): positions that are filled. Returns logits (batch, n, vocab) and the past with the tokens in it."""
        past_k, past_v, cross_k, cross_v, offset = cache
        start = offset[0]
        end = start + tokens.shape[1]
        x = torch.nn.functional.embedding(tokens, self.embedding) + self.positions[start:end]
        mask = self.causal_mask[start:end, :end]
        new_k, new_v = [], []
        for i, layer in enumerate(self.layers):
            own = layer.attention
            normed = layer.attention_norm(x)
            keys = torch.cat([past_k[i, :, :start], own.key(normed)], dim=1)
            values = torch.cat([past_v[i, :, :start], own.value(normed)], dim=1)
            new_k.append(torch.cat([keys, past_k[i, :, end:]], dim=1))
            new_v.append(torch.cat([values, past_v[i, :, end:]], dim=1))
            x = x + own(normed, _keys(keys, own), _values(values, own), mask)
            cross = layer.cross
            x = x + cross(layer.cross_norm(x), _keys(cross_k[i], cross), _values(cross_v[i], cross))
            x = x + layer.fc2(layer.activation(layer.fc1(layer.mlp_norm(x))))
        return self.norm(x) @ self.vocabulary.t(), torch.stack(new_k), torch.stack(new_v)


def _keys(x: torch.Tensor, attention: Any) -> torch.Tensor:
    return split_heads(x, attention.n_heads, attention.head_dim).permute(0, 2, 3, 1)


def _values(x: torch.Tensor, attention: Any) -> torch.Tensor:
    return split_heads(x, attention.n_heads, attention.head_dim).transpose(1, 2)


def check(exporter: Any) -> None:
    """Every Whisper has this form."""


def write(exporter: Any, folder: Path, spec: dict[str, Any]) -> None:
    model, config = exporter.base_model, exporter.base_model.config
    folder.mkdir(parents=True, exist_ok=True)
    n_layers, n_positions, width = config.decoder_layers, config.max_target_positions, config.d_model
    encoder, decoder = _Encoder(model).eval(), _Decoder(model).eval()
    mel = torch.zeros(2, config.num_mel_bins, 2 * min(5, config.max_source_positions))
    axes = {
        "mel": {0: "batch", 2: "n_frames"},
        "n_layer_cross_k": {1: "batch", 2: "n_audio"},
        "n_layer_cross_v": {1: "batch", 2: "n_audio"},
        "tokens": {0: "batch", 1: "n_tokens"},
        "logits": {0: "batch", 1: "n_tokens"},
        "offset": {},
        **{f"{way}_n_layer_self_{kind}_cache": {1: "batch"} for way in ("in", "out") for kind in "kv"},
    }
    crosses = ["n_layer_cross_k", "n_layer_cross_v"]
    write_graph(encoder, (mel,), folder / ENCODER, ["mel"], crosses, axes, OPSET)
    with torch.no_grad():
        audio = encoder(mel)
    past = [torch.zeros(n_layers, 2, n_positions, width) for _ in "kv"]
    example = (torch.zeros(2, 4, dtype=torch.int64), *past, *audio, torch.tensor([3]))
    caches = [[f"{way}_n_layer_self_{kind}_cache" for kind in "kv"] for way in ("in", "out")]
    write_graph(
        decoder,
        example,
        folder / DECODER,
        ["tokens", *caches[0], *crosses, "offset"],
        ["logits", *caches[1]],
        axes,
        OPSET,
    )
    graph = onnx.load(str(folder / ENCODER))
    onnx.helper.set_model_props(graph, {key: str(value) for key, value in metadata(exporter, spec).items()})
    save_graph(graph, folder / ENCODER)
    lines = [
        f"{base64.b64encode(text.encode('latin-1')).decode()} {token}"
        for token, text in enumerate(exporter.token_table())
        if text
    ]
    write_text(folder / TOKENS, "\n".join(lines) + "\n")


def metadata(exporter: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """What sherpa-onnx reads from the encoder."""
    config, vocabulary = exporter.base_model.config, exporter.tokenizer.get_vocab()
    codes = sorted({code for code in LANGUAGES.values() if f"<|{code}|>" in vocabulary})
    multilingual = len(spec["prompt_ids"]) > 2
    end = spec["eos_ids"][0]

    def token(*names: str) -> int:
        return next((vocabulary[f"<|{name}|>"] for name in names if f"<|{name}|>" in vocabulary), end)

    return {
        "model_type": "whisper",
        "version": 1,
        "maintainer": "edgeqlora",
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
        "sot_sequence": ",".join(str(i) for i in spec["prompt_ids"][:-1]),
        "all_language_tokens": ",".join(str(vocabulary[f"<|{code}|>"]) for code in codes),
        "all_language_codes": ",".join(codes),
        "sot": spec["prompt_ids"][0],
        "sot_index": 0,
        "eot": end,
        "blank_id": vocabulary.get("Ġ", end),
        "is_multilingual": int(multilingual),
        "no_speech": token("nospeech", "nocaptions"),
        "non_speech_tokens": ",".join(str(i) for i in spec["suppress_ids"]),
        "transcribe": token("transcribe"),
        "translate": token("translate"),
        "sot_prev": token("startofprev"),
        "sot_lm": token("startoflm"),
        "no_timestamps": spec["prompt_ids"][-1],
    }


def reader(folder: Path, spec: dict[str, Any], threads: int) -> Callable[[np.ndarray], str]:
    """Audio float32 (n_samples,) at 16 kHz -> text, greedy, as sherpa-onnx says it."""
    import sherpa_onnx

    recogniser = sherpa_onnx.OfflineRecognizer.from_whisper(
        encoder=str(folder / ENCODER), decoder=str(folder / DECODER), tokens=str(folder / TOKENS),
        language=spec["language"] or "", task=spec["task"] or "transcribe", num_threads=threads,
    )  # fmt: skip

    def transcribe(audio: np.ndarray) -> str:
        stream = recogniser.create_stream()
        stream.accept_waveform(16000, audio)
        recogniser.decode_stream(stream)
        return str(stream.result.text).strip()

    return transcribe
