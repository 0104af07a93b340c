"""Gates on the adapters of a PEFT model, and their files beside the adapter. The arithmetic: edgeqlora_export/gates.py.

PEFT knows nothing of them: a hook weighs what comes out of lora_A, so that the adapter's own files stay plain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from edgeqlora.errors import UserError
from edgeqlora.models.family import Learner
from edgeqlora.models.quantised import plain_model
from edgeqlora_export.gates import N_FEATURES, RECORD, WEIGHTS, Frames, SavedGates, gate, read_gates, write_gates
from edgeqlora_jetson.files import read_json

GATE_FILES = (WEIGHTS, RECORD)


class TimeGate(nn.Module):
    """Weights of the gate of one adapter: 1 everywhere at the start."""

    def __init__(self, kind: str, rank: int, frames: Frames):
        super().__init__()
        n_gates = rank if kind == "rank" else 1
        self.weight, self.bias = nn.Parameter(torch.zeros(n_gates, N_FEATURES)), nn.Parameter(torch.zeros(n_gates))
        self.kind = kind
        self.fixed: torch.Tensor | None = None
        """Gates that hold for all frames instead: (n_gates,)"""
        self._frames = (frames,)  # in a tuple: no part of this module
        self._handle: Any = None

    @property
    def frames(self) -> Frames:
        return self._frames[0]

    def forward(self) -> torch.Tensor:
        """g of the frames that the encoder hears: fp32 (batch, n_frames, n_gates)"""
        if self.fixed is not None:
            return self.fixed
        with torch.autocast(self.weight.device.type, enabled=False):
            return gate(self.frames.z, self.weight, self.bias)

    def listen(self, lora_a: Any) -> None:
        """Weigh what comes out of lora_A."""
        self._handle = lora_a.register_forward_hook(lambda module, args, output: output * self().to(output.dtype))

    def close(self) -> None:
        self._handle.remove()


class Gated(NamedTuple):
    """A linear with a gate on its adapter."""

    adapter: Any
    """PEFT's LoRA layer."""
    gate: TimeGate


def add_gates(learner: Learner, kind: str) -> None:
    """Give each adapter that hears frames a gate that is exactly 1. UserError where there is none."""
    model = plain_model(learner.model)
    heard = {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and learner.hears_frames(name)}
    if not all(isinstance(m.lora_A, nn.ModuleDict) and "default" in m.lora_A for m in heard.values()) or not heard:
        raise UserError(
            f"temporal_gate={kind!r}: no adapter hears frames, or not as plain LoRA: give ranks to linears of the encoder"
        )
    encoder, features = learner.frame_parts()
    frames = Frames(features)
    frames.listen(encoder)
    # On the model and not on PEFT's layers, whose parts all go into the adapter's file.
    model.temporal_gates = nn.ModuleDict()
    for name, module in heard.items():
        lora_a = module.lora_A["default"]
        gate = TimeGate(kind, len(lora_a.weight), frames).to(lora_a.weight.device)
        gate.listen(lora_a)
        model.temporal_gates[name.replace(".", "/")] = gate


def gates_of(model: Any) -> dict[str, Gated]:
    """Adapted linears with a gate, by full name."""
    plain = plain_model(model)
    gates = {key.replace("/", "."): gate for key, gate in getattr(plain, "temporal_gates", {}).items()}
    return {name: Gated(plain.get_submodule(name), gate) for name, gate in gates.items()}


def remove_gates(model: Any) -> None:
    """Adapters add all that they have again."""
    for gated in gates_of(model).values():
        gated.gate.close()
        gated.gate.frames.close()
    if hasattr(plain_model(model), "temporal_gates"):
        del plain_model(model).temporal_gates


def save_gates(model: Any, folder: Path) -> None:
    """Write the gates beside the adapter in `folder`; nothing where the model has none."""
    gates = {name: gated.gate for name, gated in gates_of(model).items()}
    if gates:
        kind = next(iter(gates.values())).kind
        saved = SavedGates(kind, {name: dict(gate.named_parameters()) for name, gate in gates.items()})
        write_gates(folder, saved, beside="adapter_model.safetensors")


def put_gates(model: Any, folder: Path) -> None:
    """Put the gates of `folder` into the model, which has as many. Raises UserError where they do not fit."""
    saved, there = read_gates(folder), gates_of(model)
    linears = saved.linears if saved else {}
    differing = sorted(set(linears) ^ set(there)) or [
        name for name in there if linears[name]["bias"].shape != there[name].gate.bias.shape
    ]
    if differing:
        raise UserError(
            f"{folder}: its gates in time ({len(linears)}) do not fit the adapters ({len(there)} with gates), first "
            f"{differing[0]}: they are of another adapter; copy the whole folder again"
        )
    with torch.no_grad():
        for name, gated in there.items():
            for part, parameter in gated.gate.named_parameters():
                parameter.copy_(linears[name][part])


def load_gates(learner: Learner, folder: Path) -> None:
    """Give the adapters that `folder` has gates for these gates."""
    saved = read_gates(folder)
    assert saved is not None, "open_adapter looks for them"
    add_gates(learner, saved.kind)
    put_gates(learner.model, folder)


def gates_field(folder: Path) -> dict[str, Any]:
    """What a card says of the gates in its folder; {} where there are none."""
    if not (folder / RECORD).is_file():
        return {}
    record = read_json(folder / RECORD, "record of gates")
    return {"temporal_gate": {key: record[key] for key in ("schema", "kind", "parameters")}}
