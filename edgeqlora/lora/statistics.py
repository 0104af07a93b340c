"""What one pass over calibration clips says of each linear: its inputs, the gradients at its outputs, and both together.

Clips are in two halves. A product of two halves has no bias from noise, whatever the number of clips, where the square
of one sum has: the entropy of a layer that hears few tokens would come out too low otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeqlora.data.batching import IGNORE
from edgeqlora.errors import UserError
from edgeqlora.models.family import Learner
from edgeqlora.models.quantised import plain_model

WIDE = 2048
"""Sides of this length and longer are held as a sample of rows: a square of them would take 16 MiB and more."""
ROWS = 1024
"""Rows of such a sample, in each half."""


@dataclass
class Moments:
    """Second moment of the rows of one half: the whole matrix, or a sample of the rows where it is wide."""

    width: int
    n: int = 0
    total: Any = None
    """Sum of the rows, (width,)."""
    square: Any = None
    """Sum of the outer products, (width, width); None where wide."""
    rows: list[Any] = field(default_factory=list)
    """Where wide: rows drawn evenly from every clip."""

    def add(self, rows: Any, share: int) -> None:
        """rows: (n_rows, width) fp32. share: rows that one clip may give to the sample."""
        self.n += len(rows)
        summed = rows.sum(0)
        self.total = summed if self.total is None else self.total + summed
        if self.width < WIDE:
            square = rows.T @ rows
            self.square = square if self.square is None else self.square.add_(square)
        else:
            kept = np.linspace(0, len(rows) - 1, min(len(rows), share)).round().astype(int)
            self.rows.append(rows[kept])


@dataclass
class Half:
    """Sums over one half of the clips for one linear."""

    inputs: Moments
    """Shared by linears that hear the same tensor."""
    gradients: Moments
    """Of the loss of one clip (nats a label) to the linear's output."""
    product: Any = None
    """Sum of gradient^T input: the gradient of the weight, (out_features, in_features)."""


@dataclass
class LinearStatistics:
    """One linear, after the pass."""

    name: str
    group: str
    weight: Any
    """As the base is held in training, fp32 (out_features, in_features)."""
    error: Any
    """The weight as it was loaded minus `weight`: what quantising lost; None where the base is not quantised."""
    halves: tuple[Half, Half]


def collect(
    learner: Learner,
    groups: dict[str, list[str]],
    clips: Iterable[dict[str, Any]],
    n_clips: int,
    errors: dict[str, Any],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[LinearStatistics]:
    """One pass, a clip at a time, no dropout, no augmentation, adapters absent; clip i belongs to half i % 2.

    groups: names of linears by group. clips: n_clips of {"name", "batch" (of one, as the decoder's collate makes it),
    "n_valid" (frames of the features that hold the clip)}. errors: see LinearStatistics. Padding counts nowhere.

    Raises UserError where the loss of a clip is no number, and RuntimeError where a linear was never heard: then a
    hook did not fire.
    """
    import torch

    model = plain_model(learner.model)
    modules = dict(model.named_modules())
    group_of = {name: group for group, names in groups.items() for name in names}
    share = max(1, ROWS // max(1, n_clips // 2))
    pools: dict[str, tuple[Moments, Moments]] = {}
    owner: dict[str, str] = {}
    halves: dict[str, tuple[Half, Half]] = {}
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    waiting: dict[str, Any] = {}
    """Inputs of this clip, until the gradient at their linear's output is there."""
    seen: dict[int, tuple[str, Any]] = {}
    """Tensors of this clip by id, kept so that no id is used again, with the first linear that heard them."""

    def counted(name: str, tensor: Any) -> Any:
        return tensor.reshape(-1, tensor.shape[-1])[learner.counted(name, clip["n_valid"], labels)].float()

    def hear(name: str, x: Any) -> None:
        first, _ = seen.setdefault(id(x), (name, x))
        if owner.setdefault(name, first) != first:
            raise RuntimeError(f"{name} hears another tensor than in the clips before")
        waiting[name] = x.detach()
        if first == name:
            pair = pools.setdefault(name, (Moments(x.shape[-1]), Moments(x.shape[-1])))
            pair[number % 2].add(counted(name, x.detach()), share)

    def learn(name: str, gradient: Any) -> None:
        steps, rows = counted(name, gradient), counted(name, waiting.pop(name))
        if name not in halves:
            one, two = (Half(inputs, Moments(steps.shape[1])) for inputs in pools[owner[name]])
            halves[name] = one, two
        half = halves[name][number % 2]
        half.gradients.add(steps, share)
        product = steps.T @ rows
        half.product = product if half.product is None else half.product.add_(product)

    try:
        for number, clip in enumerate(clips):
            batch = {name: value.to(device) for name, value in clip["batch"].items()}
            labels = batch.pop("labels")
            with _listening(modules, group_of, hear, learn), learner.window(batch):
                outputs = model(**batch)
                seen.clear()
                loss = learner.loss(outputs, batch, labels) / max(1, int((labels != IGNORE).sum()))
                if not bool(torch.isfinite(loss)):
                    raise UserError(
                        f"{clip['name']}: the model's loss is {float(loss)} on this clip: check its text, or take it out"
                    )
                loss.backward()
            waiting.clear()
            progress(number + 1, n_clips)
    finally:
        model.train(was_training)
    silent = [name for name in group_of if name not in halves or not all(h.gradients.n for h in halves[name])]
    if silent:
        raise RuntimeError(f"{len(silent)} of {len(group_of)} linears were never heard, the first is {silent[0]}")
    return [
        LinearStatistics(name, group, modules[name].weight.detach(), errors.get(name), halves[name])
        for name, group in group_of.items()
    ]


@contextmanager
def _listening(
    modules: dict[str, Any],
    names: Iterable[str],
    hear: Callable[[str, Any], None],
    learn: Callable[[str, Any], None],
) -> Iterator[None]:
    """Inside the `with`, `hear` is told the input of each named linear and, in a backward pass, `learn` the gradient at its output.

    With a frozen base a hook on the module's backward would miss the first layers, whose inputs need no gradient: here
    each output is made to need one.
    """

    def listen(name: str) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> Any:
            hear(name, args[0])
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            output.register_hook(lambda gradient: learn(name, gradient.detach()))
            return output

        return hook

    handles = [modules[name].register_forward_hook(listen(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
