"""Which adapters lose directions and which get new ones: two rules, from what the adapters are at that moment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgeqlora.lora.allocate import Layer, fill, grow

MOVED = 0.1
"""Most of the budget that one reallocation takes away (importance), and share of the adapters that lose a rank (flex)."""


@dataclass(frozen=True)
class Directions:
    """One adapter as singular directions of what it adds."""

    layer: Layer
    values: tuple[float, ...]
    """Singular values, the largest first; as many as it has ranks."""
    importance: tuple[float, ...]
    """First-order change of the loss if the direction went, by the optimiser's mean of the last gradients."""

    @property
    def rank(self) -> int:
        return len(self.values)

    @property
    def effective_rank(self) -> float:
        """Exponential of the Rényi-2 entropy of the squared values; 1 where the adapter adds nothing yet."""
        shares = self._shares()
        return 1 / math.fsum(share**2 for share in shares) if shares else 1.0

    @property
    def spread(self) -> float:
        """Shannon entropy of the shares of the squared values over its largest, 0 to 1 (FlexLoRA's score)."""
        shares = self._shares()
        if not shares or self.rank < 2:
            return 0.0
        return -math.fsum(share * math.log(share) for share in shares if share > 0) / math.log(self.rank)

    def _shares(self) -> list[float]:
        """Squared values over their sum; none where the adapter adds nothing yet."""
        most = max(self.values, default=0.0)
        squares = [(value / most) ** 2 for value in self.values] if most > 0 else []
        total = math.fsum(squares)
        return [square / total for square in squares]


class Rule(Protocol):
    """When ranks move, and where to."""

    kept_by: str
    """Which directions stay of an adapter that loses some: those of the highest `importance`, or of the highest `values`."""

    def steps(self, n_steps: int) -> list[int]:
        """Numbers of the finished steps after which ranks move."""

    def ranks(self, adapters: Sequence[Directions], budget: int, progress: float) -> dict[str, int]:
        """New ranks by name, of at most `budget` parameters. progress: of the moves, 0 at the first and 1 at the last."""


@dataclass(frozen=True)
class ByImportance:
    """At 20, 40 and 60 % of the steps each group takes its least important directions away, and gives as many to
    adapters that use all of theirs (effective rank / rank), times what the calibration says that they deserve."""

    weights: Mapping[str, float]
    """What each linear deserves by name, about 1; 1 where nothing is said."""
    kept_by = "importance"

    def steps(self, n_steps: int) -> list[int]:
        return sorted({round(share * n_steps) for share in (0.2, 0.4, 0.6)})

    def ranks(self, adapters: Sequence[Directions], budget: int, progress: float) -> dict[str, int]:
        found: dict[str, int] = {}
        whole = sum(one.layer.cost * one.rank for one in adapters)
        for group in sorted({one.layer.group for one in adapters}):
            of_group = [one for one in adapters if one.layer.group == group]
            part = sum(one.layer.cost * one.rank for one in of_group)
            if group == max(one.layer.group for one in adapters):
                part += budget - whole  # what rounding had left over
            found |= self._within(of_group, part)
        return found

    def _within(self, adapters: Sequence[Directions], part: int) -> dict[str, int]:
        ranks = {one.layer.name: one.rank for one in adapters}
        weakest = sorted(
            (value / one.layer.cost, one.layer.name, one.layer.cost) for one in adapters for value in one.importance
        )
        taken, lost = 0, set()
        for _, name, cost in weakest:
            if taken + cost <= MOVED * part and ranks[name] > LEAST:
                ranks[name] -= 1
                taken += cost
                lost.add(name)
        scores = {
            one.layer.name: self.weights.get(one.layer.name, 1.0) * one.effective_rank / one.rank for one in adapters
        }
        layers = sorted((one.layer for one in adapters), key=lambda layer: layer.name)
        # What has just lost a direction does not get a new one.
        closed = [
            dataclasses.replace(layer, most=ranks[layer.name]) if layer.name in lost else layer for layer in layers
        ]
        ranks = grow(closed, scores, ranks, part)
        return fill(layers, scores, ranks, part, LEAST)


LEAST = 2
"""Rank below which no adapter falls by reallocation; one that began with less stays as it is."""


@dataclass(frozen=True)
class Flex:
    """After FlexLoRA (arXiv 2601.22905): the adapters whose singular values are least evenly spread lose a rank, as many
    of those with the most even spread get one, over all groups; every 2 % of the steps from 10 to 60 %, fewer each time."""

    kept_by = "values"

    def steps(self, n_steps: int) -> list[int]:
        return sorted({round(n_steps * percent / 100) for percent in range(10, 61, 2)})

    def ranks(self, adapters: Sequence[Directions], budget: int, progress: float) -> dict[str, int]:
        n = math.ceil(MOVED * len(adapters) * (1 - progress) ** 3)
        ranks = {one.layer.name: one.rank for one in adapters}
        ordered = sorted(adapters, key=lambda one: (one.spread, one.layer.name))
        losing = [one.layer.name for one in ordered if one.rank > LEAST][:n]
        gaining = [one.layer for one in reversed(ordered) if one.rank < one.layer.most and one.layer.name not in losing]
        for name in losing:
            ranks[name] -= 1
        left = budget - sum(one.layer.cost * ranks[one.layer.name] for one in adapters)
        for layer in gaining[: len(losing)]:
            if layer.cost <= left:
                ranks[layer.name] += 1
                left -= layer.cost
        layers = sorted((one.layer for one in adapters), key=lambda layer: layer.name)
        return fill(layers, {one.layer.name: one.spread + 1e-6 for one in adapters}, ranks, budget, LEAST)
