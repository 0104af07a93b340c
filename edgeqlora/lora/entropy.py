"""Entropy of what an adapter adds: measured, tracked, and where asked for pushed down or up while it trains.

Of dW = B A, with rho = dW^T dW / |dW|^2: S2 = -ln tr rho^2, between 0 (one direction) and ln r (r equal ones). The Gram
matrices G_A = A A^T and G_B = B^T B (r x r) suffice: |dW|^2 = tr(G_A G_B), tr(dW^T dW)^2 = tr((G_A G_B)^2). S2 does not
change when A or B is scaled, so it cannot be pushed by shrinking weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

EPS = 1e-12
GATE = 1e-3
"""Relative size of an update at which the regulariser has half its strength: at B = 0 entropy means nothing."""
CAP = 0.05
"""Most that its gradient may be of that of the loss."""
BEGIN, END = 0.2, 0.6
"""Shares of the steps between which it acts: after the warm-up, and not while the run settles."""


class AdapterState(NamedTuple):
    """One adapter at one moment."""

    name: str
    rank: int
    entropy: float
    """S2 in nats."""
    effective_rank: float
    """exp(S2), at most the rank."""
    relative_size: float
    """|scaling B A| / |W|, Frobenius."""


class AdapterEntropy:
    """The adapters of one PEFT model, with the sizes of the weights under them."""

    def __init__(self, model: Any):
        self._adapters: list[tuple[str, Any, float]] = [
            (name, module, _weight_norm(module.get_base_layer().weight))
            for name, module in model.get_base_model().named_modules()
            if hasattr(module, "lora_A") and hasattr(module.lora_A, "keys") and "default" in module.lora_A
        ]

    def __len__(self) -> int:
        return len(self._adapters)

    def states(self) -> Iterator[AdapterState]:
        """What each adapter is now; AdaLoRA's has the directions whose E is not 0."""
        import torch

        with torch.no_grad():
            for name, module, size in self._adapters:
                a, b, scaling = _parts(module)
                if not len(a):
                    yield AdapterState(name, 0, 0.0, 0.0, 0.0)
                    continue
                product = (a.float() @ a.float().T) @ (b.float().T @ b.float())
                t1, t2 = float(product.trace()), float((product * product.T).sum())
                entropy = 2 * math.log(t1) - math.log(max(t2, EPS * t1 * t1)) if t1 > 0 else 0.0
                entropy = min(max(entropy, 0.0), math.log(len(a)))
                yield AdapterState(name, len(a), entropy, math.exp(entropy), scaling * math.sqrt(max(t1, 0)) / size)

    def add_gradient(self, weight: float, floor: float) -> float:
        """Add weight x the gradient of the mean entropy above ln(floor) to the adapters' gradients; returns its share of them.

        Adapters count by their parameters, and by u^2 / (u^2 + GATE^2) of their relative size u. Its norm is held to
        CAP of that of the gradients that are there. weight < 0 pushes entropy up, and knows no floor.
        """
        import torch

        adapters = [(*_parts(module), size) for _, module, size in self._adapters]
        total = sum(a.numel() + b.numel() for a, b, _, _ in adapters)
        added, squares, present = [], 0.0, 0.0
        with torch.no_grad():
            for a, b, scaling, size in adapters:
                for p in (a, b):
                    if p.grad is not None:
                        present += float(p.grad.float().square().sum())
                x, y = a.float(), b.float()
                gram_a, gram_b = x @ x.T, y.T @ y
                product = gram_a @ gram_b
                t1, t2 = float(product.trace()), float((product * product.T).sum())
                if t1 <= EPS or t2 <= 0 or a.grad is None or b.grad is None:
                    continue
                if weight > 0 and 2 * math.log(t1) - math.log(t2) <= math.log(floor):
                    continue
                u = scaling * math.sqrt(t1) / size
                strength = (a.numel() + b.numel()) / total * u * u / (u * u + GATE * GATE)
                of_b = y @ (gram_a / t1 - product @ gram_a / t2) * (4 * strength)
                of_a = (gram_b / t1 - gram_b @ product / t2) @ x * (4 * strength)
                squares += float(of_a.square().sum() + of_b.square().sum())
                added.append((a, of_a, b, of_b))
            norm = abs(weight) * math.sqrt(squares)
            if norm == 0:
                return 0.0
            factor = weight * min(1.0, CAP * math.sqrt(present) / norm)
            for a, of_a, b, of_b in added:
                a.grad.add_(of_a.to(a.grad.dtype), alpha=factor)
                b.grad.add_(of_b.to(b.grad.dtype), alpha=factor)
        return abs(factor) * math.sqrt(squares) / max(math.sqrt(present), EPS)


class EntropyRegulariser(TrainerCallback):
    """Adds its gradient before each optimiser step between BEGIN and END of the run."""

    def __init__(self, model: Any, weight: float, floor: float = 2.0):
        self._entropy, self._weight, self._floor = AdapterEntropy(model), weight, floor

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if BEGIN <= state.global_step / max(1, state.max_steps) < END:
            self._entropy.add_gradient(self._weight, self._floor)


class AdapterLog(TrainerCallback):
    """Writes the state of every adapter at each evaluation, each move of ranks and the end, a JSON line each; a resumed run
    goes on."""

    def __init__(self, model: Any, path: Path, group_of: Callable[[str], str | None], first_step: int):
        self._entropy, self._path, self._group_of, self._last = AdapterEntropy(model), path, group_of, -1
        keep_until(path, first_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.write(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.write(state.global_step)

    def write(self, step: int, taken_out: Mapping[str, float] | None = None) -> None:
        """taken_out: by name the share of an adapter's energy that a move of ranks took out of it just now."""
        if step == self._last or not len(self._entropy):
            return
        self._last = step
        with self._path.open("a", encoding="utf-8") as file:
            for found in self._entropy.states():
                row = {"step": step, "group": self._group_of(found.name), **found._asdict()}
                if taken_out is not None:
                    row["taken_out"] = taken_out[found.name]
                file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Take the lines of later steps out of a log: a run that goes on writes them again."""
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def _parts(module: Any) -> tuple[Any, Any, float]:
    """A (rank, in_features), B (out_features, rank) and the scaling of a PEFT linear, be it of LoRA or AdaLoRA."""
    a, b, scaling = module.lora_A["default"], module.lora_B["default"], float(module.scaling["default"])
    if hasattr(a, "weight"):
        return a.weight, b.weight, scaling
    values = module.lora_E["default"]
    kept = values.flatten().nonzero().flatten()
    return (a * values)[kept], b[:, kept], scaling / float(module.ranknum["default"])


def _weight_norm(weight: Any) -> float:
    """Frobenius norm of a weight, of the values that it stands for where it is quantised."""
    if (scales := getattr(weight, "SCB", None)) is not None:
        from edgeqlora.models.int8 import values_of

        weight = values_of(weight.data, scales, scales.dtype)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        import bitsandbytes.functional as bnb

        weight = bnb.dequantize_4bit(weight.data, state)
    return max(float(weight.detach().float().norm()), EPS)
