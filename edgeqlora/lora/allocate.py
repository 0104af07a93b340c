"""Integer ranks under an exact budget of trainable parameters, group by group."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeqlora.errors import UserError

MOST_EXCHANGED = 3
"""Layers of one cost that the last parameters of a group may move a rank up or down in."""


@dataclass(frozen=True)
class Layer:
    """One linear that may get an adapter."""

    name: str
    group: str
    """Whose budget it takes from, such as encoder, cross, decoder."""
    cost: int
    """Parameters of one rank: out_features + in_features."""
    most: int
    """Highest rank."""


def budget_of(layers: Sequence[Layer], mean_rank: int) -> int:
    """Trainable parameters of `mean_rank` in every layer: what each way of allocating gets."""
    return mean_rank * sum(layer.cost for layer in layers)


def allocate(
    layers: Sequence[Layer],
    scores: Mapping[str, float],
    budget: int,
    shares: Mapping[str, float] | None = None,
    least: int = 2,
) -> dict[str, int]:
    """Ranks by name that maximise sum(cost * score * ln rank) within `budget` parameters.

    The optimum without rounding is a rank in proportion to the score, whatever a layer costs. Each group gets its
    part: that of its parameters at one rank for all, times `shares` (default 1), scaled to the whole. What a group
    cannot spend goes to the next one. The result depends on nothing but its arguments, and not on their order.

    Raises UserError where `least` ranks everywhere cost more than a group has.
    """
    groups = sorted({layer.group for layer in layers})
    wanted = {
        group: (shares or {}).get(group, 1.0) * sum(layer.cost for layer in layers if layer.group == group)
        for group in groups
    }
    if unknown := sorted(set(shares or {}) - set(groups)):
        raise UserError(f"shares: {', '.join(unknown)} is no group of this model, allowed are {', '.join(groups)}")
    whole = sum(wanted.values())
    ranks: dict[str, int] = {}
    left = 0.0
    # The group whose layers differ most in cost closes the budget best, so it comes last.
    for group in sorted(groups, key=lambda g: (len({layer.cost for layer in layers if layer.group == g}), g)):
        members = sorted((layer for layer in layers if layer.group == group), key=lambda layer: layer.name)
        part = math.floor(budget * wanted[group] / whole + left + 1e-6)
        needed = sum(least * layer.cost for layer in members)
        if needed > part:
            raise UserError(
                f"the budget leaves {part:,} parameters for {group}, and rank {least} in each of its {len(members)} layers "
                f"takes {needed:,}: allowed is a mean rank of {least} or more, with shares that leave each group as much"
            )
        found = grow(members, scores, {layer.name: min(least, layer.most) for layer in members}, part)
        found = fill(members, scores, found, part, least)
        left = budget * wanted[group] / whole + left - sum(layer.cost * found[layer.name] for layer in members)
        ranks |= found
    return {layer.name: ranks[layer.name] for layer in sorted(layers, key=lambda layer: layer.name)}


def _gain(score: float, rank: int) -> float:
    """What rank + 1 adds to score * ln(rank), for each parameter; rank 0 counts as half a rank."""
    return score * math.log((rank + 1) / max(rank, 0.5))


def grow(members: Sequence[Layer], scores: Mapping[str, float], ranks: Mapping[str, int], part: int) -> dict[str, int]:
    """From these ranks on, rank after rank to the layer where a parameter adds most, within `part` parameters."""
    ranks = dict(ranks)
    spent = sum(layer.cost * ranks[layer.name] for layer in members)

    def entry(layer: Layer) -> tuple[int, int, str, Layer]:
        # Whole numbers: the last bits of a logarithm differ between machines. Of equals the cheaper one, then by name.
        return -round(2**40 * _gain(scores[layer.name], ranks[layer.name])), layer.cost, layer.name, layer

    heap = [entry(layer) for layer in members if ranks[layer.name] < layer.most]
    heapq.heapify(heap)
    while heap:
        _, _, _, layer = heapq.heappop(heap)
        if spent + layer.cost > part:
            continue
        ranks[layer.name] += 1
        spent += layer.cost
        if ranks[layer.name] < layer.most:
            heapq.heappush(heap, entry(layer))
    return ranks


def fill(
    members: Sequence[Layer], scores: Mapping[str, float], ranks: dict[str, int], part: int, least: int
) -> dict[str, int]:
    """The parameters that are left over, spent by moving one rank each in a few layers, no layer twice.

    Of all such exchanges the one that leaves least, and of those the one that loses the least utility.
    """
    left = part - sum(layer.cost * ranks[layer.name] for layer in members)
    costs = sorted({layer.cost for layer in members})
    moves = []
    for counts in itertools.product(range(-MOST_EXCHANGED, MOST_EXCHANGED + 1), repeat=len(costs)):
        rest = left - sum(cost * count for cost, count in zip(costs, counts, strict=True))
        if 0 <= rest <= left:
            moves.append((rest, sum(map(abs, counts)), counts))
    best: tuple[int, float, dict[str, int]] = (left, 0.0, ranks)
    for rest, _, counts in sorted(moves):
        if rest > best[0]:
            break
        changed, utility = dict(ranks), 0.0
        for cost, count in zip(costs, counts, strict=True):
            of_cost = [layer for layer in members if layer.cost == cost]
            if count > 0:
                free = [layer for layer in of_cost if ranks[layer.name] < layer.most]
                chosen = sorted(free, key=lambda layer: (-_gain(scores[layer.name], ranks[layer.name]), layer.name))
            else:
                free = [layer for layer in of_cost if ranks[layer.name] > least]
                chosen = sorted(free, key=lambda layer: (_gain(scores[layer.name], ranks[layer.name] - 1), layer.name))
            if len(chosen) < abs(count):
                break
            for layer in chosen[: abs(count)]:
                rank = ranks[layer.name]
                utility += cost * (
                    _gain(scores[layer.name], rank) if count > 0 else -_gain(scores[layer.name], rank - 1)
                )
                changed[layer.name] += 1 if count > 0 else -1
        else:
            if rest < best[0] or utility > best[1]:
                best = (rest, utility, changed)
    return best[2]
