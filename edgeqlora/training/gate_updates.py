"""How gates in time are trained: ten times the learning rate, and only after the warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeqlora.lora.temporal.gates import gates_of

FASTER = 10
"""Learning rate of gates over that of adapters: five numbers a layer have far to go."""
DECAY = 1e-2
"""Weight decay of what a gate makes of the features; none of its bias."""


def give_own_groups(optimizer: Any, model: Any, learning_rate: float) -> None:
    """Take the gates out of the optimiser's groups and give them two of their own, behind the others."""
    gates = [gated.gate for gated in gates_of(model).values()]
    if not gates:
        return
    weights, biases = [gate.weight for gate in gates], [gate.bias for gate in gates]
    own = {id(p) for p in (*weights, *biases)}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in own]
    for parameters, decay in ((weights, DECAY), (biases, 0.0)):
        rate = FASTER * learning_rate
        optimizer.add_param_group({"params": parameters, "weight_decay": decay, "lr": rate, "is_gate": True})


def hold_gates_back(scheduler: Any, n_steps: int) -> None:
    """Gates wait for n_steps: while lora_B is near 0, their gradient is too, and an adaptive step would be mostly noise."""
    groups = scheduler.optimizer.param_groups
    for i, (group, initial) in enumerate(zip(groups, scheduler.base_lrs, strict=True)):
        if group.get("is_gate"):
            scheduler.lr_lambdas[i] = _held_back(scheduler.lr_lambdas[i], n_steps)
            group["lr"] = scheduler._last_lr[i] = initial * scheduler.lr_lambdas[i](scheduler.last_epoch)


def _held_back(share: Callable[[int], float], n_steps: int) -> Callable[[int], float]:
    return lambda step: share(step) if step >= n_steps else 0.0
