"""Building blocks that the graphs of several families share: plain operators that TensorRT 8.2 takes at opset 13."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeqlora_export.gates import scaled

MASKED = -1e4
"""Added to a masked attention score: exp() of it is 0 in fp32 and fp16, and fp16 can hold it."""


class Reshape(torch.autograd.Function):
    """Reshape as one node with a constant shape, in which 0 keeps the input's size and -1 is inferred.

    Tensor.reshape with traced sizes becomes Shape, Gather, Concat and Reshape: four nodes at 24 places of the
    decoder, each step.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: list[int]) -> torch.Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])

    @staticmethod
    def symbolic(g: Any, x: Any, shape: list[int]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(shape)))


def as_conv2d(conv: nn.Conv1d) -> nn.Conv2d:
    """A Conv1d over time as a Conv2d of height 1: TensorRT 8.2 documents only 2-D and 3-D convolutions.

    A weight norm on `conv` is folded: reading its `weight` gives the product.
    """
    (kernel,), (stride,), has_bias = conv.kernel_size, conv.stride, conv.bias is not None
    shape = ((1, kernel), (1, stride), (0, int(conv.padding[0])))
    out = nn.Conv2d(conv.in_channels, conv.out_channels, *shape, groups=conv.groups, bias=has_bias)
    with torch.no_grad():
        out.weight.copy_(conv.weight.unsqueeze(2))
        if conv.bias is not None and out.bias is not None:
            out.bias.copy_(conv.bias)
    return out


def split_heads(x: torch.Tensor, n_heads: int, head_dim: int) -> torch.Tensor:
    """(batch, n, d_model) -> (batch, n, n_heads, head_dim)"""
    return Reshape.apply(x, [0, -1, n_heads, head_dim])


def merge_heads(x: torch.Tensor, d_model: int) -> torch.Tensor:
    """(batch, n_heads, n, head_dim) -> (batch, n, d_model)"""
    return Reshape.apply(x.transpose(1, 2), [0, -1, d_model])


class Attention(nn.Module):
    """Multi-head attention over keys that are already transposed for the product.

    The query's scale, head_dim ** -0.5, is multiplied into its weights: exact for Whisper's head_dim of 64.
    One fused Q/K/V product is not faster than three (onnxruntime, 2 threads, whisper-tiny: 2.55 and 2.50 ms a
    step, 5.8 and 6.0 ms the encoder at 2 s), so the weights stay as they are.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.n_heads: int = attention.num_heads
        self.head_dim: int = attention.head_dim
        self.d_model: int = attention.embed_dim
        self.query = scaled(attention.q_proj, attention.scaling)
        self.key = attention.k_proj
        self.value = attention.v_proj
        self.output = attention.out_proj

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, n, d_model) -> keys and values, each (batch, n_heads, n, head_dim)"""
        keys = split_heads(self.key(x), self.n_heads, self.head_dim).transpose(1, 2)
        values = split_heads(self.value(x), self.n_heads, self.head_dim).transpose(1, 2)
        return keys, values

    def forward(
        self, x: torch.Tensor, keys_t: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (batch, n, d_model), keys_t (batch, n_heads, head_dim, m), values (batch, n_heads, m, head_dim)

        mask: None or (n, m), added to the scores. Returns (batch, n, d_model).
        """
        query = split_heads(self.query(x), self.n_heads, self.head_dim).transpose(1, 2)
        scores = query @ keys_t
        if mask is not None:
            scores = scores + mask
        mixed = torch.softmax(scores, dim=-1) @ values
        return self.output(merge_heads(mixed, self.d_model))
