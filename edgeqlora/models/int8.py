"""Linears whose weights are held in int8, one scale a row, and computed with in the dtype of their inputs.

The weights are LLM.int8's (Dettmers et al. 2022, arXiv 2208.07339), by bitsandbytes. Its own product is not used: outside
training it rounds inputs to int8 too, so that a model would be scored, and merged, as another one than was trained.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch


def values_of(rows: Any, scales: Any, dtype: Any) -> Any:
    """What int8 rows (out_features, in_features) with scales (out_features,) stand for, in `dtype`."""
    return (rows.float() * (scales[:, None] / 127)).to(dtype)


class _Product(torch.autograd.Function):
    """x W^T + b. Keeps neither x nor the values of W for the backward pass: W is fixed, and computed again."""

    @staticmethod
    def forward(ctx: Any, x: Any, rows: Any, scales: Any, bias: Any) -> Any:
        ctx.weight, ctx.dtype = (rows, scales), x.dtype
        bias = bias if bias is None else bias.to(x.dtype)
        return torch.nn.functional.linear(x, values_of(rows, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        rows, scales = ctx.weight
        return (gradient @ values_of(rows, scales, gradient.dtype)).to(ctx.dtype), None, None, None


def _forward(module: Any, x: Any) -> Any:
    return _Product.apply(x, module.weight.data, module.weight.SCB, module.bias)


def compute_plainly(module: Any) -> None:
    """Have a bitsandbytes Linear8bitLt compute with its weight's values, in training and evaluation alike."""
    module.forward = partial(_forward, module)


def int8_round_trip(weight: Any, dtype: Any) -> Any:
    """The fp32 values that training in `dtype` computes with where this weight (out_features, in_features) is held in int8."""
    import bitsandbytes.functional as bnb

    rows, scales, _ = bnb.int8_vectorwise_quant(weight.to(dtype).to(torch.float16).contiguous())
    return values_of(rows, scales, dtype).float()
