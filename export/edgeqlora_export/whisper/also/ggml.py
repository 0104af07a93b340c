"""whisper.cpp's file: header, mel filters, tokens as bytes, and tensors by OpenAI's names, matrices in fp16.

Format: ggml-org/whisper.cpp, src/whisper.cpp, whisper_model_load.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgeqlora_jetson.errors import UserError

PACKAGE = ("pywhispercpp", "pywhispercpp")
FILE = "ggml-model.bin"
MAGIC = 0x67676D6C
VOCABULARIES = (51864, 51865, 51866)
"""Tokens of OpenAI's English, multilingual and large-v3 models: whisper.cpp takes the ids of its special tokens from the number."""

_LAYER = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_OUTSIDE = {
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.embed_tokens.weight": "decoder.token_embedding.weight",
}


def check(exporter: Any) -> None:
    """UserError for a model that whisper.cpp cannot hold."""
    config = exporter.base_model.config
    if config.vocab_size not in VOCABULARIES or config.max_source_positions != 1500:
        raise UserError(
            f"--also ggml: whisper.cpp knows models with OpenAI's vocabularies ({', '.join(map(str, VOCABULARIES))} tokens) and 1500 positions "
            f"alone, and this one has {config.vocab_size} tokens and {config.max_source_positions} positions: leave it away"
        )
    embedding = exporter.base_model.model.decoder.embed_tokens.weight
    if exporter.base_model.proj_out.weight.data_ptr() != embedding.data_ptr():
        raise UserError(
            "--also ggml: whisper.cpp has one matrix for embedding and vocabulary, and this model has two: leave it away"
        )


def name_of(name: str) -> str:
    """OpenAI's name of a tensor of transformers' Whisper: "model.encoder.layers.0.fc1.weight" -> "encoder.blocks.0.mlp.0.weight"."""
    name = name.removeprefix("model.")
    layer = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        side, number, part, kind = layer.groups()
        return f"{side}.blocks.{number}.{_LAYER[part]}.{kind}"
    stem, _, kind = name.rpartition(".")
    return _OUTSIDE.get(name) or (f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE else name)


def write(exporter: Any, folder: Path, spec: dict[str, Any]) -> None:
    config = exporter.base_model.config
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / FILE, "wb") as file:
        _ints(
            file, MAGIC, config.vocab_size, config.max_source_positions, config.d_model, config.encoder_attention_heads,
            config.encoder_layers, config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers,
            config.num_mel_bins, 1,
        )  # fmt: skip
        filters = np.ascontiguousarray(np.asarray(exporter.extractor.mel_filters, dtype=np.float32).T)
        _ints(file, *filters.shape)
        file.write(filters.tobytes())
        tokens = _tokens(exporter)
        _ints(file, len(tokens))
        for token in tokens:
            _ints(file, len(token))
            file.write(token)
        for name, tensor in exporter.base_model.state_dict().items():
            if name != "proj_out.weight":
                _tensor(file, name_of(name), tensor.numpy())


def _tokens(exporter: Any) -> list[bytes]:
    """Bytes of the tokens below the first control token, by id; whisper.cpp names the others itself."""
    table = exporter.token_table()
    n = table.index(None)
    return [text.encode("latin-1") for text in table[:n]]


def _tensor(file: BinaryIO, name: str, values: np.ndarray) -> None:
    values = values.squeeze()
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values.reshape(-1, 1)
    is_half = values.ndim >= 2 and not name.endswith((".bias", "positional_embedding"))
    encoded = name.encode()
    _ints(file, values.ndim, len(encoded), int(is_half), *values.shape[::-1])
    file.write(encoded)
    file.write(np.ascontiguousarray(values, dtype=np.float16 if is_half else np.float32).tobytes())


def _ints(file: BinaryIO, *values: int) -> None:
    file.write(struct.pack(f"<{len(values)}i", *values))


def reader(folder: Path, spec: dict[str, Any], threads: int) -> Callable[[np.ndarray], str]:
    """Audio float32 (n_samples,) at 16 kHz -> text, greedy, as whisper.cpp says it."""
    from pywhispercpp.model import Model

    model = Model(
        str(folder / FILE), n_threads=threads, print_progress=False, print_realtime=False, redirect_whispercpp_logs_to=None,
        language=spec["language"], translate=spec["task"] == "translate", no_timestamps=True, no_context=True, temperature_inc=0.0,
    )  # fmt: skip
    return lambda audio: " ".join(segment.text.strip() for segment in model.transcribe(audio))
