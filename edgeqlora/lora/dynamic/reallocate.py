"""Ranks that move: directions are taken out of adapters and new ones put in, and what the model says stays the same.

An adapter adds s B A. Written as singular directions, A' = M A with orthogonal rows of one length and B' = B M^-1, it adds
the same, and its directions can be told apart. Adam's mean of the gradients goes over exactly (M^-T for A, M^T for B),
its mean of their squares as if their entries were independent. A direction that is put in has a random row of A,
orthogonal to the others, and a column of B that is 0: it adds nothing until it learns. What is taken out is all that changes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from edgeqlora.errors import UserError
from edgeqlora.lora.allocate import Layer
from edgeqlora.lora.dynamic.rules import ByImportance, Directions, Flex, Rule
from edgeqlora.lora.ranks import Ranks, peft_patterns, recorded_weights
from edgeqlora.settings import TrainSettings

FEWEST_STEPS = 20
"""Of a run in which ranks move."""
UNCHANGED = 1e-5
"""Most that an adapter may change, of its size, beyond what was taken out of it."""


class _Adapter(NamedTuple):
    """One adapter, and the layer that the rules see."""

    module: Any
    layer: Layer
    scaling: float

    @property
    def pair(self) -> tuple[Any, Any]:
        return self.module.lora_A["default"].weight, self.module.lora_B["default"].weight


class _Canonical(NamedTuple):
    """An adapter as singular directions, fp64, with Adam's means."""

    a: Any
    b: Any
    length: float
    """Of the rows of A."""
    values: Any
    moments: dict[str, tuple[Any, Any]]
    """exp_avg and exp_avg_sq of A and B; empty before the first step."""


class Reallocation(TrainerCallback):
    """Moves ranks at the rule's steps, under the budget of parameters that the adapters began with."""

    def __init__(
        self,
        model: Any,
        rule: Rule,
        ranks: Ranks,
        group_of: Callable[[str], str | None],
        n_steps: int,
        seed: int,
        log: Callable[[int, Mapping[str, float]], object],
    ):
        """log: told the step, and by name the share of an adapter's energy that was taken out, after each move."""
        modules = dict(model.get_base_model().named_modules())
        self._model, self._rule, self._seed, self._log = model, rule, seed, log
        self._steps = rule.steps(n_steps)
        sides = {name: (modules[name].out_features, modules[name].in_features) for name in ranks.rank}
        mean = sum(sum(sides[n]) * rank for n, rank in ranks.rank.items()) / sum(map(sum, sides.values()))
        self._adapters = {
            name: _Adapter(
                modules[name],
                Layer(name, group_of(name) or "", sum(sides[name]), _most(rank, mean, min(sides[name]))),
                float(modules[name].scaling["default"]),
            )
            for name, rank in sorted(ranks.rank.items())
        }
        self.budget = sum(one.layer.cost * ranks.rank[name] for name, one in self._adapters.items())

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            self._log(state.global_step, self.move(state.global_step, optimizer))

    def move(self, step: int, optimizer: Any) -> dict[str, float]:
        """Move ranks now; returns by name the share of each adapter's energy that was taken out.

        Raises RuntimeError where an adapter would add anything else than before, but for that.
        """
        import torch

        with torch.no_grad():
            forms = {name: _canonical(one, optimizer) for name, one in self._adapters.items()}
            importance = {name: _importance(form) for name, form in forms.items()}
            adapters = [
                Directions(
                    one.layer,
                    tuple(float(value) * one.scaling for value in forms[name].values),
                    tuple(importance[name].tolist()),
                )
                for name, one in self._adapters.items()
            ]
            place = self._steps.index(step) / max(1, len(self._steps) - 1)
            ranks = self._rule.ranks(adapters, self.budget, place)
            lost = {}
            for name, one in self._adapters.items():
                order = importance[name] if self._rule.kept_by == "importance" else forms[name].values
                lost[name] = self._put(name, one, forms[name], order, ranks[name], optimizer, step)
        self._tell_peft(ranks)
        return lost

    def _put(
        self, name: str, one: _Adapter, form: _Canonical, order: Any, rank: int, optimizer: Any, step: int
    ) -> float:
        """Give one adapter its new rank; returns the share of its energy that was taken out."""
        import torch

        n_kept = min(rank, len(order))
        kept = order.argsort(descending=True, stable=True)[:n_kept].sort().values
        gone = torch.ones(len(order), dtype=torch.bool, device=order.device)
        gone[kept] = False
        a, b = form.a[kept], form.b[:, kept]
        n_new = rank - n_kept
        if n_new:
            draw = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {step} {name}".encode()))
            rows = torch.randn(n_new, a.shape[1], generator=draw, dtype=torch.float64).to(a.device)
            rows = torch.linalg.qr(torch.cat([a, rows]).T).Q.T[n_kept:] * form.length
            a, b = torch.cat([a, rows]), torch.cat([b, b.new_zeros(len(b), n_new)], 1)
        old_a, old_b = (p.double() for p in one.pair)
        before = old_b @ old_a
        change = float((b @ a + form.b[:, gone] @ form.a[gone] - before).norm())
        if change > UNCHANGED * max(float(before.norm()), 1e-12):
            raise RuntimeError(f"{name} at step {step}: its adapter changed by {change:g} beyond what was taken out")
        moments = {
            key: (_grown(of_a[kept], n_new, 0, key), _grown(of_b[:, kept], n_new, 1, key))
            for key, (of_a, of_b) in form.moments.items()
        }
        set_rank(one.module, a, b)
        for i, parameter in enumerate(one.pair):
            for key, pair in moments.items():
                held = _state_of(optimizer, parameter)
                held[key] = pair[i].to(held[key].dtype).contiguous()
        total = float(form.values.square().sum())
        return float(form.values[gone].square().sum()) / total if total > 0 else 0.0

    def _tell_peft(self, ranks: Mapping[str, int]) -> None:
        """So that a checkpoint's adapter_config.json says what its weights are."""
        alpha = {name: self._adapters[name].scaling * rank for name, rank in ranks.items()}
        for key, value in peft_patterns(Ranks(dict(ranks), alpha, "")).items():
            if key != "target_modules":
                setattr(self._model.peft_config["default"], key, value)

    def take_ranks(self, folder: Path) -> None:
        """Give the adapters the ranks of the checkpoint in `folder`, whose weights are loaded next."""
        import torch

        ranks = ranks_in(folder)
        for name, one in self._adapters.items():
            a, b = one.pair
            set_rank(one.module, torch.zeros(ranks[name], a.shape[1]), torch.zeros(b.shape[0], ranks[name]))
        self._tell_peft(ranks)


