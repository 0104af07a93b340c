"""Scales of the inputs of int8 linear layers, from what flows through them on real audio.

The inputs of a layer are first evened out (SmoothQuant, Xiao et al., ICML 2023): each channel is divided by the root of its largest
magnitude over that of its weights, which are multiplied by it. The scale is the one with the least squared error of rounding and cutting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

N_BINS = 2048
LARGEST = 127


class Rounding(NamedTuple):
    """How a layer's input x becomes integers: x * evened (n_channels,), in steps."""

    evened: np.ndarray
    step: float


class Channels:
    """The largest magnitude of each channel (last axis) of tensors, by (graph, tensor)."""

    def __init__(self) -> None:
        self.largest: dict[tuple[str, str], np.ndarray] = {}

    def see(self, graph: str, tensor: str, value: np.ndarray) -> None:
        here = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0)
        known = self.largest.get((graph, tensor))
        self.largest[graph, tensor] = here if known is None else np.maximum(known, here)


class Histograms:
    """How often each magnitude of an evened tensor comes."""

    def __init__(
        self, evened: Mapping[tuple[str, str], np.ndarray], largest: Mapping[tuple[str, str], np.ndarray]
    ) -> None:
        self.evened = evened
        self.tops = {key: max(float((largest[key] * evened[key]).max()), 1e-12) for key in evened}
        self.counts = {key: np.zeros(N_BINS) for key in evened}

    def see(self, graph: str, tensor: str, value: np.ndarray) -> None:
        key = graph, tensor
        values = np.abs(value * self.evened[key])
        self.counts[key] += np.histogram(values, N_BINS, (0, self.tops[key]))[0]

    def roundings(self) -> dict[tuple[str, str], Rounding]:
        return {key: Rounding(self.evened[key], best_step(self.counts[key], top)) for key, top in self.tops.items()}


def even_out(largest: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors (n_in,) for the channels of x from their largest magnitudes (n_in,) and the weights (n_in, n_out) of all layers that read x."""
    of_weights = np.abs(weights).max(axis=1)
    known = (largest > 0) & (of_weights > 0)
    factors = np.ones_like(largest, dtype=np.float32)
    factors[known] = np.sqrt(of_weights[known] / largest[known])
    return factors


def best_step(counts: np.ndarray, top: float) -> float:
    """The step with the least squared error: what is rounded errs by a twelfth of its square, what is above 127 steps by the rest.

    counts: of magnitudes in bins of equal width from 0 to top.
    """
    middles = (np.arange(len(counts)) + 0.5) * top / len(counts)
    best, least = top / LARGEST, np.inf
    for share in np.linspace(1.0, 0.1, 91):
        step = top * share / LARGEST
        over = np.maximum(middles - LARGEST * step, 0.0)
        error = float((counts * np.where(over > 0, over**2, step**2 / 12)).sum())
        if error < least:
            best, least = step, error
    return float(best)
