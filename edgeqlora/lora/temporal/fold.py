"""A gate that varies with time as the constant that comes nearest to it, and how near that is.

Of one adapter, a_t = A x_t is what enters B at frame t, and h_t = g_t * a_t what the gate leaves of it. The constants c
minimise the sum over frames of |B h_t - B (c * a_t)|^2. One for all ranks: c = sum g e / sum e, with e_t = |B a_t|^2. One
for each rank: (G o S_aa) c = (G o S_ah) 1, with G = B^T B and S_ah = sum of a_t h_t^T. The result is a plain adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from edgeqlora.lora.temporal.gates import Gated
from edgeqlora.models.clips import hear
from edgeqlora.models.family import Learner


class FrameSums:
    """Sums over frames for one adapter, fp64 (rank, rank)."""

    def __init__(self, b: torch.Tensor):
        """b: lora_B's weight, (out_features, rank)."""
        b = b.detach().double().cpu()
        self._gram = b.T @ b
        self._aa, self._ah, self._hh = (torch.zeros_like(self._gram) for _ in range(3))

    def add(self, a: torch.Tensor, h: torch.Tensor) -> None:
        """a, h: (n_frames, rank), before and after the gate."""
        a, h = a.detach().double().cpu(), h.detach().double().cpu()
        self._aa += a.T @ a
        self._ah += a.T @ h
        self._hh += h.T @ h

    def constants(self, n_gates: int) -> tuple[torch.Tensor, float]:
        """The nearest constants, fp64 (n_gates,), and their error: |what is lost| / |what the gated adapter adds|, 0 to 1."""
        m, v, whole = self._gram * self._aa, (self._gram * self._ah).sum(1), float((self._gram * self._hh).sum())
        if n_gates == 1:
            m, v = m.sum().reshape(1, 1), v.sum().reshape(1)
        if whole <= 0 or float(m.trace()) <= 0:
            return torch.ones(n_gates, dtype=torch.float64), 0.0
        # Ranks that add nothing have no equation of their own: a pseudo-inverse gives them 0, which is as good.
        c = torch.linalg.pinv(m, rtol=1e-12, hermitian=True) @ v
        lost = whole - 2 * float(c @ v) + float(c @ m @ c)
        return c, math.sqrt(max(lost, 0.0) / whole)


def fold(learner: Learner, gated: dict[str, Gated], clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Replace the gates of `gated` (see gates_of) by constants in lora_B, and say what that changes.

    clips: {"batch" (of one), "n_valid"}. The gates stay, fixed to 1. Returned: error and constants of each layer,
    and of the model's answers on the clips the RMS of the change, that of the logits, and the share of equal likeliest ones.
    """
    sums = {name: FrameSums(found.adapter.lora_B["default"].weight) for name, found in gated.items()}
    for clip in clips:
        heard: dict[str, tuple[Any, Any]] = {}
        handles = [
            g.adapter.lora_A["default"].register_forward_hook(_hearing(heard, name)) for name, g in gated.items()
        ]
        try:
            _, labels = hear(learner, clip)
        finally:
            for handle in handles:
                handle.remove()
        for name, (a, h) in heard.items():
            rows = learner.counted(name, clip["n_valid"], labels)
            sums[name].add(a.flatten(0, 1)[rows], h.flatten(0, 1)[rows])
    layers: dict[str, dict[str, Any]] = {}
    constants: dict[str, torch.Tensor] = {}
    for name, (adapter, gate) in gated.items():
        c, error = sums[name].constants(len(gate.bias))
        constants[name] = c.to(adapter.lora_B["default"].weight)
        layers[name] = {"error": round(error, 6), "gate": [round(float(value), 6) for value in c]}
    changed = _change(learner, gated, constants, clips)
    with torch.no_grad():
        for name, (adapter, gate) in gated.items():
            adapter.lora_B["default"].weight *= constants[name]
            gate.fixed = torch.ones_like(constants[name])
    return {"n_clips": len(clips), **changed, "layers": layers}


def _change(
    learner: Learner, gated: dict[str, Gated], constants: dict[str, torch.Tensor], clips: Iterable[dict[str, Any]]
) -> dict[str, float]:
    """RMS of the change of the answers and of the answers with gates, and the share of rows with the same likeliest."""
    squares, size, same, n, n_values = 0.0, 0.0, 0, 0, 0
    for clip in clips:
        answers = []
        for is_fixed in (False, True):
            for name, found in gated.items():
                found.gate.fixed = constants[name] if is_fixed else None
            outputs, labels = hear(learner, clip)
            answers.append(outputs.logits.flatten(0, 1)[learner.counted("", clip["n_valid"], labels)].float())
        gates, folded = answers
        squares += float((folded - gates).square().sum())
        size += float(gates.square().sum())
        same += int((folded.argmax(-1) == gates.argmax(-1)).sum())
        n, n_values = n + len(gates), n_values + gates.numel()
    return {
        "logit_rms": round(math.sqrt(squares / max(n_values, 1)), 6),
        "logit_size_rms": round(math.sqrt(size / max(n_values, 1)), 6),
        "top1_agreement": round(same / max(n, 1), 6),
    }


def _hearing(heard: dict[str, tuple[Any, Any]], name: str) -> Any:
    def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
        heard[name] = torch.nn.functional.linear(args[0], module.weight), output

    return hook