def rule_of(ranks: str) -> Rule:
    """The rule of `--ranks flex:R`, or of any other ranks with --reallocate."""
    return Flex() if ranks.startswith("flex:") else ByImportance(recorded_weights(ranks))


def verify_steps(settings: TrainSettings, n_steps: int, world_size: int) -> None:
    """Raise UserError for a run whose ranks are to move and cannot: too short, or spread over several processes."""
    if not settings.moves_ranks():
        return
    if n_steps < FEWEST_STEPS:
        raise UserError(f"steps={n_steps} and ranks that move: allowed is {FEWEST_STEPS} steps or more")
    if world_size > 1:
        raise UserError(
            f"{world_size} processes and ranks that move: each would move others; allowed is one process, or fixed ranks"
        )


def ranks_in(folder: Path) -> dict[str, int]:
    """Ranks by full module name of a saved adapter: from the shapes of its weights."""
    from safetensors import safe_open

    found = {}
    with safe_open(str(folder / "adapter_model.safetensors"), "pt") as file:
        for key in sorted(file.keys()):
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                found[name] = file.get_slice(key).get_shape()[0]
    return found


def set_rank(module: Any, a: Any, b: Any) -> None:
    """Put A (rank, in_features) and B (out_features, rank) into a PEFT LoRA linear, whatever its rank was; alpha / rank stays."""
    rank, pair = len(a), (module.lora_A["default"], module.lora_B["default"])
    for linear, value in zip(pair, (a, b), strict=True):
        parameter = linear.weight
        parameter.grad = None
        parameter.data = value.to(parameter.device, parameter.dtype).contiguous()
    pair[0].out_features = pair[1].in_features = rank
    module.r["default"] = rank
    module.lora_alpha["default"] = module.scaling["default"] * rank


def _most(rank: int, mean: float, side: int) -> int:
    return max(rank, min(round(3 * mean), side // 4))


def _state_of(optimizer: Any, parameter: Any) -> Any:
    return optimizer.state.get(parameter, {}) if optimizer is not None else {}


def _canonical(one: _Adapter, optimizer: Any) -> _Canonical:
    import torch

    a, b = (p.double() for p in one.pair)
    q_a, r_a = torch.linalg.qr(a.T)
    q_b, r_b = torch.linalg.qr(b)
    u, values, vt = torch.linalg.svd(r_b @ r_a.T)
    length = float(a.norm()) / math.sqrt(len(a))
    m = length * vt @ torch.linalg.inv(r_a).T
    m_inverse_t = vt @ r_a / length
    moments = {}
    states = [_state_of(optimizer, p) for p in one.pair]
    if all("exp_avg" in state for state in states):
        (of_a, sq_a), (of_b, sq_b) = ((s["exp_avg"].double(), s["exp_avg_sq"].double()) for s in states)
        moments = {
            "exp_avg": (m_inverse_t @ of_a, of_b @ m.T),
            "exp_avg_sq": (m_inverse_t.square() @ sq_a, sq_b @ m.T.square()),
        }
    return _Canonical(length * vt @ q_a.T, q_b @ (u * values) / length, length, values, moments)


def _importance(form: _Canonical) -> Any:
    if "exp_avg" not in form.moments:
        return form.values
    of_a, of_b = form.moments["exp_avg"]
    return ((form.a * of_a).sum(1) + (form.b * of_b).sum(0)).abs()


def _grown(moment: Any, n_new: int, axis: int, key: str) -> Any:
    """A mean of Adam's with places for new directions: 0, and of squares the mean over the others."""
    import torch

    shape = list(moment.shape)
    shape[axis] = n_new
    value = float(moment.mean()) if key == "exp_avg_sq" else 0.0
    return torch.cat([moment, moment.new_full(shape, value)], axis)
