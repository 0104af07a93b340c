"""Layers taken out of a model before it is tuned: what latency can gain and merged adapters never give."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.models.clips import hear
from edgeqlora.models.family import Learner
from edgeqlora.models.quantised import plain_model


def parse_layers(text: str) -> dict[str, list[int]] | int | None:
    """`encoder:1,2` -> {"encoder": [1, 2]}, several stacks with a space between; `auto:2` -> 2; "" -> None.

    Raises UserError for anything else.
    """
    if not text:
        return None
    if re.fullmatch(r"auto:[1-9][0-9]?", text):
        return int(text.removeprefix("auto:"))
    found: dict[str, list[int]] = {}
    for part in text.split():
        match = re.fullmatch(r"([a-z]+):([0-9]{1,3}(?:,[0-9]{1,3})*)", part)
        if not match or match[1] in found or match[1] == "auto":
            raise UserError(
                f"drop_layers={text!r}: allowed are layer numbers by stack, such as encoder:1,2 (the first is 0), or auto:N, which "
                "chooses N layers of the encoder"
            )
        found[match[1]] = sorted({int(number) for number in match[2].split(",")})
    return found


def drop_layers(learner: Learner, dropped: Mapping[str, Sequence[int]]) -> None:
    """Take these layers out; the others are numbered anew. UserError for layers that are not there, or none left."""
    stacks = learner.layer_stacks()
    for stack, numbers in dropped.items():
        if stack not in stacks:
            raise UserError(f"drop_layers: {stack!r} is no stack of this model, allowed are {', '.join(stacks)}")
        n = len(stacks[stack])
        if not all(0 <= number < n for number in numbers) or len(set(numbers)) >= n:
            raise UserError(
                f"drop_layers: {stack}:{','.join(map(str, numbers))}, and the {stack} has layers 0 to {n - 1}, of which at least "
                "one must stay"
            )
    for stack, numbers in dropped.items():
        learner.keep_layers(stack, [i for i in range(len(stacks[stack])) if i not in set(numbers)])


def angular_distances(learner: Learner, clips: Iterable[dict[str, Any]]) -> list[float]:
    """Of each encoder layer the mean angle between what it hears and what it says, over valid frames, in units of pi.

    A layer that hardly turns its input can be spared (Gromov et al. 2024, arXiv 2403.17887). clips: as
    lora.statistics.collect takes them.
    """
    import torch

    model, layers = plain_model(learner.model), learner.layer_stacks()["encoder"]
    names = {id(module): name for name, module in model.named_modules()}
    totals, counts = [0.0] * len(layers), [0] * len(layers)
    ends: dict[int, tuple[Any, Any]] = {}

    def listen(i: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            heard = args[0] if args else kwargs["hidden_states"]
            ends[i] = heard, output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layer.register_forward_hook(listen(i), with_kwargs=True) for i, layer in enumerate(layers)]
    model.eval()
    try:
        for clip in clips:
            _, labels = hear(learner, clip)
            for i, (heard, said) in ends.items():
                counted = learner.counted(f"{names[id(layers[i])]}.", clip["n_valid"], labels)
                x, y = (t.reshape(-1, t.shape[-1])[counted].float() for t in (heard, said))
                cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1).clamp(-1, 1)
                totals[i] += float(cosine.arccos().sum()) / math.pi
                counts[i] += len(x)
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(1, count) for total, count in zip(totals, counts, strict=True)]


def least_turning(distances: Sequence[float], n: int) -> list[int]:
    """Numbers of the n layers of the smallest distance. UserError where none would be left."""
    if n >= len(distances):
        raise UserError(
            f"drop_layers=auto:{n}, and the encoder has {len(distances)} layers: allowed is at most {len(distances) - 1}"
        )
    return sorted(sorted(range(len(distances)), key=lambda i: (distances[i], i))[:n])
