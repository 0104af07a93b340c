"""How much GPU memory a QLoRA step takes: a formula over the sizes of an encoder-decoder model, in bytes.

Derived for NF4 bases with double quantisation (Dettmers et al. 2023, arXiv 2305.14314), adapters on every linear of every
layer, bf16 autocast, attention kernels that keep no matrix of weights, and AdamW with 8-bit states. docs/training.md
has it in words.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a 4-bit weight: half a byte, and of each block of 64 one byte of scale, of each 256 scales one in fp32."""
_8BIT_FROM = 4096
"""Numbers in a matrix from which bitsandbytes keeps its optimiser states in 8 bits."""
_PAGED_FROM = 100_000
"""Numbers in a matrix from which they are paged: those lie outside of what torch counts."""


class Sizes(NamedTuple):
    """An encoder-decoder over log-mel: two convolutions of width 3, then layers with attention and two linears."""

    width: int
    encoder_layers: int
    decoder_layers: int
    ffn: int
    n_mels: int
    vocabulary: int
    encoder_positions: int = 1500
    decoder_positions: int = 448

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of every linear that is quantised and adapted."""
        d, f = self.width, self.ffn
        attention, ends = [(d, d)] * 4, [(d, f), (f, d)]
        return (attention + ends) * self.encoder_layers + (2 * attention + ends) * self.decoder_layers


class Vram(NamedTuple):
    """Bytes of one training step at its peak, by what they are for."""

    base: int
    adapters: int
    activations: int
    """Kept from the forward to the backward pass."""
    logits: int
    """Logits in bf16, their log-softmax, and both gradients: the largest of what comes and goes."""

    @property
    def total(self) -> int:
        return sum(self)


def base_bytes(sizes: Sizes) -> int:
    """The frozen base: linears in NF4, embeddings, positions, convolutions, norms and biases in 16 bits."""
    quantised = sum(n_in * n_out for n_in, n_out in sizes.linears())
    return math.ceil(_NF4_BYTES * quantised) + 2 * (n_parameters(sizes) - quantised)


def n_parameters(sizes: Sizes) -> int:
    """Parameters of the whole model; the output layer is the token embedding."""
    d, f = sizes.width, sizes.ffn
    linears = sum(n_in * n_out for n_in, n_out in sizes.linears())
    attention_bias, ends_bias, norm = 3 * d, f + d, 2 * d  # keys have no bias
    per_encoder_layer, per_decoder_layer = (
        attention_bias + ends_bias + 2 * norm,
        2 * attention_bias + ends_bias + 3 * norm,
    )
    convolutions = 3 * d * sizes.n_mels + d + 3 * d * d + d
    tables = (sizes.vocabulary + sizes.encoder_positions + sizes.decoder_positions) * d
    layers = sizes.encoder_layers * per_encoder_layer + sizes.decoder_layers * per_decoder_layer
    return linears + layers + convolutions + tables + 2 * norm


def adapter_bytes(sizes: Sizes, rank: int, *, paged: bool = False) -> int:
    """Adapters of one rank: weights and gradients in fp32, a copy in bf16 for the step, and AdamW's two states.

    States of small matrices stay in fp32. paged: without the states that lie in pages, which torch does not count.
    """
    total = 0
    for n_in, n_out in sizes.linears():
        for n in (n_in * rank, rank * n_out):
            states = 8 * n if n < _8BIT_FROM else 2 * n + 8 * math.ceil(n / 256)
            if paged and n >= _PAGED_FROM:
                states = 8 * math.ceil(n / 256)
            total += (4 + 4 + 2) * n + states
    return total


def activation_bytes(sizes: Sizes, rank: int, n_positions: int, n_tokens: int, *, checkpointing: bool = False) -> int:
    """What one clip keeps for the backward pass: n_positions in the encoder (50 a second), n_tokens in the decoder.

    checkpointing: the input of each layer, and all of one layer.
    """
    d, f = sizes.width, sizes.ffn
    hidden = 4 * d  # fp32, into a norm
    self_attention = hidden + 3 * 2 * d + 4 * 2 * d  # inputs of q, k, v; q, k, v and the result, in bf16
    ends = hidden + 2 * d + 4 * f + 2 * f  # input of the first linear, of gelu in fp32, of the second linear
    encoder_layer = self_attention + ends + 6 * 2 * rank
    decoder_layer = self_attention + (hidden + 2 * d + 2 * 2 * d) + ends + 8 * 2 * rank
    crossing = 2 * 2 * d + 2 * 2 * d + 2 * 2 * rank  # keys and values of the audio: inputs and results
    if not checkpointing:
        audio = sizes.encoder_layers * encoder_layer + sizes.decoder_layers * crossing
        return n_positions * (audio + hidden) + n_tokens * (sizes.decoder_layers * decoder_layer + hidden)
    audio = sizes.encoder_layers * hidden + max(encoder_layer, crossing)
    return n_positions * (audio + hidden) + n_tokens * (sizes.decoder_layers * hidden + decoder_layer)


def step_bytes(
    sizes: Sizes,
    *,
    batch: int,
    window_s: float,
    n_tokens: int,
    rank: int = 8,
    checkpointing: bool = False,
) -> Vram:
    """GPU memory of a QLoRA step with `batch` clips at a time, as torch counts it (torch.cuda.max_memory_allocated).

    What is not in it: CUDA's own context (some 500 MiB), the allocator's unused rest, kernels' scratch memory.
    """
    n_positions = round(50 * window_s)
    return Vram(
        base_bytes(sizes),
        adapter_bytes(sizes, rank, paged=True),
        batch * activation_bytes(sizes, rank, n_positions, n_tokens, checkpointing=checkpointing),
        batch * n_tokens * sizes.vocabulary * (2 + 4 + 4 + 2),
    )
