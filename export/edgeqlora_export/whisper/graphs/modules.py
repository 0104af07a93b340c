"""Whisper as two plain ONNX graphs: an encoder that emits cross-attention keys and values, and a decoder with a cache.

The modules here hold the weights of a transformers model and nothing of its code: only operators that TensorRT 8.2
takes at opset 13 (2-D convolutions, no Trilu, no Einsum), no If, no Loop. Measured choices are noted where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgeqlora_export.gates import frames_of
from edgeqlora_export.layers import MASKED, Attention, as_conv2d, split_heads


class VocabularyProjection(torch.autograd.Function):
    """x (batch, d_model) times the transposed vocabulary matrix (vocab, d_model), as one Gemm with transB.

    x @ w.T would be folded into a second, transposed copy of the embedding: 80 MB for whisper-tiny.
    onnxruntime executes both forms at the same speed.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w.t()

    @staticmethod
    def symbolic(g: Any, x: Any, w: Any) -> Any:
        return g.op("Gemm", x, w, transB_i=1)


class _EncoderLayer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention_norm = layer.self_attn_layer_norm
        self.attention = Attention(layer.self_attn)
        self.mlp_norm = layer.final_layer_norm
        self.fc1, self.activation, self.fc2 = layer.fc1, layer.activation_fn, layer.fc2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_values(normed)
        x = x + self.attention(normed, keys.transpose(2, 3), values)
        return x + self.fc2(self.activation(self.fc1(self.mlp_norm(x))))


class WhisperEncoderExport(nn.Module):
    """Encoder plus the cross-attention key and value projections of every decoder layer.

    The encoder's own output never leaves the graph: each decoder step would have to project it again.
    """

    layer: Callable[[Any], nn.Module] = _EncoderLayer
    convolution: Callable[[nn.Conv1d], nn.Module] = staticmethod(as_conv2d)

    def __init__(self, model: Any) -> None:
        super().__init__()
        encoder = model.model.encoder
        self.conv1, self.conv2 = self.convolution(encoder.conv1), self.convolution(encoder.conv2)
        self.register_buffer("positions", encoder.embed_positions.weight.detach().clone())
        self.layers = nn.ModuleList(self.layer(layer) for layer in encoder.layers)
        self.norm = encoder.layer_norm
        self.cross = nn.ModuleList(_CrossProjection(layer.encoder_attn) for layer in model.model.decoder.layers)
        self.frames = frames_of(model)

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """mel (batch, n_mels, n_frames), n_frames even -> cross_k_0, cross_v_0, cross_k_1, ...

        cross_k: (batch, n_heads, head_dim, n_audio), cross_v: (batch, n_heads, n_audio, head_dim),
        n_audio = n_frames / 2. Any n_frames up to the model's own: the position table is cut to fit.
        """
        if self.frames is not None:
            self.frames.hear(mel)
        x = self.convolve(mel)
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return tuple(tensor for cross in self.cross for tensor in cross(x))

    def convolve(self, mel: torch.Tensor) -> torch.Tensor:
        """(batch, n_mels, n_frames) -> (batch, n_frames / 2, d_model)"""
        gelu = nn.functional.gelu
        return gelu(self.conv2(gelu(self.conv1(mel.unsqueeze(2))))).squeeze(2).transpose(1, 2)


class _CrossProjection(nn.Module):
    """Keys, transposed for the product, and values of one decoder layer's cross-attention."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.n_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.key, self.value = attention.k_proj, attention.v_proj

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys_t = split_heads(self.key(x), self.n_heads, self.head_dim).permute(0, 2, 3, 1)
        values = split_heads(self.value(x), self.n_heads, self.head_dim).transpose(1, 2)
        return keys_t, values


class _DecoderLayer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention_norm = layer.self_attn_layer_norm
        self.attention = Attention(layer.self_attn)
        self.cross_norm = layer.encoder_attn_layer_norm
        self.cross = Attention(layer.encoder_attn)
        self.mlp_norm = layer.final_layer_norm
        self.fc1, self.activation, self.fc2 = layer.fc1, layer.activation_fn, layer.fc2

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor],
        cross: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_values(normed)
        keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        # A cache of transposed keys is not faster: onnxruntime fuses this Transpose into the MatMul.
        x = x + self.attention(normed, keys.transpose(2, 3), values, mask)
        x = x + self.cross(self.cross_norm(x), cross[0], cross[1])
        return x + self.fc2(self.activation(self.fc1(self.mlp_norm(x)))), keys, values


class WhisperDecoderExport(nn.Module):
    """Decoder for prefill and single steps alike: new tokens and a cache in, logits and the grown cache out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.embedding, self.vocabulary = vocabulary_of(model)
        self.positions = decoder.embed_positions.weight
        self.layers = nn.ModuleList(_DecoderLayer(layer) for layer in decoder.layers)
        self.norm = decoder.layer_norm
        n = self.positions.shape[0]
        # A table that is sliced, instead of Trilu (absent from TensorRT 8.2) or a comparison at every step.
        self.register_buffer("causal_mask", torch.full((n, n), MASKED).triu(1))

    def forward(self, tokens: torch.Tensor, *cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """tokens int32 (batch, n_new); cache: past_k_0, past_v_0, ..., then cross_k_0, cross_v_0, ...

        past_*: (batch, n_heads, n_past, head_dim), n_past >= 0; cross_* as the encoder gives them.
        Returns logits (batch, vocab) of the last position, then present_k_0, present_v_0, ... of n_past + n_new.
        """
        n_layers = len(self.layers)
        past, cross = cache[: 2 * n_layers], cache[2 * n_layers :]
        start = past[0].shape[2]
        end = start + tokens.shape[1]
        x = nn.functional.embedding(tokens, self.embedding) + self.positions[start:end]
        mask = self.causal_mask[start:end, :end]
        present: list[torch.Tensor] = []
        for i, layer in enumerate(self.layers):
            pair = slice(2 * i, 2 * i + 2)
            x, keys, values = layer(x, mask, past[pair], cross[pair])
            present += [keys, values]
        logits = VocabularyProjection.apply(self.norm(x[:, -1]), self.vocabulary)
        return (logits, *present)


def vocabulary_of(model: Any) -> tuple[Any, Any]:
    """Embedding and vocabulary projection, each (vocab, d_model): one Parameter where they are tied, so that a graph stores it once."""
    embedding = model.model.decoder.embed_tokens.weight
    tied = model.proj_out.weight.data_ptr() == embedding.data_ptr()
    return embedding, embedding if tied else model.proj_out.weight


def cache_names(kind: str, n_layers: int) -> list[str]:
    """Names of one kind of cache tensor ("past", "present", "cross"), in the graphs' order."""
    return [f"{kind}_{which}_{i}" for i in range(n_layers) for which in ("k", "v")]


def model_constants(model: Any) -> dict[str, Any]:
    """The sizes that a runner needs: the manifest's `model`, but for family and base_model."""
    config = model.config
    heads = config.decoder_attention_heads
    return {
        "d_model": config.d_model,
        "n_layers": config.decoder_layers,
        "n_heads": heads,
        "head_dim": config.d_model // heads,
        "n_mels": config.num_mel_bins,
        "vocab_size": config.vocab_size,
        "max_target_positions": config.max_target_positions,
    }
