"""Ways from scores to what each linear deserves; the budget is the same for all of them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeqlora.errors import UserError
from edgeqlora.lora.allocate import Layer, allocate, fill
from edgeqlora.lora.scores import Scores, relative

LEAST, MOST = 0.25, 4.0
"""Weights are held between these: one odd linear must not eat its group, nor starve."""
DIGITS = 6
"""Significant digits of a weight: the last bits of a sum differ with the number of threads."""


class Exponents(NamedTuple):
    """How strongly the weight of a linear follows each score, relative to its group's geometric mean."""

    dimension: float
    sensitivity: float
    nf4_error: float


EAR = Exponents(0.5, 0.125, 0.25)
EAR_FULL = Exponents(1.0, 0.25, 0.5)

MODES: dict[str, str] = {
    "ear": "update dimension, sensitivity and NF4 error of each linear, half strength",
    "ear-full": "as ear, with the exponents not halved",
    "entropy": "effective rank of the inputs alone: more entropy, more rank",
    "anti": "the weights of ear upside down: a control",
    "permuted": "the ranks of ear dealt out at random among linears of one size and group: a control",
    "depth-u": "more rank in the first and last layers of a group, whatever they hear",
    "eva": "rank by rank to the largest share of explained variance of the inputs, over all groups",
    "uniform": "the same rank everywhere",
}
"""What decides a linear's rank."""


def weights_of(mode: str, layers: Sequence[Layer], scores: Mapping[str, Scores]) -> dict[str, float]:
    """What each linear deserves in its group, about 1, by name."""
    if mode == "uniform":
        return {layer.name: 1.0 for layer in layers}
    if mode == "depth-u":
        return _u_shaped(layers)
    exponents = {"ear": EAR, "permuted": EAR, "anti": EAR, "ear-full": EAR_FULL}.get(mode)
    found: dict[str, float] = {}
    for group in sorted({layer.group for layer in layers}):
        names = sorted(layer.name for layer in layers if layer.group == group)
        if exponents is None:
            weights = relative([math.exp(scores[name].input_entropy) for name in names], 1.0)
        else:
            weights = relative([scores[name].update_dimension for name in names], exponents.dimension)
            for values, exponent in (
                ([scores[name].sensitivity for name in names], exponents.sensitivity),
                ([scores[name].nf4_error or 1.0 for name in names], exponents.nf4_error),
            ):
                weights = [a * b for a, b in zip(weights, relative(values, exponent), strict=True)]
        if mode == "anti":
            weights = [1 / weight for weight in weights]
        found |= dict(zip(names, weights, strict=True))
    return {name: _rounded(min(max(weight, LEAST), MOST)) for name, weight in found.items()}


def ranks_of(
    mode: str,
    layers: Sequence[Layer],
    weights: Mapping[str, float],
    budget: int,
    shares: Mapping[str, float] | None,
    least: int,
    spectra: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Ranks by name within the budget. spectra: eigenvalues of each linear's inputs, for `eva`. seed: of `permuted`."""
    if mode == "eva":
        if spectra is None:
            raise ValueError("eva needs spectra")
        return _by_explained_variance(layers, spectra, budget)
    ranks = allocate(layers, weights, budget, shares, least)
    return _permuted(layers, ranks, seed) if mode == "permuted" else ranks


def _u_shaped(layers: Sequence[Layer]) -> dict[str, float]:
    """1.75 in the first and last layers of a group, 0.5 in the middle, a parabola in between (after DAMA, arXiv 2602.01008)."""
    depth = {layer.name: _layer_number(layer.name) for layer in layers}
    found = {}
    for group in {layer.group for layer in layers}:
        of_group = [layer.name for layer in layers if layer.group == group]
        first, last = min(depth[name] for name in of_group), max(depth[name] for name in of_group)
        for name in of_group:
            place = (depth[name] - first) / max(last - first, 1)
            found[name] = _rounded(0.5 + 1.25 * (2 * place - 1) ** 2)
    return found


def _layer_number(name: str) -> int:
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else 0


def _permuted(layers: Sequence[Layer], ranks: Mapping[str, int], seed: int) -> dict[str, int]:
    """The same ranks, dealt out within group and cost: parameters and the spread of ranks stay as they are."""
    draw = random.Random(seed)
    found: dict[str, int] = {}
    for key in sorted({(layer.group, layer.cost) for layer in layers}):
        names = sorted(layer.name for layer in layers if (layer.group, layer.cost) == key)
        dealt = [ranks[name] for name in names]
        draw.shuffle(dealt)
        found |= dict(zip(names, dealt, strict=True))
    return dict(sorted(found.items()))


def _by_explained_variance(
    layers: Sequence[Layer], spectra: Mapping[str, Sequence[float]], budget: int, most: float = 2.0
) -> dict[str, int]:
    """EVA's rule (arXiv 2410.07170): of all components of all linears those that explain the largest share of their own
    linear's variance, at most `most` mean ranks in one. EVA's budget counts ranks: here as many as the parameters allow.
    """
    mean_rank = budget / sum(layer.cost for layer in layers)
    by_name = {layer.name: layer for layer in layers}
    components = []
    for name, values in spectra.items():
        total = max(math.fsum(values), 1e-30)
        highest = min(by_name[name].most, max(1, int(most * mean_rank)))
        components += [(-_rounded(value / total), by_name[name].cost, name) for value in list(values)[:highest]]
    ranks, left = {layer.name: 0 for layer in sorted(layers, key=lambda layer: layer.name)}, budget
    for _, cost, name in sorted(components):
        if cost <= left:
            ranks[name] += 1
            left -= cost
    return fill(sorted(layers, key=lambda layer: layer.name), dict.fromkeys(ranks, 1.0), ranks, budget, 0)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def check_mode(mode: str) -> None:
    """Raise UserError for a mode that is not known."""
    if mode not in MODES:
        raise UserError(f"mode={mode!r}: allowed are {', '.join(MODES)}")
