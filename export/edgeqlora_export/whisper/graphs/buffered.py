"""Whisper's two graphs as a CPU runs them fastest: the runner keeps the cache, and a decoder step copies nothing of it.

The decoder reads the past from buffers that are as long as it or longer, and gives keys and values of the new tokens only. Its
attention adds up two products, over the buffer and over what is new, so that nothing is joined. Queries, keys and values are
one product, and so is a convolution: of int8 weights each product quantises its input once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeqlora_export.gates import scaled
from edgeqlora_export.layers import MASKED, Attention, Reshape, merge_heads
from edgeqlora_export.whisper.graphs.modules import VocabularyProjection, WhisperEncoderExport, vocabulary_of

Pair = tuple[torch.Tensor, torch.Tensor]


class _SelfAttention(nn.Module):
    """Self-attention whose queries, keys and values are one product, if none of them has a gate of its own."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.n_heads, self.head_dim = attention.num_heads, attention.head_dim
        parts = [scaled(attention.q_proj, attention.scaling), attention.k_proj, attention.v_proj]
        is_plain = all(isinstance(part, nn.Linear) for part in parts)
        self.together = _joined(parts) if is_plain else None
        self.parts = nn.ModuleList([] if is_plain else parts)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(batch, n, d_model) -> queries, keys and values, each (batch, n_heads, n, head_dim)"""
        joined = self.together(x) if self.together is not None else torch.cat([part(x) for part in self.parts], dim=2)
        heads = Reshape.apply(joined, [0, -1, 3 * self.n_heads, self.head_dim]).transpose(1, 2)
        queries, keys, values = heads.split(self.n_heads, dim=1)
        return queries, keys, values


def _joined(parts: list[nn.Linear]) -> nn.Linear:
    """Linears of one input as one linear; a missing bias is zero."""
    out = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
    zero = [torch.zeros(part.out_features) if part.bias is None else part.bias for part in parts]
    with torch.no_grad():
        out.weight.copy_(torch.cat([part.weight for part in parts]))
        out.bias.copy_(torch.cat(zero))
    return out


class _Join(nn.Module):
    """What the heads found, together again: (batch, n_heads, n, head_dim) -> (batch, n, d_model)"""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.d_model, self.output = attention.embed_dim, attention.out_proj

    def forward(self, mixed: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output(merge_heads(mixed, self.d_model))
        return out


class _Mlp(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm = layer.final_layer_norm
        self.fc1, self.activation, self.fc2 = layer.fc1, layer.activation_fn, layer.fc2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.fc2(self.activation(self.fc1(self.norm(x))))
        return out


class _Convolution(nn.Module):
    """A Conv1d of kernel 3 and padding 1 over (batch, n, in): three shifted copies side by side, and one product."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.stride = conv.stride[0]
        self.product = nn.Linear(3 * conv.in_channels, conv.out_channels)
        with torch.no_grad():
            self.product.weight.copy_(conv.weight.permute(0, 2, 1).reshape(conv.out_channels, -1))
            assert conv.bias is not None
            self.product.bias.copy_(conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (0, 0, 1, 1))
        shifted = [padded[:, k : k - 2 if k < 2 else None : self.stride] for k in range(3)]
        out: torch.Tensor = self.product(torch.cat(shifted, dim=2))
        return out


class _EncoderLayer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm, self.attention = layer.self_attn_layer_norm, _SelfAttention(layer.self_attn)
        self.join, self.mlp = _Join(layer.self_attn), _Mlp(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.attention(self.norm(x))
        mixed = torch.softmax(queries @ keys.transpose(2, 3), dim=-1) @ values
        out: torch.Tensor = self.mlp(x + self.join(mixed))
        return out


class BufferedEncoder(WhisperEncoderExport):
    """WhisperEncoderExport of other parts, with the same input and outputs."""

    layer, convolution = _EncoderLayer, _Convolution

    def convolve(self, mel: torch.Tensor) -> torch.Tensor:
        gelu = nn.functional.gelu
        return gelu(self.conv2(gelu(self.conv1(mel.transpose(1, 2)))))


class _DecoderLayer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm, self.attention = layer.self_attn_layer_norm, _SelfAttention(layer.self_attn)
        self.join, self.mlp = _Join(layer.self_attn), _Mlp(layer)
        self.cross_norm, self.cross = layer.encoder_attn_layer_norm, Attention(layer.encoder_attn)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, past: Pair, cross: Pair
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        queries, keys, values = self.attention(self.norm(x))
        scores = torch.cat([queries @ past[0].transpose(2, 3), queries @ keys.transpose(2, 3)], dim=3) + mask
        shares, n_buffer = torch.softmax(scores, dim=-1), past[0].shape[2]
        mixed = shares[:, :, :, :n_buffer] @ past[1] + shares[:, :, :, n_buffer:] @ values
        x = x + self.join(mixed)
        x = x + self.cross(self.cross_norm(x), cross[0], cross[1])
        return self.mlp(x), keys, values


class BufferedDecoder(nn.Module):
    """Decoder for prompt and single steps alike, whose cache the runner keeps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.embedding, self.vocabulary = vocabulary_of(model)
        self.positions = decoder.embed_positions.weight
        self.layers = nn.ModuleList(_DecoderLayer(layer) for layer in decoder.layers)
        self.norm = decoder.layer_norm

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, *cache: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """tokens int32 (batch, n_new), positions int32 (n_new,), mask float32 (n_new, n_buffer + n_new), then past_k_0,
        past_v_0, ..., cross_k_0, cross_v_0, ...

        past_*: (batch, n_heads, n_buffer, head_dim), of which the mask hides what is not written yet, with MASKED; n_buffer >= 1.
        cross_*: as the encoder gives them. Returns logits (batch, vocab) of the last position, then new_k_0, new_v_0, ...
        (batch, n_heads, n_new, head_dim).
        """
        n_layers = len(self.layers)
        past, cross = cache[: 2 * n_layers], cache[2 * n_layers :]
        x = nn.functional.embedding(tokens, self.embedding) + nn.functional.embedding(positions, self.positions)
        new: list[torch.Tensor] = []
        for i, layer in enumerate(self.layers):
            pair = slice(2 * i, 2 * i + 2)
            x, keys, values = layer(x, mask, past[pair], cross[pair])
            new += [keys, values]
        return (VocabularyProjection.apply(self.norm(x[:, -1]), self.vocabulary), *new)


def example_mask(n_new: int, n_buffer: int, n_past: int) -> torch.Tensor:
    """(n_new, n_buffer + n_new): the past that is written, and of the new tokens those up to each."""
    mask = torch.full((n_new, n_buffer + n_new), MASKED)
    mask[:, :n_past] = 0
    mask[:, n_buffer:] = torch.full((n_new, n_new), MASKED).triu(1)
    return mask
