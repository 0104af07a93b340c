"""wav2vec 2.0 with a CTC head as one plain ONNX graph: normalised audio in, logits of every frame out.

The module holds the weights of a transformers Wav2Vec2ForCTC and nothing of its code: only operators that TensorRT 8.2
takes at opset 13 (2-D convolutions, norms over time or channels as means, no InstanceNormalization), no If, no Loop.
Source of the network: Baevski et al. 2020, https://arxiv.org/abs/2006.11477; order of norms and masks: transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeqlora_export.gates import frames_of
from edgeqlora_export.layers import MASKED, Attention, Reshape, as_conv2d


class _Norm(nn.Module):
    """Norm of (batch, channels, 1, n) over one axis, with a weight and a bias for each channel.

    axis 1 is a layer norm over channels, axis 3 a group norm with a group for each channel. Between two transposes,
    LayerNorm is as fast at opset 13 and half as fast at 17, where it is one operator (onnxruntime, 2 threads, 2 s of
    audio, 512 channels, 2 of 12 layers: 0.21 and 0.45 s the graph, 0.21 and 0.22 s as it is here). Written with the
    operators of an exported LayerNorm (reduce, subtract, power, reduce, add, square root, divide): the board's runner
    finds these in an fp16 engine and keeps them in fp32. It would not find an InstanceNormalization, as which torch
    writes a GroupNorm.
    """

    def __init__(self, norm: Any, axis: int) -> None:
        super().__init__()
        self.axis, self.eps = axis, norm.eps
        self.register_buffer("weight", norm.weight.detach().reshape(1, -1, 1, 1))
        self.register_buffer("bias", norm.bias.detach().reshape(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(self.axis, keepdim=True)
        variance = x.pow(2).mean(self.axis, keepdim=True)
        return x / torch.sqrt(variance + self.eps) * self.weight + self.bias


def _feature_layer(layer: Any) -> nn.Sequential:
    """Convolution, norm if the layer has one, activation: (batch, channels, 1, n) -> fewer frames."""
    norm = getattr(layer, "layer_norm", None)
    norms = [] if norm is None else [_Norm(norm, 3 if isinstance(norm, nn.GroupNorm) else 1)]
    return nn.Sequential(as_conv2d(layer.conv), *norms, layer.activation)


class _PositionalConvolution(nn.Module):
    """Grouped convolution over time; an even kernel makes one frame too many, and the last one is dropped."""

    def __init__(self, embedding: Any, hidden_size: int) -> None:
        super().__init__()
        self.conv, self.activation = as_conv2d(embedding.conv), embedding.activation
        self.hidden_size, self.n_extra = hidden_size, embedding.padding.num_pad_remove

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n, hidden_size) -> the same"""
        x = self.conv(Reshape.apply(x.transpose(1, 2), [0, self.hidden_size, 1, -1]))
        if self.n_extra:
            x = x[:, :, :, : -self.n_extra]
        return Reshape.apply(self.activation(x), [0, self.hidden_size, -1]).transpose(1, 2)


class _EncoderLayer(nn.Module):
    """Attention and MLP with the norms before them (stable) or after; then MMS's language adapter, where it has one."""

    def __init__(self, layer: Any, stable: bool) -> None:
        super().__init__()
        self.stable = stable
        self.attention = Attention(layer.attention)
        self.norm, self.last_norm = layer.layer_norm, layer.final_layer_norm
        mlp = layer.feed_forward
        self.mlp = nn.Sequential(mlp.intermediate_dense, mlp.intermediate_act_fn, mlp.output_dense)
        self.adapter = getattr(layer, "adapter_layer", None)

    def attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        keys, values = self.attention.keys_values(x)
        return self.attention(x, keys.transpose(2, 3), values, mask)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (batch, n, hidden_size); mask None or (batch, 1, 1, n), added to the scores."""
        if not self.stable:
            x = self.norm(x + self.attend(x, mask))
            return self.last_norm(x + self.mlp(x))
        x = x + self.attend(self.norm(x), mask)
        x = x + self.mlp(self.last_norm(x))
        return x if self.adapter is None else x + self.adapter(x)


class CtcExport(nn.Module):
    """The whole network, from normalised audio to logits.

    Valid frames come as floats of 1 and 0: a product blanks the padding and a product and a sum mask the scores.
    Counts would need a range, a comparison and a select on integers and booleans, and the runner has to do the
    convolutions' arithmetic (the runner's n_outputs) in either case.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        base, config = model.wav2vec2, model.config
        self.features = nn.Sequential(*(_feature_layer(layer) for layer in base.feature_extractor.conv_layers))
        self.n_channels: int = config.conv_dim[-1]
        self.projection_norm, self.projection = base.feature_projection.layer_norm, base.feature_projection.projection
        self.positions = _PositionalConvolution(base.encoder.pos_conv_embed, config.hidden_size)
        self.stable: bool = config.do_stable_layer_norm
        self.norm = base.encoder.layer_norm
        self.layers = nn.ModuleList(_EncoderLayer(layer, self.stable) for layer in base.encoder.layers)
        self.head = model.lm_head
        self.frames = frames_of(model)

    def forward(self, audio: torch.Tensor, frame_mask: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        """audio (batch, n_samples), frame_mask None or (batch, n_frames) of 1 and 0 -> logits (batch, n_frames, vocab),

        in a tuple, as the exporter takes every graph's outputs.
        """
        if self.frames is not None:
            self.frames.hear(audio)
        x = self.features(Reshape.apply(audio, [0, 1, 1, -1]))
        x = Reshape.apply(x, [0, self.n_channels, -1]).transpose(1, 2)
        x = self.projection(self.projection_norm(x))
        mask = None
        if frame_mask is not None:
            x = x * frame_mask.unsqueeze(2)
            mask = ((1.0 - frame_mask) * MASKED).unsqueeze(1).unsqueeze(1)
        x = x + self.positions(x)
        if not self.stable:
            x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return (self.head(self.norm(x) if self.stable else x),)
